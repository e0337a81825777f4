"""Bring regional attention into a sampling run of ComfyUI.

The regions travel in the conditioning, under a private key that ComfyUI's own nodes pass on; the MODEL only
gets a wrapper that looks for them. Everything else is made when a run begins, in that run's own copy of the
model's options, and is dropped with it. The attention itself is patched when a forward pass begins, over
whatever is there by then. Therefore patches that other packs or hooks put on the same blocks are called too,
whichever node came first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
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

from ...layered_core.attention.parts import Part, find_part
from ...layered_core.attention.regional_attention import RegionalAttention
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.noise.guidance import guided_more
from ..noise.cut_out import CutOut, cut_of
from .conditionings import KEY, Half, acting_halves
from .context_patches import ContextPatches, check_has_patch

PARTS = "layered_diffusion_parts"
"""The key of the parts of the latents that a forward pass is over."""

Block = tuple[str, int, int]
"""Names a cross-attention as ComfyUI does: part of the UNet (input, middle or output), number of the block in
that part, number of the transformer block in that block."""


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


def patched(
    model: comfy.model_patcher.ModelPatcher, expected: Collection[str] = ()
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of the model that applies the regions in its conditionings. If the model does so
    already, the clone still applies them only once.

    Args:
        model: a UNet model.
        expected: names of the halves that have regions; the log says so if a run lacks them.
    """
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if clone.get_wrappers(kind, KEY):
        logging.info(
            "Regional Prompt Attention: the model already comes from another Regional Prompt Attention; "
            "the layers of this node take the place of that one's"
        )
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(kind, KEY, partial(_sample, frozenset(expected)))
    return clone


