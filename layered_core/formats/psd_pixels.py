"""Decode the channels of a PSD: the pixels and masks of its layers, and its merged picture."""

from __future__ import annotations

import numpy as np
import torch
from psd_tools.constants import ChannelID
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.layer_and_mask import ChannelData, ChannelDataList, LayerRecord, MaskParameters
from torch import Tensor

from ..errors import LayeredError, invalid
from .limits import Budget
from .psd_colours import PsdColours
from .psd_masks import PixelMask, Rectangle
from .psd_records import is_rendered, is_shape


class Channels:
    """Decodes the channels of one file.

    Args:
        header: the file's header: colour mode, depth and version.
        colours: converts the file's colours to sRGB.
        budget: the memory for what is decoded is taken from it.
        warnings: warnings are added to it.
    """

    def __init__(self, header: FileHeader, colours: PsdColours, budget: Budget, warnings: list[str]) -> None:
        self.header = header
        self.colours = colours
        self.budget = budget
        self.warnings = warnings

    def layer(self, record: LayerRecord, channels: ChannelDataList, where: str) -> Tensor:
        """Return sRGB with alpha ``[H, W, 4]``; opaque if the layer has no transparency channel."""
        planes = {info.id: data for info, data in zip(record.channel_info, channels, strict=True)}
        height, width = record.bottom - record.top, record.right - record.left
        colours = self.colours.channels
        if len(colours) > 3:
            self.budget.fits(where, width, height, len(colours) + 1)
        out = torch.ones(height, width, len(colours) + 1)
        for place, channel in [*enumerate(colours), (len(colours), ChannelID.TRANSPARENCY_MASK)]:
            if channel in planes:
                out[..., place] = self._plane(planes[ChannelID(channel)], width, height)
            elif place < len(colours):
                raise LayeredError(f"{where}: a colour channel is missing. Save the file anew")
        if self.header.depth == 32:
            out[..., -1].clamp_(0, 1)
        return self.colours.to_rgba(out)

    def _plane(self, data: ChannelData, width: int, height: int) -> Tensor:
        raw = data.get_data(width, height, self.header.depth, self.header.version)
        return self._values(raw, width, height)

    def _values(self, raw: bytes, width: int, height: int) -> Tensor:
        """Return the numbers of a channel ``[H, W]``: 0..1, or of 32 bits any finite ones."""
        if self.header.depth == 1:  # rows begin at whole bytes, and 1 is black
            bits = np.unpackbits(np.frombuffer(raw, "u1").reshape(height, -1), axis=1)[:, :width]
            return torch.from_numpy(1 - bits.astype(np.float32))
        kind, top = {8: ("u1", 255), 16: (">u2", 65535), 32: (">f4", 1)}[self.header.depth]
        values = torch.from_numpy(np.frombuffer(raw, kind).astype(np.float32)).reshape(height, width)
        return values.nan_to_num_() if self.header.depth == 32 else values / top

    def masks(self, record: LayerRecord, channels: ChannelDataList, where: str) -> tuple[PixelMask, ...]:
        """Return the layer's pixel mask and vector mask, which are multiplied.

        Photoshop stores the vector mask rendered to pixels: alone, or multiplied by the pixel mask, with the
        pixel mask itself beside it. The pixels of a shape are already cut by its vector mask.
        """
        data, planes = (
            record.mask_data,
            {info.id: data for info, data in zip(record.channel_info, channels, strict=True)},
        )
        if data is None or ChannelID.USER_LAYER_MASK not in planes:
            return ()
        box = (data.left, data.top, data.right, data.bottom)
        first = (
            None
            if data.flags.mask_disabled
            else self._mask(planes[ChannelID.USER_LAYER_MASK], box, data.background_color, where)
        )
        pixel, vector, disabled = first, None, data.flags.mask_disabled
        if is_rendered(record):
            pixel, vector = None, first
            if data.real_flags is not None and ChannelID.REAL_USER_LAYER_MASK in planes:
                disabled = data.real_flags.mask_disabled  # if so, the vector mask is rendered alone
                if not disabled:
                    box = (
                        data.real_left or 0,
                        data.real_top or 0,
                        data.real_right or 0,
                        data.real_bottom or 0,
                    )
                    pixel = self._mask(
                        planes[ChannelID.REAL_USER_LAYER_MASK], box, data.real_background_color or 0, where
                    )
                    vector = None if first is None else first.without(pixel)
        if disabled:
            self.warnings.append(f"{where}: the mask is switched off and left out")
        found = []
        parameters = data.parameters or MaskParameters()
        if pixel is not None:
            found.append(pixel.at(parameters.user_mask_density))
        if vector is not None and not is_shape(record):
            found.append(vector.at(parameters.vector_mask_density))
        elif vector is not None and parameters.vector_mask_density not in (None, 255):
            self.warnings.append(f"{where}: the density of the shape's mask is left out")
        if (pixel and parameters.user_mask_feather) or (vector and parameters.vector_mask_feather):
            self.warnings.append(f"{where}: the mask's feather is left out")
        return tuple(mask for mask in found if mask.values.numel() or mask.outside < 1)

    def _mask(self, data: ChannelData, box: Rectangle, outside: int, where: str) -> PixelMask:
        """Return the mask in ``box``, here left, top, right, bottom; ``outside`` is its value elsewhere,
        0..255."""
        left, top, right, bottom = box
        if right <= left or bottom <= top:
            return PixelMask(left, top, torch.zeros(0, 0), outside / 255)
        self.budget.take(f"the mask of {where}", right - left, bottom - top, 1)
        values = self._plane(data, right - left, bottom - top)
        return PixelMask(left, top, values.clamp_(0, 1) if self.header.depth == 32 else values, outside / 255)

    def merged(self, image: ImageData) -> Tensor:
        """Return the file's merged picture, sRGB with alpha ``[H, W, 4]``, opaque."""
        header, colours = self.header, self.colours.channels
        self.budget.take("the picture", header.width, header.height, header.channels + 4)
        if header.channels <= max(colours):
            raise invalid("number of channels", header.channels, f"at least {max(colours) + 1}")
        found = image.get_data(header)
        planes = [self._values(found[channel], header.width, header.height) for channel in colours]
        return self.colours.to_rgba(torch.stack([*planes, torch.ones(header.height, header.width)], -1))
