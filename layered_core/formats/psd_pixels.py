"""Decode the channels of a PSD: the pixels and masks of its layers, and its merged picture."""

from __future__ import annotations

import numpy as np
import torch
from psd_tools.constants import ChannelID, ColorMode
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.layer_and_mask import ChannelData, ChannelDataList, LayerRecord, MaskParameters
from torch import Tensor

from ..errors import LayeredError, invalid
from ..progress import pause
from .limits import Budget
from .merged_picture import straight_merged
from .pixel_numbers import Numbers, interleaved
from .psd_masks import PixelMask, Rectangle
from .psd_records import is_rendered, is_shape


class Channels:
    """Decodes the channels of one file.

    Args:
        header: the file's header: colour mode, depth and version.
        budget: the memory for what is decoded is taken from it.
        warnings: warnings are added to it.
    """

    def __init__(self, header: FileHeader, budget: Budget, warnings: list[str]) -> None:
        self.header = header
        self.budget = budget
        self.warnings = warnings
        self.kind = np.dtype("u1" if header.depth == 8 else ">u2")

    def layer(self, record: LayerRecord, channels: ChannelDataList, where: str) -> Tensor:
        """Return RGBA ``[H, W, 4]``; opaque if the layer has no transparency channel."""
        planes = {info.id: data for info, data in zip(record.channel_info, channels, strict=True)}
        height, width = record.bottom - record.top, record.right - record.left
        colours = [0, 0, 0] if self.header.color_mode == ColorMode.GRAYSCALE else [0, 1, 2]
        if any(channel not in planes for channel in colours):
            raise LayeredError(f"{where}: a colour channel is missing. Save the file anew")
        found = {
            channel: self._plane(planes[ChannelID(channel)], width, height)
            for channel in dict.fromkeys(colours)
        }
        alpha = planes.get(ChannelID.TRANSPARENCY_MASK)
        return interleaved(
            [
                *(found[channel] for channel in colours),
                None if alpha is None else self._plane(alpha, width, height),
            ]
        )

    def _plane(self, data: ChannelData, width: int, height: int) -> Numbers:
        """Return a channel's numbers, ``[height, width]``."""
        pause()
        raw = data.get_data(width, height, self.header.depth, self.header.version)
        return np.frombuffer(raw, self.kind).reshape(height, width)

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
        plane = self._plane(data, right - left, bottom - top)
        return PixelMask(left, top, interleaved([plane])[..., 0], outside / 255)

    def merged(self, image: ImageData, transparent: bool) -> Tensor:
        """Return the file's merged picture, RGBA ``[H, W, 4]``, straight alpha; opaque unless it is ``transparent``,
        that is, unless its first extra channel is its alpha."""
        header = self.header
        self.budget.fits("the picture", header.width, header.height, header.channels + 8)
        colours = 1 if header.color_mode == ColorMode.GRAYSCALE else 3
        if header.channels < colours:
            raise invalid("number of channels", header.channels, f"at least {colours}")
        planes = [
            np.frombuffer(raw, self.kind).reshape(header.height, header.width)
            for raw in image.get_data(header)[: colours + 1]
        ]
        alpha = planes[colours] if transparent and len(planes) > colours else None
        rgba = interleaved([*(planes[:colours] * 3)[:3], alpha])
        return rgba if alpha is None else straight_merged(rgba[..., :3], rgba[..., 3])
