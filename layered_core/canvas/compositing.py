"""Flatten a document to one picture."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from types import EllipsisType

import torch
from torch import Tensor

from ..document import Layer, LayerDocument
from .blend_modes import Rules, find_rules
from .colour import by_table, linear_to_srgb, srgb_to_linear
from .placement import Box, bounds, is_exact, layer_window, meet, place, reduced

GREY = (150 / 255, 150 / 255, 150 / 255)
"""What shows through holes where a picture must be opaque: Collage Diffusion's canvas colour."""

Area = tuple[EllipsisType, slice, slice]
"""Rows and columns of a band."""


def _band_pixels(device: torch.device) -> int:
    """How many pixels to composite at a time: on a CPU as many as its cache holds, elsewhere few and large
    steps."""
    return 32_000 if device.type == "cpu" else 1 << 24


def composite(document: LayerDocument, rules: str = "photoshop") -> Tensor:
    """Lay every visible layer on those behind it.

    Resampled layers are resampled with colours multiplied by alpha. Layers that are hidden, without a
    picture, off the canvas or wholly covered by an opaque one of mode ``normal`` cost nothing. No gradients.

    Args:
        document: its background, if any, lies under all layers.
        rules: ``photoshop`` (all in sRGB, source-over: as Photoshop, OpenRaster and browsers) or ``comfyui``
            (alpha and some modes in linear light, modes other than normal paint only on what is there: as
            ComfyUI's own compositor). See :data:`~layered_core.canvas.blend_modes.RULES`.

    Returns:
        RGBA float32 ``[H, W, 4]``, straight alpha, 0..1, on the layers' device; float64 if a layer's image
        is. Colour is 0 where alpha is.

    Raises:
        LayeredError: there are no such rules.
    """
    chosen = find_rules(rules)
    canvas = 0, 0, document.width, document.height
    shown = [
        _Shown(x, x.image)
        for x in document
        if x.image is not None and x.visible and x.opacity > 0 and meet(bounds(x), canvas)
    ]
    dtype = reduce(torch.promote_types, (x.dtype for x in shown), torch.float32)
    device = shown[0].device if shown else torch.device("cpu")
    out = torch.empty(document.height, document.width, 4, dtype=dtype, device=device)
    rows = max(1, _band_pixels(device) // document.width)

    def work(top: int) -> None:
        # Threads start with neither of the two as it is here.
        with torch.inference_mode(out.is_inference()), torch.no_grad():
            _composite_band(shown, document.background, chosen, top, out[top : top + rows])

    _for_each(work, range(0, document.height, rows), device)
    return out


def flat(document: LayerDocument) -> Tensor:
    """Return the opaque picture that sampling starts from, the same in every host: ``[3, H, W]`` in 0..1.

    It is the composite by the rules ``photoshop``, as models have learnt from pictures that were mixed in
    sRGB, over the document's background. A document without one has ``GREY`` as its background.
    """
    opaque = replace(document, background=document.background or GREY)
    return composite(opaque, "photoshop")[..., :3].permute(2, 0, 1)


def premultiplied(layer: Layer, width: int, height: int) -> Tensor:
    """The layer on an empty canvas, float32 ``[H, W, 4]``, colours multiplied by alpha; empty for a hidden or
    pictureless layer."""
    if layer.image is None or not layer.visible:
        return torch.zeros(height, width, 4)
    return place(_multiplied(layer, layer.image), layer, width, height) * layer.opacity


def straight(pixels: Tensor) -> Tensor:
    """Divide premultiplied colours ``[..., 4]`` by alpha; colour 0 where alpha is 0."""
    alpha = pixels[..., 3:]
    colour = torch.where(alpha > 0, pixels[..., :3] / alpha.clamp_min(1e-8), 0.0)
    return torch.cat([colour, alpha], -1).clamp_(0, 1)


def over_colour(pixels: Tensor, colour: Tensor | tuple[float, float, float]) -> Tensor:
    """Lay a straight-alpha picture ``[..., 4]`` over a plain colour; returns ``[..., 3]``."""
    backdrop = torch.as_tensor(colour, dtype=pixels.dtype, device=pixels.device)
    return pixels[..., :3] * pixels[..., 3:] + backdrop * (1 - pixels[..., 3:])


def _for_each(work: Callable[[int], None], tops: range, device: torch.device) -> None:
    """Call ``work`` for every band, on a CPU in as many threads as torch may use.

    Torch itself would share each of the many small steps among its threads, which costs more than the steps
    do, and far more where others want the processors too. So every thread takes whole bands here, and its
    steps stay on it.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for top in tops:
            work(top)
        return
    try:
        with ThreadPoolExecutor(
            min(threads, len(tops)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            for done in [pool.submit(work, top) for top in tops]:
                done.result()
    finally:
        # What a thread sets for itself, torch also takes for threads that start later.
        torch.set_num_threads(threads)


def _multiplied(layer: Layer, image: Tensor) -> Tensor:
    alpha = layer.coverage[..., None]
    return torch.cat([image[..., :3] * alpha, alpha], -1)


class _Shown:
    """A visible layer with a picture, ready to be looked at through windows of the canvas."""

    def __init__(self, layer: Layer, image: Tensor) -> None:
        self.layer, self.mode, self.box = layer, layer.blend_mode, bounds(layer)
        self.dtype, self.device = image.dtype, image.device
        mask = layer.mask
        if mask is not None and mask.shape != image.shape[:2]:
            image, mask = torch.cat([image[..., :3], layer.coverage[..., None]], -1), None
        self.multiplied = not is_exact(layer, *image.shape[:2])
        if self.multiplied:
            # Never larger than the layer's own pixels.
            self.pixels, self.mask = reduced(_multiplied(layer, image).movedim(-1, 0), layer), None
        else:
            self.pixels, self.mask = image.movedim(-1, 0), mask

    def look(self, box: Box, like: Tensor) -> tuple[Tensor, Tensor]:
        """sRGB ``[3, H, W]`` and alpha ``[H, W]`` in ``box``, of the type and on the device of ``like``."""
        pixels = layer_window(self.pixels, self.layer, box).to(like).contiguous()
        colour, alpha = pixels[:3], pixels[3] * self.layer.opacity
        if self.multiplied:
            colour = (colour / pixels[3].clamp_min(1e-8)).clamp_max_(1)
        elif self.mask is not None:
            alpha *= layer_window(self.mask[None], self.layer, box).to(like)[0]
        return colour, alpha


def _composite_band(
    shown: list[_Shown], background: tuple[float, float, float] | None, rules: Rules, top: int, out: Tensor
) -> None:
    """Composite the rows of the canvas from ``top`` into ``out``, ``[H, W, 4]``."""
    band = 0, top, out.shape[1], top + out.shape[0]
    seen = []
    for layer in reversed(shown):
        box = meet(layer.box, band)
        if box is None:
            continue
        colour, alpha = layer.look(box, out)
        least, most = (float(x) for x in alpha.aminmax())
        if most > 0:
            seen.append((layer.mode, box, colour, alpha))
        if layer.mode == "normal" and least == 1 and box == band:
            break
    pile = _Pile(rules, background, out)
    for mode, (x0, y0, x1, y1), colour, alpha in reversed(seen):
        pile.lay(mode, (..., slice(y0 - top, y1 - top), slice(x0, x1)), colour, alpha)
    out.copy_(pile.pixels().movedim(0, -1))


class _Pile:
    """What lies in one band of the canvas so far: colour ``[3, H, W]``, straight and 0 where nothing is, and
    alpha ``[H, W]``.

    The colour is in sRGB until something has to be mixed in linear light, so that what is laid on nothing
    stays as it is to the bit.
    """

    def __init__(self, rules: Rules, background: tuple[float, float, float] | None, like: Tensor) -> None:
        self.rules = rules
        self.colour = like.new_zeros(3, *like.shape[:2])
        self.alpha = like.new_zeros(like.shape[:2])
        self.linear = False
        self.empty = background is None
        self.opaque = background is not None
        if background is not None:
            self.colour += like.new_tensor(background)[:, None, None]
            self.alpha += 1

    def lay(self, mode: str, area: Area, colour: Tensor, alpha: Tensor) -> None:
        """Lay sRGB ``[3, h, w]`` with alpha ``[h, w]`` on ``area`` (rows and columns of the band)."""
        if self.empty and mode != "normal":
            if self.rules.clips:
                return
            mode = "normal"
        behind = self.alpha[area]
        front = self._front(mode, area, colour, behind)
        share = alpha
        if mode != "normal" and self.rules.clips:
            if not self.opaque:
                share = alpha * behind.sign()
        elif not self.opaque:
            behind.addcmul_(alpha, 1 - behind)
            # Both are 0 where nothing is.
            share = alpha / behind.clamp_min(1e-30)
        self.colour[area].lerp_(front, share)
        self.empty = False

    def _front(self, mode: str, area: Area, colour: Tensor, behind: Tensor) -> Tensor:
        """The colour to mix in, in the space of mixing, to which this pile's own colour is brought."""
        mixing = self.rules.linear and not self.empty
        if mode == "normal":
            self._move(mixing)
            return _converted(colour, False, mixing)
        blending = mode in self.rules.linear_modes
        blended = self.rules.blends[mode](
            _converted(self.colour[area], self.linear, blending), _converted(colour, False, blending)
        )
        if self.rules.bounded:
            blended = blended.clamp_(0, 1)
        self._move(mixing)
        blended = _converted(blended, blending, mixing)
        return blended if self.rules.clips or self.opaque else torch.lerp(colour, blended, behind)

    def _move(self, linear: bool) -> None:
        self.colour, self.linear = _converted(self.colour, self.linear, linear), linear

    def pixels(self) -> Tensor:
        """sRGB and alpha, 0..1, ``[4, H, W]``."""
        return torch.cat([_converted(self.colour, self.linear, False), self.alpha[None]]).clamp_(0, 1)


def _converted(colour: Tensor, linear: bool, wanted: bool) -> Tensor:
    """From sRGB, or linear light if ``linear``, to the space that is ``wanted``."""
    if linear == wanted:
        return colour
    return by_table(srgb_to_linear if wanted else linear_to_srgb, colour)
