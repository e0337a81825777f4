"""Watch the attention of a transformer while its pipeline samples, and let regions act on it.

The watching is public API of PyTorch: a mode that sees every ``scaled_dot_product_attention`` of this thread. It
does not see compiled graphs and other kernels; these are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from layered_core.attention.joint_attention import Attend
from layered_core.attention.joint_regions import relative_noise
from layered_core.errors import LayeredError
from layered_core.noise.guidance import FORMING
from layered_diffusers.transformer.hosts import Host
from layered_diffusers.transformer.joining import Joined, Joiner, Layout, ListJoiner, Row
from layered_diffusers.transformer.latents import PATCH, pack
from layered_diffusers.transformer.layer_loras import JointLoras

Factor = Callable[[float], Tensor]
"""Relative noise to the factor on the guidance of every latent cell, ``[B, 1, h, w]``."""

Group = tuple[slice, Row, Layout]
"""Rows of the batch that are computed together."""

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class Joint(TorchFunctionMode):
    """The attention of one sampling run.

    At every call of the transformer it puts the texts of the regions that act beside the main prompt, and
    computes the attention by the core. Where nothing acts the call is the pipeline's own, to the bit.
    """

    def __init__(
        self, host: Host, transformer: Any, latent: tuple[int, int], sigmas: Sequence[float]
    ) -> None:
        """Prepare a run.

        Args:
            host: the pipeline's row.
            transformer: the pipeline's transformer.
            latent: height and width of the latents.
            sigmas: noise levels of the steps, ``[T + 1]``.
        """
        super().__init__()
        self.host, self.transformer, self.latent, self.sigmas = host, transformer, latent, sigmas
        grid = latent[0] // PATCH, latent[1] // PATCH
        self.joiner = (ListJoiner if host.listed else Joiner)(host, transformer, grid)
        self.halves: dict[str, list[Row]] = {}
        """For cond, and for uncond if it is computed, a row for each picture."""
        self.factor: Factor | None = None
        """How much more the guidance is in the layers; None: nowhere."""
        self.scale = 1.0
        """Scale of classifier-free guidance."""
        self.loras: JointLoras | None = None
        """LoRAs of layers; None: none acts."""
        self.idle = False
        """Whether calls are only counted, because another method makes them with rows of its own."""
        self.step = self.call = 0
        self._rows: Sequence[Row] = ()
        self._groups: list[Group] = []
        self._seen = self._attended = 0
        self._worded: Any = None

    def install(self, stack: ExitStack) -> None:
        """Begin to watch, until ``stack`` closes.

        Raises:
            LayeredError: the attention cannot be watched.
        """
        _check_visible(self.transformer)
        stack.enter_context(self.joiner.positions())
        for hook in (
            self.transformer.register_forward_pre_hook(self._before, with_kwargs=True),
            self.transformer.register_forward_hook(self._after),
        ):
            stack.callback(hook.remove)
        stack.enter_context(self)

    def next_step(self) -> None:
        """Note that the scheduler has made a step."""
        self.step, self.call = self.step + 1, 0

    @property
    def passes(self) -> tuple[tuple[str, ...], ...]:
        """The halves in each call of a step."""
        return self.host.passes if "uncond" in self.halves else (("cond",),)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an attention of the transformer, or call any other function."""
        if func is functional.scaled_dot_product_attention and self._groups:
            return self._attend(func, {**dict(zip(_ARGUMENTS, args, strict=False)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))

    def _before(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self.idle:
            return None
        self._rows = [row for half in self.passes[self.call] for row in self.halves[half]]
        sigma = relative_noise(self.sigmas[self.step])
        acts = [r.regions is not None and r.regions.acts(sigma) for r in self._rows]
        watched = any(r.regions is not None and r.regions.maps is not None for r in self._rows)
        uneven = not self.host.masks and any(
            r.main < named["encoder_hidden_states"].shape[1] for r in self._rows
        )
        if not any(acts) and not watched and not uneven and self.loras is None:
            return None
        texts = [
            list(r.regions.contexts) if on and r.regions is not None else []
            for r, on in zip(self._rows, acts, strict=True)
        ]
        given = tuple(list(x) if isinstance(x, list) else x for x in given)
        layouts = self.joiner.join(Joined(self._rows, texts), given, named)
        if self.loras is not None:
            self.loras.lay_out(self._rows, layouts, self.joiner.lengths(given, named), sigma > FORMING)
        self._groups = _grouped(self._rows, layouts)
        self._seen = self._attended = 0
        return given, named

    def _after(self, module: nn.Module, given: Any, output: Any) -> Any:
        watched, self._groups, self.joiner.joined = bool(self._groups), [], None
        if self.loras is not None:
            self.loras.lay_out([], [], [])
        if watched and not self._attended:
            raise LayeredError(
                "regions: no attention of the transformer was seen. Use diffusers' native attention, without "
                "caches and compiled blocks"
            )
        self.call += 1
        guides = self.factor is not None and "uncond" in self.halves and not self.idle
        return self._guided(output) if guides else None

    def _attend(self, func: Any, given: dict[str, Any]) -> Tensor:
        self._seen += 1
        q, k, v = (given[name] for name in _ARGUMENTS[:3])
        kind = self._kind(q.shape[2], k.shape[2])
        if kind == "other":
            return func(**given)
        if given.get("scale") is not None:
            q = q * (given["scale"] * q.shape[-1] ** 0.5)
        self._attended += kind == "joint"
        attend: Attend = lambda q, k, v, bias: func(q, k, v, attn_mask=bias)  # noqa: E731
        out = torch.zeros_like(q)
        for rows, row, layout in self._groups:
            places = layout.live if kind == "joint" else layout.text
            whole = len(places) == q.shape[2]
            own = [x[rows] if whole else x[rows].index_select(2, places) for x in (q, k, v)]
            found = self._compute(kind, own, row, layout, attend)
            out[rows] = found if whole else out[rows].index_copy(2, places, found)
        return out

    def _compute(self, kind: str, own: Sequence[Tensor], row: Row, layout: Layout, attend: Attend) -> Tensor:
        q, k, v = own
        if row.regions is None:
            return attend(q, k, v, None)
        if kind == "refine":
            return row.regions.refine(q, k, v, layout.spans, attend)
        sigma = relative_noise(self.sigmas[self.step])
        return row.regions.mix(
            q, k, v, layout.spans, latent=self.latent, patch=PATCH, sigma=sigma, attend=attend
        )

    def _kind(self, queries: int, keys: int) -> str:
        """Return whether an attention is of all tokens, of texts alone (``refine``), or another."""
        if self.host.family.refined:
            # Pictures and texts may have equally many tokens; the order of the calls is always the same.
            pictures, texts = len(self.transformer.noise_refiner), len(self.transformer.context_refiner)
            return (
                "other" if self._seen <= pictures else "refine" if self._seen <= pictures + texts else "joint"
            )
        return "joint" if queries == keys > self.joiner.grid[0] * self.joiner.grid[1] else "other"

    def _guided(self, output: Any) -> Any:
        """Change the predictions so that the pipeline's guidance is ``factor`` times its scale in every cell."""
        assert self.factor is not None
        factor = self.factor(relative_noise(self.sigmas[self.step]))
        if bool((factor == 1).all()):
            return None
        count = len(self.halves["cond"])
        found = output[0]
        if len(self.passes) == 2:
            factor = pack(factor.repeat(1, found.shape[-1] // PATCH**2, 1, 1)).to(found)
            if self.call == 1:
                self._worded = found
                return None
            more = self.scale * (factor - 1) / (1 - self.scale)
            return (found + more * (self._worded - found),)
        at = {half: slice(i * count, (i + 1) * count) for i, half in enumerate(self.passes[0])}
        both = torch.stack(found) if isinstance(found, list) else found.clone()
        shape = (count, 1, 1) if both.ndim == 5 else (count, 1)
        factor = factor.view(*shape, *factor.shape[-2:]).to(both)
        both[at["cond"]] = both[at["uncond"]] + factor * (both[at["cond"]] - both[at["uncond"]])
        return (list(both) if isinstance(found, list) else both,)


def _grouped(rows: Sequence[Row], layouts: Sequence[Layout]) -> list[Group]:
    """Group neighbouring rows of one document."""
    groups: list[Group] = []
    for i, (row, layout) in enumerate(zip(rows, layouts, strict=True)):
        if groups and groups[-1][1] == row and torch.equal(groups[-1][2].live, layout.live):
            groups[-1] = slice(groups[-1][0].start, i + 1), row, layout
        else:
            groups.append((slice(i, i + 1), row, layout))
    return groups


def _check_visible(transformer: Any) -> None:
    """Raise :class:`LayeredError` if the transformer is compiled or attends by other kernels."""
    name = type(transformer).__name__
    compiled = getattr(transformer, "_compiled_call_impl", None) is not None or hasattr(
        transformer, "_orig_mod"
    )
    if compiled or any(m._compiled_call_impl is not None for m in transformer.modules()):
        raise LayeredError(
            f"regions: {name} is compiled, so its attention cannot be reached. Load the model without "
            f"torch.compile"
        )
    for backend in _backends(transformer):
        if backend != "native":
            raise LayeredError(
                f"regions: attention backend of {name} is {backend!r}; allowed: 'native'. Call "
                f"set_attention_backend('native') and leave DIFFUSERS_ATTN_BACKEND unset"
            )


def _backends(transformer: Any) -> set[str]:
    """Return the names of diffusers' attention backends that a transformer uses."""
    usual = "native"
    with suppress(ImportError):  # diffusers before 0.35 has no other kernels
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        usual = str(_AttentionBackendRegistry.get_active_backend()[0].value)
    processors = (m.processor for m in transformer.modules() if hasattr(m, "processor"))
    own = {getattr(p, "_attention_backend", None) for p in processors}
    return {usual if b is None else str(getattr(b, "value", b)) for b in own}
