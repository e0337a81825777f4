"""Read and write OpenRaster files by the public specification (openraster.org, version 0.0.5).

An OpenRaster file is a zip archive: ``mimetype``, first and uncompressed; ``stack.xml`` with the layers front
to back; ``data/*.png``; ``mergedimage.png`` and ``Thumbnails/thumbnail.png``. The format has no masks, only
whole-pixel positions, and a fixed list of blend modes. Data that it lacks are stored in attributes of this
project's namespace in ``stack.xml`` and in entries under ``layered-diffusion/``. Blend modes outside the list
are written by Krita's names, as Krita does; a program that does not know one shows the layer as normal.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree.ElementTree import Element, SubElement, register_namespace, tostring

from torch import Tensor

from ..canvas.compositing import composite
from ..document import LayerDocument
from ..errors import LayeredError, invalid
from ..progress import pieces, step, steps, watched
from .file_groups import check_groups, flatten_groups
from .file_layers import MAX_TITLE, MAX_WORKFLOW_BYTES, FileGroup, FileLayer, Item, LayerFile, clean_text
from .file_nodes import Node, leaves, make_room
from .from_file import restore
from .limits import Budget, Limits, check_file
from .openraster_archive import FOLDER, PNG, Archive, check_directory
from .pictures import decode_picture, save_png, to_image, write_whole
from .to_file import document_private, flatten
from .untrusted import NAMESPACE, parse_json, parse_xml

MIMETYPE = b"image/openraster"
PNG_SETTINGS = {"compress_level": 4, "compress_type": zlib.Z_RLE}
"""How Pillow compresses PNG pictures: in two thirds of the time of the usual way, to files 2 to 15 % larger."""
_MERGED = "mergedimage.png"
_LAYER, _DOCUMENT = f"{{{NAMESPACE}}}layer", f"{{{NAMESPACE}}}document"

_MODES = {
    "normal": "svg:src-over", "multiply": "svg:multiply", "screen": "svg:screen", "overlay": "svg:overlay",
    "darken": "svg:darken",
    "lighten": "svg:lighten", "color-dodge": "svg:color-dodge", "color-burn": "svg:color-burn",
    "hard-light": "svg:hard-light",
    "soft-light": "svg:soft-light", "difference": "svg:difference", "color": "svg:color",
    "luminosity": "svg:luminosity", "hue": "svg:hue",
    "saturation": "svg:saturation", "linear-dodge": "svg:plus", "exclusion": "krita:exclusion",
    "linear-burn": "krita:linear_burn",
    "vivid-light": "krita:vivid_light", "linear-light": "krita:linear light", "pin-light": "krita:pin_light",
    "hard-mix": "krita:hard_mix_photoshop",
    "subtract": "krita:subtract", "divide": "krita:divide", "grain-extract": "krita:grain_extract",
    "grain-merge": "krita:grain_merge",
}  # fmt: skip

STANDARD_MODES = frozenset(name for name, operator in _MODES.items() if operator.startswith("svg:"))
"""Blend modes that the OpenRaster specification names."""

_NAMES = {
    **{operator: name for name, operator in _MODES.items()},
    "svg:exclusion": "exclusion", "svg:add": "linear-dodge", "krita:add": "linear-dodge",
    "krita:linear_dodge": "linear-dodge",
    "krita:soft_light": "soft-light",
}  # fmt: skip
"""The names that blend modes have in files, as written here and by other programs, to a document's names."""

_HARD_MIX = "krita:hard mix"
"""Krita's own hard mix, dodge on a light backdrop and burn on a dark one, which is another mode than Photoshop's.
Earlier versions of this project wrote Photoshop's by this name."""

_CLIP = "svg:src-atop"
"""The operator of a layer that is clipped to those below it, Krita's inherit alpha."""

_CUTS = ("svg:dst-in", "svg:dst-out", "svg:dst-atop")
"""Operators that cut the layers below by the layer's alpha and do not show the layer itself."""

_MAX_DEPTH = 64
"""Greatest depth of nested stacks."""
_MAX_XML_BYTES = 2**24


# Writing