def _sample(
    expected: Collection[str],
    executor: comfy.patcher_extension.WrapperExecutor,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Wrap a whole sampling run: install the regions that its conditionings carry."""
    guider = executor.class_obj
    cut = cut_of(guider, latent_image, denoise_mask)
    entries = [entry for conditions in guider.conds.values() for entry in conditions or ()]
    carried = [entry[KEY] for entry in entries if KEY in entry]
    _warn_of_missing(expected, carried)
    for half in carried:
        if half.maps is not None:
            half.maps.clear(cut)
    acting = acting_halves(guider.conds)
    if acting:
        if cut is not None:
            cut.check_size(noise)
        per_token = max(half.per_token for half in acting.values())
        check_has_patch(guider.model_options, per_token)
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
        run = _Run(guider, attentions, own, tuple(noise.shape[-2:]), steady, per_token)
        options = guider.model_options.setdefault("transformer_options", {})
        for kind, wrapper in (
            (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, run.sample),
            (comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, run.predict),
            (comfy.patcher_extension.WrappersMP.APPLY_MODEL, run.apply),
            (comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, run.forward),
        ):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options)
        if any(half.settings.guidance != 1 or half.settings.rescale for half in acting.values()):
            after = guider.model_options.get("sampler_post_cfg_function", [])
            guider.model_options["sampler_post_cfg_function"] = [*after, run.guide]
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def _warn_of_missing(expected: Collection[str], carried: Sequence[Half]) -> None:
    """Say in the log which halves have layers whose words are in none of the run's conditionings."""
    missing = sorted(set(expected) - {half.name for half in carried if half.regions}, reverse=True)
    if missing and not carried:
        logging.warning(
            "Regional Prompt Attention: no layer acts in this run. Connect the node's positive and "
            "negative to the sampler as well"
        )
    elif missing:
        logging.warning(
            "Regional Prompt Attention: the layers' words in its %s do not act in this run. Connect its %s "
            "to the sampler; a node that mixes two conditionings must get it as the first, which it keeps",
            *[" and ".join(missing)] * 2,
        )


def _attention(half: Half, length: int, sampling: Any, cut: CutOut | None) -> RegionalAttention:
    window = sampling.percent_to_sigma(half.settings.start), sampling.percent_to_sigma(half.settings.end)
    return RegionalAttention(
        half.regions, half.settings, half.contexts, half.tokens, window, half.maps, length // half.per_token,
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
    per_token: int
    """Number of encoded vectors for one token, see :attr:`Half.per_token`."""
    modules: dict[int, dict[Block, nn.Module]] = field(default_factory=dict)
    """The cross-attentions of every copy of the UNet (there is one for each GPU), by the copy's ``id``."""
    predictions: dict[str, Tensor] = field(default_factory=dict)
    """The predictions of this step by the names of the guider's conditionings."""
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
        self._warn_of_areas(entries)
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

    def _warn_of_areas(self, entries: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Say in the log which layers do not act because their conditioning has an area, (height, width, y,
        x) in cells of the latent, that is not all of it."""
        small = [
            (entry[KEY].layers, name)
            for name, entry in entries
            if entry["uuid"] in self.own[name]
            and entry["uuid"] in self.attentions
            and tuple((entry.get("area") or self.latent_size)[:2]) != self.latent_size
        ]
        for layers, name in dict.fromkeys(small):
            logging.warning(
                "Regional Prompt Attention: the words of layers %s do not act in this run's %s, which has an "
                "area smaller than the picture. A mask on the conditioning keeps them",
                layers,
                name,
            )

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
        """Wrap a forward pass over the latent or tiles of it: patch the UNet's cross-attentions."""
        options = {} if transformer_options is None else transformer_options
        unet = executor.class_obj
        if id(unet) not in self.modules:
            self.modules[id(unet)] = cross_attentions(unet)
        if options.get(PARTS) and "sigmas" in options:
            options = self._with_patches(id(unet), options)
        return executor(x, timesteps, context, y, control, options, **more)

    def _with_patches(self, unet: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a forward pass's options with our patches around those of others."""
        patches, replaced = options.get("patches", {}), options.get("patches_replace", {})
        context = ContextPatches(patches.get("attn2_patch", []), self.per_token)
        if context.patches:
            patches = {**patches, "attn2_patch": [context.note, *context.patches]}
        before, sigma = replaced.get("attn2", {}), float(options["sigmas"].flatten()[0])
        attn2 = {
            block: partial(
                self.attend,
                sigma,
                context,
                module,
                (unet, block) if self.steady and not context.patches else None,
                before.get(block) or before.get(block[:2]),
            )
            for block, module in self.modules[unet].items()
        }
        return {**options, "patches": patches, "patches_replace": {**replaced, "attn2": {**before, **attn2}}}

    def predict(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, conds: Sequence[Any], x: Tensor,
        *more: Any,
    ) -> Any:  # fmt: skip
        """Wrap the predictions of a step: keep the noisy latents, of which tiles are parts, and the predictions
        for :meth:`guide`. Other packs predict one conditioning alone between, which is not kept."""
        self.latents = x
        out = executor(model, conds, x, *more)
        if len(conds) > 1:
            names = {id(conditions): name for name, conditions in self.guider.conds.items() if conditions}
            self.predictions = {names[id(c)]: o for c, o in zip(conds, out, strict=True) if id(c) in names}
        return out

    def guide(self, prediction: Mapping[str, Any]) -> Tensor:
        """Return the prediction with more classifier-free guidance where layers are, rescaled there; called
        after ComfyUI's own.

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
        positive, middle = self.predictions.get("positive"), self.guider.conds.get("middle")
        if positive is not None and middle and prediction["cond"] is middle:
            factor = self._factor(self.guider.conds["positive"], sigma)
            if factor is not None:
                denoised = guided_more(denoised, cond, positive, self.guider.cfg1, factor.to(cond))
        return self._rescaled(prediction, denoised, sigma)

    def _factor(self, conditions: Sequence[Mapping[str, Any]] | None, sigma: float) -> Tensor | None:
        """Return the factor on the guidance of every pixel, ``[h, w]``; None if no layer acts there."""
        attention = self._acting(conditions)
        return None if attention is None else attention.guidance(self.latent_size, sigma)

    def _acting(self, conditions: Sequence[Mapping[str, Any]] | None) -> RegionalAttention | None:
        """Return the regions of a conditioning; None if no layer acts there."""
        uuid = next((e["uuid"] for e in conditions or () if e["uuid"] in self.attentions), None)
        return None if uuid is None else self.attentions[uuid]

    def _rescaled(self, prediction: Mapping[str, Any], denoised: Tensor, sigma: float) -> Tensor:
        """Return the guided prediction, rescaled where layers are.

        What Dual CFG Guider makes of it afterwards is rescaled: in its style regular it adds ``s1 (positive -
        middle)``, in nested it takes ``negative + s2 (denoised - negative)``.
        """
        cond, whole, share = prediction["cond_denoised"], denoised, 1.0
        attention = self._acting(prediction["cond"])
        positive, middle = self.predictions.get("positive"), self.guider.conds.get("middle")
        if positive is not None and middle and prediction["cond"] is middle:
            whole, cond = denoised + self.guider.cfg1 * (positive - cond), positive
            attention = self._acting(self.guider.conds["positive"]) or attention
        elif positive is not None and middle:
            share, negative = self.guider.cfg2, self.predictions["negative"]
            whole = negative + share * (denoised - negative)
        if attention is None or not attention.settings.rescale or not share:
            return denoised
        return denoised + attention.rescaling(whole, cond, 0.0, sigma) / share

    def attend(
        self,
        sigma: float,
        context: ContextPatches,
        module: nn.Module,
        cached: Hashable,
        before: Callable[..., Tensor] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra: dict[str, Any],
    ) -> Tensor:
        """Return the output of one cross-attention with its regions mixed in.

        Args:
            sigma: the noise level.
            context: other packs' patches of the context.
            module: the cross-attention.
            cached: key under which the projected texts are kept; None if they may change at any step.
            before: another pack's replacement of this attention; it is called too.
            q, k, v: queries ``[B, N, C]``, and the main prompt's keys and values ``[B, K, C]``.
            extra: what ComfyUI tells a patch.
        """
        context.check(q, k)
        plain = _plain(extra)
        out = (plain(q, k, v) if before is None else before(q, k, v, extra)).clone()
        halves = list(zip(extra["uuids"], extra["cond_or_uncond"], strict=True))
        shares = [(part, *half) for part in extra[PARTS] for half in halves]
        for own, (part, uuid, which) in zip(torch.arange(len(q)).chunk(len(shares)), shares, strict=True):
            if uuid in self.attentions:
                at = slice(int(own[0]), int(own[-1]) + 1)
                base = out[at] if before is None else plain(q[at], k[at], v[at])
                of_half = {**extra, "uuids": [uuid], "cond_or_uncond": [which]}
                mixed = self.attentions[uuid](
                    q[at], k[at], v[at], base, size=tuple(extra["activations_shape"][-2:]), sigma=sigma,
                    heads=extra["n_heads"], block=cached,
                    project=partial(context.project, module, at, of_half), attend=plain, part=part,
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
