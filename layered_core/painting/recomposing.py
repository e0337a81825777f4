"""Change pictures that a model took from one picture as little as possible, so that they are that picture again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..canvas.compositing import composite
from ..document import MAX_LAYERS, Layer, LayerDocument
from ..errors import invalid
from .exact_mixing import LEVELS, is_exact_mix, mix_exactly, moved, on_grid

OPAQUE = 0.99
"""From this alpha on a layer is opaque: a model's decoder rarely gives 1."""

BACKDROP = 0.95
"""A bottom picture of at least this mean alpha is the background; otherwise one is added."""

_ULPS = sorted(range(-6, 7), key=abs)
"""Last bits by which a front colour is moved to give a picture exactly."""

_NUDGES = sorted(range(-3, 4), key=abs)
"""Levels of 8 bits by which the colour at the back is moved if no colour in front is exact."""


def stacked(placed: Sequence[Tensor]) -> LayerDocument:
    """Return pictures ``[H, W, 4]`` of one size, back to front, as a document."""
    height, width = placed[0].shape[:2]
    return LayerDocument(width, height, tuple(Layer(str(i), x) for i, x in enumerate(placed)))


def recomposed(placed: Sequence[Tensor], original: Tensor) -> tuple[list[Tensor], bool]:
    """Return pictures whose composite equals ``original`` to the bit, and, if it has 8 bits, also after they have been
    rounded to 8 bits. See :func:`~.layers_from_pictures.layers_from_pictures` for what is changed.

    Args:
        placed: pictures of the original's size, ``[H, W, 4]`` float32 in 0..1, straight alpha, back to front.
        original: ``[H, W, 3 or 4]`` in 0..1.

    Returns:
        The pictures, all but few colours on the 8-bit grid, and whether a background was added in front of the list.

    Raises:
        LayeredError: there is no room for the background.
    """
    original = original.detach().float().cpu().clamp(0, 1)
    seen = original[..., :3]
    layers = [on_grid(picture) for picture in placed]
    for layer in layers:
        layer[..., 3] = torch.where(layer[..., 3] >= OPAQUE, 1.0, layer[..., 3])
    added = float(layers[0][..., 3].mean()) < BACKDROP
    if added and len(layers) == MAX_LAYERS:
        raise invalid(
            "number of layers",
            len(layers) + 1,
            f"at most {MAX_LAYERS}, with the background that is added",
            "Give fewer pictures",
        )
    if added:
        layers.insert(0, torch.zeros_like(layers[0]))
    _Mixture(layers, seen).solve()
    if original.shape[-1] == 4:
        _make_transparent(layers, original)
    _repair(layers, original)
    return layers, added


