"""Regional attention in a sampling run of a transformer.

The texts of the regions are joined to the main prompt when a pass of the model begins, and only in passes in
which layers act; in all others the pass is ComfyUI's own. A conditioning with regions gets passes of its own,
so everything in such a pass is about one text. Which attention call is which follows from the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

import comfy.conds
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import torch
from torch import Tensor, nn

from ...layered_core.attention.cross_attention import CLOSED, merge_heads, split_heads
from ...layered_core.attention.families import Family
from ...layered_core.attention.joint_attention import Attend
from ...layered_core.attention.joint_regions import JointRegions, relative_noise
from ...layered_core.attention.parts import Part
from ...layered_core.attention.spans import Spans
from ...layered_core.errors import LayeredError, invalid
from ..noise.cut_out import CutOut
from .conditionings import Half
from .lora_places import Layout, words_of
from .regional_run import Run
from .transformer_families import network_of

APART = "layered_diffusion_apart"
"""The key in a processed conditioning that keeps it from sharing a pass with another."""

PASS = "layered_diffusion_pass"
"""The key of our pass in the transformer's options."""

OVERRIDE = "optimized_attention_override"


@dataclass
class TransformerRun(Run):
    """The regional attention of one sampling run of a transformer."""

    family: Family
    cut: CutOut | None = None
    """What Regenerate Layers cut out of the picture; None: the whole canvas is sampled."""

    halves: dict[UUID, Half] = field(default_factory=dict)
    """The regions of every conditioning that has some."""

    def start(self, halves: Mapping[UUID, Half], cut: CutOut | None) -> None:
        """Wrap the run. The attention of each conditioning is made once ComfyUI has processed the
        conditionings."""
        self.halves, self.cut = dict(halves), cut
        self.wrap(
            (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, self.sample),
            (comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, self.predict),
            (comfy.patcher_extension.WrappersMP.APPLY_MODEL, self.apply),
            (comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, self.forward),
        )

    @property
    def cells(self) -> tuple[int, int]:
        """Height and width of the picture, tokens."""
        height, width = (-(-side // self.family.patch) for side in self.latent_size)
        return height, width

    def noise(self, sigma: float) -> float:
        """Return the standard deviation of the noise over that of the picture, at the sampler's sigma."""
        sampling = self.guider.model_patcher.get_model_object("model_sampling")
        return relative_noise(sigma) if isinstance(sampling, comfy.model_sampling.CONST) else sigma

    def sample(
        self, executor: comfy.patcher_extension.WrapperExecutor, guider: Any, *more: Any, **named: Any
    ) -> Tensor:
        """Wrap the sampler: make the attention of every conditioning with regions, and give these conditionings
        passes of their own."""
        entries = [(name, e) for name, conditions in guider.conds.items() for e in conditions or ()]
        for name, entry in entries:
            # ComfyUI may have copied a conditioning to another half, with that half's text.
            if entry["uuid"] in self.halves and entry["uuid"] in self.own[name]:
                half = self.halves[entry["uuid"]]
                self._check_references(half, entry)
                self.attentions[entry["uuid"]] = self._attention(half, name, entry, *more)

        def sampled(guider: Any, *more: Any, **named: Any) -> Tensor:
            for _, entry in entries:
                if entry["uuid"] in self.attentions:
                    apart = comfy.conds.CONDConstant(str(entry["uuid"]))
                    entry["model_conds"] = {**entry["model_conds"], APART: apart}
            out: Tensor = executor(guider, *more, **named)
            return out

        return super().sample(sampled, guider, *more, **named)

    def _check_references(self, half: Half, entry: Mapping[str, Any]) -> None:
        conds = entry["model_conds"]
        if self.family.multiple > 1 and ("ref_latents" in conds or "siglip_feats" in conds):
            raise LayeredError(
                f"layers {half.layers}: words per layer do not act on {self.family.name} with reference "
                "pictures, whose captions stand between the texts. Take the references off, or use Flux Kontext, "
                "Flux 2 or Qwen-Image Edit"
            )

    def _attention(
        self, half: Half, name: str, entry: Mapping[str, Any], sigmas: Tensor, extra_args: Mapping[str, Any],
        callback: Any, noise: Tensor, latent_image: Tensor | None = None, denoise_mask: Tensor | None = None,
        *more: Any,
    ) -> JointRegions:  # fmt: skip
        """Return the attention of one conditioning; the regions' texts are processed as ComfyUI processes
        prompts of this family."""
        process = partial(
            comfy.samplers.encode_model_conds, self.guider.inner_model.extra_conds, noise=noise,
            device=noise.device, prompt_type=name, latent_image=latent_image, denoise_mask=denoise_mask,
            seed=extra_args.get("seed"),
        )  # fmt: skip
        contexts: list[Tensor | None] = []
        options = self.guider.model_options.get("transformer_options", {})
        for region, words, rest, kept in zip(
            half.regions, half.contexts, half.extras, half.kept, strict=True
        ):
            if words is None:
                contexts.append(None)
                continue
            condition = {**(rest or {}), "cross_attn": words[None], "model_conds": {}}
            with words_of(options, [region.name]):
                processed = process(conds=[condition])[0]["model_conds"]["c_crossattn"].cond[0]
            left = self._filled_up(len(processed), len(words))
            contexts.append(processed if kept is None or self.family.padded else processed[kept + left])
        length = entry["model_conds"]["c_crossattn"].cond.shape[1]
        left = self._filled_up(length, entry["cross_attn"].shape[1])
        regions = [replace(r, words=tuple(w + left for w in r.words)) for r in half.regions]
        attention = JointRegions(
            regions, half.settings, contexts, length, self.window(half.settings), half.maps, None,
            None if self.cut is None else self.cut.plan.cut_regions,
        )  # fmt: skip
        return attention

    def _filled_up(self, now: int, before: int) -> int:
        """Return how many tokens ComfyUI put before a text of ``before`` tokens, of which it made ``now``."""
        return now - before if self.family.positions == "end" else 0

    def apply(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, t: Tensor, concat: Any = None,
        context: Any = None, control: Any = None, transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a pass of the model: join the regions' texts to the main prompt, and override the attention."""
        apart, options = more.pop(APART, None), transformer_options or {}
        ours = [u for u in options.get("uuids", ()) if u in self.attentions]
        parts = self._parts(x, options["uuids"]) if ours else []
        if apart is None or not parts:
            return executor(x, t, concat, context, control, options, **more)
        if len(options["uuids"]) > 1:
            raise LayeredError(
                "model: another node evaluates several conditionings in one pass, of which one has layers' words. "
                "Take that node off, or Regional Prompt Attention"
            )
        attention = self.attentions[ours[0]]
        assert isinstance(attention, JointRegions)
        sigma = self.noise(float(options["sigmas"].flatten()[0]))
        if not attention.acts(sigma) and attention.maps is None:
            return executor(x, t, concat, context, control, options, **more)
        network = network_of(executor.class_obj)
        now = _Pass.of(self.family, attention, x, context, parts, sigma, network, options.get(OVERRIDE))
        if now.acting:
            context = now.joined(context)
            if more.get("attention_mask") is not None:
                more["attention_mask"] = now.widened(more["attention_mask"])
        return executor(x, t, concat, context, control, now.put_into(options), **more)

    def forward(self, executor: comfy.patcher_extension.WrapperExecutor, *args: Any, **named: Any) -> Tensor:
        """Wrap a forward pass of the network: let texts stand where they would stand alone, in families that
        count them in their own rotary embedding."""
        now: _Pass | None = (named.get("transformer_options") or {}).get(PASS)
        network = executor.class_obj
        if now is None or not now.acting or not hasattr(network, "rope_embedder"):
            return executor(*args, **named)
        return _in_place(executor, network, now, *args, **named)


@dataclass
class _Pass:
    """One pass of the model over one conditioning with regions."""

    family: Family
    attention: JointRegions
    parts: Sequence[Part | None]
    """The parts of the picture that the pass is over, one after the other in the batch."""
    sigma: float
    acting: bool
    """Whether the regions' texts are joined; if not, the pass is only recorded."""
    before: Callable[..., Tensor] | None
    """Another pack's override of the attention, which is called in place of ComfyUI's attention."""
    latent: tuple[int, int]
    """Height and width of the latents of this pass."""
    frames: int
    """Frames whose tokens follow one another."""
    main: range
    """Tokens of the main prompt."""
    texts: tuple[range, ...]
    """Tokens of every region's own text."""
    closed: range
    """Tokens that fill up the regions' texts."""
    pads: range
    """Tokens with which the model fills up the text."""
    refining: range = range(0)
    """Which calls of attention are of texts among themselves, counted from 0."""
    calls: int = 0
    """How many calls of attention there were so far."""
    alike: int = 0
    """How many calls so far had as many queries as keys, where a picture has as many tokens as its texts."""

    @classmethod
    def of(
        cls, family: Family, attention: JointRegions, x: Tensor, context: Tensor, parts: Sequence[Part | None],
        sigma: float, network: nn.Module, before: Callable[..., Tensor] | None,
    ) -> _Pass:  # fmt: skip
        """Lay out a pass of a network over latents ``x`` with the main prompt ``context`` ``[B, T, C]``."""
        acting = attention.acts(sigma)
        at = context.shape[1]
        main, texts = range(at), []
        for words in attention.contexts:
            count = 0 if words is None or not acting else len(words)
            texts.append(range(at, at + count))
            at += count
        # The model then fills up the text by as many tokens as without regions.
        closed = range(at, at + -(at - len(main)) % family.multiple)
        pads = range(closed.stop, closed.stop + -closed.stop % family.multiple)
        refining = _refiners(network)
        # Krea 2 takes frames for pictures of a batch.
        frames = x.shape[2] if x.ndim == 5 and not hasattr(network, "txtfusion") else 1
        if family.cross and frames > 1:
            raise invalid("latent: frames", frames, f"1, as words per layer act on pictures of {family.name}")
        latent = int(x.shape[-2]), int(x.shape[-1])
        return cls(
            family,
            attention,
            parts,
            sigma,
            acting,
            before,
            latent,
            frames,
            main,
            tuple(texts),
            closed,
            pads,
            refining,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the picture, tokens."""
        height, width = (-(-side // self.family.patch) for side in self.latent)
        return height, width

    @property
    def text_length(self) -> int:
        """Number of tokens of all texts, with what fills them up."""
        return self.pads.stop

    @property
    def pixels(self) -> int:
        """Number of tokens of the picture."""
        return self.grid[0] * self.grid[1] * self.frames

    def joined(self, context: Tensor) -> Tensor:
        """Return the main prompt ``[B, T, C]`` with the texts of the regions behind it."""
        own = [c.to(context) for c in self.attention.contexts if c is not None]
        own.append(context.new_zeros(len(self.closed), context.shape[2]))
        return torch.cat([context, torch.cat(own).expand(len(context), -1, -1)], 1)

    def widened(self, mask: Tensor) -> Tensor:
        """Return a mask that another node made, of the tokens ``[B, T]`` or of their pairs ``[B, N, N]``, with the
        regions' texts in it, which it leaves open."""
        at, more = len(self.main), self.pads.start - len(self.main)
        # Numbers of tokens are 1 where a token is read; masks of pairs are 0 there.
        free = 1 if mask.dtype == torch.bool or (mask.ndim == 2 and not mask.is_floating_point()) else 0
        for dim in range(1, mask.ndim):
            shape = [*mask.shape[:dim], more, *mask.shape[dim + 1 :]]
            mask = torch.cat(
                [
                    mask.narrow(dim, 0, at),
                    mask.new_full(shape, free),
                    mask.narrow(dim, at, mask.shape[dim] - at),
                ],
                dim,
            )
        return mask

    def put_into(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a pass's options with our override of the attention, and texts moved to their positions."""
        changed = {**options, PASS: self, OVERRIDE: torch.compiler.disable(self.override)}
        if self.acting and self.family.positions != "none" and not self.family.refined:
            patches = options.get("patches", {})
            changed["patches"] = {**patches, "post_input": [self.move, *patches.get("post_input", [])]}
        return changed

    def move(self, args: dict[str, Any]) -> dict[str, Any]:
        """Let each region's text stand where it would stand as the prompt. A patch of the network's input, whose
        ``txt_ids`` ``[B, T, axes]`` are the positions of text."""
        before = args["txt_ids"]
        ids = before.clone()
        for text in self.texts:
            first = self.main.stop - len(text) if self.family.positions == "end" else self.main.start
            ids[:, text.start : text.stop] = before[:, first : first + len(text)]
        return {**args, "txt_ids": ids}

    def layout(self, plain: Layout) -> Layout:
        """Return the layout of this pass, from that of one without regions' texts."""
        names = tuple(r.name for r in self.attention.regions)
        return replace(
            plain, main=self.main, texts=self.texts, names=names, closed=self.closed, pads=self.pads
        )

    def spans(self, length: int) -> Spans:
        """Return where everything stands in a joint sequence of ``length`` tokens."""
        at = self.text_length
        return Spans(
            length, self.main, self.texts, range(at, at + self.pixels), self.grid, self.pads, self.closed
        )

    def override(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None,
        attn_precision: Any = None, skip_reshape: bool = False, skip_output_reshape: bool = False, **named: Any,
    ) -> Tensor:  # fmt: skip
        """Stand for ComfyUI's attention."""
        call = func if self.before is None else partial(self.before, func)
        named["attn_precision"] = attn_precision
        shapes = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape}
        queries, keys = (x.shape[2 if skip_reshape else 1] for x in (q, k))
        compute = self._computation(queries, keys)
        if compute is None:
            return call(q, k, v, heads, mask=mask, **shapes, **named)
        if not skip_reshape:
            q, k, v = (split_heads(x, heads) for x in (q, k, v))

        def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            bias = None if bias is None else bias.to(q.dtype)
            return call(q, k, v, heads, mask=bias, skip_reshape=True, skip_output_reshape=True, **named)

        out = compute(q, k, v, attend, _additive(mask, q))
        return out if skip_output_reshape else merge_heads(out)

    def _computation(self, queries: int, keys: int) -> Callable[..., Tensor] | None:
        """Return what computes the next call, of so many tokens; None: it is not ours."""
        number, self.calls = self.calls, self.calls + 1
        if self.family.cross:
            if (queries, keys) != (self.pixels, self.text_length):
                return None
            # A picture with as many tokens as the texts reads itself, then them, in every block.
            self.alike += queries == keys
            return None if self.alike % 2 else self._cross
        if number in self.refining and queries == keys == self.text_length:
            return self._refine if self.acting else None
        return self._joint if queries == keys >= self.text_length + self.pixels else None

    def _joint(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
        """Compute one attention of all tokens, part by part of the picture."""
        spans, count = self.spans(q.shape[2]), len(self.parts)
        rows = zip(*(x.chunk(count) for x in (q, k, v)), strict=True)
        masks = mask.chunk(count) if mask is not None and len(mask) == len(q) else [mask] * count
        out = [
            self.attention.mix(
                *own, spans, latent=self.latent, patch=self.family.patch, sigma=self.sigma, attend=attend,
                part=part, mask=own_mask, fused=self.before is None,
            )
            for own, part, own_mask in zip(rows, self.parts, masks, strict=True)
        ]  # fmt: skip
        return out[0] if count == 1 else torch.cat(out)

    def _refine(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
        """Compute one attention of texts among themselves, each apart from the others."""
        spans = self.spans(self.text_length + self.pixels)
        return self.attention.refine(q, k, v, spans, attend, mask)

    def _cross(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend, mask: Tensor | None) -> Tensor:
        """Compute one attention of the picture to texts, part by part of the picture."""
        heads = q.shape[1]
        if mask is not None:
            raise LayeredError(
                f"model: another node masks the text that {self.family.name} reads. Take that node off, or Regional "
                "Prompt Attention"
            )

        def flat(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
            return merge_heads(attend(*(split_heads(x, heads) for x in (q, k, v)), bias))

        out = []
        for part, *own in zip(
            self.parts, *(merge_heads(x).chunk(len(self.parts)) for x in (q, k, v)), strict=True
        ):
            queries, keys, values = own
            texts = tuple([x[:, t.start : t.stop] if t else None for t in self.texts] for x in (keys, values))
            main = [x[:, : self.main.stop] for x in (keys, values)]
            out.append(
                self.attention(
                    queries, *main, flat(queries, *main), size=self.grid, sigma=self.sigma, heads=heads,
                    block=None, project=_no_projection, attend=flat, part=part, texts=texts,
                )
            )  # fmt: skip
        return split_heads(torch.cat(out), heads)


@torch.compiler.disable
def _in_place(executor: Any, network: Any, now: _Pass, *args: Any, **named: Any) -> Tensor:
    """Run a network's forward pass with texts where they would stand alone. Compiled code knows its modules, so the
    pass runs as it was written."""
    before = network.rope_embedder
    network.rope_embedder = _Positions(before, now)
    try:
        out: Tensor = executor(*args, **named)
        return out
    finally:
        network.rope_embedder = before


def _no_projection(texts: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("the texts' keys and values are known")


def _additive(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """Return a mask of ComfyUI's attention as floats that broadcast to ``[B, H, N, N]``."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, CLOSED)
    return mask.to(q.dtype)[(None,) * (3 - mask.ndim)].unsqueeze(1) if mask.ndim < 4 else mask.to(q.dtype)


def _refiners(network: nn.Module) -> range:
    """Return which calls of attention in a pass are of texts among themselves, counted from 0."""
    if hasattr(network, "context_refiner"):  # Lumina 2, Z-Image
        return range(len(network.context_refiner))
    if hasattr(network, "txtfusion"):  # Krea 2: first, every token's own layers read one another
        first = len(network.txtfusion.layerwise_blocks)
        return range(first, first + len(network.txtfusion.refiner_blocks))
    return range(0)


class _Positions(nn.Module):
    """A rotary embedding of Lumina 2 or Z-Image for one pass: it is asked for the text's positions first, then for
    the picture's. Each region's text stands where it would stand as the prompt, and the picture where it
    stands without regions."""

    def __init__(self, inner: nn.Module, now: _Pass) -> None:
        super().__init__()
        self.inner, self.now, self.asked = inner, now, 0

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embedding of positions ``[B, N, axes]``."""
        self.asked += 1
        now, ids = self.now, ids.clone()
        main = len(now.main)
        if self.asked == 1:
            first = ids[:, :1, 0].clone()
            for text in (*now.texts, now.closed):
                ids[:, text.start : text.stop, 0] = first + torch.arange(len(text)).to(ids)
            ids[:, now.pads.start : now.pads.stop, 0] = first + main + torch.arange(len(now.pads)).to(ids)
        elif self.asked == 2:
            ids[:, : now.pixels, 0] = ids[:, : now.pixels, 0] - (now.pads.start - main)
        embedded: Tensor = self.inner(ids)
        return embedded
