"""The colour modes of a PSD: how its channels become sRGB.

Source: Adobe's "Photoshop File Formats Specification", and psd-tools where it goes beyond that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from psd_tools.constants import AlphaChannelMode, ColorMode, Resource
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_resources import ImageResources
from torch import Tensor

from ..errors import LayeredError, invalid
from .colour_spaces import CMYK, LAB_8, LAB_16, LINEAR, Conversion, of_profile, tell, to_srgb

_CHANNELS = {
    ColorMode.RGB: (0, 1, 2),
    ColorMode.GRAYSCALE: (0, 0, 0),
    ColorMode.DUOTONE: (0, 0, 0),
    ColorMode.BITMAP: (0, 0, 0),
    ColorMode.INDEXED: (0, 0, 0),
    ColorMode.CMYK: (0, 1, 2, 3),
    ColorMode.LAB: (0, 1, 2),
    ColorMode.MULTICHANNEL: (0, 1, 2, 3),
}
"""The channels that hold the colours in each mode; grey counts three times."""

_DEPTHS = {ColorMode.BITMAP: (1,), ColorMode.INDEXED: (8,), ColorMode.DUOTONE: (8,)}
"""Bits a channel of modes that have fewer depths than 8, 16 and 32."""

_SPACES = {ColorMode.GRAYSCALE: "GRAY", ColorMode.DUOTONE: "GRAY", ColorMode.CMYK: "CMYK"}
"""The colours of which a profile must be; of all other modes RGB."""

_TOLD = {
    ColorMode.DUOTONE: "a duotone is read as its grey picture; its inks are left out",
    ColorMode.INDEXED: "the document has indexed colours; it is read as RGB",
    ColorMode.BITMAP: "the document is a bitmap; it is read as RGB",
}
"""Told of each mode that becomes another one."""

_INKS = Conversion(
    "the document is multichannel: its first channels are read as cyan, magenta, yellow and black ink",
    lambda v: v[:3] if len(v) == 3 else v[:3] * v[3],
)
"""From the numbers that Photoshop stores of inks, 0 for full ink, as ideal ones."""


def check_mode(header: FileHeader) -> None:
    """Raise :class:`LayeredError` unless pictures of the header's colour mode and depth are read."""
    mode, depths = header.color_mode, _DEPTHS.get(header.color_mode, (8, 16, 32))
    if mode not in _CHANNELS:
        raise invalid("colour mode", mode.name, ", ".join(m.name for m in _CHANNELS), "Convert it to RGB")
    if header.depth not in depths:
        allowed = ", ".join(map(str, depths))
        raise invalid(
            f"bits a channel of {mode.name}", header.depth, allowed, "Convert it to RGB with 8 or 16"
        )


class PsdColours:
    """Converts the colours of one file to sRGB.

    Args:
        header: the file's header; :func:`check_mode` has accepted it.
        palette: the file's colour mode data: of indexed colours the 256 reds, greens and blues.
        resources: the file's resources.
        layered: whether there are several layers, which are mixed.
        warnings: warnings are added to it.
    """

    def __init__(
        self,
        header: FileHeader,
        palette: bytes,
        resources: ImageResources,
        layered: bool,
        warnings: list[str],
    ) -> None:
        self.mode, self.depth, self.warnings = header.color_mode, header.depth, warnings
        self.channels: Sequence[int] = _CHANNELS[self.mode]
        if self.mode == ColorMode.MULTICHANNEL:
            self.channels = self.channels[: header.channels] if header.channels >= 3 else (0, 0, 0)
        self._palette, self._clear = palette, resources.get_data(Resource.TRANSPARENCY_INDEX)
        self._conversion = self._found(resources.get_data(Resource.ICC_PROFILE))
        self._tell(resources.get_data(Resource.DISPLAY_INFO), layered)

    def _tell(self, channels: object, layered: bool) -> None:
        """Tell of what is lost besides single colours; ``channels`` describes the extra ones."""
        if self.mode in _TOLD:
            tell(self.warnings, _TOLD[self.mode])
        spots = [c for c in getattr(channels, "alpha_channels", ()) if c.mode == AlphaChannelMode.SPOT]
        if spots and self.mode != ColorMode.MULTICHANNEL:
            tell(self.warnings, "the document's spot colours are left out")
        linear = self._conversion is not None and self._conversion.linear
        mixed = {ColorMode.CMYK: "as CMYK", ColorMode.LAB: "as Lab"}.get(
            self.mode, "in linear light" * linear
        )
        if mixed and layered:
            tell(
                self.warnings,
                f"the document's program mixes its layers {mixed}, and here they are mixed as sRGB: translucent parts "
                f"and blend modes may look different",
            )

    def _found(self, profile: object) -> Conversion | None:
        if self.mode == ColorMode.LAB:
            return LAB_8 if self.depth == 8 else LAB_16
        if self.mode == ColorMode.MULTICHANNEL:
            return _INKS
        if isinstance(profile, bytes) and self.mode != ColorMode.BITMAP:
            try:
                return of_profile(profile, _SPACES.get(self.mode, "RGB"))
            except ValueError as error:
                tell(self.warnings, f"the colour profile is left out: {error}")
        if self.mode == ColorMode.CMYK:
            return CMYK
        return LINEAR if self.depth == 32 else None

    def to_rgba(self, values: Tensor) -> Tensor:
        """Convert ``[H, W, C + 1]``, the numbers of :attr:`channels` and alpha, to sRGB ``[H, W, 4]``; may change
        them."""
        if self.depth == 32:
            values[..., -1].clamp_(0, 1)
        if self.mode == ColorMode.INDEXED:
            values = self._indexed(values)
        elif self.mode == ColorMode.CMYK:
            values[..., :4].neg_().add_(1)  # Photoshop stores 0 for full ink
        return to_srgb(values, self._conversion, max(self.depth, 8), self.warnings)

    def _indexed(self, values: Tensor) -> Tensor:
        """Return the colours of the palette that indices, as 0..1, have; one of them may be transparent."""
        if len(self._palette) < 768:
            raise LayeredError("the table of the indexed colours is cut short. Save the file anew")
        table = torch.frombuffer(bytearray(self._palette[:768]), dtype=torch.uint8).reshape(3, 256).T / 255
        index = (values[..., 0] * 255).round().long()
        alpha = torch.ones_like(values[..., 0])
        if isinstance(self._clear, int):
            alpha[index == self._clear] = 0
        return torch.cat([table[index], alpha[..., None]], -1)
