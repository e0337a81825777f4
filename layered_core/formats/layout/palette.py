"""The dominant colours of a picture."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = 5
"""Bits of a channel by which pixels are counted: 32,768 bins of colours."""

_APART = 48.0
"""Least distance of two colours of a palette, in 8-bit levels: nearer ones are the same to the eye of a caption."""

_SHARE = 0.01
"""Least share of the pixels that a colour of a palette stands for."""

_ROUNDS = 10
"""Rounds of k-means; it settles in fewer."""


def dominant_colours(colours: Tensor, weights: Tensor, most: int = 5) -> tuple[str, ...]:
    """Return the dominant colours as ``#RRGGBB`` in capitals, the most frequent first.

    Pixels are counted in bins, k-means groups the bins, and each group gives the mean colour of its fullest bin, so
    that flat colours come out exactly. The result depends on the pixels alone.

    Args:
        colours: ``[N, 3]``, straight sRGB, 0..1.
        weights: ``[N]``, how much each pixel counts, 0 or more.
        most: greatest number of colours, 0 or more; fewer come out where there are not so many.
    """
    means, counts = _bins(colours, weights)
    if not most or not len(counts):
        return ()
    centres = _start(means, counts, most)
    for _ in range(_ROUNDS):
        group = _distances(means, centres).argmin(1)
        centres = torch.stack([_mean(means, counts, group == k, centres[k]) for k in range(len(centres))])
    group = _distances(means, centres).argmin(1)
    found = []
    for k in range(len(centres)):
        inside = counts * (group == k)
        if inside.sum() >= _SHARE * counts.sum():
            found.append((-float(inside.sum()), _hex(means[inside.argmax()])))
    return tuple(dict.fromkeys(colour for _, colour in sorted(found)))


def _bins(colours: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean colour ``[B, 3]`` in 8-bit levels and the weight ``[B]`` of every bin that is not empty."""
    kept = weights > 0
    levels, weights = (colours[kept] * 255).double(), weights[kept].double()
    steps = (levels.round().long() >> (8 - _BITS)).clamp_(0, 2**_BITS - 1)
    index = (steps[:, 0] << 2 * _BITS) + (steps[:, 1] << _BITS) + steps[:, 2]
    counts = torch.zeros(2 ** (3 * _BITS), dtype=torch.float64).index_add_(0, index, weights)
    sums = torch.zeros(2 ** (3 * _BITS), 3, dtype=torch.float64)
    sums.index_add_(0, index, levels * weights[:, None])
    full = counts > 0
    return sums[full] / counts[full, None], counts[full]


def _start(means: Tensor, counts: Tensor, most: int) -> Tensor:
    """Return up to ``most`` colours ``[K, 3]`` to start from: the fullest bin, then each time the one that is farthest
    from those chosen, by squared distance times weight, while enough pixels are apart from all of them."""
    chosen = [means[counts.argmax()]]
    while len(chosen) < most:
        far = _distances(means, torch.stack(chosen)).amin(1)
        apart = far > _APART**2
        if float(counts[apart].sum()) < _SHARE * float(counts.sum()):
            break
        chosen.append(means[(far * counts * apart).argmax()])
    return torch.stack(chosen)


def _mean(means: Tensor, counts: Tensor, inside: Tensor, otherwise: Tensor) -> Tensor:
    weight = (counts * inside)[:, None]
    return (means * weight).sum(0) / weight.sum() if weight.sum() > 0 else otherwise


def _distances(means: Tensor, centres: Tensor) -> Tensor:
    """Return the squared distances ``[B, K]`` of bins to centres."""
    return ((means[:, None] - centres[None]) ** 2).sum(-1)


def _hex(colour: Tensor) -> str:
    return "#" + "".join(f"{round(float(level)):02X}" for level in colour)
