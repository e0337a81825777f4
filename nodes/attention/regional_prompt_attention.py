"""Words that act where their layers are, in one pass of the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.sd
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.attention.attention_maps import AttentionMaps
from ...layered_core.attention.cross_attention import SCHEDULES
from ...layered_core.attention.regional_plan import REGION_MODES, Region, Settings, plan_regions
from ...layered_core.attention.words import Token
from ...layered_core.errors import LayeredError
from ..layers.socket import LAYERS, read_stack
from .attention_patch import Half, check_model, patched, with_regions

EMBEDDING = "embedding:"
"""What ComfyUI has in front of an embedding's name."""

_DEFAULT = Settings()
_SETTINGS = (
    "mode",
    "schedule",
    "strength",
    "start",
    "end",
    "global_weight",
    "emphasis",
    "guidance",
    "growth",
    "auto_negative",
    "append",
)


class RegionalPromptAttention(io.ComfyNode):
    """MODEL, CLIP and LAYERS to MODEL and conditionings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the user sees."""
        return io.Schema(
            node_id="LD_RegionalPromptAttention",
            display_name="Regional Prompt Attention",
            category="layered diffusion/attention",
            description=(
                "Let each layer's words act where the layer is seen. Takes one pass of the model however "
                "many layers there are. "
                "Works with SD 1.x, 2.x and XL; conditioning areas and ControlNets beside it get the prompt "
                "of the whole picture."
            ),
            search_aliases=["regional prompt", "attention couple", "area prompt", "region", "mask prompt",
            "paint with words", "collage", "couple"],
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.x, 2.x or XL model, inpainting ones "
                "too; it is not changed."),
                io.Clip.Input("clip", tooltip="Encodes all words, with its LoRAs and embeddings (write "
                "embedding:name)."),
                LAYERS.Input("layers", tooltip="The stack. Layers with a prompt act where they are seen; the "
                "rest is left to the main prompt."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture, and all there is where no layer is. Empty: the "
                    "stack's own, or the layers' prompts joined.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What the whole picture must not show; layers add their own negatives in their "
                    "places. Empty: the stack's own.",
                ),
                io.Combo.Input(
                    "mode", options=list(REGION_MODES), default=_DEFAULT.mode,
                    tooltip="regions: every layer its own prompt. joint: the same in one softmax. collage, "
                    "paint with words: the layers' words are "
                    "parts of the prompt and are pushed into their places. Neutral: none.",
                ),
                io.Combo.Input(
                    "schedule", options=["auto", *SCHEDULES], default=_DEFAULT.schedule, advanced=True,
                    tooltip="How the push of words follows the noise; the logs fade as the picture clears. "
                    "auto: log log for collage, else log. "
                    "Neutral: none.",
                ),
                io.Float.Input(
                    "strength", default=_DEFAULT.strength, min=0.0, max=1.0, step=0.05,
                    tooltip="Factor on every layer's attention inside and outside, 0 to 1. Neutral: 0, the "
                    "plain prompt.",
                ),
                io.Float.Input(
                    "start", default=_DEFAULT.start, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which layers begin to act, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end", default=_DEFAULT.end, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which they cease, from start to 1. Neutral: 1.",
                ),
                io.Float.Input(
                    "global_weight", default=_DEFAULT.global_weight, min=0.0, max=1.0, step=0.05,
                    tooltip="Share of attention that the main prompt keeps inside layers, 0 to 1; modes "
                    "regions and joint. Neutral: 0.",
                ),
                io.Float.Input(
                    "emphasis", default=_DEFAULT.emphasis, min=0.0, max=2.0, step=0.05, advanced=True,
                    tooltip="How much a layer's own words are pushed inside beyond their share, 0 to 2; mode "
                    "regions. Neutral: 0.",
                ),
                io.Float.Input(
                    "guidance", default=_DEFAULT.guidance, min=1.0, max=10.0, step=0.1, advanced=True,
                    tooltip="Factor on the sampler's cfg where layers are, in the first part of the "
                    "sampling: brings missing things into small "
                    "places. It multiplies, so begin low; the demo model takes 6. Neutral: 1, and nothing "
                    "happens at cfg 1.",
                ),
                io.Float.Input(
                    "growth", default=_DEFAULT.growth, min=0.0, max=0.25, step=0.01, advanced=True,
                    tooltip="How much wider layers are for their words in the first part of the sampling, as "
                    "a share of the canvas's shorter side, "
                    "0 to 0.25: small things are left out less often. Neutral: 0.",
                ),
                io.Boolean.Input(
                    "auto_negative", default=_DEFAULT.auto_negative,
                    tooltip="A layer's prompt is also negative wherever the layer is not. Neutral: off.",
                ),
                io.Boolean.Input(
                    "append", default=_DEFAULT.append, advanced=True,
                    tooltip="Append words that the prompt lacks instead of stopping with an error; modes "
                    "collage and paint with words. Neutral: off.",
                ),
                io.Boolean.Input(
                    "record", default=False, advanced=True,
                    tooltip="Keep what each layer's words attend to while sampling, for Attention Preview. "
                    "Costs some time. Neutral: off.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, which heeds the layers in the two "
                "conditionings."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the layers' words. "
                "Acts with this node's model."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the "
                "layers' own. Acts with this node's model."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, start: float | None = None, end: float | None = None) -> bool | str:
        """What can be known before running; inputs that are linked come as None."""
        try:
            Settings(start=0.0 if start is None else start, end=1.0 if end is None else end)
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: comfy.model_patcher.ModelPatcher,
        clip: comfy.sd.CLIP,
        layers: Mapping[str, Any],
        prompt: str,
        negative: str,
        record: bool = False,
        **values: Any,
    ) -> io.NodeOutput:
        """Plan, encode, patch."""
        check_model(model)
        settings = Settings(**{k: values[k] for k in _SETTINGS})
        plan = plan_regions(
            read_stack(layers), settings, prompt, negative, partial(tokenise, clip), EMBEDDING, record
        )
        maps = AttentionMaps([r.name for r in plan.cond]) if record else None
        positive = conditioning(clip, plan.prompt, plan.cond, settings, maps)
        return io.NodeOutput(
            patched(model), positive, conditioning(clip, plan.negative, plan.uncond, settings, None)
        )


