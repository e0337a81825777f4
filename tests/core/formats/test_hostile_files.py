"""Hostile files (bombs, false sizes, names that lead out of the folder): each gives an error that names the
fault."""

import io
import json
import resource
import struct
import time
import zipfile
import zlib

import pytest
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import Tag

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.limits import Limits
from layered_core.formats.untrusted import NAMESPACE


@pytest.mark.parametrize("end", [".psd", ".psb", ".ora", ".json"])
def test_empty_and_foreign_files_are_named(tmp_path, end):
    for name, data in {
        "empty": b"",
        "zeros": bytes(5000),
        "text": b"hello" * 50,
        "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
        "zip": b"PK\x05\x06" + bytes(18),
    }.items():
        path = tmp_path / f"{name}{end}"
        path.write_bytes(data)
        with pytest.raises(LayeredError, match=f"{name}{end}"):
            read_layers(path)
    with pytest.raises(LayeredError, match=f"gone{end}' was not found.*an existing"):
        read_layers(tmp_path / f"gone{end}")


def test_an_enormous_canvas_is_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "a.psb"
    path.write_bytes(b"8BPS" + struct.pack(">H6xHIIHH", 2, 3, 100_000, 100_000, 8, 3) + bytes(200))
    with pytest.raises(
        LayeredError,
        match="size of the canvas is '100000x100000'; allowed: at least 1 and at most 16384 pixels a side",
    ):
        read_layers(path)


def test_a_layer_that_states_an_enormous_size_is_refused_before_anything_is_allocated(tmp_path, seeds):
    data = bytearray(seeds[0][1])
    box = struct.pack(">4i", 0, 0, 6, 7)
    assert data.count(box) == 2  # the layer and its mask
    for at in (data.index(box), data.rindex(box)):
        bomb = data[:]
        bomb[at : at + 16] = struct.pack(">4i", 0, 0, 16384, 16384)
        (tmp_path / "a.psd").write_bytes(bomb)
        with pytest.raises(LayeredError, match=r"layer 'a: a sky' is '16384x16384'"):
            read_layers(tmp_path / "a.psd")


def with_layers(change):
    psd = PSDImage.new("RGBA", (9, 9))
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (1, 2, 3, 4)), name="in")
    change(psd, layer)
    return psd


def test_groups_nested_too_deep_are_named(tmp_path):
    psd = with_layers(lambda psd, layer: psd.create_group([layer], name="g"))
    info = psd._record.layer_and_mask_information.layer_info
    for parts in (info.layer_records, info.channel_image_data):
        begin, layer, end = parts
        parts[:] = [begin] * 70 + [layer] + [end] * 70
    info.layer_count = 141
    with (tmp_path / "a.psd").open("wb") as file:
        psd._record.write(file)
    with pytest.raises(LayeredError, match="depth of groups is 65; allowed: at most 64"):
        read_layers(tmp_path / "a.psd")


def test_an_unknown_blend_mode_of_a_psd_is_named(tmp_path, seeds):
    (tmp_path / "a.psd").write_bytes(seeds[0][1].replace(b"8BIMnorm", b"8BIMhuh?"))
    with pytest.raises(
        LayeredError, match=r"a\.psd cannot be read as PSD: b'huh\?' is not a valid BlendMode"
    ):
        read_layers(tmp_path / "a.psd")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_channel_that_cannot_be_decoded_is_named_not_black(tmp_path):
    psd = with_layers(lambda psd, layer: None)
    layer = psd[0]
    layer._channels[1].compression = type(layer._channels[1].compression)(2)
    layer._channels[1].data = b"not deflated"
    psd.save(tmp_path / "a.psd")
    with pytest.raises(LayeredError, match=r"a\.psd is damaged: ZIP decode failed"):
        read_layers(tmp_path / "a.psd")


