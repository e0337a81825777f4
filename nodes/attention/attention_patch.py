"""Bring regional attention into a sampling run of ComfyUI.

The regions travel in the conditioning, under a private key that ComfyUI's own nodes pass on; the MODEL only
gets a wrapper that looks for them. Everything else is made when a run begins, in that run's own copy of the
model's options, and is dropped with it. Therefore patches that other packs put on the same blocks are called
too, whichever node came first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import comfy.ldm.modules.attention
import comfy.model_patcher
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...layered_core.attention.attention_maps import AttentionMaps
from ...layered_core.attention.parts import Part, find_part
from ...layered_core.attention.regional_attention import RegionalAttention
from ...layered_core.attention.regional_plan import Region, Settings
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.noise.guidance import guided_more
from ..noise.cut_out import CutOut, cut_of

KEY = "layered_diffusion_attention"
"""The key of our entry in a conditioning, of our wrappers on a model, and of the UNet and sigma that a
forward pass hands to our patches."""

PARTS = "layered_diffusion_parts"
"""The key of the parts of the latents that a forward pass is over."""

Block = tuple[str, int, int]
"""Names a cross-attention as ComfyUI does: part of the UNet (input, middle or output), number of the block in
that part, number of the transformer block in that block."""


@dataclass(frozen=True)
class Half:
    """The value under :data:`KEY` in a conditioning: the encoded regions of one half of guidance."""

    regions: tuple[Region, ...]
    settings: Settings
    contexts: tuple[Tensor | None, ...]
    """The encoded text of each region, ``[T_i, C]``; None if the region has no text of its own."""
    tokens: int
    """T, the conditioning's own number of tokens, before other nodes append to it."""
    maps: AttentionMaps | None = None
    """Records attention during a run and then holds the last run's maps; None: nothing is recorded."""


def check_model(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise :class:`LayeredError` unless the model is a UNet whose cross-attention can be reached."""
    family = type(model.model.model_config).__name__
    if not cross_attentions(model.model.diffusion_model):
        raise invalid(
            "model: family", family, "Stable Diffusion 1.x, 2.x and XL, and their inpainting variants",
            "Words per layer work on UNets only so far: use ComfyUI's Conditioning (Set Mask) with this "
            "model",
        )  # fmt: skip


def cross_attentions(unet: nn.Module) -> dict[Block, nn.Module]:
    """Return the cross-attentions of a 2-D UNet by the names under which ComfyUI patches them; an empty dict
    for any other network."""
    unet = getattr(unet, "_orig_mod", unet)  # the model that torch.compile wrapped
    if not isinstance(unet, UNetModel):
        return {}
    parts = [("input", i, m) for i, m in enumerate(unet.input_blocks)] + [("middle", 0, unet.middle_block)]
    parts += [("output", i, m) for i, m in enumerate(unet.output_blocks)]
    found: dict[Block, nn.Module] = {}
    for name, number, part in parts:
        for layer in part if part is not None else ():
            if isinstance(layer, comfy.ldm.modules.attention.SpatialVideoTransformer):
                return {}
            if isinstance(layer, comfy.ldm.modules.attention.SpatialTransformer):
                found |= {(name, number, i): block.attn2 for i, block in enumerate(layer.transformer_blocks)}
    return found


def patched(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of the model that applies the regions in its conditionings. If the model does so
    already, the clone still applies them only once."""
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if clone.get_wrappers(kind, KEY):
        logging.info(
            "Regional Prompt Attention: the model already comes from another Regional Prompt Attention; "
            "the layers of this node take the place of that one's"
        )
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(kind, KEY, _sample)
    return clone


def with_regions(conditioning: Sequence[Sequence[Any]], half: Half) -> list[list[Any]]:
    """Return a copy of the conditioning that carries the regions of ``half`` under :data:`KEY`."""
    return [[words, {**rest, KEY: half}] for words, rest in conditioning]


def _sample(
    executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, latent_image: Tensor, sampler: Any,
    sigmas: Tensor, denoise_mask: Tensor | None = None, *more: Any, **named: Any,
) -> Tensor:  # fmt: skip
    """Wrap a whole sampling run: install the regions that its conditionings carry."""
    guider = executor.class_obj
    cut = cut_of(guider, latent_image, denoise_mask)
    entries = [entry for conditions in guider.conds.values() for entry in conditions or ()]
    halves = {entry["uuid"]: entry[KEY] for entry in entries if KEY in entry}
    if not halves:
        logging.warning(
            "Regional Prompt Attention: no layer acts in this run. Connect the node's positive and "
            "negative to the sampler as well"
        )
    for half in halves.values():
        if half.maps is not None:
            half.maps.clear(cut)
    acting = {uuid: half for uuid, half in halves.items() if half.regions}
    if acting:
        if cut is not None:
            cut.check_size(noise)
        # A hook may change the weights from step to step.
        steady = not any(entry.get("hooks") for entry in entries)
        sampling = guider.model_patcher.get_model_object("model_sampling")
        lengths = {
            entry["uuid"]: entry["cross_attn"].shape[1] for entry in entries if entry["uuid"] in acting
        }
        attentions = {uuid: _attention(half, lengths[uuid], sampling, cut) for uuid, half in acting.items()}
        own = {
            name: {entry["uuid"] for entry in conditions or ()} for name, conditions in guider.conds.items()
        }
        run = _Run(guider, attentions, own, tuple(noise.shape[-2:]), steady)
        options = guider.model_options.setdefault("transformer_options", {})
        for kind, wrapper in (
            (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, run.sample),
            (comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, run.predict),
            (comfy.patcher_extension.WrappersMP.APPLY_MODEL, run.apply),
            (comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, run.forward),
        ):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options)
        replaced = options.setdefault("patches_replace", {}).setdefault("attn2", {})
        for block in cross_attentions(guider.model_patcher.model.diffusion_model):
            replaced[block] = partial(run.attend, block, replaced.get(block) or replaced.get(block[:2]))
        if any(half.settings.guidance != 1 for half in acting.values()):
            after = guider.model_options.get("sampler_post_cfg_function", [])
            guider.model_options["sampler_post_cfg_function"] = [*after, run.guide]
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def _attention(half: Half, length: int, sampling: Any, cut: CutOut | None) -> RegionalAttention:
    window = sampling.percent_to_sigma(half.settings.start), sampling.percent_to_sigma(half.settings.end)
    return RegionalAttention(
        half.regions, half.settings, half.contexts, half.tokens, window, half.maps, length,
        None if cut is None else cut.plan.cut_regions,
    )  # fmt: skip