class _Mixture:
    """Which layers are seen at each pixel of an opaque picture ``[H, W, 3]``, and the colours that give it."""

    def __init__(self, layers: list[Tensor], seen: Tensor) -> None:
        """Take layers ``[H, W, 4]``, which are written into."""
        self.layers, self.seen = layers, seen
        shape = seen.shape[:2]
        self.base = torch.zeros(shape, dtype=torch.long)
        """The number of the frontmost opaque layer; the bottom one where there is none."""
        for i, layer in enumerate(layers):
            self.base[layer[..., 3] == 1] = i
        self._count()

    def _count(self) -> None:
        self.front = torch.zeros_like(self.base)
        """The number of the frontmost soft layer above the base, if there is one."""
        self.count = torch.zeros_like(self.base)
        """How many soft layers lie above the base."""
        for i, layer in enumerate(self.layers):
            soft = (layer[..., 3] > 0) & (layer[..., 3] < 1) & (self.base < i)
            self.front[soft] = i
            self.count += soft

    def solve(self) -> None:
        """Write the colours."""
        self._uncover()
        alone = self.count == 0
        self._write(self.base, alone, self.seen[alone])
        if bool((self.count > 1).any()):
            self._solve_several()
        one = self.count == 1
        if bool(one.any()):
            self._solve_one(one)

    def _uncover(self) -> None:
        """Make the bottom layer opaque where nothing opaque lies above it. Where it was transparent, nobody has given
        it a colour: it gets the one that the layers above leave over."""
        bottom = self.layers[0]
        bare = (self.base == 0) & (bottom[..., 3] < 1)
        over = torch.zeros_like(self.seen)
        clear = torch.ones(self.seen.shape[:2])
        for layer in self.layers[1:]:
            alpha = layer[..., 3:]
            over = over * (1 - alpha) + layer[..., :3] * alpha
            clear = clear * (1 - alpha[..., 0])
        left = ((self.seen - over) / clear.clamp_min(1e-6)[..., None]).clamp(0, 1)
        unknown = bare & (bottom[..., 3] < 0.5)
        bottom[..., :3][unknown] = on_grid(left[unknown])
        bottom[..., 3][bare] = 1

    def _read(self, which: Tensor, where: Tensor) -> Tensor:
        """Return the pixels ``[N, 4]`` of the layers numbered ``which`` at ``where``, both ``[H, W]``."""
        out = self.seen.new_empty(*where.shape, 4)
        for i, layer in enumerate(self.layers):
            chosen = where & (which == i)
            out[chosen] = layer[chosen]
        return out[where]

    def _write(self, which: Tensor, where: Tensor, colours: Tensor) -> None:
        """Give the layers numbered ``which`` the colours ``[N, 3]`` at ``where``."""
        values = torch.zeros_like(self.seen)
        values[where] = colours
        for i, layer in enumerate(self.layers):
            chosen = where & (which == i)
            layer[..., :3][chosen] = values[chosen]

    def _solve_one(self, where: Tensor) -> None:
        """Change front and base together."""
        front, base = self._read(self.front, where), self._read(self.base, where)
        fore, aft, _ = mix_exactly(self.seen[where], front[:, :3], base[:, :3], front[:, 3])
        self._write(self.front, where, fore)
        self._write(self.base, where, aft)

    def _solve_several(self) -> None:
        """Change the frontmost of several soft layers, and the base by a few levels if no colour of that gives the last
        bit. Where no colour can make up for the others, keep only the one that is seen most."""
        todo = self.count > 1
        base = self._read(self.base, todo)[:, :3]
        for levels in _NUDGES:
            self._write(self.base, todo, on_grid((base + levels / LEVELS).clamp(0, 1)))
            solved = self._solve_front(todo)
            todo[todo.clone()] = ~solved
            base = base[~solved]
            if not len(base):
                return
        self._write(self.base, todo, base)
        self._keep_most_seen(todo)

    def _solve_front(self, where: Tensor) -> Tensor:
        """Write the colours of the frontmost soft layer that give the picture; return ``[N]`` bool, where there are
        such."""
        front = self._read(self.front, where)
        behind = self._behind(where)[where]
        seen, alpha = self.seen[where], front[:, 3:].expand(-1, 3)
        colour = ((seen.double() - (1 - alpha.double()) * behind.double()) / alpha.double()).float()
        fits = (colour >= 0) & (colour <= 1)
        colour.clamp_(0, 1)
        exact = torch.zeros_like(fits)
        solution = colour
        for ulps in _ULPS:
            tried = moved(colour, ulps)
            found = fits & ~exact & is_exact_mix(seen, tried, behind, alpha)
            solution = torch.where(found, tried, solution)
            exact |= found
        solved = exact.all(1)
        done = where.clone()
        done[where] = solved
        self._write(self.front, done, solution[solved])
        return solved

    def _behind(self, where: Tensor) -> Tensor:
        """Return the composite ``[H, W, 3]`` without the frontmost soft layer."""
        below = [layer.clone() for layer in self.layers]
        for i, layer in enumerate(below):
            layer[where & (self.front == i)] = 0
        return composite(stacked(below))[..., :3]

    def _keep_most_seen(self, where: Tensor) -> None:
        share, clear = torch.zeros(where.shape), torch.ones(where.shape)
        most = torch.zeros_like(self.base)
        for i, layer in reversed(list(enumerate(self.layers))):
            above = where & (self.base < i)
            own = layer[..., 3] * clear
            most = torch.where(above & (own > share), i, most)
            share = torch.where(above, torch.maximum(share, own), share)
            clear = torch.where(above, clear * (1 - layer[..., 3]), clear)
        for i, layer in enumerate(self.layers):
            layer[where & (self.base < i) & (most != i)] = 0
        several = self.count > 1
        self._count()
        # What has been solved stays as it is.
        self.count[several & ~where] = 2


def _make_transparent(layers: list[Tensor], original: Tensor) -> None:
    """Where the original is not opaque, give its pixel to one layer: the frontmost that covers half of it, or the
    bottom one."""
    where = original[..., 3] < 1
    chosen = torch.zeros(where.shape, dtype=torch.long)
    for i, layer in enumerate(layers):
        chosen[layer[..., 3] >= 0.5] = i
    _give(layers, where, chosen, original)


def _give(layers: list[Tensor], where: Tensor, chosen: Tensor, pixels: Tensor) -> None:
    """Let the layers numbered ``chosen`` be all that is there at ``where``: ``pixels``, ``[H, W, 4]``."""
    for i, layer in enumerate(layers):
        layer[where] = 0
        own = where & (chosen == i)
        layer[own] = torch.where(pixels[own][:, 3:] > 0, pixels[own], 0.0)


def _repair(layers: list[Tensor], original: Tensor) -> None:
    """Give the pixels that are not exact, of which there are hardly any, to the one layer that is seen most."""
    whole = original
    if original.shape[-1] == 3:
        whole = torch.cat([original, torch.ones_like(original[..., :1])], -1)
    wanted = torch.where(whole[..., 3:] > 0, whole, 0.0)
    wrong = (composite(stacked(layers)) != wanted).any(-1)
    levels = LEVELS * wanted
    if float((levels - levels.round()).abs().max()) < 1e-3:
        rounded = LEVELS * composite(stacked([on_grid(layer) for layer in layers]))
        wrong |= (rounded.round() != levels.round()).any(-1)
    if bool(wrong.any()):
        most = torch.zeros(wrong.shape, dtype=torch.long)
        for i, layer in enumerate(layers):
            most[layer[..., 3] >= 0.5] = i
        _give(layers, wrong, most, whole)
