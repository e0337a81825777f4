"""Edges of the things in a picture: which of two things a pixel at their border shows, and how much of
each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..canvas.soft_masks import grow
from ..progress import pause, steps
from .exact_mixing import mix_exactly, on_grid

_SURE = 0.02
"""Alphas up to this count as 0, and those up to this below 1 as 1."""

_NOISE = 2 / 255
"""Deviation of colours that is always expected, as JPEG files have it."""

_FAR = 0.05
"""How far an estimated colour may be moved to make a mixture possible."""

_NONE = 16.0
"""Square of a difference of colours that is greater than any."""


@dataclass(eq=False)
class Mixture:
    """What each pixel of a picture shows: one thing, or one thing over another."""

    top: Tensor
    """Number of the thing in front, int64 ``[H, W]``: 0 is the background, higher numbers are nearer."""
    alpha: Tensor
    """How much of the pixel it covers, ``[H, W]``, above 0 and up to 1."""
    below: Tensor
    """Number of the thing behind it that is seen too, int64 ``[H, W]``; -1 where there is none."""
    front: Tensor
    """Colour of the thing in front, ``[H, W, 3]``."""
    back: Tensor
    """Colour of the thing behind, ``[H, W, 3]``; 0 where none is seen."""

    def harden(self, where: Tensor, picture: Tensor) -> None:
        """Let the pixels in ``where``, bool ``[H, W]``, show only the thing that covers more of them, as in
        ``picture`` ``[H, W, 3]``."""
        behind = where & (self.below >= 0) & (self.alpha < 0.5)
        self.top[behind] = self.below[behind]
        self.alpha[where] = 1
        self.below[where] = -1
        self.front[where] = picture[where]
        self.back[where] = 0


def unmix(
    picture: Tensor, owner: Tensor, masks: Tensor, opaque: Tensor, band: int, background: Tensor | None = None
) -> Mixture:
    """Tell for every pixel what it shows, so that mixing gives the picture again to the bit.

    Pixels near an edge are matted: what two colours are mixed is read from the sure pixels of both sides
    near by, alpha from where the pixel's colour lies between the two (Smith and Blinn, *Blue Screen
    Matting*, SIGGRAPH 1996, with estimated colours), and, as far as the two are alike, from a guided filter
    of the mask (He et al., *Guided Image Filtering*, ECCV 2010, on the luminance). Alpha lies on the 8-bit
    grid.

    Args:
        picture: ``[H, W, 3]`` float32 in 0..1.
        owner: int64 ``[H, W]``, the number of the thing that each pixel belongs to, 0 for the background.
        masks: ``[K, H, W]`` in 0..1, the mask of thing k + 1; its soft values are taken for alpha.
        opaque: bool ``[H, W]``: other pixels are left alone.
        band: pixels on each side of an edge that may show both things. 0: none.
        background: ``[H, W, 3]``, what is known to be behind everything, or None.
    """
    owner = owner.clone()
    mixture = Mixture(
        owner,
        torch.ones_like(picture[..., 0]),
        torch.full_like(owner, -1),
        picture.clone(),
        torch.zeros_like(picture),
    )
    if band:
        for k in steps(list(reversed(range(1, len(masks) + 1)))):
            _matte(mixture, picture, masks[k - 1], k, opaque, band, background)
    soft = mixture.below >= 0
    if bool(soft.any()):
        alpha, fore, aft = mixture.alpha[soft], mixture.front[soft], mixture.back[soft]
        front, back, exact = mix_exactly(picture[soft], fore, aft, alpha)
        # The colour that is seen less had to give way: then nothing is known of it here.
        strained = torch.where(alpha < 0.5, (front - fore).abs().amax(1), (back - aft).abs().amax(1)) > _FAR
        mixture.front[soft], mixture.back[soft] = front, back
        wrong = torch.zeros_like(soft)
        wrong[soft] = ~exact | strained
        mixture.harden(wrong, picture)
    return mixture


def _matte(
    mixture: Mixture,
    picture: Tensor,
    mask: Tensor,
    k: int,
    opaque: Tensor,
    band: int,
    background: Tensor | None,
) -> None:
    """Matte the edge between thing ``k`` and what is behind it."""
    box = _around((mixture.top == k) | (mask > _SURE), 12 * band)
    if box is None:
        return
    colours, mask, opaque = picture[box], mask[box], opaque[box]
    top, below = mixture.top[box], mixture.below[box]
    free = opaque & (below < 0)
    inside, lower = ((where & free).float() for where in (top == k, top < k))
    # Soft values that a segmenter gave are alpha; those beside a hard edge only come from scaling.
    soft = (mask > _SURE) & (mask < 1 - _SURE)
    zone = (grow(inside, band) * lower + grow(lower, band) * inside > 0) | soft
    zone &= free & (top <= k)
    if not bool(zone.any()):
        return
    behind = _behind(top, k, zone)
    zone &= behind >= 0
    if not bool(zone.any()):
        return
    sure = free & ~zone
    fore, fore_noise = spread(colours, sure & (top == k), free & (top == k), zone, band)
    aft, aft_noise = torch.zeros_like(fore), torch.zeros_like(fore_noise)
    for j in torch.unique(behind[zone]).tolist():
        if j == 0 and background is not None:
            mean, noise = background[box], torch.zeros_like(aft_noise)
        else:
            mean, noise = spread(colours, sure & (top == j), free & (top == j), zone & (behind == j), band)
        here = behind == j
        aft[here], aft_noise[here] = mean[here], noise[here]
    given = (
        mask if bool((soft & zone).sum() * 4 >= zone.sum()) else _guided((top == k).float(), colours, band)
    )
    noise = fore_noise + aft_noise + 3 * _NOISE**2
    # A thing may have a rim of its own, such as an outline, that its middle does not show.
    rim = _beside(colours, inside > 0, zone)
    far, near = (_off_line(colours, x, aft) for x in (fore, rim))
    rimmed = zone & (far > noise) & (near < far / 4)
    fore[rimmed], far[rimmed] = rim[rimmed], near[rimmed]
    alpha = _projected(colours, fore, aft, noise, far, given)
    # Around a thing there may be several colours, of which the mean is none: a pixel of one of them is pure.
    at = zone.nonzero()
    like = torch.stack([_nearest(colours, sure & side, at, 2 * band) for side in (top == k, top < k)])
    pure = (like < 3 * _NOISE**2) & (like < like.flip(0) / 4) & (like.flip(0) < _NONE)
    alpha[zone] = torch.where(pure[0], 1.0, torch.where(pure[1], 0.0, alpha[zone]))
    # Single pixels unlike all around them are a colour that the thing and what is behind it share.
    around = _mean(torch.where(zone, alpha, inside), 1)
    alpha = torch.where((alpha - around).abs() > 0.5, (given >= 0.5).to(alpha), alpha)
    alpha = on_grid(alpha.clamp(0, 1))
    takes, leaves = zone & (alpha >= 1 - _SURE), zone & (alpha <= _SURE)
    mixed = zone & ~takes & ~leaves
    top[takes | mixed] = k
    top[leaves] = behind[leaves]
    below[mixed] = behind[mixed]
    mixture.alpha[box][mixed] = alpha[mixed]
    mixture.front[box][mixed] = fore[mixed]
    mixture.back[box][mixed] = aft[mixed]


def _around(where: Tensor, margin: int) -> tuple[slice, slice] | None:
    """Return the rows and columns of the smallest box around ``where`` ``[H, W]``, ``margin`` pixels
    larger; None if it is False everywhere."""
    sides = []
    for axis, size in ((1, where.shape[0]), (0, where.shape[1])):
        at = where.any(axis).nonzero()[:, 0]
        if not len(at):
            return None
        sides.append(slice(max(0, int(at[0]) - margin), min(size, int(at[-1]) + 1 + margin)))
    return sides[0], sides[1]


def _behind(top: Tensor, k: int, zone: Tensor) -> Tensor:
    """Return the number of the thing behind thing ``k`` at every pixel of ``zone``: what the pixel itself
    belongs to, or the nearest lower thing; -1 where nothing lower is in sight."""
    lower = torch.where(top < k, top, -1)
    found, reach, most = lower.clone(), 1, max(top.shape)
    while reach <= most and bool((zone & (found < 0)).any()):
        near = grow(lower.float(), reach).long()
        found = torch.where(found < 0, near, found)
        reach += max(1, reach // 2)
    return found


def spread(colours: Tensor, sure: Tensor, likely: Tensor, needed: Tensor, band: int) -> tuple[Tensor, Tensor]:
    """Return the mean of the colours ``[H, W, 3]`` of the sure pixels around each one that is needed, and
    the sum of their variances ``[H, W]``. Where there are none near by, the likely ones count, else the
    mean of all."""
    planes = colours.movedim(-1, 0)
    values = torch.cat([planes, planes.square().sum(0, keepdim=True), torch.ones_like(planes[:1])])
    at = needed.nonzero()
    out, todo = values.new_zeros(4, len(at)), torch.arange(len(at), device=at.device)
    for chosen in (sure, likely):
        if not len(todo) or not bool(chosen.any()):
            continue
        sums = _Sums(values * chosen)
        for reach in (2 * band, 12 * band):
            near = sums.around(at[todo], reach)
            new = near[4] > 0.5
            out[:, todo[new]] = near[:4, new] / near[4, new]
            todo = todo[~new]
    if len(todo):
        last = sure if bool(sure.any()) else likely if bool(likely.any()) else torch.ones_like(sure)
        out[:, todo] = values[:4, last].mean(1)[:, None]
    mean, noise = torch.zeros_like(colours), torch.zeros_like(colours[..., 0])
    mean[needed] = out[:3].movedim(0, -1).clamp(0, 1)
    noise[needed] = (out[3] - out[:3].square().sum(0)).clamp_min(0)
    return mean, noise


class _Sums:
    """Sums of planes over squares (Crow, *Summed-Area Tables*, SIGGRAPH 1984)."""

    def __init__(self, planes: Tensor) -> None:
        """Sum up ``[C, H, W]``."""
        self.table = functional.pad(planes.double(), (1, 0, 1, 0)).cumsum_(-1).cumsum_(-2)

    def around(self, at: Tensor, reach: int) -> Tensor:
        """Return the sums ``[C, N]`` over ``reach`` pixels on every side of the pixels ``at`` ``[N, 2]``."""
        height, width = (size - 1 for size in self.table.shape[-2:])
        top, left = ((at[:, axis] - reach).clamp_min(0) for axis in (0, 1))
        foot, end = ((at[:, axis] + reach + 1).clamp_max(size) for axis, size in ((0, height), (1, width)))
        t = self.table
        return (t[:, foot, end] - t[:, top, end] - t[:, foot, left] + t[:, top, left]).float()

    def everywhere(self, reach: int) -> Tensor:
        """Return the sums around all pixels, ``[C, H, W]``."""
        t = self.table
        for axis in (-2, -1):
            size = t.shape[axis] - 1
            at = torch.arange(size, device=t.device)
            t = t.index_select(axis, (at + reach + 1).clamp_max(size)) - t.index_select(
                axis, (at - reach).clamp_min(0)
            )
        return t.float()


def _beside(colours: Tensor, inside: Tensor, needed: Tensor) -> Tensor:
    """Return the mean colour ``[H, W, 3]`` of the pixels inside that lie within two pixels of each one that
    is needed; 2, which no colour is, where there are none."""
    planes = torch.cat([colours.movedim(-1, 0), torch.ones_like(colours[None, ..., 0])])
    sums = _Sums(planes * inside).around(needed.nonzero(), 2)
    out = torch.full_like(colours, 2.0)
    out[needed] = torch.where(sums[3] > 0.5, sums[:3] / sums[3].clamp_min(1), 2.0).mT
    return out


def _nearest(colours: Tensor, chosen: Tensor, at: Tensor, reach: int) -> Tensor:
    """Return, for the pixels ``at`` ``[N, 2]``, the square of the difference to the most alike one of the
    chosen pixels in a square of ``reach`` pixels on every side, of which at most 13 x 13 are looked at;
    ``[N]``, ``_NONE`` where none is chosen."""
    height, width = chosen.shape
    own = colours[at[:, 0], at[:, 1]]
    best = colours.new_full((len(at),), _NONE)
    offsets = range(-reach, reach + 1, max(1, -(-(2 * reach + 1) // 13)))
    for down in offsets:
        pause()
        row = (at[:, 0] + down).clamp(0, height - 1)
        for across in offsets:
            column = (at[:, 1] + across).clamp(0, width - 1)
            off = (colours[row, column] - own).square().sum(1)
            best = torch.where(chosen[row, column], torch.minimum(best, off), best)
    return best


def _along(colours: Tensor, fore: Tensor, aft: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the colours lie from ``aft`` towards ``fore``, 0..1, and the square of the way between
    these two, both ``[H, W]``."""
    way = fore - aft
    length = way.square().sum(-1)
    return (((colours - aft) * way).sum(-1) / length.clamp_min(1e-12)).clamp(0, 1), length


