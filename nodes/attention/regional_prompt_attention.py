"""Let words act where their layers are, in one pass of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.model_patcher
import comfy.sd
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.attention.attention_maps import AttentionMaps
from ...layered_core.attention.cross_attention import SCHEDULES
from ...layered_core.attention.families import Family
from ...layered_core.attention.regional_plan import (
    REGION_MODES,
    Region,
    Settings,
    layers_without_words,
    plan_regions,
)
from ...layered_core.attention.words import Token
from ...layered_core.document import Layer
from ...layered_core.errors import check_letters, invalid
from ...layered_core.learning.word_values import Place
from ..layers.remarks import tell, warn
from ..layers.socket import LAYERS, read_stack
from .attention_patch import acting_alone, check_mode, check_model, patched
from .conditionings import KEY, Half
from .embeddings import EMBEDDING, check_layer_words, check_words, tell_dynamic
from .learnt_words import Learnt, Spoken, learnt_words, places, words_with_values
from .lora_patch import LoadedLoras, load_loras, with_loras
from .lora_patch import patched as with_lora_wrapper
from .prompt_tokens import TransformerPrompts, tokenise
from .unet_run import key_widths

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
    "rescale",
)


class RegionalPromptAttention(io.ComfyNode):
    """Make a MODEL and conditionings in which each layer's words act where the layer is seen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        return io.Schema(
            node_id="LD_RegionalPromptAttention",
            display_name="Regional Prompt Attention",
            category="layered diffusion/attention",
            description=(
                "Let each layer's words act where the layer is seen. One pass of the model a step is "
                "enough for any number of layers. Works with Stable Diffusion 1.x to XL and 3, Flux, Flux 2, "
                "Chroma, Qwen-Image, Z-Image, Lumina 2, Krea 2 and Anima; conditioning areas and "
                "ControlNets that are used beside it get the prompt of the whole picture."
            ),
            search_aliases=["regional prompt", "attention couple", "area prompt", "region", "mask prompt",
            "paint with words", "collage", "couple"],
            inputs=[
                io.Model.Input("model", tooltip="Stable Diffusion 1.x to XL, 3 or 3.5, Flux (Kontext and "
                    "Fill too), Flux 2 (Klein), Chroma, Qwen-Image (Edit too), Z-Image, Lumina 2, Krea 2 or "
                    "Anima. It is not changed."),
                io.Clip.Input("clip", tooltip="Encodes all words, with its LoRAs and embeddings (write "
                "embedding:name)."),
                LAYERS.Input("layers", tooltip="The stack. Layers with a prompt act where they are seen, and so "
                "do the LoRAs of their recipes; the rest is left to the main prompt."),
                io.String.Input(
                    "prompt", multiline=True, default="", dynamic_prompts=True,
                    tooltip="Words for the whole picture; they act alone where no layer is. Empty: the "
                        "stack's own prompt, or the layers' prompts joined.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", dynamic_prompts=True,
                    tooltip="What the whole picture must not show; layers add their own negatives where "
                        "they are seen. Empty: the stack's own negative.",
                ),
                io.Combo.Input(
                    "mode", options=list(REGION_MODES), default=_DEFAULT.mode,
                    tooltip="regions: every layer has its own prompt. joint: the same prompts share one "
                        "softmax. collage, paint with words: the layers' words are part of the prompt, "
                        "and attention to them is raised where their layers are. eligen: the rule of "
                        "EliGen's LoRAs for Flux and Qwen-Image, so load such a LoRA first; not on UNets or "
                        "Anima. Neutral: none.",
                ),
                io.Combo.Input(
                    "schedule", options=["auto", *SCHEDULES], default=_DEFAULT.schedule, advanced=True,
                    tooltip="How the raised attention depends on sigma: constant stays, log and log log "
                        "fade as the noise falls. auto: log log for collage, else log. Neutral: none.",
                ),
                io.Float.Input(
                    "strength", default=_DEFAULT.strength, min=0.0, max=1.0, step=0.05,
                    tooltip="Factor on every layer's 'attention inside' and 'attention outside', 0 to 1. "
                        "Neutral: 0, the plain prompt. "
                        "The default is 1, so that the layers act as their recipes say.",
                ),
                io.Float.Input(
                    "start", default=_DEFAULT.start, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which layers begin to act, 0 to 1. Neutral: 0.",
                ),
                io.Float.Input(
                    "end", default=_DEFAULT.end, min=0.0, max=1.0, step=0.01, advanced=True,
                    tooltip="Share of the sampling at which layers stop acting, from start to 1. Neutral: 1.",
                ),
                io.Float.Input(
                    "global_weight", default=_DEFAULT.global_weight, min=0.0, max=1.0, step=0.05,
                    tooltip="Share of attention that the main prompt keeps inside layers, 0 to 1; modes "
                    "regions and joint. Neutral: 0. "
                    "The default is 0.2, which keeps the layers in one picture.",
                ),
                io.Float.Input(
                    "emphasis", default=_DEFAULT.emphasis, min=0.0, max=2.0, step=0.05, advanced=True,
                    tooltip="How far attention to a layer's own words is raised inside the layer, beyond "
                        "their share, 0 to 2; mode regions. Neutral: 0. "
                        "The default is 0.5, so that small layers are not left out.",
                ),
                io.Float.Input(
                    "guidance", default=_DEFAULT.guidance, min=1.0, max=10.0, step=0.1, advanced=True,
                    tooltip="Factor on the sampler's cfg where layers are, in the first part of the "
                        "sampling: the model leaves fewer small places empty. Begin with a low value; 6 "
                        "suits the demo model. Neutral: 1. It has no effect at cfg 1.",
                ),
                io.Float.Input(
                    "growth", default=_DEFAULT.growth, min=0.0, max=0.25, step=0.01, advanced=True,
                    tooltip="How far beyond a layer its words act in the first part of the sampling, as "
                        "a share of the canvas's shorter side, 0 to 0.25: small things are left out less "
                        "often. Neutral: 0.",
                ),
                io.Boolean.Input(
                    "auto_negative", default=_DEFAULT.auto_negative,
                    tooltip="A layer's prompt is also used as a negative prompt wherever the layer is "
                        "not. Neutral: off.",
                ),
                io.Boolean.Input(
                    "append", default=_DEFAULT.append, advanced=True,
                    tooltip="Append layers' words that are missing in the prompt, instead of stopping "
                        "with an error; modes collage and paint with words. Neutral: off.",
                ),
                io.Boolean.Input(
                    "record", default=False, advanced=True,
                    tooltip="Record where each layer's words are attended to while sampling, for "
                        "Attention Preview. Takes some time. Neutral: off.",
                ),
                io.Float.Input(
                    "rescale", default=_DEFAULT.rescale, min=0.0, max=1.0, step=0.05, optional=True,
                    advanced=True,
                    tooltip="How far each layer's part of the guided picture is brought back to the contrast "
                        "that it has without guidance, 0 to 1, so that a high guidance burns it less; 0.5 "
                        "suits the demo model. Neutral: 0. It has no effect at cfg 1.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A clone of the model that applies the "
                    "layers in the two conditionings."),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the layers' "
                    "words. It acts on a sampler with another model too, unless hooks are put on it: then the "
                    "sampler needs the model of this node."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the "
                    "layers' negatives. It acts as the positive does."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

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
        """Plan the regions, encode their words, and patch a clone of the model."""
        family = check_model(model)
        settings = Settings(**{k: values[k] for k in _SETTINGS if k in values})
        check_mode(family, settings)
        document = read_stack(layers)
        tell_dynamic("Regional Prompt Attention", document, prompt, negative)
        acts = settings.strength > 0
        window = settings.start, settings.end
        loras = load_loras(document, model, clip, *window, settings.growth) if acts else None
        remarks = [] if loras is None else [loras.remark]
        if wordless := layers_without_words(document):
            remarks.append(
                f"Layers without words: {', '.join(repr(name) for name in wordless)}. Only the main prompt acts "
                "where they are: write what they show into their prompt"
            )
        tell(cls, "Regional Prompt Attention", remarks)
        if acts or record:
            check_layer_words(clip, document)
        texts = Texts(clip, family, loras)
        if acts:
            texts.learn(model, document)
        plan = plan_regions(
            document, settings, prompt, negative, texts.tokenise, EMBEDDING, record, family is None
        )
        check_words(clip, plan.prompt, "prompt: ")
        check_words(clip, plan.negative, "negative: ")
        maps = AttentionMaps([r.name for r in plan.cond]) if record else None
        halves = (
            conditioning(texts, "positive", plan.prompt, plan.cond, settings, maps),
            conditioning(texts, "negative", plan.negative, plan.uncond, settings),
        )
        expected = [half[0][1][KEY].name for half in halves if half[0][1][KEY].regions]
        alone = acting_alone(*halves) if expected else halves
        return io.NodeOutput(with_lora_wrapper(patched(model, expected), loras), *with_loras(loras, *alone))


class Texts:
    """The texts of one run, for a UNet or a transformer."""

    def __init__(self, clip: comfy.sd.CLIP, family: Family | None, loras: LoadedLoras | None = None) -> None:
        """Read texts with ComfyUI's CLIP, for a transformer's family or, if None, for a UNet; each layer's own with
        its LoRAs."""
        self.clip, self.family, self.loras = clip, family, loras
        self._learnt: tuple[Learnt, ...] = ()
        self._prompts = None if family is None else TransformerPrompts(clip)

    def tokenise(self, text: str) -> list[Token]:
        """Return the tokens of a text, without weights, with their places among the encoded vectors."""
        return tokenise(self.clip, text) if self._prompts is None else self._prompts.tokenise(text)

    def encode(self, text: str, layer: str | None = None) -> list[list[Any]]:
        """Encode a text as CLIP Text Encode does, with the LoRAs of a layer.

        Args:
            text: any words.
            layer: the layer whose own words they are. None: they are the whole picture's, with the LoRAs of a layer
                that covers all of it.
        """
        changed: AbstractContextManager[None] = nullcontext()
        if self.loras is not None:
            changed = self.loras.encoding(self.clip, self.loras.covering if layer is None else layer)
        with changed:
            encoded: list[list[Any]] = self.clip.encode_from_tokens_scheduled(
                self.clip.tokenize(text), show_pbar=False
            )
            return encoded

    def learn(self, model: comfy.model_patcher.ModelPatcher, layers: Iterable[Layer]) -> None:
        """Take in the learnt words with values that layers' recipes name, for a UNet. On a transformer say that the
        words act as embeddings alone.

        Raises:
            LayeredError: values are broken, or were learnt with another kind of model.
        """
        if self.family is None:
            self._learnt = learnt_words(key_widths(model.model.diffusion_model), layers, self.tokenise)
        elif found := words_with_values(layers):
            names = ", ".join(repr(name) for name in found)
            warn(
                "Regional Prompt Attention",
                f"learnt words {names} act without their values, which need a UNet",
            )

    def spoken(self, text: str, regions: Iterable[Region]) -> Spoken | None:
        """Return where learnt words stand in a main prompt and in its regions' own texts; None: nowhere."""
        found = Spoken(self._places(text), tuple(self._places(region.text) for region in regions))
        return found if self._learnt and found else None

    def _places(self, text: str) -> tuple[Place, ...]:
        if not self._learnt or not text:
            return ()
        length = sum(len(chunk) for chunk in next(iter(self.clip.tokenize(text).values())))
        return places(self.tokenise(text), self._learnt, length)

    def kept(self, region: Region, mode: str) -> Tensor | None:
        """Return which vectors of a region's own text a transformer reads; None: all of them.

        Raises:
            LayeredError: the text is longer than the family's limit.
        """
        if self._prompts is None or self.family is None or not region.text:
            return None
        kept = self._prompts.kept(region.text)
        if len(kept) > self.family.limit:
            raise invalid(
                f"layer {region.name!r}: tokens of its words", len(kept),
                f"at most {self.family.limit}, as {self.family.name} was trained with", "Shorten the words",
            )  # fmt: skip
        # EliGen's LoRAs were trained with padding.
        return None if self.family.padded or mode == "eligen" else kept


def conditioning(
    texts: Texts,
    name: str,
    text: str,
    regions: tuple[Region, ...],
    settings: Settings,
    maps: AttentionMaps | None = None,
) -> list[list[Any]]:
    """Return the main prompt, encoded as CLIP Text Encode does, with the encoded regions under the private
    key. A CLIP whose hooks have a schedule encodes every text once for each part of the sampling.

    Args:
        texts: encodes texts.
        name: "positive" or "negative".
        text: the main prompt.
        regions: where which words act.
        settings: see :class:`Settings`.
        maps: records attention, if given.

    Raises:
        LayeredError: a region's text is longer than the transformer's limit.
    """
    check_letters("prompt", text)
    for region in regions:
        check_letters("a layer's words", region.text)
    if maps is None and not any(r.acts for r in regions):
        regions = ()
    kept = tuple(texts.kept(r, settings.mode) for r in regions)
    regions = tuple(
        r if k is None else r.without_padding(k.tolist()) for r, k in zip(regions, kept, strict=True)
    )
    keys = [(r.text, "" if texts.loras is None else texts.loras.named(r.name)) for r in regions]
    encoded = {key: texts.encode(*key) for key in dict.fromkeys(keys) if key[0]}
    count = sum(len(chunk) for chunk in next(iter(texts.clip.tokenize(text).values())))
    carried = []
    for part, (words, rest) in enumerate(texts.encode(text)):
        own = [encoded[key][part] if key[0] else (None, None) for key in keys]
        half = Half(
            name, regions, settings, tuple(None if c is None else c[0] for c, _ in own), words, count,
            tuple(extra for _, extra in own), kept, maps, texts.spoken(text, regions),
        )  # fmt: skip
        carried.append([words, {**rest, KEY: half}])
    return carried
