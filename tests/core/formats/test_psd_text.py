"""Names of layers in PSDs that have them in an old encoding alone, or that are too long."""

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import SectionDivider, Tag

from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers


def without_unicode(path, names, encoding):
    """Write a PSD with layers of these names, stored in ``encoding`` and not in Unicode."""
    psd = PSDImage.new("RGBA", (8, 8))
    for name in names:
        record = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name="x")._record
        record.tagged_blocks.pop(Tag.UNICODE_LAYER_NAME, None)
        record.name = name
    with path.open("wb") as file:
        psd._record.write(file, encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("encoding", "label", "names"),
    [
        ("shift-jis", "Shift-JIS", ["肌の影"]),
        ("shift-jis", "Shift-JIS", ["背景", "線画", "レイヤー 1"]),
        ("gbk", "GBK", ["背景", "图层 1", "人物"]),
        ("utf-8", "UTF-8", ["背景", "Ebene für Tür"]),
        ("mac_roman", "MacRoman", ["Café noir", "fenêtre", "Über alles"]),
        ("mac_roman", "MacRoman", ["ÉTAT", "ÉTÉ", "Groß"]),
    ],
)
def test_names_without_unicode_are_decoded_and_told_of(tmp_path, encoding, label, names):
    file = read_layers(without_unicode(tmp_path / "a.psd", names, encoding))
    assert [x.name for x in file.document] == names
    (told,) = file.warnings
    assert f"not stored in Unicode and are read as {label}, as their bytes suggest: {names[0]!r}" in told


def test_names_in_ascii_and_in_unicode_are_not_told_of(tmp_path):
    file = read_layers(without_unicode(tmp_path / "a.psd", ["plain"], "mac_roman"))
    assert ([x.name for x in file.document], file.warnings) == (["plain"], ())
    document = LayerDocument(8, 8, (Layer("肌の影", torch.ones(4, 4, 4)),))
    file = read_layers(write_layers(document, tmp_path / "b.psd"))
    assert ([x.name for x in file.document], file.warnings) == (["肌の影"], ())


@pytest.mark.parametrize("kind", [SectionDivider.OPEN_FOLDER, SectionDivider.BOUNDING_SECTION_DIVIDER])
def test_groups_that_do_not_pair_up_are_told_of_and_their_layers_are_read(tmp_path, kind):
    psd = PSDImage.new("RGBA", (8, 8))
    for name in ("below", "odd", "above"):
        psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name=name)
    psd[1].tagged_blocks.set_data(Tag.SECTION_DIVIDER_SETTING, kind=kind)
    psd.save(tmp_path / "a.psd")
    file = read_layers(tmp_path / "a.psd")
    assert [x.name for x in file.document] == ["below", "above"]
    (told,) = file.warnings
    assert told.startswith("1 beginnings or ends of groups have no counterpart and are left out")


def test_layers_of_a_group_whose_name_krita_could_not_write_are_read_as_by_psd_tools(tmp_path):
    """Krita's ``psdwrite_pascalstring`` writes nothing for 256 letters or more, so that the blocks after the name,
    among them the group's divider, cannot be found."""
    psd = PSDImage.new("RGBA", (8, 8))
    inside = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name="inside")
    psd.create_pixel_layer(Image.new("RGBA", (4, 4), (0, 255, 0, 255)), name="outside")
    psd.create_group([inside], name="group")
    psd.save(tmp_path / "a.psd")
    data = (tmp_path / "a.psd").read_bytes()
    name = b"\x05group\0\0"
    assert data.count(name) == 1
    at = data.index(name)
    # The name's bytes go to the end of the record's extra data, whose size is stated after blend mode and flags.
    extra = max(data.rfind(mode, 0, at) for mode in (b"8BIMnorm", b"8BIMpass")) + 12
    size = int.from_bytes(data[extra : extra + 4], "big")
    end = extra + 4 + size
    (tmp_path / "b.psd").write_bytes(data[:at] + data[at + len(name) : end] + bytes(len(name)) + data[end:])
    wanted = [x.name for x in PSDImage.open(tmp_path / "b.psd").descendants() if x.width]
    file = read_layers(tmp_path / "b.psd")
    assert [x.name for x in file.document] == wanted == ["outside", "inside"]
    assert any("no counterpart" in told for told in file.warnings)
