"""Transplanted layers: each layer is made by itself first, and the picture of all then grows around what it
was in the middle of its run. No training, any model.

After TAUE (Nagai et al., arXiv 2511.02580), which keeps a foreground's noisy latents z_i at the middle of its
run and puts them into the initial noise of the picture of all, and in turn that picture's surroundings into
the background's. Here, for step t of T, with the layer's own latents of the same noise level:

    X[t] = sum_i m_i z_i[t] + (1 - sum_i m_i) X[t]        while t <= until T, and the sampler's X after that

m_i are 1 in the cells where layer i is seen and 0 elsewhere; at most one of them is 1 in any cell. After the
last of these steps the picture is free everywhere, so light and edges can fit.

The paper's: foreground first, latents from the middle of the run, words of each layer in its own place
meanwhile (regional prompts here), the background from the picture of all with the places of the layers made
anew, and several objects at several places. This project's: latents of a step go into the same step instead
of the initial noise (there they changed nothing on the storybook, high-passed or not:
``docs/storybook.md``), and into every step up to then; masks from the layers' own alpha instead of attention
maps and a green backdrop; moving layers apart by whole cells; any number of layers, and who hides whom.

Letters: K layers back to front, h w cells, T steps of the run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

UNTIL = 0.5
"""Share of the steps up to which layers are held if none is given: the paper's. More of it keeps more of the
layers and looks more pasted."""

LEAST = 0.25
"""Share of a cell from which on a layer that is seen there is transplanted into it."""

PRESENT = 0.1
"""Share of a cell from which on a layer counts as present there, where layers are moved apart."""


def last_step(until: float, steps: int) -> int:
    """Return the index of the last step before which latents are transplanted, 0..steps (``steps``: the clean
    picture too); -1 for none.

    Args:
        until: share of the steps, 0..1. Neutral: 0.
        steps: of the run, 1 or more.
    """
    return -1 if until == 0 else round(until * steps)


def layer_cells(seen: Tensor, least: float = LEAST) -> Tensor:
    """Return the cells that each layer is transplanted into, bool ``[K, h, w]``: where it is seen more than
    any other and in at least ``least`` of the cell. No cell has two layers; of equals the front one has it.

    Args:
        seen: share of each cell in which a layer is seen, ``[K, h, w]`` in 0..1.
        least: 0..1, exclusive 0.
    """
    most = seen.flip(0).argmax(0)
    index = torch.arange(len(seen), device=seen.device)[:, None, None]
    return (index == len(seen) - 1 - most) & (seen >= least)


def around_layers(cells: Tensor) -> Tensor:
    """Return the cells of a background that are made anew, bool ``[1, h, w]``: those of any layer of
    ``cells``, bool ``[K, h, w]``, and their neighbours, which may show a layer's edge or shadow."""
    taken = cells.any(0, keepdim=True)[None].float()
    return functional.max_pool2d(taken, 3, 1, 1)[0] > 0


def transplanted(latents: Tensor, donor: Tensor, cells: Tensor) -> Tensor:
    """Return ``latents`` with those of ``donor`` where ``cells`` is True.

    Args:
        latents: of the run, at the noise level of a step, ``[B, C, h, w]``.
        donor: latents of the same level, ``[B, C, h, w]``.
        cells: bool ``[B, 1, h, w]``. Neutral: False everywhere; the result is then ``latents`` bit for bit.
    """
    return torch.where(cells, donor.to(latents), latents)


def joined(trajectories: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Return the latents of all layers in their cells, ``[T + 1, C, h, w]``; 0 where there is no layer.

    Args:
        trajectories: latents of each layer before every step and at the end, K of ``[T + 1, C, h, w]``.
        cells: bool ``[K, h, w]``, of :func:`layer_cells`.
    """
    found = torch.zeros_like(trajectories[0])
    for own, place in zip(trajectories, cells, strict=True):
        found = torch.where(place, own, found)
    return found


def moves_apart(present: Tensor) -> list[tuple[int, int]]:
    """Return by how many cells each layer has to move, down and right, so that layers hide as little as
    possible of each other, K pairs.

    From back to front, each layer goes where it covers the fewest cells of those before it, and among such
    places to the nearest; up and down counts twice as far as sideways. It never leaves the canvas. The first
    stays.

    Args:
        present: bool ``[K, h, w]``, where each layer is.
    """
    moves: list[tuple[int, int]] = []
    taken = torch.zeros_like(present[0])
    for own in present:
        rows, columns = (own.any(d).nonzero()[:, 0].tolist() for d in (1, 0))
        if not rows:
            moves.append((0, 0))
            continue
        top, left = rows[0], columns[0]
        form = own[top : rows[-1] + 1, left : columns[-1] + 1]
        covered = functional.conv2d(taken[None, None].float(), form[None, None].float())[0, 0].round()
        down, right = (
            torch.arange(n, device=own.device) - at for n, at in zip(covered.shape, (top, left), strict=True)
        )
        far = (2 * down[:, None]) ** 2 + right**2
        # Whole numbers: fewest covered cells first, then the way.
        cost = covered.double() * (int(far.max()) + 1) + far
        best = int(cost.argmin())
        moves.append((int(down[best // len(right)]), int(right[best % len(right)])))
        taken = taken | moved(own, *moves[-1])
    return moves


def moved(pictures: Tensor, down: int, right: int) -> Tensor:
    """Return ``[..., H, W]`` moved by whole places; what comes in from outside is 0."""
    (y, to_y), (x, to_x) = (_spans(*a) for a in zip((down, right), pictures.shape[-2:], strict=True))
    found = torch.zeros_like(pictures)
    found[..., to_y, to_x] = pictures[..., y, x]
    return found


def _spans(way: int, size: int) -> tuple[slice, slice]:
    """Return which of ``size`` places stay inside when moved by ``way``, and where they are then."""
    return slice(max(-way, 0), max(size - max(way, 0), 0)), slice(max(way, 0), max(size + min(way, 0), 0))