def test_51_layers_of_a_psd_are_refused(tmp_path):
    def many(psd, layer):
        for i in range(51):
            psd.create_pixel_layer(Image.new("RGBA", (1, 1), (1, 2, 3, 4)), name=f"{i}")

    with_layers(many).save(tmp_path / "a.psd")
    with pytest.raises(LayeredError, match="number of layers is 52; allowed: at most 50"):
        read_layers(tmp_path / "a.psd")


def test_entities_in_the_xmp_packet_are_refused(tmp_path, seeds):
    data = seeds[0][1]
    old = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    (tmp_path / "a.psd").write_bytes(data.replace(old, b'<!DOCTYPE x [<!ENTITY a "b">]>'.ljust(len(old))))
    with pytest.raises(LayeredError, match="XMP packet has a DTD or entities"):
        read_layers(tmp_path / "a.psd")


def png(size=(4, 3)):
    data = io.BytesIO()
    Image.new("RGBA", size, (255, 0, 0, 255)).save(data, "PNG")
    return data.getvalue()


LAYER = '<layer name="sky" src="data/red.png"/>'


def ora(
    path,
    stack=LAYER,
    entries=(),
    mimetype=b"image/openraster",
    size=(9, 9),
    compress=zipfile.ZIP_DEFLATED,
    xml=None,
):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr("mimetype", mimetype)
        file.writestr(
            "stack.xml", xml or f'<image w="{size[0]}" h="{size[1]}"><stack>{stack}</stack></image>'
        )
        for name, data in entries or [("data/red.png", png())]:
            file.writestr(name, data)
    return path


BILLION = (
    '<!DOCTYPE image [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;&b;&b;">]>'
)


LOCAL = '<!DOCTYPE image [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


