"""The names that blend modes have in files, letter by letter, against the formats' own lists.

PSD: the table of blend mode keys in Adobe's "Photoshop File Formats Specification" (Layer records).
OpenRaster: ``composite-op`` in the specification's "Layer Stack" (openraster.org); ``krita:`` and an id of
Krita's ``KoCompositeOpRegistry.h`` for the modes that are not in it.
"""

import zipfile
from xml.etree import ElementTree

import pytest
import torch

from layered_core.document import BLEND_MODES, Layer, LayerDocument
from layered_core.files import read_layers, shown_otherwise, write_layers

PHOTOSHOP = {
    "normal": b"norm", "multiply": b"mul ", "screen": b"scrn", "overlay": b"over", "darken": b"dark",
    "lighten": b"lite", "color-dodge": b"div ", "color-burn": b"idiv", "hard-light": b"hLit",
    "soft-light": b"sLit", "difference": b"diff", "exclusion": b"smud", "linear-dodge": b"lddg",
    "linear-burn": b"lbrn", "vivid-light": b"vLit", "linear-light": b"lLit", "pin-light": b"pLit",
    "hard-mix": b"hMix", "subtract": b"fsub", "divide": b"fdiv", "hue": b"hue ", "saturation": b"sat ",
    "color": b"colr", "luminosity": b"lum ",
}  # fmt: skip

NOT_IN_PHOTOSHOP = {"grain-extract": b"fsub", "grain-merge": b"lLit"}
"""Modes of ours that Photoshop lacks, and the nearest that it has."""

OPENRASTER = {
    "normal": "svg:src-over", "multiply": "svg:multiply", "screen": "svg:screen", "overlay": "svg:overlay",
    "darken": "svg:darken", "lighten": "svg:lighten", "color-dodge": "svg:color-dodge",
    "color-burn": "svg:color-burn", "hard-light": "svg:hard-light", "soft-light": "svg:soft-light",
    "difference": "svg:difference", "color": "svg:color", "luminosity": "svg:luminosity", "hue": "svg:hue",
    "saturation": "svg:saturation", "linear-dodge": "svg:plus",
}  # fmt: skip

KRITA = {
    "exclusion": "krita:exclusion", "linear-burn": "krita:linear_burn", "vivid-light": "krita:vivid_light",
    "linear-light": "krita:linear light", "pin-light": "krita:pin_light", "hard-mix": "krita:hard_mix_photoshop",
    "subtract": "krita:subtract", "divide": "krita:divide", "grain-extract": "krita:grain_extract",
    "grain-merge": "krita:grain_merge",
}  # fmt: skip


def layers_of(modes):
    image = torch.ones(2, 2, 4)
    layers = (Layer(name, image, blend_mode=mode) for name, mode in modes.items())
    return LayerDocument(2, 2, tuple(layers))


def keys_of(data):
    """Where the blend mode key of every layer record begins in a PSD of 8 bits, back to front."""

    def number(at, size=4):
        return int.from_bytes(data[at : at + size], "big", signed=True)

    at = 26  # the header; then colour mode data and image resources, each with its length in front
    for _ in range(2):
        at += 4 + number(at)
    count, at = abs(number(at + 8, 2)), at + 10
    found = []
    for _ in range(count):
        at += 18 + 6 * number(at + 16, 2)  # the box, the number of channels, and id and length of each
        assert data[at : at + 4] == b"8BIM"
        found.append(at + 4)
        at += 16 + number(at + 12)
    return found


def test_the_lists_here_have_every_mode():
    assert set(PHOTOSHOP) | set(NOT_IN_PHOTOSHOP) == set(BLEND_MODES) == set(OPENRASTER) | set(KRITA)


def test_a_psd_has_photoshops_key_for_every_mode(tmp_path):
    path = write_layers(layers_of({mode: mode for mode in BLEND_MODES}), tmp_path / "a.psd")
    data = path.read_bytes()
    written = {mode: data[at : at + 4] for mode, at in zip(BLEND_MODES, keys_of(data), strict=True)}
    assert written == PHOTOSHOP | NOT_IN_PHOTOSHOP


def test_photoshops_key_of_every_mode_is_read_as_that_mode(tmp_path):
    path = write_layers(layers_of(dict.fromkeys(PHOTOSHOP, "normal")), tmp_path / "a.psd")
    data = bytearray(path.read_bytes())
    for at, key in zip(keys_of(data), PHOTOSHOP.values(), strict=True):
        data[at : at + 4] = key
    path.write_bytes(data)
    assert {x.name: x.blend_mode for x in read_layers(path).document} == {mode: mode for mode in PHOTOSHOP}


def test_an_openraster_file_has_the_specifications_name_for_every_mode_it_lists_and_kritas_for_others(
    tmp_path,
):
    path = write_layers(layers_of({mode: mode for mode in BLEND_MODES}), tmp_path / "a.ora")
    with zipfile.ZipFile(path) as file:
        nodes = ElementTree.fromstring(file.read("stack.xml")).findall("stack/layer")
    assert {node.get("name"): node.get("composite-op") for node in nodes} == OPENRASTER | KRITA


@pytest.mark.parametrize("names", [OPENRASTER, KRITA])
def test_a_name_of_the_specification_or_of_krita_is_read_as_that_mode(tmp_path, names):
    path = write_layers(layers_of(dict.fromkeys(names, "normal")), tmp_path / "a.ora")
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    root = ElementTree.fromstring(entries["stack.xml"])
    for node in root.iter("layer"):
        node.set("composite-op", names[node.get("name")])
    entries["stack.xml"] = ElementTree.tostring(root)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    assert {x.name: x.blend_mode for x in read_layers(path).document} == {mode: mode for mode in names}


def test_modes_that_a_format_lacks_are_told():
    layers = [Layer(mode, torch.ones(2, 2, 4), blend_mode=mode) for mode in BLEND_MODES]
    document = LayerDocument(2, 2, tuple(layers))
    in_psd = shown_otherwise(document, "a.psd")
    assert [line.split("'")[1] for line in in_psd] == ["grain-extract", "grain-merge"]
    assert "as subtract" in in_psd[0]
    assert "as linear-light" in in_psd[1]
    (in_ora,) = shown_otherwise(document, "a.ora")
    assert "(the same for 9 more" in in_ora
    assert shown_otherwise(document, "a") == ()
