"""Attention sharing, LayerDiffuse's method for SD1.5: several pictures ("frames") of a scene attend to each
other.

A frame is a row of the batch; the frames of a scene are consecutive: row ``r`` is frame ``r % F``. Every
attention module of the UNet is replaced by a unit that adds a low-rank change for each frame, optionally a
control signal, and then attention across frames. Parameter names are those of the published files. Source:
the authors' Forge extension [V]; algorithms.md section 2.7.

Letters as in :mod:`layered_core`, and F frames, R rows (a multiple of F), D width of the module, S channels
of the control signals.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..attention.cross_attention import CLOSED
from ..errors import LayeredError, invalid
from .layer_diffuse_files import LayerDiffuseMode, described, misfit
from .transparent_networks import mismatch

ProjectFrames = Callable[[Tensor], Tensor]
"""A linear layer of the base module."""

AttendFrames = Callable[..., Tensor]
"""The host's attention with the module's number of heads: q ``[B, N, D]``, k and v ``[B, T, D]``, to
``[B, N, D]``. A fourth argument, an additive bias ``[B, 1, 1, T]``, is given only where frames are absent."""

_PARTS = ("q", "k", "v", "out")
_EPS = 1e-6

_MOST_ROWS = 2**15
"""Greatest number of positions in one call of the attention across frames: GPU kernels take fewer than 65,536
rows."""


@dataclass(frozen=True)
class Base:
    """The linear layers and attention of the module that a unit replaces."""

    q: ProjectFrames
    k: ProjectFrames
    v: ProjectFrames
    out: ProjectFrames
    attend: AttendFrames


class _LowRank(nn.Module):
    def __init__(self, inside: int, outside: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(inside, rank, bias=False)
        self.up = nn.Linear(rank, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.up(self.down(x)))


class SharingUnit(nn.Module):
    """The replacement of one attention module.

    Args:
        width: D.
        context: width of the input of keys and values: D for a self-attention, the width of the encoded text
            for a cross-attention.
        rank: rank of the low-rank changes.
        frames: F.
        signal: S, or 0 for a file without control.
    """

    def __init__(self, width: int, context: int, rank: int, frames: int, signal: int = 0) -> None:
        super().__init__()
        self.frames, self.widths = frames, (width, context)
        inside = {"q": width, "k": context, "v": context, "out": width}
        for part in _PARTS:
            self.add_module(
                f"to_{part}_lora", nn.ModuleList(_LowRank(inside[part], width, rank) for _ in range(frames))
            )
        self.temporal_n = nn.LayerNorm(width, eps=_EPS)
        self.temporal_i, self.temporal_q, self.temporal_k, self.temporal_v, self.temporal_o = (
            nn.Linear(width, width) for _ in range(5)
        )
        self.control_convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(signal, signal, 3, padding=1), nn.SiLU(), nn.Conv2d(signal, width, 1))
            for _ in range(frames * bool(signal))
        )

    def forward(
        self, h: Tensor, contexts: Sequence[Tensor] | None, base: Base, signal: Tensor | None = None,
        weight: float = 1.0
    ) -> Tensor:  # fmt: skip
        """Compute the replaced module's output, ``[R, N, D]``. All tensors have the unit's own dtype.

        Args:
            h: normalised input of the module, ``[R, N, D]``.
            contexts: for a cross-attention the encoded text of every frame, F times ``[R / F, T, C]``; None
                for a self-attention.
            base: the replaced module.
            signal: control signal ``[1, S, h, w]`` with N = h w, or None.
            weight: factor on everything that the file adds. Neutral: 0, apart from rounding.
        """
        return self._share(h, contexts, base, range(self.frames), signal, weight)

    def _share(
        self, h: Tensor, contexts: Sequence[Tensor] | None, base: Base, roles: Sequence[int],
        signal: Tensor | None = None, weight: float = 1.0, told: Tensor | None = None,
        absent: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Compute :meth:`forward` for frames that may share their low-rank changes.

        Args:
            h, contexts, base, signal, weight: as in :meth:`forward`, with F the number of ``roles``.
            roles: for every frame the number of its low-rank changes.
            told: vectors that tell the frames apart, added to the normed input of the attention across frames,
                ``[1 or R / F, F, D]``. None: nothing.
            absent: True for frames that no other frame may see, ``[R / F, F]``. None: all are there.
        """
        before = h
        x = h.reshape(-1, len(roles), *h.shape[1:])
        if len(self.control_convs) and signal is not None:
            added = [conv(signal).flatten(2).transpose(1, 2) for conv in self.control_convs]
            x = x + weight * torch.stack(added, 1)
        x = x + self._within(x, contexts, base, roles, weight)
        x = x + weight * self._across(x, base.attend, told, absent)
        out: Tensor = x.flatten(0, 1) - before
        return out

    def _within(
        self, x: Tensor, contexts: Sequence[Tensor] | None, base: Base, roles: Sequence[int], weight: float
    ) -> Tensor:
        """Compute the module with its low-rank changes in each frame, ``[B, F, N, D]``; neighbours of one role go
        through it together."""
        mixed, first = [], 0
        for role, group in itertools.groupby(roles):
            last = first + len(list(group))
            words = None if contexts is None else torch.stack(list(contexts[first:last]), 1).flatten(0, 1)
            out = self._frame(role, x[:, first:last].flatten(0, 1), words, base, weight)
            mixed.append(out.reshape(len(x), last - first, *out.shape[1:]))
            first = last
        return torch.cat(mixed, 1)

    def _frame(self, role: int, h: Tensor, context: Tensor | None, base: Base, weight: float) -> Tensor:
        def project(part: str, x: Tensor) -> Tensor:
            changed: _LowRank = getattr(self, f"to_{part}_lora")[role]
            plain: Tensor = getattr(base, part)(x)
            out: Tensor = plain + weight * changed(x)
            return out

        words = h if context is None else context
        return project("out", base.attend(project("q", h), project("k", words), project("v", words)))

    def _across(self, x: Tensor, attend: AttendFrames, told: Tensor | None, absent: Tensor | None) -> Tensor:
        """Compute attention between the frames at each position, ``[B, F, N, D]``."""
        positions = x.shape[2]
        seen = self.temporal_n(x.transpose(1, 2).flatten(0, 1))
        if told is not None:
            seen = seen + (told if len(told) == 1 else told.repeat_interleave(positions, 0))
        biases: Sequence[Tensor | None] = [None] * math.ceil(len(seen) / _MOST_ROWS)
        if absent is not None:
            away = absent.repeat_interleave(positions, 0)
            # Not even what is no number may come out of a frame that is not there.
            seen = torch.where(away[..., None], 0, seen)
            biases = torch.split(CLOSED * away[:, None, None].to(seen), _MOST_ROWS)
        seen = self.temporal_i(seen)
        parts = zip(
            *(
                project(seen).split(_MOST_ROWS)
                for project in (self.temporal_q, self.temporal_k, self.temporal_v)
            ),
            biases,
            strict=True,
        )
        mixed = [attend(q, k, v) if bias is None else attend(q, k, v, bias) for q, k, v, bias in parts]
        out: Tensor = self.temporal_o(torch.cat(mixed))
        return out.reshape(len(x), -1, *out.shape[1:]).transpose(1, 2)


