"""What is said of broken PSDs, and where."""

import logging
import re
import struct

import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import Tag

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.psd_errors import in_words


@pytest.fixture
def intact(tmp_path):
    psd = PSDImage.new("RGBA", (8, 8))
    psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name="a")
    psd.save(tmp_path / "intact.psd")
    return (tmp_path / "intact.psd").read_bytes()


def error_of(path, data):
    path.write_bytes(data)
    with pytest.raises(LayeredError) as caught:
        read_layers(path)
    return str(caught.value)


def header(version=1, channels=3, depth=8, mode=3):
    return b"8BPS" + struct.pack(">H6xHIIHH", version, channels, 8, 8, depth, mode)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header(version=7), "the version of a part of the file is 7; allowed: 1, 2"),
        (header(depth=7), "the depth of a part of the file is 7; allowed: 1, 8, 16, 32"),
        (header(channels=0), "a number of the file is out of its range"),
        (header(mode=99), "99 is not a valid ColorMode"),
    ],
)
def test_a_wrong_header_is_told_in_plain_words(tmp_path, data, says):
    text = error_of(tmp_path / "a.psd", data + bytes(100))
    assert text == f"a.psd: the file does not begin with a PSD header: {says}"


def test_a_wrong_signature_is_told_in_plain_words(tmp_path, intact):
    text = error_of(tmp_path / "a.psd", intact.replace(b"8BIMnorm", b"8BXMnorm"))
    assert text == (
        "a.psd cannot be read as PSD: the signature of a part of the file is b'8BXM'; allowed: b'8BIM'. Save the file "
        "anew"
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("max_objects exceeded: 1000001 > 1000000", "the file holds over 1,000,000 values"),
        ("max_nesting_depth exceeded: 65 > 64", "the file is nested over 64 levels deep"),
    ],
)
def test_a_limit_of_psd_tools_is_told_in_plain_words(error, says):
    assert in_words(ValueError(error)) == says


def test_no_error_of_a_broken_file_names_python_objects(tmp_path, intact):
    said = set()
    for at in range(300):
        data = bytearray(intact)
        data[at] ^= 0xFF
        (tmp_path / "a.psd").write_bytes(data)
        try:
            read_layers(tmp_path / "a.psd")
        except LayeredError as error:
            said.add(str(error))
    assert len(said) > 10
    assert [
        s for s in said if re.search(r"Attribute\(|validator|mappingproxy|<class|object at 0x|\n", s)
    ] == []
    assert max(map(len, said)) < 400


def test_blocks_that_psd_tools_does_not_know_write_no_log_lines(tmp_path, intact, caplog, capfd):
    (tmp_path / "a.psd").write_bytes(intact.replace(b"8BIMluni", b"8BIMhuh?"))
    psd = PSDImage.new("RGBA", (8, 8))
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name="a")
    layer.tagged_blocks.set_data(Tag.LAYER_ID, 5)
    psd.save(tmp_path / "a.psd")
    data = (tmp_path / "a.psd").read_bytes()
    (tmp_path / "a.psd").write_bytes(data.replace(b"8BIMlyid", b"8BIMhuh?"))
    assert read_layers(tmp_path / "a.psd").warnings == ()
    assert [r for r in caplog.records if r.name.startswith("psd_tools")] == []
    assert capfd.readouterr().err == ""


def test_a_block_that_cannot_be_read_is_told_of_in_one_line_and_not_logged(tmp_path, caplog):
    psd = PSDImage.new("RGBA", (8, 8))
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (255, 0, 0, 255)), name="plain")
    layer.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, "plain")
    psd.save(tmp_path / "a.psd")
    data = (tmp_path / "a.psd").read_bytes()
    at = data.index(b"8BIMluni") + 12
    (tmp_path / "a.psd").write_bytes(data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :])
    file = read_layers(tmp_path / "a.psd")
    assert [x.name for x in file.document] == ["plain"]
    assert file.warnings == (
        "1 blocks of the file are damaged or of an unknown form and are left out: unicode layer name",
    )
    assert [r for r in caplog.records if r.name.startswith("psd_tools")] == []
    logger = logging.getLogger("psd_tools")
    assert (logger.propagate, logger.level, logger.handlers) == (True, logging.NOTSET, [])