def tokenise(clip: comfy.sd.CLIP, text: str) -> list[Token]:
    """The tokens of a text as ComfyUI cuts it, without weights, and their places among the keys of
    cross-attention."""
    # All encoders of a UNet model cut words alike.
    chunks = next(iter(clip.tokenize(text, return_word_ids=True).values()))
    tokens: list[Token] = []
    first = 0
    for chunk in chunks:
        tokens += [Token(_what(token), first + i) for i, (token, _, word) in enumerate(chunk) if word]
        first += len(chunk)
    return tokens


def _what(token: object) -> object:
    """A token's id; of an embedding's vector something equal for equal vectors."""
    return token.detach().float().cpu().numpy().tobytes() if isinstance(token, Tensor) else token


def conditioning(
    clip: comfy.sd.CLIP, text: str, regions: tuple[Region, ...], settings: Settings,
    maps: AttentionMaps | None
) -> list[list[Any]]:  # fmt: skip
    """The main prompt encoded as ComfyUI's own node does, with the regions' words in its private key."""
    main = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if maps is None and not any(r.acts for r in regions):
        regions = ()
    encoded = {
        t: clip.encode_from_tokens(clip.tokenize(t), return_dict=True)["cond"][0]
        for t in dict.fromkeys(r.text for r in regions)
        if t
    }
    half = Half(regions, settings, tuple(encoded.get(r.text) for r in regions), main[0][0].shape[1], maps)
    return with_regions(main, half)