@dataclass
class _Run:
    """The regional attention of one sampling run."""

    guider: Any
    """ComfyUI's guider of the run."""
    attentions: dict[UUID, RegionalAttention]
    """By the uuid that ComfyUI gives to every conditioning of a run."""
    own: Mapping[str, set[UUID]]
    """The uuids of the conditionings that were connected as positive, negative and so on."""
    latent_size: tuple[int, int]
    """Height and width of the whole latent, h and w. Layers act in passes over all of it and in tiles of it;
    conditionings with a smaller area get the main prompt."""
    steady: bool
    """Whether the model's weights stay the same throughout the run."""
    modules: dict[int, dict[Block, nn.Module]] = field(default_factory=dict)
    """The cross-attentions of every copy of the UNet (there is one for each GPU), by the copy's ``id``."""
    positive: Tensor | None = None
    """The positive's prediction in this step, under Dual CFG Guider."""
    latents: Tensor | None = None
    """The noisy latents of this step, ``[B, C, h, w]``."""
    areas: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    """Height and width of the conditionings that have an area, latent cells."""

    def sample(
        self, executor: comfy.patcher_extension.WrapperExecutor, guider: Any, *more: Any, **named: Any
    ) -> Tensor:
        """Wrap the sampler: give conditionings that ComfyUI has copied a uuid of their own.

        When a conditioning has an area, ComfyUI adds a copy of it to the other half of guidance, with that
        half's text but under the same uuid. The copy gets the regions that belong to its text.
        """
        entries = [(name, entry) for name, conditions in guider.conds.items() for entry in conditions or ()]
        uuid_of_text = {
            id(entry["model_conds"].get("c_crossattn")): entry["uuid"]
            for name, entry in entries
            if entry["uuid"] in self.own[name]
        }
        for name, entry in entries:
            if entry["uuid"] not in self.own[name]:
                entry["uuid"] = uuid4()
                original = uuid_of_text.get(id(entry["model_conds"].get("c_crossattn")))
                if original in self.attentions:
                    self.attentions[entry["uuid"]] = self.attentions[original]
        height, width = self.latent_size
        self.areas = {
            entry["uuid"]: (
                min(entry["area"][0], height - entry["area"][2]),
                min(entry["area"][1], width - entry["area"][3]),
            )
            for _, entry in entries
            if len(entry.get("area") or ()) == 4
        }
        return executor(guider, *more, **named)

    def apply(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, t: Tensor, concat: Any = None,
        context: Any = None, control: Any = None, transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a pass of the model: find out which parts of the latents it is over, before they are scaled."""
        options = transformer_options or {}
        if "uuids" in options:
            options = {**options, PARTS: self._parts(x, options["uuids"])}
        return executor(x, t, concat, context, control, options, **more)

    def _parts(self, x: Tensor, uuids: Sequence[UUID]) -> list[Part | None]:
        """Return the part that each share of the rows of ``x`` ``[B', C, h', w']`` is of, None for the whole; an
        empty list if no layer acts.

        Nodes that sample tile by tile lay the tiles one after the other, each with all its conditionings.
        """
        size = tuple(x.shape[-2:])
        if size == self.latent_size:
            return [None]
        if not any(u in self.attentions for u in uuids) or any(self.areas.get(u) == size for u in uuids):
            return []
        pictures = x[:0] if self.latents is None else self.latents.to(x.device)
        whole = pictures.repeat(len(uuids), 1, 1, 1)  # as the rows of a pass over all of it
        parts: list[Part | None] = []
        for tile in x.split(max(1, len(whole))):
            places = {find_part(*rows) for rows in zip(tile, whole, strict=False)}
            if len(tile) != len(whole) or len(places) != 1 or None in places:
                raise LayeredError(
                    f"layers: a pass of the model is over {size[1]}x{size[0]} latent cells, of which it is not "
                    f"known where they lie among the {self.latent_size[1]}x{self.latent_size[0]} that are "
                    "sampled. Take off the node that samples in parts which it shifts or scales, or Regional "
                    "Prompt Attention"
                )
            parts += places
        return parts

    def forward(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, timesteps: Any = None,
        context: Any = None, y: Any = None,
        control: Any = None, transformer_options: dict[str, Any] | None = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a forward pass: hand our attention patches the UNet that runs and its sigma."""
        options = {} if transformer_options is None else transformer_options
        unet = executor.class_obj
        if id(unet) not in self.modules:
            self.modules[id(unet)] = cross_attentions(unet)
        if options.get(PARTS) and "sigmas" in options:
            options[KEY] = id(unet), float(options["sigmas"].flatten()[0])
        return executor(x, timesteps, context, y, control, options, **more)

    def predict(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, conds: Sequence[Any], x: Tensor,
        *more: Any,
    ) -> Any:  # fmt: skip
        """Wrap the predictions of a step: keep the noisy latents, of which tiles are parts, and the positive's
        prediction for :meth:`guide`."""
        self.latents = x
        out = executor(model, conds, x, *more)
        positive = self.guider.conds.get("positive")
        self.positive = next((o for c, o in zip(conds, out, strict=True) if c and c is positive), None)
        return out

    def guide(self, prediction: Mapping[str, Any]) -> Tensor:
        """Return the prediction with more classifier-free guidance where layers are; called after ComfyUI's
        own.

        In its style regular, Dual CFG Guider gives ``negative + s2 (middle - negative)`` and then adds
        ``s1 (positive - middle)``, of which no function on the prediction is told: its share is added here.
        """
        denoised, cond, uncond = (prediction[k] for k in ("denoised", "cond_denoised", "uncond_denoised"))
        if tuple(denoised.shape[-2:]) != self.latent_size:
            return denoised
        sigma = float(prediction["sigma"].flatten()[0])
        factor = self._factor(prediction["cond"], sigma)
        # At cfg 1 the negative is not computed, so there is no guidance that could be raised.
        if prediction["uncond"] and factor is not None:
            denoised = guided_more(denoised, uncond, cond, prediction["cond_scale"], factor.to(cond))
        positive, middle = self.positive, self.guider.conds.get("middle")
        if positive is not None and middle and prediction["cond"] is middle:
            factor = self._factor(self.guider.conds["positive"], sigma)
            if factor is not None:
                denoised = guided_more(denoised, cond, positive, self.guider.cfg1, factor.to(cond))
        return denoised

    def _factor(self, conditions: Sequence[Mapping[str, Any]] | None, sigma: float) -> Tensor | None:
        """Return the factor on the guidance of every pixel, ``[h, w]``; None if no layer acts there."""
        uuid = next((e["uuid"] for e in conditions or () if e["uuid"] in self.attentions), None)
        return None if uuid is None else self.attentions[uuid].guidance(self.latent_size, sigma)

    def attend(
        self,
        block: Block,
        before: Callable[..., Tensor] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra: dict[str, Any],
    ) -> Tensor:
        """Return the output of one cross-attention with its regions mixed in. ``before`` is another pack's
        patch of the same attention; it is called too."""
        plain = _plain(extra)
        out = plain(q, k, v) if before is None else before(q, k, v, extra)
        if KEY not in extra:
            return out
        unet, sigma = extra[KEY]
        module = self.modules[unet][block]
        out = out.clone()
        shares = [(part, uuid) for part in extra[PARTS] for uuid in extra["uuids"]]
        for rows, (part, uuid) in zip(torch.arange(len(q)).chunk(len(shares)), shares, strict=True):
            if uuid in self.attentions:
                at = slice(int(rows[0]), int(rows[-1]) + 1)
                base = out[at] if before is None else plain(q[at], k[at], v[at])
                mixed = self.attentions[uuid](
                    q[at], k[at], v[at], base, size=tuple(extra["activations_shape"][-2:]), sigma=sigma,
                    heads=extra["n_heads"],
                    block=(unet, block) if self.steady else None,
                    project=lambda x: (module.to_k(x), module.to_v(x)), attend=plain, part=part,
                )  # fmt: skip
                out[at] = mixed if before is None else out[at] + mixed - base
        return out


def _plain(extra: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Return ComfyUI's attention as the block itself would call it, including the overrides of other
    packs."""
    named = {"attn_precision": extra["attn_precision"], "transformer_options": extra}

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None:
            return comfy.ldm.modules.attention.optimized_attention(q, k, v, extra["n_heads"], **named)
        return comfy.ldm.modules.attention.optimized_attention_masked(
            q, k, v, extra["n_heads"], mask=bias.to(q.dtype), **named
        )

    return attend
