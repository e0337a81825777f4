"""Regional attention in a sampling run of a UNet: its cross-attentions are patched when a forward pass begins, over
whatever is there by then. Therefore patches that other packs or hooks put on the same blocks are called too,
whichever node came first."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

import comfy.ldm.modules.attention
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...layered_core.attention.regional_attention import RegionalAttention
from ..noise.cut_out import CutOut
from .conditionings import Half
from .context_patches import ContextPatches, check_has_patch
from .learnt_words import Spoken
from .regional_run import PARTS, Run

Block = tuple[str, int, int]
"""Names a cross-attention as ComfyUI does: part of the UNet (input, middle or output), number of the block in
that part, number of the transformer block in that block."""


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


def key_widths(unet: nn.Module) -> list[int]:
    """Return the widths of the keys of a UNet's cross-attentions, in the order in which it runs them."""
    return [module.to_k.out_features for module in cross_attentions(unet).values()]


@dataclass
class UNetRun(Run):
    """The regional attention of one sampling run of a UNet."""

    steady: bool = False
    """Whether the model's weights stay the same throughout the run."""
    per_token: int = 1
    """Number of encoded vectors for one token, see :attr:`Half.per_token`."""
    modules: dict[int, dict[Block, nn.Module]] = field(default_factory=dict)
    """The cross-attentions of every copy of the UNet (there is one for each GPU), by the copy's ``id``."""
    spoken: dict[RegionalAttention, Spoken] = field(default_factory=dict)
    """Where learnt words with values stand in the texts of those of ``attentions`` that have some."""

    def start(self, halves: Mapping[UUID, Half], cut: CutOut | None) -> None:
        """Make the attention of every conditioning that has regions, and wrap the run.

        Raises:
            LayeredError: a text encoder gives several vectors a token, and nothing makes one key of them.
        """
        self.per_token = max(half.per_token for half in halves.values())
        check_has_patch(self.guider.model_options, self.per_token)
        entries = [entry for conditions in self.guider.conds.values() for entry in conditions or ()]
        # A hook may change the weights from step to step.
        self.steady = not any(entry.get("hooks") for entry in entries)
        for entry in entries:
            if entry["uuid"] in halves:
                half, length = halves[entry["uuid"]], entry["cross_attn"].shape[1]
                self.attentions[entry["uuid"]] = RegionalAttention(
                    half.regions, half.settings, half.contexts, half.tokens, self.window(half.settings),
                    half.maps, length // half.per_token, None if cut is None else cut.plan.cut_regions,
                )  # fmt: skip
                if half.spoken is not None:
                    spoken = half.spoken.with_length(length // half.per_token)
                    self.spoken[self.attentions[entry["uuid"]]] = spoken
        self.wrap(
            (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, self.sample),
            (comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, self.predict),
            (comfy.patcher_extension.WrappersMP.APPLY_MODEL, self.apply),
            (comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self.forward),
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
                number,
                (unet, block) if self.steady and not context.patches else None,
                before.get(block) or before.get(block[:2]),
            )
            for number, (block, module) in enumerate(self.modules[unet].items())
        }
        return {**options, "patches": patches, "patches_replace": {**replaced, "attn2": {**before, **attn2}}}

    def attend(
        self,
        sigma: float,
        context: ContextPatches,
        module: nn.Module,
        number: int,
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
            number: its place in the order in which the UNet runs them.
            cached: key under which the projected texts are kept; None if they may change at any step.
            before: another pack's replacement of this attention; it is called too.
            q, k, v: queries ``[B, N, C]``, and the main prompt's keys and values ``[B, K, C]``.
            extra: what ComfyUI tells a patch.
        """
        context.check(q, k)
        plain = _plain(extra)
        halves = list(zip(extra["uuids"], extra["cond_or_uncond"], strict=True))
        shares = [(part, *half) for part in extra[PARTS] for half in halves]
        rows = [slice(int(own[0]), int(own[-1]) + 1) for own in torch.arange(len(q)).chunk(len(shares))]
        k, v = self._with_learnt_words(k, v, number, [(at, s[1]) for at, s in zip(rows, shares, strict=True)])
        out = (plain(q, k, v) if before is None else before(q, k, v, extra)).clone()
        for at, (part, uuid, which) in zip(rows, shares, strict=True):
            if uuid in self.attentions:
                attention = self.attentions[uuid]
                spoken = self.spoken.get(attention)
                base = out[at] if before is None else plain(q[at], k[at], v[at])
                of_half = {**extra, "uuids": [uuid], "cond_or_uncond": [which]}
                mixed = attention(
                    q[at], k[at], v[at], base, size=tuple(extra["activations_shape"][-2:]), sigma=sigma,
                    heads=extra["n_heads"], block=cached,
                    project=partial(context.project, module, at, of_half, attention), attend=plain, part=part,
                    change=spoken.of_regions(number) if spoken is not None else None,
                )  # fmt: skip
                out[at] = mixed if before is None else out[at] + mixed - base
        return out

    def _with_learnt_words(
        self, k: Tensor, v: Tensor, number: int, shares: Sequence[tuple[slice, UUID]]
    ) -> tuple[Tensor, Tensor]:
        """Return the main prompt's keys and values with those of its learnt words changed.

        Args:
            k, v: of all rows of the pass, ``[B, K, C]``.
            number: of the cross-attention.
            shares: rows and the uuid of the conditioning that they have.
        """
        acting = [
            (at, self.spoken[attention])
            for at, uuid in shares
            if (attention := self.attentions.get(uuid)) in self.spoken
        ]
        if not any(spoken.prompt for _, spoken in acting):
            return k, v
        k, v = k.clone(), v.clone()
        for at, spoken in acting:
            k[at], v[at] = spoken.of_prompt(number, k[at], v[at])
        return k, v


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
