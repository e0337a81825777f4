"""The contact sheet of a data set: a strip of small pictures for each picture, and a page that shows them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import torch
from torch import Tensor

from layered_core.canvas.compositing import composite
from layered_core.canvas.resizing import resized
from layered_core.document import LayerDocument
from layered_core.formats.pictures import to_image

SIDE = 160
"""Height of the small pictures, pixels."""

_SQUARE = 10
"""Side of the squares behind transparent pixels."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.4 sans-serif; margin: 24px; }}
article {{ margin: 0 0 24px; }} img {{ display: block; max-width: 100%; }}
small, td {{ color: #555; }} table {{ border-spacing: 12px 2px; text-align: left; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def preview(picture: Tensor, document: LayerDocument) -> bytes:
    """Return a JPEG file: the picture ``[H, W, 3 or 4]``, then each layer of the document, the background first."""
    shown = [picture, *(composite(replace(document, layers=(x,), background=None)) for x in document)]
    image = to_image(torch.cat([_small(x) for x in shown], 1))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _small(pixels: Tensor) -> Tensor:
    """Return pixels ``[H, W, 3 or 4]`` at the height of the strip, the transparent ones over squares."""
    height, width = pixels.shape[:2]
    wide = max(1, min(4 * SIDE, round(SIDE * width / height)))
    planes = pixels.float().permute(2, 0, 1)
    if len(planes) == 3:
        return resized(planes, SIDE, wide).clamp(0, 1).permute(1, 2, 0)
    faded = resized(torch.cat([planes[:3] * planes[3:], planes[3:]]), SIDE, wide).clamp(0, 1)
    rows, columns = torch.arange(SIDE)[:, None] // _SQUARE, torch.arange(wide)[None] // _SQUARE
    squares = 0.75 + 0.15 * ((rows + columns) % 2).float()
    return (faded[:3] + squares * (1 - faded[3:])).clamp(0, 1).permute(1, 2, 0)


def html(kept: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of a data set, whose pictures lie beside it. The entries are the records'."""
    shown = "\n".join(_article(x) for x in kept)
    rows = "\n".join(
        f"<tr><th>{escape(str(x['source']))}</th><td>{escape(str(x['reason']))}</td></tr>" for x in rejected
    )
    left_out = f"<h2>Left out: {len(rejected)}</h2>\n<table>\n{rows}\n</table>" if rejected else ""
    licence = escape(str(kept[0].get("licence") or "")) if kept else ""
    head = f"<p>Licence: {licence}</p>\n" if licence else ""
    return _PAGE.format(title=f"{len(kept)} layered pictures", body=f"{head}{shown}\n{left_out}")


def _article(entry: Mapping[str, Any]) -> str:
    layers = ", ".join(f"{x['name']} ({x['score']:.2f})" for x in entry["layers"])
    checks = entry["checks"]
    left = max((checks["still_there"] or {}).values(), default=None)
    notes = [f"composite {checks['composite_psnr']} dB"] if checks["composite_psnr"] is not None else []
    notes += [] if left is None else [f"left in the background: {left:.2f}"]
    notes += [f"{x['name']}: hidden part missing" for x in entry["layers"] if not x["amodal"]]
    return (
        f"<article><b>{escape(str(entry['source']))}</b> {escape(str(entry['caption']))}\n"
        f'<img loading="lazy" src="{escape(str(entry["sha256"]))}/preview.jpg" alt="{escape(layers)}">\n'
        f"<small>{escape(layers)}; {escape('; '.join(notes))}</small></article>"
    )
