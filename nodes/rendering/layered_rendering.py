"""Lead each layer to its place while the picture is still forming."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ...layered_core.attention.regional_plan import Settings, layers_without_words, plan_regions
from ...layered_core.canvas.compositing import flat
from ...layered_core.document import LayerDocument
from ...layered_core.errors import LayeredError, check_letters, invalid
from ...layered_core.rendering.rendering_plan import (
    COLOURS,
    FORMS,
    PRESETS,
    Rendering,
    background_of,
    plan_rendering,
)
from ..attention.attention_patch import acting_alone as regions_alone
from ..attention.attention_patch import check_model
from ..attention.attention_patch import patched as with_regions
from ..attention.conditionings import KEY as REGIONS
from ..attention.embeddings import EMBEDDING, check_layer_words, check_words, tell_dynamic
from ..attention.learnt_words import words_with_values
from ..attention.lora_patch import LoadedLoras, load_loras, with_loras
from ..attention.lora_patch import patched as with_lora_wrapper
from ..attention.regional_prompt_attention import Texts, conditioning
from ..layers.remarks import tell
from ..layers.socket import LAYERS, read_stack
from ..noise.repaint_parts import vae_unit
from .parts import Entry, Job, plain, with_parts
from .rendering_patch import NAME, acting_alone, check_frames, patched

_DEFAULT = Rendering()
_SIDE = 8
"""Cells a side of the plain picture that is encoded for one colour."""

THEN = {
    "regions": Settings(),
    "regions guided": Settings(guidance=6.0, growth=0.03),
    "prompt": None,
}
"""What follows the share: settings of Regional Prompt Attention, or None for the prompt alone."""


class LayeredRendering(io.ComfyNode):
    """Make a MODEL and conditionings with which every layer is first predicted by itself, in its place."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_LayeredRendering",
            display_name=NAME,
            category="layered diffusion/attention",
            description=(
                "Lead each layer to its place while the picture is still forming: in the first part of the sampling "
                "every layer is predicted by itself, with its own words and its own colour planted in its place; then "
                "the picture goes on as one. Works with every model of pictures."
            ),
            search_aliases=["layered rendering diffusion", "lrdiff", "vision guidance", "layout", "box prompt",
            "multidiffusion", "regional prompt", "layer bind"],
            inputs=[
                io.Model.Input("model", tooltip="A model of any family. It is not changed."),
                io.Clip.Input("clip", tooltip="Encodes all words, with its LoRAs and embeddings (write "
                "embedding:name)."),
                LAYERS.Input("layers", tooltip="The stack. Layers with a prompt are led to where they are seen; "
                "all else is the background."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture, and for the background, unless the hindmost layer covers "
                        "the canvas and has words of its own. Empty: the stack's own prompt, or the layers' "
                        "prompts joined.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What the whole picture must not show; layers add their own negatives in their own "
                        "passes. Empty: the stack's own negative.",
                ),
                io.Float.Input(
                    "share", default=_DEFAULT.share, min=0.0, max=1.0, step=0.05,
                    tooltip="Share of the sampling, from its start, in which every layer is predicted by itself, 0 "
                        "to 1. Each of these steps takes a pass a layer. Neutral: 0. "
                        "The default is 0.3: by then it is decided what is where.",
                ),
                io.Float.Input(
                    "strength", default=_DEFAULT.strength, min=0.0, max=1.0, step=0.05,
                    tooltip="How strongly a layer's colour is planted in its place, 0 to 1. Neutral: 0, layers "
                        "are only kept apart. "
                        "The default is 0.2, which leads most layers to their places.",
                ),
                io.Combo.Input(
                    "colour", options=list(COLOURS), default=_DEFAULT.colour,
                    tooltip="What is planted. words: what the model itself would put there, found in the first "
                        "step. picture: the colour of the layer's picture. constant: one colour for all. noise: "
                        "what the noise holds where the words act, as in the paper. Neutral: none. "
                        "The default is words, which needs no picture and does best.",
                ),
                io.Color.Input(
                    "constant", default="#ffffff", advanced=True,
                    tooltip="The colour that 'constant' plants. Neutral: none, unless colour is constant.",
                ),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default=_DEFAULT.preset, advanced=True,
                    tooltip="faithful: every layer has a negative pass of its own. fast: one negative pass for all, "
                        "in little more than half the time. Neutral: none.",
                ),
                io.Combo.Input(
                    "then", options=list(THEN), default="regions",
                    tooltip="What follows the share. regions: each layer's words go on acting where it is "
                        "(Regional Prompt Attention). regions guided: the same with more guidance, which puts more "
                        "things right and makes pictures harsher. prompt: the prompt alone, on every model. "
                        "Neutral: prompt. The default is regions, which keeps layers' words apart to the end.",
                ),
                io.Combo.Input(
                    "form", options=list(FORMS), default=_DEFAULT.form, advanced=True,
                    tooltip="denoised: the picture that the model predicts where something is planted. paper: what "
                        "was planted is taken out again, as the paper's formula reads; for comparison. "
                        "Neutral: none.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the colours 'picture' and 'constant'; not needed "
                    "for the others."),
                io.Conditioning.Input("positive_after", optional=True, tooltip="What follows the share in place of "
                    "'then', such as the positive of a Regional Prompt Attention with its own settings, whose model "
                    "is then connected here."),
                io.Conditioning.Input("negative_after", optional=True, tooltip="What follows the share in place of "
                    "'then', such as the negative of a Regional Prompt Attention. Layers without a negative of their "
                    "own have this one in their own passes too."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A clone of the model that renders the layers in the "
                    "two conditionings."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, with the words of all layers for "
                    "their own passes. It acts on a sampler with another model too, unless hooks are put on it: then "
                    "the sampler needs the model of this node."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, with the layers' "
                    "negatives. It acts as the positive does."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, layers: Mapping[str, Any], prompt: str,
        negative: str, share: float, strength: float, colour: str, constant: str, preset: str, then: str, form: str,
        vae: Any = None, positive_after: Sequence[Entry] | None = None,
        negative_after: Sequence[Entry] | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        """Plan the parts, encode their words, and patch a clone of the model."""
        rendering = Rendering(share, strength, colour, read_colour(constant), form, preset)
        check_frames(model)
        document = read_stack(layers)
        tell_dynamic(NAME, document, prompt, negative)
        loras = load_loras(document, model, clip)
        remarks = [] if loras is None else [loras.remark]
        if wordless := layers_without_words(document):
            names = ", ".join(repr(name) for name in wordless)
            remarks.append(
                f"Layers without words: {names}. They are part of the background: write what they show into their "
                "prompt"
            )
        if share > 0 and (learnt := words_with_values(document)):
            remarks.append(
                f"Learnt words {', '.join(repr(word) for word in learnt)}: while layers are painted by themselves they "
                "act without their values, which regions add afterwards"
            )
        tell(cls, NAME, remarks)
        plan = plan_rendering(document, rendering, prompt, negative, EMBEDDING)
        check_words(clip, plan.prompt, "prompt: ")
        check_words(clip, plan.negative, "negative: ")
        if share > 0:
            check_layer_words(clip, document)
        job = Job(rendering, plan, _encoded(vae, document, rendering))
        given = [None if x is None else plain(x) for x in (positive_after, negative_after)]
        model, *halves = _following(model, clip, document, then, prompt, negative, given, loras)
        if share > 0:
            behind = background_of(document)
            background = "" if behind is None else behind.name
            model = patched(model)
            halves = acting_alone(
                *(
                    with_parts(job, clip, *half, loras, background)
                    for half in zip(_HALVES, halves, strict=True)
                )
            )
        return io.NodeOutput(with_lora_wrapper(model, loras), *with_loras(loras, *halves))


_HALVES = ("positive", "negative")


def read_colour(text: str) -> tuple[float, float, float]:
    """Return the colour "#rrggbb" as red, green and blue in 0..1."""
    if not isinstance(text, str) or not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise invalid("constant", text, "a colour as #rrggbb, such as #ffffff for white")
    red, green, blue = (value / 255 for value in bytes.fromhex(text.removeprefix("#")))
    return red, green, blue


def _following(
    model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, document: LayerDocument, then: str, prompt: str,
    negative: str, given: Sequence[list[Entry] | None], loras: LoadedLoras | None,
) -> list[Any]:  # fmt: skip
    """Return model, positive and negative of what follows the share; what is ``given`` goes before ``then``."""
    if all(half is not None for half in given):
        return [model, *given]
    settings = THEN[then]
    if settings is None:
        words = prompt.strip() or document.words, negative.strip() or document.negative
        for text in words:
            check_letters("words", text)
        texts = Texts(clip, None, loras)
        own: list[Any] = [texts.encode(text) for text in words]
    else:
        try:
            family = check_model(model)
        except LayeredError as error:
            raise LayeredError(f"then {then!r}: {error}. Or set then to 'prompt'") from None
        texts = Texts(clip, family, loras)
        texts.learn(model, document)
        plan = plan_regions(
            document, settings, prompt, negative, texts.tokenise, EMBEDDING, cross_attention=family is None
        )
        own = [
            conditioning(texts, "positive", plan.prompt, plan.cond, settings),
            conditioning(texts, "negative", plan.negative, plan.uncond, settings),
        ]
    halves = [ours if half is None else half for ours, half in zip(own, given, strict=True)]
    if settings is None:
        return [model, *halves]
    used = [ours for ours, half in zip(own, given, strict=True) if half is None]
    expected = [half[0][1][REGIONS].name for half in used if half[0][1][REGIONS].regions]
    return [with_regions(model, expected), *(regions_alone(*halves) if expected else halves)]


def _encoded(vae: Any, document: LayerDocument, rendering: Rendering) -> Tensor | None:
    """Return the latents that the colours are taken from, in the VAE's scale; None if none are needed."""
    if not rendering.asks_vae or rendering.share == 0:
        return None
    if vae is None:
        raise invalid(
            f"vae: with colour {rendering.colour!r}", None, "a VAE, which encodes the colours",
            "Connect the VAE that belongs to the model, or choose the colour 'words'",
        )  # fmt: skip
    unit = vae_unit(vae)
    if rendering.colour == "constant":
        return _latents(
            vae, torch.tensor(rendering.constant)[:, None, None].expand(3, _SIDE * unit, _SIDE * unit)
        )
    picture = flat(document)
    fill = (0, -picture.shape[2] % unit, 0, -picture.shape[1] % unit)
    picture = functional.pad(picture[None], fill, mode="replicate")[0]
    return torch.cat([_latents(vae, picture), _latents(vae, torch.full_like(picture, 0.5))])


def _latents(vae: Any, picture: Tensor) -> Tensor:
    """Return the latents ``[1, C, ..., h, w]`` of a picture ``[3, H, W]``."""
    latents: Tensor = vae.encode(picture.permute(1, 2, 0)[None])
    return latents
