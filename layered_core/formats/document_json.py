"""Documents as JSON with PNG files beside it.

The keys are the fields of :class:`~layered_core.document.LayerDocument`,
:class:`~layered_core.document.Layer` and :class:`~layered_core.document.Recipe`, under their own names;
``image`` and ``mask`` hold file names relative to the document, and ``workflow`` holds data of the host.
``schema/document.schema.json`` describes the format for other programs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..document import MAX_NAME, Layer, LayerDocument, Recipe
from ..errors import LayeredError, invalid
from ..progress import steps
from .file_layers import LayerFile
from .limits import Budget, Limits, check_file
from .pictures import picture_size, read_mask, read_picture, write_picture, write_whole
from .plain_values import entries_of, is_version, known_entries, read_recipe, recipe_entries
from .untrusted import file_inside

VERSION = 1
"""Version of the format; a document of another version is refused."""

MAX_JSON_BYTES = 2**26
"""Greatest size of the JSON text in bytes; parsed, it takes many times as much memory."""


def read_document(path: str | Path, limits: Limits | None = None) -> LayerDocument:
    """Read a document and its pictures.

    Raises:
        LayeredError: the document is missing or wrong; the error names file, layer and field in one line.
    """
    return read_document_file(path, limits).document


def read_document_file(path: str | Path, limits: Limits | None = None) -> LayerFile:
    """Read a document as :func:`read_document` does, with the ``workflow`` stored with it, and warnings of its
    pictures."""
    path, limits = Path(path), limits or Limits()
    check_file(path, "document", replace(limits, max_file_bytes=min(limits.max_file_bytes, MAX_JSON_BYTES)))
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, not JSON, or a number with thousands of digits
        raise LayeredError(f"document {str(path)!r} cannot be read: {error}") from None
    try:
        entries = known_entries(
            data, {f.name for f in fields(LayerDocument)} | {"version", "workflow", "$schema"}, "document"
        )
        entries.pop("$schema", None)
        workflow = entries.pop("workflow", {})
        if not isinstance(workflow, Mapping):
            raise invalid("workflow", workflow, "a JSON object")
        warnings: list[str] = []
        return LayerFile(_document(entries, path.parent, Budget(limits), warnings), workflow, tuple(warnings))
    except LayeredError as error:
        raise LayeredError(f"{path.name}: {error}") from error


def pictures_of(path: Path) -> list[Path]:
    """Return the existing picture files that a document names; none if the document is broken, which is
    reported when it is read."""
    try:
        check_file(path, "document", Limits(max_file_bytes=MAX_JSON_BYTES))
        return _pictures(json.loads(path.read_text(encoding="utf-8-sig"))["layers"], path.parent)
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []


def _pictures(layers: Sequence[object], folder: Path) -> list[Path]:
    """Return the existing picture files that the layers of a document name."""
    files = []
    for layer in layers:
        for key in ("image", "mask"):
            if isinstance(layer, Mapping) and layer.get(key) is not None:
                try:
                    files.append(_inside(folder, layer[key], key))
                except LayeredError:  # told when the layer is read
                    continue
    return [file for file in files if os.path.isfile(file)]


def write_document(
    document: LayerDocument, folder: str | Path, workflow: Mapping[str, Any] | None = None
) -> Path:
    """Write ``document.json`` and a PNG for every image and mask into ``folder``, which is made if missing;
    return the path of the JSON file.

    8-bit pixels are read back exactly. The JSON is written last, so a folder that has it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    layers = []
    for index, layer in steps(list(enumerate(document))):
        entry = entries_of(layer, skip={"image", "mask", "recipe"})
        stem = f"{index + 1:02d}_{re.sub(r'[^A-Za-z0-9]+', '_', layer.name).strip('_')[:100] or 'layer'}"
        for what, pixels in (("image", layer.image), ("mask", layer.mask)):
            if pixels is not None:
                file = folder / f"{stem}{'_mask' if what == 'mask' else ''}.png"
                write_picture(pixels, file)
                entry[what] = file.name
        if layer.recipe != Recipe():
            entry["recipe"] = recipe_entries(layer.recipe)
        layers.append(entry)
    data = {"version": VERSION, **entries_of(document, skip={"layers"}), "layers": layers}
    if workflow:
        data["workflow"] = workflow
    path = folder / "document.json"
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    # Half a surrogate pair is allowed in Python and JSON strings, but not in UTF-8: it is written as an
    # escape.
    write_whole(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    return path


def _document(entries: dict[str, Any], folder: Path, budget: Budget, warnings: list[str]) -> LayerDocument:
    version = entries.pop("version", None)
    if not is_version(version, VERSION):
        raise invalid("version", version, str(VERSION), 'Put "version": 1 first')
    layers = layer_entries(entries.pop("layers", []), budget.limits.max_layers)
    for key in ("width", "height"):
        if key not in entries:
            raise invalid(f"canvas {key}", None, "a whole number of pixels")
    if isinstance(entries.get("background"), list):
        entries["background"] = tuple(entries["background"])
    canvas = LayerDocument(**entries)
    budget.check("the canvas", canvas.width, canvas.height)
    files = _pictures(layers, folder)
    sizes = [(f"picture {file.name}", *size, 4) for file in files if (size := picture_size(file)) is not None]
    budget.fits_all(sizes)
    return replace(canvas, layers=read_layers(layers, canvas, partial(_inside, folder), budget, warnings))


def layer_entries(data: object, most: int) -> list[Any]:
    """Return a document's list of layers as it is. Raises :class:`LayeredError` unless it is a list of at most
    ``most``."""
    if not isinstance(data, list):
        raise invalid("layers", data, "a list")
    if len(data) > most:
        raise invalid("number of layers", len(data), f"at most {most}")
    return data


def read_layers(
    entries: Sequence[object],
    canvas: LayerDocument,
    find: Callable[[object, str], Path],
    budget: Budget,
    warnings: list[str],
) -> tuple[Layer, ...]:
    """Return the layers of a document's list.

    Args:
        entries: as JSON gives them.
        canvas: the document; layers without a size are as large.
        find: returns the file that a name stands for; gets the name, and ``image`` or ``mask``. Raises
            :class:`LayeredError` if there is none.
        budget: counts the memory of their pictures.
        warnings: gets a line for each remark on a picture.

    Raises:
        LayeredError: a layer is wrong; the error names the layer and the field.
    """
    return tuple(
        _layer(item, i, canvas, find, budget, warnings) for i, item in steps(list(enumerate(entries)))
    )


def _layer(
    data: object,
    index: int,
    canvas: LayerDocument,
    find: Callable[[object, str], Path],
    budget: Budget,
    warnings: list[str],
) -> Layer:
    name = data.get("name") if isinstance(data, Mapping) else None
    where = f"layer {name[:MAX_NAME]!r}" if isinstance(name, str) and name else f"layer number {index + 1}"
    entries = known_entries(data, {f.name for f in fields(Layer)}, where)
    try:
        if "name" not in entries:
            raise invalid("name", None, "a string that no other layer has")
        pixels: dict[str, Any] = {}
        for key, read in (("image", read_picture), ("mask", read_mask)):
            file = entries.pop(key, None)
            if file is not None:
                told: list[str] = []
                pixels[key] = read(find(file, key), budget, told)
                warnings += [f"{where}: {line}" for line in told]
        recipe = read_recipe(entries.pop("recipe", {}))
    except LayeredError as error:
        raise LayeredError(f"{where}: {error}") from error
    layer = Layer(recipe=recipe, **pixels, **entries)
    if not pixels:  # what is made of it is as large as its box
        budget.fits(where, layer.width or canvas.width, layer.height or canvas.height, channels=1)
    return layer


def _inside(folder: Path, file: object, key: str) -> Path:
    if (
        not isinstance(file, str)
        or not file
        or Path(file).is_absolute()
        or ".." in Path(file).parts
        or "\\" in file
        or "\0" in file
    ):
        raise invalid(key, file, "a file name relative to the document, without '..'")
    path = file_inside(folder, file)
    if path is None:
        raise invalid(
            key,
            file,
            "a file in the document's folder",
            "Links out of that folder or in a circle are not followed: copy the file into it",
        )
    return path
