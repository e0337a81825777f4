"""Compositing: flatten a document to one picture."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from types import EllipsisType

import torch
from torch import Tensor

from ..document import Layer, LayerDocument
from ..progress import by_rows, row_bands, steps
from .blend_modes import Rules, find_rules
from .colour import by_table, linear_to_srgb, srgb_to_linear
from .placement import Box, bounds, is_exact, layer_window, meet, place, reduced

GREY = (150 / 255, 150 / 255, 150 / 255)
"""Colour behind transparent pixels where a picture must be opaque: Collage Diffusion's canvas colour."""

Area = tuple[EllipsisType, slice, slice]
"""An index of rows and columns of a band."""


def _band_pixels(device: torch.device) -> int:
    """Return how many pixels to composite at a time: on a CPU as many as its cache holds, elsewhere more, so
    that there are few large steps."""
    return 32_000 if device.type == "cpu" else 1 << 24


def composite(document: LayerDocument, rules: str = "photoshop") -> Tensor:
    """Composite all visible layers of a document, back to front.

    Layers are resampled with premultiplied colours. Layers that are hidden, without a picture, off the canvas
    or wholly covered by an opaque layer of mode ``normal`` cost nothing. No gradients.

    Args:
        document: any document; its background, if any, lies under all layers.
        rules: ``photoshop`` (all in sRGB, source-over: as Photoshop, OpenRaster and browsers) or ``comfyui``
            (alpha and some modes in linear light, modes other than normal paint only where the backdrop is:
            as ComfyUI's own compositor). See :data:`~layered_core.canvas.blend_modes.RULES`.

    Returns:
        RGBA float32 ``[H, W, 4]``, straight alpha, 0..1, on the layers' device; float64 if a layer's image
        is. Colour is 0 where alpha is 0.

    Raises:
        LayeredError: ``rules`` is unknown.
    """
    stack = Compositor(document, rules)
    out = torch.empty(document.height, document.width, 4, dtype=stack.dtype, device=stack.device)

    def keep(rows: slice, pixels: Tensor) -> None:
        out[rows] = pixels

    stack.each_band(keep)
    return out


class Compositor:
    """A document that is composited as :func:`composite` does, but band by band, so that the whole need not be in
    memory at once."""

    def __init__(self, document: LayerDocument, rules: str = "photoshop") -> None:
        self._rules = find_rules(rules)
        self._document = document
        canvas = 0, 0, document.width, document.height
        shown = [
            x
            for x in document
            if x.image is not None and x.visible and x.opacity > 0 and meet(bounds(x), canvas)
        ]
        self._shown = [_PreparedLayer(x, x.image) for x in steps(shown) if x.image is not None]
        self.dtype = reduce(torch.promote_types, (x.dtype for x in self._shown), torch.float32)
        """The type of the result: float64 if a layer's image is, else float32."""
        self.device = self._shown[0].device if self._shown else torch.device("cpu")
        """The device of the layers, and of the result."""

    def each_band(self, use: Callable[[slice, Tensor], None]) -> None:
        """Call ``use`` with the rows of every band of the canvas and their pixels ``[H, W, 4]``; on a CPU from as
        many threads as torch may use."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        inference = torch.is_inference_mode_enabled()

        def work(rows: slice) -> None:
            # New threads inherit neither the inference mode nor the gradient mode of this one.
            with torch.inference_mode(inference), torch.no_grad():
                use(rows, self._band(rows, like))

        width = self._document.width
        _for_each(
            work, row_bands(self._document.height, width, values=_band_pixels(self.device)), self.device
        )

    def _band(self, rows: slice, like: Tensor) -> Tensor:
        """Return the canvas's rows composited, ``[H, W, 4]``."""
        document = self._document
        band = 0, rows.start, document.width, rows.stop
        seen = []
        for layer in reversed(self._shown):
            box = meet(layer.box, band)
            if box is None:
                continue
            colour, alpha = layer.pixels_in(box, like)
            least, most = (float(x) for x in alpha.aminmax())
            if most > 0:
                seen.append((layer.mode, box, colour, alpha))
            if layer.mode == "normal" and least == 1 and box == band:
                break
        size = rows.stop - rows.start, document.width
        below = _Band(self._rules, document.background, like.new_zeros(3, *size))
        for mode, (x0, y0, x1, y1), colour, alpha in reversed(seen):
            area = ..., slice(y0 - rows.start, y1 - rows.start), slice(x0, x1)
            below.lay(mode, area, colour, alpha)
        return below.pixels().movedim(0, -1)


def flat(document: LayerDocument) -> Tensor:
    """Return the opaque picture that sampling starts from, the same in every host: ``[3, H, W]`` in 0..1.

    It is the composite by the rules ``photoshop``, as models have learnt from pictures that were mixed in
    sRGB, over the document's background. A document without one has ``GREY`` as its background.
    """
    opaque = replace(document, background=document.background or GREY)
    return composite(opaque, "photoshop")[..., :3].permute(2, 0, 1)


def premultiplied(layer: Layer, width: int, height: int) -> Tensor:
    """Return the layer on an empty canvas, float32 ``[H, W, 4]``, premultiplied; all 0 for a hidden layer and
    one without a picture."""
    if layer.image is None or not layer.visible:
        return torch.zeros(height, width, 4)
    return place(_multiplied(layer, layer.image), layer, width, height).mul_(layer.opacity)


def straight(pixels: Tensor) -> Tensor:
    """Convert premultiplied colours ``[..., 4]`` to straight ones; the colour is 0 where alpha is 0."""
    return by_rows(_straight, pixels)