class ControlEncoder(nn.Module):
    """Encodes the given picture of a scene as control signals at every resolution of the UNet.

    Args:
        widths: channels at the full side, a half and a quarter of it.
        signal: S.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), signal: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.SiLU()]
        for before, after in zip(widths, (*widths[1:], signal), strict=True):
            layers += [
                nn.Conv2d(before, before, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.SiLU(),
            ]
        layers += [nn.Conv2d(signal, signal, 3, padding=1), nn.SiLU()]
        self.blocks_0 = nn.Sequential(*layers)
        for i in (1, 2, 3):
            half = [
                nn.Conv2d(signal, signal, 3, stride=2, padding=1),
                nn.SiLU(),
                nn.Conv2d(signal, signal, 3, padding=1),
                nn.SiLU(),
            ]
            self.add_module(f"blocks_{i}", nn.Sequential(*half))

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return four signals ``[1, S, h, w]``, ``[1, S, h/2, w/2]``, ... of a picture ``[1, 3, H, W]`` in
        0..1."""
        signals = [self.blocks_0(picture * 2 - 1)]
        for i in (1, 2, 3):
            signals.append(getattr(self, f"blocks_{i}")(signals[-1]))
        return signals


class AttentionSharing(nn.Module):
    """All units of a file, one for each attention of the UNet: input, output, then middle blocks,
    self-attention before cross-attention.

    Args:
        units: the units in that order.
        encoder: for files that take a picture.
    """

    def __init__(self, units: Sequence[SharingUnit], encoder: ControlEncoder | None = None) -> None:
        super().__init__()
        self.hookers = nn.Module()
        self.hookers.layers = nn.ModuleList(units)
        if encoder is not None:
            self.kwargs_encoder = encoder

    @property
    def units(self) -> list[SharingUnit]:
        """The units in the order of the class's docstring."""
        # The module list holds nothing but units.
        return list(cast("nn.ModuleList", self.hookers.layers))  # type: ignore[arg-type]

    @property
    def frames(self) -> int:
        """F, the number of frames of a scene."""
        return self.units[0].frames

    def texts(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the encoded text that each frame reads, from what the host gives it: here the same."""
        return contexts

    @property
    def encoder(self) -> ControlEncoder | None:
        """The encoder of the given picture; None for a file that takes no picture."""
        return cast("ControlEncoder | None", getattr(self, "kwargs_encoder", None))

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], name: str) -> AttentionSharing:
        """Return the units of ``weights``, with their dtype, in evaluation mode.

        Raises:
            LayeredError: keys are missing, unexpected or of the wrong shape; the error names the file,
                ``name``.
        """
        with torch.device("meta"):
            network = _build(weights, name)
        if found := mismatch(network, weights):
            raise LayeredError(
                f"{described(name)} does not hold attention sharing for SD1.5. {found}. Download it again"
            )
        network.load_state_dict(dict(weights), assign=True)
        return network.eval().requires_grad_(False)


class HasUnits(Protocol):
    """Anything with a unit for each attention of a UNet."""

    @property
    def units(self) -> Sequence[SharingUnit]:
        """The units in the order of :class:`AttentionSharing`."""
        ...


def is_attention_sharing(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds attention sharing."""
    return any(k.startswith("hookers.") for k in weights)


def _build(weights: Mapping[str, Tensor], name: str) -> AttentionSharing:
    """Build a network with the sizes of the file's tensors; for missing tensors, with the published sizes."""
    numbers = {int(m[1]) for k in weights if (m := re.match(r"hookers\.layers\.(\d+)\.", k))}
    if not numbers:
        raise LayeredError(
            f"file {name!r} does not hold attention sharing for SD1.5: no key begins with 'hookers.layers.'. "
            f"Choose another file"
        )

    def size(key: str, axis: int, usual: int) -> int:
        return int(weights[key].shape[axis]) if key in weights and weights[key].ndim > axis else usual

    units = []
    for i in range(max(numbers) + 1):
        unit = f"hookers.layers.{i}."
        frames = len({k.split(".")[4] for k in weights if k.startswith(f"{unit}to_q_lora.")}) or 1
        width = size(f"{unit}temporal_i.weight", 0, 320)
        signal = size(f"{unit}control_convs.0.0.weight", 0, 0)
        context = size(f"{unit}to_k_lora.0.down.weight", 1, width)
        units.append(
            SharingUnit(width, context, size(f"{unit}to_q_lora.0.down.weight", 0, 256), frames, signal)
        )
    encoder = None
    if any(k.startswith("kwargs_encoder.") for k in weights):
        widths = [
            size(f"kwargs_encoder.blocks_0.{4 * i}.weight", 0, usual) for i, usual in enumerate((32, 64, 128))
        ]
        encoder = ControlEncoder(widths, size("kwargs_encoder.blocks_0.14.weight", 0, 256))
    return AttentionSharing(units, encoder)


def frame_contexts(
    context: Tensor, frames: int, own: Sequence[Tensor | None], conditional: Sequence[bool]
) -> list[Tensor]:
    """Return the encoded text of every frame, F times ``[R / F, T, C]``.

    Args:
        context: encoded text of every row, ``[R, T, C]``.
        frames: F.
        own: for every frame text ``[1, T', C]`` that replaces the scene's, or None.
        conditional: whether each row is cond; rows of uncond keep their text.
    """
    chosen = torch.tensor(list(conditional)[::frames], device=context.device)
    return [_overwritten(context[f::frames], words, chosen) for f, words in enumerate(own)]


def _overwritten(context: Tensor, words: Tensor | None, rows: Tensor) -> Tensor:
    if words is None or not bool(rows.any()):
        return context
    # A text that is repeated as a whole gets the same attention as once.
    tokens = math.lcm(context.shape[1], words.shape[1])
    theirs, mine = (x.repeat(1, tokens // x.shape[1], 1) for x in (context, words.to(context)))
    return torch.where(rows[:, None, None], mine, theirs)


def fitting_frames(
    weights: Mapping[str, Tensor],
    mode: LayerDiffuseMode,
    modules: Sequence[tuple[int, int]],
    name: str,
    model: str,
) -> AttentionSharing:
    """Read the units of a file and check them against a mode and a UNet: what every host does first.

    Args:
        weights: of the file.
        mode: what is to be made.
        modules: as :func:`check_modules`.
        name, model: of the file, and of the kind of model, for errors.

    Raises:
        LayeredError: the file is broken, or for another mode or model.
    """
    network = AttentionSharing.from_weights(weights, name)
    check_frames(network, mode, name)
    check_modules(network, modules, name, model)
    return network


def check_modules(network: HasUnits, modules: Sequence[tuple[int, int]], name: str, model: str) -> None:
    """Raise :class:`LayeredError` unless a file has one unit for each attention of a UNet, of its width.

    Args:
        network: the units of the file.
        modules: width and context width of every attention, in the order of :class:`AttentionSharing`.
        name: name of the file, for the error.
        model: name of the kind of model, for the error.
    """
    units = [u.widths for u in network.units]
    if units != list(modules):
        first = next((i for i, (a, b) in enumerate(zip(units, modules, strict=False)) if a != b), None)
        why = (
            f"{len(units)} attentions instead of {len(modules)}"
            if first is None
            else f"attention {first} reads {units[first]}, not {modules[first]}"
        )
        raise misfit(name, model, why)


def check_frames(network: AttentionSharing, mode: LayerDiffuseMode, name: str) -> None:
    """Raise :class:`LayeredError` unless a file makes and takes the same pictures as a mode."""
    if network.frames != len(mode.kinds) or (network.encoder is not None) != bool(mode.takes):
        found, wanted = (
            f"makes {count} picture{'s' * (count != 1)}{' from one' if given else ''}"
            for count, given in ((network.frames, network.encoder is not None), (len(mode.kinds), mode.takes))
        )
        raise LayeredError(
            f"{described(name)} {found}, but the mode {mode.name!r} {wanted}. Choose the mode that the file "
            f"is for"
        )


def check_rows(rows: int, frames: int, what: str = "latent", fix: str = "") -> None:
    """Raise :class:`LayeredError` unless a batch holds whole scenes.

    Args:
        rows: number of rows in the batch.
        frames: F.
        what: name of the batch in the error.
        fix: what the user can do; empty: what to do with a latent that is to be sampled.
    """
    if rows % frames:
        allowed = f"a multiple of {frames}: {frames} pictures of each scene, one after the other"
        raise invalid(
            f"{what}: batch size",
            rows,
            allowed,
            fix or f"Set the batch size of the empty latent to {frames} for one scene",
        )


def signal_for(signals: Sequence[Tensor], tokens: int) -> Tensor | None:
    """Return the control signal of the module with ``tokens`` tokens; None if there are no signals.

    Raises:
        LayeredError: no signal fits, for instance because only a part of the picture is sampled.
    """
    if not signals:
        return None
    found = next((s for s in signals if s.shape[-2] * s.shape[-1] == tokens), None)
    if found is None:
        sizes = " or ".join(str(s.shape[-2] * s.shape[-1]) for s in signals)
        raise invalid(
            "control picture: number of tokens in the UNet",
            tokens,
            sizes,
            "Sample the whole picture at once: no conditioning areas, no tiles",
        )
    return found
