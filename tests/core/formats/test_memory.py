"""Files that state, or unpack to, more than the memory: they end in named errors, within 512 MB and 5 seconds. What is
hidden does not count."""

import json
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest
import torch
from psd_tools.constants import ChannelID, Compression, Resource, Tag
from psd_tools.psd import PSD
from psd_tools.psd.header import FileHeader
from psd_tools.psd.image_data import ImageData
from psd_tools.psd.image_resources import ImageResource
from psd_tools.psd.layer_and_mask import (
    ChannelData,
    ChannelDataList,
    ChannelImageData,
    ChannelInfo,
    LayerInfo,
    LayerRecord,
    LayerRecords,
    MaskData,
)
from psd_tools.psd.tagged_blocks import SectionDividerSetting

from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.limits import Limits
from layered_core.formats.psd_sections import read_sections

SIDE = 11585  # 11585 x 11585 pixels are just fewer than the greatest area, and take 2.1 GB as floats
SCRIPT = """
import re, sys, time
from pathlib import Path
from layered_core.errors import LayeredError
from layered_core.files import read_layers
for line in sys.stdin:
    begun = time.process_time()
    try:
        print(*read_layers(line.strip()).warnings)
    except LayeredError as error:
        print(error)
    print(time.process_time() - begun)
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], flush=True)
"""