BAD_ORA = {
    "entity bomb": ({"xml": BILLION + '<image w="9" h="9"><stack>&c;</stack></image>'}, "stack.xml has a DTD "
    "or entities"),
    "entity of a local file": ({"xml": LOCAL + '<image w="9" h="9"><stack>&a;</stack></image>'}, "stack.xml "
    "has a DTD or entities"),
    "no XML": ({"xml": "{}"}, "stack.xml is not XML"),
    "not UTF-8": ({"xml": b'<?xml version="1.0" encoding="UTF-8"?><image w="9" h="9" '
    b'name="\xff\xfe"><stack/></image>'}, "stack.xml is not XML"),
    "an unknown encoding": ({"xml": b'<?xml version="1.0" encoding="klingon"?><image/>'}, "stack.xml is not XML"),
    "no image": ({"xml": "<picture/>"}, "an <image> with a <stack>"),
    "wrong mimetype": ({"mimetype": b"image/png"}, "mimetype is 'image/png'; allowed: image/openraster"),
    "no width": ({"size": ("", 9)}, "canvas: w is ''; allowed: a whole number"),
    "an infinite width": ({"size": ("1e999", 9)}, "canvas: w is '1e999'"),
    "an enormous canvas": ({"size": (100_000, 100_000)}, "size of the canvas is '100000x100000'"),
    "a missing source": ({"stack": '<layer name="sky" src="data/x.png"/>'}, "layer 'sky': src is 'data/x.png'; "
    "allowed: the name of an entry"),
    "an absolute source": ({"stack": '<layer name="sky" src="/etc/passwd"/>'}, "a path inside the archive"),
    "a source above": ({"stack": '<layer name="sky" src="data/../../x.png"/>'}, "a path inside the archive"),
    "a drive as source": ({"stack": '<layer name="sky" src="C:\\x.png"/>'}, "a path inside the archive"),
    "an entry above": ({"entries": [("../x.png", png())]}, "name of an entry is '../x.png'; allowed: a path inside"),
    "an opacity of none": ({"stack": LAYER.replace("/>", ' opacity="nan"/>')}, "layer 'sky': opacity is 'nan'; "
    "allowed: a number 0..1"),
    "a place of none": ({"stack": LAYER.replace("/>", ' x="left"/>')}, "layer 'sky': x is 'left'"),
    "a far place": ({"stack": LAYER.replace("/>", ' x="99999999"/>')}, "layer 'sky': x is 99999999"),
    "a picture that is none": ({"entries": [("data/red.png", b"GIF89a")]}, "picture 'data/red.png' cannot be read"),
    "a cut picture": ({"entries": [("data/red.png", png((64, 64))[:-30])]}, "picture 'data/red.png' cannot be read"),
    "a large picture": ({"entries": [("data/red.png", png((20_000, 1)))]}, "size of picture red.png of layer 'sky' "
    "is '20000x1'"),
    "too many layers": ({"stack": LAYER * 52}, "number of layers is 52; allowed: at most 50"),
    "too deep": ({"stack": "<stack>" * 70 + "</stack>" * 70}, "depth of stacks is 65"),
    "far too deep": ({"stack": "<stack>" * 50_000 + "</stack>" * 50_000}, "depth of stacks is 65"),
    "too many elements": ({"stack": "<a/>" * 250_000}, "number of elements of stack.xml"),
    "broken layer data": ({"stack": LAYER.replace("/>", f' xmlns:l="{NAMESPACE}" l:layer="{{"/>')}, "layer "
    "data is not JSON"),
    "unusual compression": ({"compress": zipfile.ZIP_LZMA}, "stored or deflated"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ORA)
def test_a_bad_openraster_file_is_named_in_one_line(tmp_path, case):
    options, says = BAD_ORA[case]
    with pytest.raises(LayeredError) as caught:
        read_layers(ora(tmp_path / "bad.ora", **options))
    assert says in str(caught.value)
    assert str(caught.value).startswith("bad.ora")
    assert "\n" not in str(caught.value)


def test_entries_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = ora(tmp_path / "a.ora", entries=[("data/red.png", png()), ("data/red.png", png())])
    with pytest.raises(
        LayeredError, match="name of an entry is 'data/red.png'; allowed: names that occur once"
    ):
        read_layers(path)


def test_an_entry_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    path = ora(tmp_path / "a.ora", entries=[("data/red.png", png() + bytes(10**6))])
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", len(png()) + 10**6), struct.pack("<I", len(png()))))
    with pytest.raises(LayeredError, match=r"a\.ora"):
        read_layers(path)


@pytest.mark.parametrize("what", ["stack.xml", "data/red.png", "layered-diffusion/1-image"])
def test_a_zip_bomb_is_refused_without_unpacking_it(tmp_path, what):
    path = tmp_path / "a.ora"
    size = 100 * 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("mimetype", b"image/openraster")
        if what != "stack.xml":
            file.writestr("stack.xml", f'<image w="9" h="9"><stack>{LAYER}</stack></image>')
        with file.open(what, "w", force_zip64=False) as entry:
            for _ in range(size // 2**20):
                entry.write(bytes(2**20))
        if what != "data/red.png":
            file.writestr("data/red.png", png())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    attempt_limits = Limits(max_alloc_bytes=2**20)
    if what == "layered-diffusion/1-image":
        read_layers(path, attempt_limits)  # nothing refers to it, so it is never unpacked
    else:
        with pytest.raises(LayeredError, match=r"size of entry|stack.xml|not a PNG file"):
            read_layers(path, attempt_limits)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
    assert time.process_time() - start < 2


def test_a_png_bomb_is_refused_before_it_is_decoded(tmp_path):
    """The file has a few kilobytes and claims 12000 x 12000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 6, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")
    with pytest.raises(LayeredError, match="size of picture red.png of layer 'sky' is '12000x12000'"):
        read_layers(ora(tmp_path / "a.ora", entries=[("data/red.png", data)]))


def test_a_list_of_entries_that_would_fill_the_memory_is_refused(tmp_path):
    path = ora(tmp_path / "a.ora")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 16] = struct.pack("<I", 2**30)
    path.write_bytes(data)
    with pytest.raises(LayeredError, match="size of the archive's list of entries"):
        read_layers(path)


def test_an_encrypted_entry_is_refused(tmp_path):
    path = ora(tmp_path / "a.ora")
    data = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := data.find(sign, at + 1)) >= 0:
            data[at + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(LayeredError, match="encrypted"):
        read_layers(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"version": 1, "width": ' + b"9" * 5000 + b', "height": 3}', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"version": 1, "width": 100000, "height": 100000}', "canvas width is 100000"),
        (b'{"version": 1, "width": 1e999, "height": 3}', "canvas width is inf"),
        (b'{"version": 1, "name": "\xff"}', "cannot be read"),
        (b'{"version": 1, "width": 3, "height": 3, "workflow": 3}', "workflow is 3"),
        (
            json.dumps(
                {
                    "version": 1,
                    "width": 3,
                    "height": 3,
                    "layers": [{"name": str(i), "width": 1, "height": 1} for i in range(51)],
                }
            ).encode(),
            "51",
        ),
        (
            json.dumps(
                {
                    "version": 1,
                    "width": 3,
                    "height": 3,
                    "layers": [{"name": "a", "width": 1, "height": 1, "blend_mode": "huh"}],
                }
            ).encode(),
            "huh",
        ),
    ],
)
def test_bad_json_is_named(tmp_path, text, says):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(LayeredError) as caught:
        read_layers(tmp_path / "a.json")
    assert says in str(caught.value)
    assert "a.json" in str(caught.value)


def test_a_picture_linked_out_of_the_folder_is_not_followed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    (folder / "document.json").write_text(
        json.dumps({"version": 1, "width": 4, "height": 4, "layers": [{"name": "a", "image": "a.png"}]})
    )
    with pytest.raises(LayeredError, match=r"image is 'a\.png'; allowed: a file in the document's folder"):
        read_layers(folder)


def test_a_picture_of_a_format_that_starts_other_programs_is_not_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    (tmp_path / "a.json").write_text(
        json.dumps({"version": 1, "width": 4, "height": 4, "layers": [{"name": "a", "image": "a.png"}]})
    )
    with pytest.raises(LayeredError, match=r"picture '.*a\.png' cannot be read"):
        read_layers(tmp_path / "a.json")


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_a_title_of_a_million_letters_that_another_program_wrote_is_cut(tmp_path, end):
    if end == ".ora":
        ora(tmp_path / "a.ora", stack=LAYER.replace("sky", "n" * 10**6))
    else:
        long = with_layers(
            lambda psd, layer: layer.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, "n" * 10**6)
        )
        long.save(tmp_path / "a.psd")
    (layer,) = read_layers(tmp_path / f"a{end}").document
    assert set(layer.name) == {"n"}
    assert 250 < len(layer.name) <= 1000


def test_unknown_blocks_of_a_psd_write_no_log_lines(tmp_path, caplog):
    block = b"8BIM" + b"zZ9q" + struct.pack(">I", 4) + bytes(4)
    psd = with_layers(lambda psd, layer: None)
    psd.save(tmp_path / "a.psd")
    data = (tmp_path / "a.psd").read_bytes()
    header = 26 + 4  # no colour table
    resources = struct.unpack(">I", data[header : header + 4])[0]
    at = header + 4 + resources
    size = struct.unpack(">I", data[at : at + 4])[0]
    section = data[at + 4 : at + 4 + size] + block * 1000
    changed = data[:at] + struct.pack(">I", len(section)) + section + data[at + 4 + size :]
    (tmp_path / "b.psd").write_bytes(changed)
    PSDImage.open(tmp_path / "b.psd")
    assert len(caplog.records) >= 1000, "psd-tools no longer logs a line a block: nothing is tested"
    caplog.clear()
    assert len(read_layers(tmp_path / "b.psd").document) == 1
    assert caplog.records == []
