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
from ..progress import pause, steps
from .limits import Budget
from .merged_picture import straight_merged
from .pixel_numbers import Numbers, interleaved
from .psd_colours import PsdColours
from .psd_masks import PixelMask, Rectangle
from .psd_records import is_rendered, is_shape

_FAR = 1e6
"""Numbers of floating point beyond it are cut to it."""


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
        self.kind = np.dtype({16: ">u2", 32: ">f4"}.get(header.depth, "u1"))

    def layer(self, record: LayerRecord, channels: ChannelDataList, where: str) -> Tensor:
        """Return sRGB with alpha ``[H, W, 4]``; opaque if the layer has no transparency channel."""
        planes = {info.id: data for info, data in zip(record.channel_info, channels, strict=True)}
        height, width = record.bottom - record.top, record.right - record.left
        colours = self.colours.channels
        if len(colours) > 3:
            self.budget.fits(where, width, height, len(colours) + 1)
        if any(channel not in planes for channel in colours):
            raise LayeredError(f"{where}: a colour channel is missing. Save the file anew")
        found = {
            channel: self._plane(planes[ChannelID(channel)], width, height)
            for channel in steps(tuple(dict.fromkeys(colours)))
        }
        alpha = planes.get(ChannelID.TRANSPARENCY_MASK)
        values = interleaved(
            [
                *(found[channel] for channel in colours),
                None if alpha is None else self._plane(alpha, width, height),
            ]
        )
        return self.colours.to_rgba(values)

    def _plane(self, data: ChannelData, width: int, height: int) -> Numbers:
        """Return a channel's numbers, ``[height, width]``."""
        pause()
        raw = data.get_data(width, height, self.header.depth, self.header.version)
        return self._numbers(raw, width, height)

    def _numbers(self, raw: bytes, width: int, height: int) -> Numbers:
        numbers = np.frombuffer(raw, self.kind).reshape(height, -1)
        if self.header.depth == 1:  # rows begin at whole bytes, and 1 is black
            return 255 * (1 - np.unpackbits(numbers, axis=1)[:, :width])
        return np.nan_to_num(numbers).clip(-_FAR, _FAR) if self.header.depth == 32 else numbers

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
        values = interleaved([self._plane(data, right - left, bottom - top)])[..., 0]
        return PixelMask(left, top, values.clamp_(0, 1) if self.header.depth == 32 else values, outside / 255)

    def merged(self, image: ImageData, transparent: bool) -> Tensor:
        """Return the file's merged picture, sRGB with alpha ``[H, W, 4]``, straight alpha; opaque unless it is
        ``transparent``, that is, unless its first extra channel is its alpha."""
        header, colours = self.header, self.colours.channels
        count = max(colours) + 1
        self.budget.fits("the picture", header.width, header.height, header.channels + 8)
        if header.channels < count:
            raise invalid("number of channels", header.channels, f"at least {count}")
        planes = [
            self._numbers(raw, header.width, header.height) for raw in image.get_data(header)[: count + 1]
        ]
        alpha = planes[count] if transparent and len(planes) > count else None
        values = interleaved([*(planes[channel] for channel in colours), alpha])
        return self.colours.to_rgba(
            values if alpha is None else straight_merged(values[..., :-1], values[..., -1])
        )