@pytest.fixture(scope="module")
def reader():
    """Start a process that reads the files whose paths it gets."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def told_within_limits(reader):
    """Return a function that reads a file in another process and returns what that says: the error, or else the
    warnings. All that the process reads, each by itself, takes it less than 512 MB and 5 seconds."""

    def told(path):
        reader.stdin.write(f"{path}\n")
        reader.stdin.flush()
        said, seconds, kilobytes = (reader.stdout.readline().strip() for _ in range(3))
        assert int(kilobytes) < 512 * 1024
        assert float(seconds) < 5
        return said

    return told


def bomb(size):
    """Return ``size`` zeros, deflated."""
    packer = zlib.compressobj(1)
    return (
        b"".join(packer.compress(bytes(min(2**24, size - n))) for n in range(0, size, 2**24)) + packer.flush()
    )


def record(box, name="big", visible=True, mask=None, divider=None, data=None):
    """Return a record at (left, top, right, bottom) and its channels, 5, 5, 5 and opaque."""
    left, top, right, bottom = box
    made = LayerRecord(left=left, top=top, right=right, bottom=bottom, name=name)
    made.flags.visible = visible
    ids = [ChannelID.TRANSPARENCY_MASK, *(ChannelID(c) for c in range(3))]
    size = max(0, right - left) * max(0, bottom - top)
    datas = [data or zlib.compress(bytes([value]) * size) for value in (255, 5, 5, 5)]
    if mask:
        made.mask_data = MaskData(left=mask[0], top=mask[1], right=mask[2], bottom=mask[3])
        ids.append(ChannelID.USER_LAYER_MASK)
        datas.append(zlib.compress(b"\xff" * (mask[2] - mask[0]) * (mask[3] - mask[1])))
    if divider:
        made.tagged_blocks.set_data(Tag.SECTION_DIVIDER_SETTING, divider)
        made.tagged_blocks[Tag.SECTION_DIVIDER_SETTING].data = SectionDividerSetting(divider)
    made.channel_info = [ChannelInfo(i, len(d) + 2) for i, d in zip(ids, datas, strict=True)]
    return made, ChannelDataList([ChannelData(Compression.ZIP, d) for d in datas])


def psd(path, *records, size=(9, 9), channels=3, image=b"", resources=(), version=1):
    """Write a PSD of records, back to front."""
    made = PSD(
        header=FileHeader(
            version=version, width=size[0], height=size[1], channels=channels, depth=8, color_mode=3
        )
    )
    section = made.layer_and_mask_information
    section.layer_info = LayerInfo(
        len(records), LayerRecords([r for r, _ in records]), ChannelImageData([c for _, c in records])
    )
    for key, data in resources:
        made.image_resources[key] = ImageResource(key=key, data=data)
    made.image_data = ImageData(Compression.ZIP, image)
    with path.open("wb") as file:
        made.write(file)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b""):
    """Return a PNG file whose pixels are the deflated ``data``."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ora(path, stack, *entries, size=9):
    """Write an OpenRaster file; an entry is a name, its first bytes and a number of zeros behind them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("mimetype", b"image/openraster")
        file.writestr("stack.xml", f'<image w="{size}" h="{size}"><stack>{stack}</stack></image>')
        for name, begin, zeros in entries:
            with file.open(name, "w") as entry:
                entry.write(begin)
                for n in range(0, zeros, 2**24):
                    entry.write(bytes(min(2**24, zeros - n)))
    return path


LAYERS = "".join(f'<layer name="l{n}" src="data/{n}.png"/>' for n in range(3))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def test_layers_of_a_psd_that_need_too_much_are_refused_from_their_records(told_within_limits, tmp_path):
    data = bomb(SIDE * SIDE)
    path = psd(tmp_path / "a.psd", *(record((0, 0, SIDE, SIDE), f"l{n}", data=data) for n in range(3)))
    assert path.stat().st_size < 10 * 2**20
    need = 3 * SIDE * SIDE * 16
    assert (
        f"memory for pixels of 3 layers and masks is '{need:,} bytes'; allowed: at most 4,294,967,296"
        in told_within_limits(path)
    )


def test_layers_of_an_openraster_file_that_need_too_much_are_refused_from_their_headers(
    told_within_limits, tmp_path
):
    pixels = png(SIDE, SIDE, bomb((4 * SIDE + 1) * SIDE))
    path = ora(tmp_path / "a.ora", LAYERS, *((f"data/{n}.png", pixels, 0) for n in range(3)))
    assert "memory for pixels of 3 layers and masks is '6,4" in told_within_limits(path)


def test_pictures_of_a_document_that_need_too_much_are_refused_from_their_headers(
    told_within_limits, tmp_path
):
    (tmp_path / "a.png").write_bytes(png(SIDE, SIDE, bomb((4 * SIDE + 1) * SIDE)))
    layers = [{"name": f"{n}", "image": "a.png"} for n in range(3)]
    path = tmp_path / "document.json"
    path.write_text(json.dumps({"version": 1, "width": 9, "height": 9, "layers": layers}))
    assert "memory for pixels of 3 layers and masks is '6,4" in told_within_limits(path)


@pytest.mark.parametrize("begin", [b"", b"PK\x03\x04", png(4, 4, zlib.compress(bytes(68)))])
def test_an_entry_that_unpacks_to_a_gigabyte_is_not_unpacked(told_within_limits, tmp_path, begin):
    path = ora(tmp_path / "a.ora", '<layer name="sky" src="data/a.png"/>', ("data/a.png", begin, 2**30))
    assert path.stat().st_size < 8 * 2**20
    said = told_within_limits(path)
    if begin.startswith(b"\x89PNG"):
        assert "size of entry data/a.png is '1,073,7" in said
    else:
        assert "picture 'data/a.png' cannot be read: it is damaged, or not a PNG file" in said


def test_a_merged_picture_that_unpacks_to_a_gigabyte_is_not_unpacked(told_within_limits, tmp_path):
    path = ora(tmp_path / "a.ora", "", ("mergedimage.png", b"", 2**30))
    assert told_within_limits(path) == ""
    with pytest.raises(LayeredError, match="'mergedimage.png' cannot be read"):
        read_layers(path).merged()


def test_a_stack_of_many_attributes_is_named(told_within_limits, tmp_path):
    many = " ".join(f'a{n}=""' for n in range(800_000))
    said = told_within_limits(ora(tmp_path / "a.ora", f"<layer {many}/>"))
    assert "number of attributes of stack.xml is 80000" in said


@pytest.mark.parametrize("channels", [3, 56])
def test_a_merged_picture_of_a_psd_that_needs_too_much_is_not_decoded(told_within_limits, tmp_path, channels):
    path = psd(tmp_path / "a.psd", size=(SIDE, SIDE), channels=channels, image=bomb(channels * 2**24))
    assert "memory for pixels up to the picture is" in told_within_limits(path)


def test_an_xmp_packet_of_100_megabytes_is_named(told_within_limits, tmp_path):
    path = psd(
        tmp_path / "a.psd", record((0, 0, 4, 4)), resources=[(Resource.XMP_METADATA, bytes(100 * 2**20))]
    )
    assert "size of the XMP packet is '104,857,600 bytes'; allowed: at most 67,108,864" in told_within_limits(
        path
    )


def test_resources_and_blocks_that_are_not_needed_are_left_in_the_file(told_within_limits, tmp_path):
    some = bytes(50 * 2**20)
    path = psd(tmp_path / "a.psd", record((0, 0, 4, 4)), resources=[(1100 + n, some) for n in range(10)])
    assert told_within_limits(path) == ""


def test_a_channel_of_a_gigabyte_is_read_as_far_as_its_pixels_reach(told_within_limits, tmp_path):
    made, channels = record((0, 0, 4, 4))
    channels[0].data += bytes(2**20)
    path = psd(tmp_path / "a.psd", (made, channels))
    data, size = path.read_bytes(), len(channels[0].data)
    begin, end = data.split(channels[0].data)
    assert told_within_limits(path) == ""
    longer = begin + channels[0].data
    at = longer.index(struct.pack(">I", size + 2))
    more = 2**30
    with path.open("wb") as file:
        file.write(longer[:at] + struct.pack(">I", size + 2 + more) + longer[at + 4 :])
        file.seek(more, 1)
        file.write(end)
    resources = 26 + 4 + 4 + struct.unpack(">I", data[30:34])[0]
    with path.open("r+b") as file:
        for place in (resources, resources + 4):  # the lengths of the section and of the layers
            file.seek(place)
            length = struct.unpack(">I", file.read(4))[0] + more
            file.seek(place)
            file.write(struct.pack(">I", length))
    assert path.stat().st_size > 2**30
    assert told_within_limits(path) == ""
    assert read_layers(path).document.layer("big").image[..., 3].min() == 1


def test_records_of_200_megabytes_are_named(told_within_limits, tmp_path):
    big, channels = record((0, 0, 4, 4))
    big.tagged_blocks.set_data(Tag.UNICODE_LAYER_NAME, "n" * 100 * 2**20)
    assert "size of the layers' records is '209," in told_within_limits(
        psd(tmp_path / "a.psd", (big, channels))
    )


def test_original_pixels_that_unpack_to_more_than_they_say_are_not_used(told_within_limits, tmp_path):
    layer = Layer("a", torch.rand(4, 4, 4).round(), x=0.5)
    path = write_layers(LayerDocument(9, 9, (layer,)), tmp_path / "a.psd")
    with path.open("rb") as file:
        made = PSD.read(file)
    (key,) = [
        k for k, r in made.image_resources.items() if isinstance(r.data, bytes) and b"1-image" in r.data[:40]
    ]
    resource = made.image_resources[key]
    resource.data = resource.data.partition(b"\n")[0] + b"\n" + bomb(2**30)
    with path.open("wb") as file:
        made.write(file)
    assert "left out its original pixels; the placed ones are used" in told_within_limits(path)


@pytest.mark.parametrize(
    ("box", "visible", "why"),
    [
        ((0, 0, 30_000, 2), False, "hidden"),
        ((0, 0, SIDE + 9, SIDE + 9), False, "hidden"),
        ((20, 0, 30_020, 2), True, "outside the canvas"),
        ((-30_000, 0, 0, 2), True, "outside the canvas"),
    ],
)
def test_a_layer_that_is_not_seen_and_too_large_is_left_out_of_a_psd(tmp_path, box, visible, why):
    big = record(box, visible=visible, data=b"not decoded")
    path = psd(tmp_path / "a.psd", record((0, 0, 4, 4), "small"), big)
    file = read_layers(path)
    assert [layer.name for layer in file.document] == ["small"]
    size = f"{box[2] - box[0]}x{box[3] - box[1]}"
    assert file.warnings[0].startswith(
        f"layer 'big' is {why} and too large, so it is left empty: size of layer"
    )
    assert size in file.warnings[0]


def test_masks_of_hidden_layers_and_groups_that_are_too_large_are_left_out_of_a_psd(tmp_path):
    huge = (0, 0, 30_000, 1)
    path = psd(
        tmp_path / "a.psd",
        record((0, 0, 0, 0), divider=3),
        record((0, 0, 4, 4), "inside"),
        record((0, 0, 0, 0), "group", visible=False, mask=huge, divider=1),
        record((0, 0, 4, 4), "masked", visible=False, mask=huge),
        record((0, 0, 4, 4), "small"),
    )
    file = read_layers(path)
    assert [(layer.name, layer.visible) for layer in file.document] == [("inside", False), ("small", True)]
    said = "\n".join(file.warnings)
    assert "group 'group' is hidden and too large, so its mask is left out: size of the mask of group" in said
    assert (
        "layer 'masked' is hidden and too large, so it is left empty: size of the mask of layer 'masked'"
        in said
    )


def test_a_layer_that_is_seen_and_too_large_is_refused(tmp_path):
    path = psd(tmp_path / "a.psd", record((0, 0, 30_000, 2), data=b"not decoded"))
    with pytest.raises(
        LayeredError, match="size of layer 'big' is '30000x2'; allowed: .* 16384 pixels a side"
    ):
        read_layers(path)


@pytest.mark.parametrize(
    ("look", "why"),
    [('visibility="hidden"', "hidden"), ('x="9"', "outside the canvas"), ('y="-2"', "outside the canvas")],
)
@pytest.mark.parametrize("around", ["{}", "<stack>{}</stack>"])
def test_a_layer_that_is_not_seen_and_too_large_is_left_out_of_an_openraster_file(
    tmp_path, look, why, around
):
    stack = f'<layer name="small" src="data/a.png"/>{around.format(f"<layer name=%s src=%s {look}/>")}'
    stack = stack % ('"big"', '"data/b.png"')
    small = png(4, 4, zlib.compress(bytes(17 * 4)))
    path = ora(tmp_path / "a.ora", stack, ("data/a.png", small, 0), ("data/b.png", png(30_000, 2), 0))
    file = read_layers(path)
    assert [w for w in file.warnings if "big" in w] == [
        f"layer 'big' is {why} and too large, so it is left out: size of picture b.png of layer 'big' is '30000x2'; "
        f"allowed: at least 1 and at most 16384 pixels a side"
    ]


def test_a_hidden_stack_hides_its_layers(tmp_path):
    stack = '<stack visibility="hidden"><layer name="big" src="data/b.png"/></stack>'
    path = ora(tmp_path / "a.ora", stack, ("data/b.png", png(30_000, 2), 0))
    assert "layer 'big' is hidden and too large" in read_layers(path).warnings[0]


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        (None, "Raise the memory limit, max_alloc_bytes"),
        ("--memory-limit", "Raise the memory limit, --memory-limit, to 1 GiB or more"),
        ("", "Make it smaller"),
    ],
)
@pytest.mark.parametrize("end", [".psd", ".ora", ""])
def test_the_error_names_the_option_of_the_host(tmp_path, option, fix, end):
    document = LayerDocument(9, 9, (Layer("a", torch.ones(9, 9, 4)),))
    path = write_layers(document, tmp_path / f"a{end}")
    with pytest.raises(LayeredError) as caught:
        read_layers(path, Limits(max_alloc_bytes=1000, option=option))
    assert str(caught.value).endswith(f"is '1,296 bytes'; allowed: at most 1,000. {fix}")


def test_pixels_stay_in_the_file_until_they_are_decoded(tmp_path):
    path = psd(tmp_path / "a.psd", record((0, 0, 4, 4)))
    made, _ = read_sections(path)
    (channels,) = made.layer_and_mask_information.layer_info.channel_image_data
    assert [zlib.decompress(channel.data)[0] for channel in channels] == [255, 5, 5, 5]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LayeredError, match="the file is cut short"):
        channels[0].get_data(4, 4, 8)