def write_openraster(
    document: LayerDocument, path: str | Path, workflow: Mapping[str, Any] | None = None
) -> None:
    """Write an OpenRaster file; it appears complete or not at all.

    Layers have 8 bits a channel. Other programs show every layer as placed, with its mask multiplied into the
    alpha, and the composite by Photoshop's rules; :func:`read_openraster` gives an equal document.

    Args:
        document: any document.
        path: file to write; its folder must exist.
        workflow: data of the host that is stored in the file, plain JSON values.
    """
    layers, blobs = flatten(document, 8, masks=False)
    register_namespace("ld", NAMESPACE)
    root = Element(
        "image",
        {"version": "0.0.3", "w": str(document.width), "h": str(document.height), "xres": "72", "yres": "72"},
    )
    root.set(_DOCUMENT, json.dumps(document_private(document)))
    stack = SubElement(root, "stack")
    sources = [f"data/{number:03d}.png" for number in range(1, len(layers) + 1)]
    for layer, source in reversed(list(zip(layers, sources, strict=True))):
        look = {
            "name": layer.title,
            "src": source,
            "x": str(layer.left),
            "y": str(layer.top),
            "opacity": repr(float(layer.opacity)),
        }
        look |= {
            "visibility": "visible" if layer.visible else "hidden",
            "composite-op": _MODES[layer.blend_mode],
        }
        SubElement(stack, "layer", look).set(_LAYER, json.dumps(layer.private))
    merged = composite(document, rules="photoshop")
    write_whole(
        Path(path),
        lambda file: _write(file, root, dict(zip(sources, layers, strict=True)), blobs, merged, workflow),
    )


def _write(
    file: BinaryIO,
    root: Element,
    layers: Mapping[str, FileLayer],
    blobs: Mapping[str, bytes],
    merged: Tensor,
    workflow: Mapping[str, Any] | None,
) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as archive:
        _add(archive, "mimetype", MIMETYPE, zipfile.ZIP_STORED)
        _add(archive, "stack.xml", tostring(root, "utf-8", xml_declaration=True))
        for source, layer in steps(list(layers.items())):
            _add(archive, source, _png(layer.pixels), zipfile.ZIP_STORED)
        _add(archive, _MERGED, _png(merged), zipfile.ZIP_STORED)
        _add(archive, "Thumbnails/thumbnail.png", _png(merged, 256), zipfile.ZIP_STORED)
        if workflow:
            _add(archive, FOLDER + "workflow.json", json.dumps(workflow))
        for key, data in blobs.items():
            with archive.open(FOLDER + key, "w", force_zip64=len(data) >= 2**31) as entry:
                for piece in pieces(data):
                    entry.write(piece)


