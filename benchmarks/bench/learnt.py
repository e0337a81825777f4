"""Figures of pictures that show a learnt thing: how near its colours are to those of the thing learnt from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench.scenes import Case
from demo.world.judge import Found, Verdict

_WHITE = (0.95047, 1.0, 1.08883)
_TO_XYZ = (
    (0.4123908, 0.3575843, 0.1804808),
    (0.2126390, 0.7151687, 0.0721923),
    (0.0193308, 0.1191948, 0.9505322),
)


def lab(colours: Tensor) -> Tensor:
    """Convert sRGB ``[N, 3]`` in 0..1 to CIE L*a*b* for D65, ``[N, 3]``."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    xyz = linear @ torch.tensor(_TO_XYZ).T / torch.tensor(_WHITE)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def energy_distance(a: Tensor, b: Tensor, most: int = 300) -> float:
    """Return the energy distance of two sets of points ``[N, C]``, ``2 E|a - b| - E|a - a'| - E|b - b'|``, from at most
    so many of each."""
    generator = torch.Generator().manual_seed(0)
    a, b = (x[torch.randperm(len(x), generator=generator)[:most]] for x in (a, b))
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


def source_colours(case: Case) -> Tensor:
    """Return the colours inside the thing that is learnt from, L*a*b* ``[N, 3]``."""
    assert case.source is not None
    picture = torch.from_numpy(case.source.picture().copy()).permute(2, 0, 1) / 255
    return lab(picture[:, _inner(torch.from_numpy(case.source.object_map() == 1))].T)


def learnt_figures(case: Case, picture: Tensor, verdict: Verdict) -> dict[str, float]:
    """Compute how a picture ``[3, H, W]`` shows the thing that was learnt from.

    Its place is where the judge finds its kind, or else the largest object; without any object the colours are NaN.
    """
    kind, *others = (item.thing for item in case.scene.objects)
    figures = {
        "object": float(any(f.kind == kind.kind for f in verdict.objects)),
        "background": float(verdict.background == case.scene.background),
        "delta_e": math.nan,
        "energy": math.nan,
    }
    if others:
        figures["neighbour"] = float(
            any(f.thing == (others[0].colour, others[0].kind) for f in verdict.objects)
        )
    found = _shown(verdict, kind.kind, [x.kind for x in others])
    if found is not None:
        mask = functional.interpolate(found.mask[None, None].float(), picture.shape[1:])[0, 0] > 0
        colours, wanted = lab(picture[:, _inner(mask)].T), source_colours(case)
        figures["delta_e"] = float((colours.mean(0) - wanted.mean(0)).norm())
        figures["energy"] = energy_distance(colours, wanted)
    return figures


def _shown(verdict: Verdict, kind: str, others: list[str]) -> Found | None:
    """Return the object of a kind, or else the largest that is none of the ``others``."""
    right = [f for f in verdict.objects if f.kind == kind]
    return next(iter(right or [f for f in verdict.objects if f.kind not in others]), None)


def _inner(mask: Tensor) -> Tensor:
    """Return a bool mask ``[H, W]`` without its border of two pixels, or itself if little is left."""
    inner = functional.max_pool2d(1 - mask[None, None].float(), 5, 1, 2)[0, 0] < 0.5
    return inner if int(inner.sum()) > 30 else mask