def _off_line(colours: Tensor, fore: Tensor, aft: Tensor) -> Tensor:
    """Return the square of how far the colours are from any mixture of the two, ``[H, W]``."""
    along, _ = _along(colours, fore, aft)
    return (colours - torch.lerp(aft, fore, along[..., None])).square().sum(-1)


def _projected(
    colours: Tensor, fore: Tensor, aft: Tensor, noise: Tensor, off: Tensor, given: Tensor
) -> Tensor:
    """Return alpha ``[H, W]``: how far the colours lie from ``aft`` towards ``fore``.

    Where these do not differ by more than their noise, it is ``given``. Where no mixture of them has the
    colour, because it is ``off`` the line between them, the pixel is of the one or of the other, as
    ``given`` says.
    """
    along, length = _along(colours, fore, aft)
    mixed = torch.lerp(given, along, length / (length + noise))
    return torch.lerp((given >= 0.5).to(mixed), mixed, 1 / (1 + (off / noise) ** 2))


def _guided(mask: Tensor, colours: Tensor, band: int) -> Tensor:
    """Return a mask ``[H, W]`` that follows the luminance of the colours ``[H, W, 3]`` near its edge."""
    light = (colours * colours.new_tensor([0.299, 0.587, 0.114])).sum(-1)
    centre, average = _mean(light, band), _mean(mask, band)
    spread = _mean(light.square(), band) - centre.square()
    slope = (_mean(light * mask, band) - centre * average) / (spread.clamp_min(0) + 1e-3)
    offset = average - slope * centre
    return (_mean(slope, band) * light + _mean(offset, band)).clamp(0, 1)


def _mean(plane: Tensor, reach: int) -> Tensor:
    """Return the mean of ``[H, W]`` over ``reach`` pixels on every side of each pixel."""
    sums = _Sums(torch.stack([plane, torch.ones_like(plane)])).everywhere(reach)
    return sums[0] / sums[1]