def _add(
    archive: zipfile.ZipFile, name: str, data: bytes | str, compression: int = zipfile.ZIP_DEFLATED
) -> None:
    """Add an entry; its date is fixed, so that equal documents give equal files."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o600 << 16
    archive.writestr(entry, data, compression, archive.compresslevel)


def _png(pixels: Tensor, side: int = 0) -> bytes:
    image = to_image(pixels)
    if side:
        image.thumbnail((side, side))
    data = BytesIO()
    save_png(image, watched(data), **PNG_SETTINGS)
    return data.getvalue()


# Reading


def read_openraster(path: str | Path, limits: Limits | None = None, groups: str = "auto") -> LayerFile:
    """Read an OpenRaster file. :mod:`.file_groups` makes a plain list of layers of its stacks.

    Args:
        path: file to read.
        limits: limits on sizes; None: the default ones.
        groups: what becomes of stacks in the root stack, one of :data:`.file_groups.GROUPS`.

    Raises:
        LayeredError: the file is broken or malicious, or exceeds the limits; ``groups`` is unknown.
    """
    path, limits = Path(path), limits or Limits()
    check_groups(groups)
    check_file(path, "OpenRaster file", limits)
    try:
        with path.open("rb") as file:
            check_directory(file)
            with zipfile.ZipFile(file) as archive:
                return _Reader(archive, limits, groups).read()
    except LayeredError as error:
        raise LayeredError(f"{path.name}: {error}") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise LayeredError(
            f"{path.name} cannot be read as OpenRaster: {error or type(error).__name__}"
        ) from error


class _Reader(Archive):
    def __init__(self, archive: zipfile.ZipFile, limits: Limits, groups: str) -> None:
        super().__init__(archive, limits)
        self.warnings: list[str] = []
        self.groups = groups
        self.done = self.count = 0
        self.left_out: set[Element] = set()

    def read(self) -> LayerFile:
        kind = self._bytes("mimetype", 100).strip()
        if kind != MIMETYPE:
            raise invalid("mimetype", kind.decode("ascii", "replace"), MIMETYPE.decode())
        root = parse_xml(self._bytes("stack.xml", _MAX_XML_BYTES), "stack.xml")
        stack = root.find("stack")
        if root.tag != "image" or stack is None:
            raise invalid("stack.xml", root.tag, "an <image> with a <stack>")
        width, height = _whole_number(root, "w", "canvas"), _whole_number(root, "h", "canvas")
        self.budget.check("the canvas", width, height)
        self._check_sizes(stack, (width, height))
        nodes = self._nodes(stack, 0)
        lowest = next(leaves(nodes), None)
        backdrop = lowest is not None and "background" in parse_json(
            lowest[0].source[0].get(_LAYER, "{}"), "layer data"
        )
        make_room(nodes, self.limits.max_layers + backdrop, self.groups, self.warnings)
        self.count = sum(node.read for node, _ in leaves(nodes))
        items = self._items(nodes, 0, 0)
        step(self.count, self.count)
        layers = flatten_groups(items, (width, height), self.groups, self.budget, self.warnings)
        private = parse_json(root.get(_DOCUMENT, "{}"), "layer data")
        if private and self._entry(FOLDER + "workflow.json"):
            private["workflow"] = parse_json(
                self._bytes(FOLDER + "workflow.json", MAX_WORKFLOW_BYTES).decode(), "workflow"
            )
        read = restore((width, height), layers, private, self._blob, self.budget, self.warnings)
        return replace(read, merged=self._own_picture())

    def _own_picture(self) -> Callable[[], Tensor] | None:
        """Return a function that decodes the merged picture; None if the archive has none."""
        if self._entry(_MERGED) is None:
            return None
        limits = self.limits
        try:
            data = self._png(_MERGED)
        except LayeredError as error:
            told = error

            def refuse() -> Tensor:
                raise told

            return refuse
        return lambda: decode_picture(BytesIO(data), _MERGED, Budget(limits), ("PNG",), [])

    def _check_sizes(self, stack: Element, canvas: tuple[int, int]) -> None:
        """Check that all layers together fit into the memory, before any of them is read. A layer that is hidden, or
        lies wholly outside the canvas, is left out if it alone is too large, with a warning."""
        found = []
        for node, x, y, shown in _places(stack):
            entry = self._entry(node.get("src", ""))
            size = None if entry is None else self._png_size(entry)
            if entry is None or size is None:
                continue
            where = f"layer {clean_text(node.get('name', '')[:MAX_TITLE])!r}"
            picture = f"picture {Path(entry.filename).name} of {where}"
            outside = x >= canvas[0] or y >= canvas[1] or x + size[0] <= 0 or y + size[1] <= 0
            if not shown or outside:
                try:
                    self.budget.check(picture, *size)
                except LayeredError as error:
                    why = "outside the canvas" if shown else "hidden"
                    self.warnings.append(f"{where} is {why} and too large, so it is left out: {error}")
                    self.left_out.add(node)
                    continue
            found.append((shown, (picture, *size, 4)))
        some = (
            len(found) > self.limits.max_layers
        )  # where there are too many layers, hidden ones are left out
        self.budget.fits_all(size for shown, size in found if shown or not some)

    def _nodes(self, stack: Element, depth: int) -> list[Node]:
        """Return the layers and stacks of a stack, back to front: each with its element and, for a layer, the name of
        the entry with its picture."""
        nodes = []
        for element in reversed(stack):
            if element.tag == "layer":
                source = self._source(element)
                if source is not None:
                    nodes.append(Node((element, source), _visible(element)))
            elif element.tag == "stack":
                if depth >= _MAX_DEPTH:
                    raise invalid("depth of stacks", depth + 1, f"at most {_MAX_DEPTH}")
                nodes.append(Node((element, ""), _visible(element), self._nodes(element, depth + 1)))
            elif isinstance(element.tag, str):
                self.warnings.append(f"a <{element.tag}> is left out")
        return nodes

    def _items(self, nodes: Sequence[Node], x: int, y: int) -> list[Item]:
        """Decode layers and stacks, back to front, in a stack at ``x`` and ``y``."""
        return [
            self._layer(node.source[0], node.source[1], x, y)
            if node.items is None
            else self._stack(node, x, y)
            for node in nodes
            if node.read
        ]

    def _stack(self, node: Node, x: int, y: int) -> FileGroup:
        """Return a stack. By the specification it is isolated if it says so, is translucent, or has another operator
        than ``svg:src-over``."""
        element = node.source[0]
        name = clean_text(element.get("name", "")[:MAX_TITLE])
        where = f"group {name!r}"
        operator = element.get("composite-op") or "svg:src-over"
        opacity = self._opacity(element, where)
        isolated = element.get("isolation") == "isolate" or opacity < 1 or operator != "svg:src-over"
        x += _whole_number(element, "x", where, 0)
        y += _whole_number(element, "y", where, 0)
        return FileGroup(
            name, self._items(node.items or [], x, y), (), opacity, self._blend_mode(operator, False, where),
            not isolated, self._shown(element, operator, where), "below" if operator == _CLIP else "",
            merge=node.merge,
        )  # fmt: skip

    def _shown(self, element: Element, operator: str, where: str) -> bool:
        if operator in _CUTS:
            self.warnings.append(
                f"{where}: {operator!r} cuts the layers below, which is left out; the {where.split()[0]} is hidden"
            )
        return _visible(element) and operator not in _CUTS

    def _source(self, node: Element) -> str | None:
        """Return the name of the entry with the layer's PNG picture; None, with a warning, if it has no picture or
        one of another format.

        Raises:
            LayeredError: the archive has no such entry.
        """
        where, source = f"layer {clean_text(node.get('name', '')[:MAX_TITLE])!r}", node.get("src")
        if node in self.left_out:
            return None
        if not source:
            self.warnings.append(f"{where} has no picture, as its src is missing, and is left out")
            return None
        entry = self._entry(source)
        if entry is None:
            plain = source.replace("\\", "/")
            outside = plain.startswith("/") or ".." in plain.split("/") or ":" in plain
            allowed = "a path inside the archive" if outside else "the name of an entry of the archive"
            raise invalid(f"{where}: src", source, allowed)
        if not source.lower().endswith(".png") and not self._begin(entry).startswith(PNG):
            self.warnings.append(
                f"{where}: its picture {source!r} is not a PNG file, and the layer is left out: rasterize it to keep it"
            )
            return None
        return entry.filename

    def _layer(self, node: Element, source: str, x: int, y: int) -> FileLayer:
        step(self.done, self.count)
        self.done += 1
        title = clean_text(node.get("name", "")[:MAX_TITLE])
        where = f"layer {title!r}"
        operator = node.get("composite-op") or "svg:src-over"
        private = node.get(_LAYER)
        shown = self._shown(node, operator, where)
        pixels = decode_picture(BytesIO(self._png(source)), source, self.budget, ("PNG",), self.warnings)
        return FileLayer(
            title, _whole_number(node, "x", where, 0) + x, _whole_number(node, "y", where, 0) + y, pixels, None,
            self._opacity(node, where), self._blend_mode(operator, private is not None, where), shown,
            None if private is None else parse_json(private, f"{where}: layer data"),
            "below" if operator == _CLIP else "",
        )  # fmt: skip

    def _blend_mode(self, operator: str, ours: bool, where: str) -> str:
        """Return a document's name of a layer's operator; ``ours`` is whether this project wrote the layer."""
        if operator == _HARD_MIX:
            if not ours:
                self.warnings.append(
                    f"{where}: blend mode {operator!r} is read as Photoshop's hard mix, which mixes colours otherwise"
                )
            return "hard-mix"
        if operator not in (*_NAMES, *_CUTS, _CLIP):
            self.warnings.append(f"{where}: blend mode {operator!r} is read as normal")
        return _NAMES.get(operator, "normal")

    def _opacity(self, node: Element, where: str) -> float:
        """Return the opacity of a layer or group; one beyond 0..1 is cut to it, with a warning."""
        text = node.get("opacity", "1.0")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise invalid(f"{where}: opacity", text, "a number 0..1")
        within = min(max(value, 0.0), 1.0)
        if value != within:
            self.warnings.append(f"{where}: opacity {text} is read as {within:g}; it lies in 0..1")
        return within


def _places(root: Element) -> Iterator[tuple[Element, int, int, bool]]:
    """Yield all layers of the root stack, each with its left and top edge on the canvas, and whether it is shown."""
    pending = [(node, 0, 0, True) for node in root]
    while pending:
        node, x, y, shown = pending.pop()
        where = (
            f"{'layer' if node.tag == 'layer' else 'group'} {clean_text(node.get('name', '')[:MAX_TITLE])!r}"
        )
        x, y = x + _whole_number(node, "x", where, 0), y + _whole_number(node, "y", where, 0)
        shown &= _visible(node)
        if node.tag == "layer":
            yield node, x, y, shown
        elif node.tag == "stack":
            pending += [(inner, x, y, shown) for inner in node]


def _whole_number(node: Element, key: str, where: str, default: int | None = None) -> int:
    text = node.get(key)
    if text is None and default is not None:
        return default
    try:
        value = round(float(text or ""))  # some programs write 12.0
    except (ValueError, OverflowError):
        raise invalid(f"{where}: {key}", text, "a whole number of pixels") from None
    if abs(value) > 2**31:
        raise invalid(f"{where}: {key}", text, "a whole number of pixels")
    return value


def _visible(node: Element) -> bool:
    return node.get("visibility", "visible") != "hidden"