def _straight(pixels: Tensor) -> Tensor:
    alpha = pixels[..., 3:]
    colour = torch.where(alpha > 0, pixels[..., :3] / alpha.clamp_min(1e-8), 0.0)
    return torch.cat([colour, alpha], -1).clamp_(0, 1)


def over_colour(pixels: Tensor, colour: Tensor | tuple[float, float, float]) -> Tensor:
    """Lay a straight-alpha picture ``[..., 4]`` over a colour, or over colours ``[..., 3]``; return
    ``[..., 3]``."""
    backdrop = torch.as_tensor(colour, dtype=pixels.dtype, device=pixels.device)
    return pixels[..., :3] * pixels[..., 3:] + backdrop * (1 - pixels[..., 3:])


def _for_each(work: Callable[[slice], None], bands: list[slice], device: torch.device) -> None:
    """Call ``work`` for every band, on a CPU in as many threads as torch may use.

    Torch itself would split each of the many small operations among its threads, which costs more than the
    operations do, and far more if other programs use the processors too. So here every thread takes whole
    bands and runs their operations alone.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        for band in steps(bands):
            work(band)
        return
    pool = ThreadPoolExecutor(min(threads, len(bands)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        for done in steps([pool.submit(work, band) for band in bands]):
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The number that a thread sets for itself is also used for threads that start later.
        torch.set_num_threads(threads)


def multiplied(colours: Tensor, alpha: Tensor) -> Tensor:
    """Return colours ``[H, W, 3]`` premultiplied by ``alpha`` ``[H, W]``, with it, ``[H, W, 4]``."""
    height, width = alpha.shape
    out = alpha.new_empty(height, width, 4, dtype=torch.promote_types(colours.dtype, alpha.dtype))
    for rows in steps(row_bands(height, width, 4)):
        torch.mul(colours[rows], alpha[rows, :, None], out=out[rows, :, :3])
        out[rows, :, 3] = alpha[rows]
    return out


def _multiplied(layer: Layer, image: Tensor) -> Tensor:
    """Return a layer's picture with premultiplied colours; the picture itself, if it is opaque."""
    alpha = layer.coverage
    if image.dtype.itemsize >= 4 and bool(alpha.amin() == 1):
        return image
    return multiplied(image[..., :3], alpha)


class _PreparedLayer:
    """A visible layer with a picture, prepared so that parts of it can be read at canvas positions."""

    def __init__(self, layer: Layer, image: Tensor) -> None:
        self.layer, self.mode, self.box = layer, layer.blend_mode, bounds(layer)
        self.dtype, self.device = image.dtype, image.device
        self.multiplied = not is_exact(layer, *image.shape[:2])
        self.mask = None if self.multiplied else layer.mask
        if self.multiplied:
            # Never larger than the layer's own picture.
            image = reduced(_multiplied(layer, image).movedim(-1, 0), layer).movedim(0, -1)
        elif self.mask is not None and self.mask.shape != image.shape[:2]:
            image, self.mask = torch.cat([image[..., :3], layer.coverage[..., None]], -1), None
        self.pixels = image.movedim(-1, 0)

    def pixels_in(self, box: Box, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sRGB ``[3, H, W]`` and alpha ``[H, W]`` in ``box``, with the dtype and device of
        ``like``."""
        pixels = layer_window(self.pixels, self.layer, box).to(like).contiguous()
        colour, alpha = pixels[:3], pixels[3] * self.layer.opacity
        if self.multiplied:
            colour = (colour / pixels[3].clamp_min(1e-8)).clamp_max_(1)
        elif self.mask is not None:
            alpha *= layer_window(self.mask[None], self.layer, box).to(like)[0]
        return colour, alpha


class _Band:
    """The layers composited so far in one band of the canvas: straight colour ``[3, H, W]``, 0 where alpha is
    0, and alpha ``[H, W]``.

    The colour stays in sRGB until something must be mixed in linear light, so that a layer laid on an empty
    band keeps its exact values.
    """

    def __init__(self, rules: Rules, background: tuple[float, float, float] | None, empty: Tensor) -> None:
        """Begin with ``background``, or with ``empty``, ``[3, H, W]`` of zeros, which is written into."""
        self.rules = rules
        self.colour = empty
        self.alpha = empty.new_zeros(empty.shape[1:])
        self.linear = False
        self.empty = background is None
        self.opaque = background is not None
        if background is not None:
            self.colour += empty.new_tensor(background)[:, None, None]
            self.alpha += 1

    def lay(self, mode: str, area: Area, colour: Tensor, alpha: Tensor) -> None:
        """Lay a layer, sRGB ``[3, h, w]`` with alpha ``[h, w]``, on ``area`` (rows and columns of the
        band)."""
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
            # alpha and behind are both 0 where nothing has been laid.
            share = alpha / behind.clamp_min(1e-30)
        self.colour[area].lerp_(front, share)
        self.empty = False

    def _front(self, mode: str, area: Area, colour: Tensor, behind: Tensor) -> Tensor:
        """Return the colour to mix in, in the colour space of mixing; convert this band's own colour to that
        space."""
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
        """Return sRGB and alpha, ``[4, H, W]`` in 0..1."""
        return torch.cat([_converted(self.colour, self.linear, False), self.alpha[None]]).clamp_(0, 1)


def _converted(colour: Tensor, linear: bool, wanted: bool) -> Tensor:
    """Convert from linear light if ``linear``, else from sRGB, to linear light if ``wanted``, else to
    sRGB."""
    if linear == wanted:
        return colour
    return by_table(srgb_to_linear if wanted else linear_to_srgb, colour)
