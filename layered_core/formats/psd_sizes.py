"""Hold the sizes that a PSD's records state against the limits, before any pixel is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from psd_tools.constants import ChannelID, SectionDivider
from psd_tools.psd.layer_and_mask import LayerRecord

from ..errors import LayeredError
from .limits import Budget
from .psd_records import section_divider

Size = tuple[str, int, int, int]
"""Name, width, height and number of channels of a layer or mask."""


def check_sizes(
    records: Sequence[LayerRecord],
    canvas: tuple[int, int],
    budget: Budget,
    title: Callable[[LayerRecord], str],
    warnings: list[str],
) -> None:
    """Check that all layers and masks together fit into the memory.

    A layer that is hidden, or lies wholly outside the canvas, does not change the picture: if it alone is too large,
    its record is emptied, with a warning, and so is a mask of a hidden group.

    Args:
        records: records of the layers, back to front.
        canvas: width and height, pixels.
        budget: nothing is taken from it.
        title: returns the name of a layer.
        warnings: warnings are added to it.

    Raises:
        LayeredError: a limit is exceeded.
    """
    found: list[tuple[bool, list[Size]]] = []
    for record, shown in _with_visibility(records):
        group = section_divider(record) is not None
        where = f"{'group' if group else 'layer'} {title(record)!r}"
        sizes = _sizes(record, where)
        outside = not group and not _meets(record, canvas)
        if not shown or outside:
            try:
                for size in sizes:
                    budget.check(*size[:3])
            except LayeredError as error:
                what = "its mask is left out" if group else "it is left empty"
                why = "outside the canvas" if shown else "hidden"
                warnings.append(f"{where} is {why} and too large, so {what}: {error}")
                record.mask_data = None
                if not group:
                    record.right, record.bottom = record.left, record.top
                continue
        found.append((shown, sizes))
    # Where there are too many layers, hidden ones are left out.
    some = sum(1 for _, sizes in found if sizes) > budget.limits.max_layers
    budget.fits_all(size for shown, sizes in found if shown or not some for size in sizes)


def _with_visibility(records: Sequence[LayerRecord]) -> Iterator[tuple[LayerRecord, bool]]:
    """Yield layers and beginnings of groups, front to back, and whether each is shown, with the groups around it."""
    groups = [True]
    for record in reversed(records):
        kind = section_divider(record)
        if kind == SectionDivider.BOUNDING_SECTION_DIVIDER:
            groups.pop()
            continue
        shown = groups[-1] and record.flags.visible
        if kind is not None:
            groups.append(shown)
        yield record, shown


def _sizes(record: LayerRecord, where: str) -> list[Size]:
    """Return the sizes of the pixels and masks of a layer that are not empty."""
    sizes = [(where, record.width, record.height, 4)] if section_divider(record) is None else []
    data, present = record.mask_data, {info.id for info in record.channel_info}
    if data is not None and ChannelID.USER_LAYER_MASK in present and not data.flags.mask_disabled:
        sizes.append((f"the mask of {where}", data.width, data.height, 1))
    if data is not None and data.real_flags is not None and ChannelID.REAL_USER_LAYER_MASK in present:
        sizes.append((f"the mask of {where}", data.real_width, data.real_height, 1))
    return [size for size in sizes if size[1] and size[2]]


def _meets(record: LayerRecord, canvas: tuple[int, int]) -> bool:
    """Return whether the pixels, or the mask of a layer without any, reach into the canvas."""
    box = record if record.width and record.height else record.mask_data
    return box is None or (box.left < canvas[0] and box.top < canvas[1] and box.right > 0 and box.bottom > 0)
