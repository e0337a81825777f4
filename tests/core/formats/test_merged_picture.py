"""What was read of a file is compared with the picture that its program stored in it."""

import io
import zipfile

import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import Compression
from psd_tools.psd.image_data import ImageData

from layered_core.canvas.compositing import composite
from layered_core.document import MAX_LAYERS, Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.formats.merged_picture import checked, condensed, with_merged

FORMATS = pytest.mark.parametrize("end", [".psd", ".ora"])


def document(half=0.5):
    """Return a red canvas of 40 x 20 with a smooth half that lies on its right."""
    ramp = torch.linspace(0, 1, 20)[None, :, None].expand(20, 20, 3)
    right = torch.cat([ramp, torch.full((20, 20, 1), half)], -1)
    return LayerDocument(40, 20, (Layer("left", red(20, 40)), Layer("right", right, x=20)))


def red(height, width):
    return torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(height, width, 4)


def with_preview(path, change):
    """Replace the merged picture of a file by ``change`` of it, a function of a Pillow image."""
    if path.suffix == ".ora":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        png = io.BytesIO()
        change(Image.open(io.BytesIO(entries["mergedimage.png"]))).save(png, "PNG")
        entries["mergedimage.png"] = png.getvalue()
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, data)
        return
    file = PSDImage.open(path)
    record = file._record
    planes = record.image_data.get_data(record.header)
    size = record.header.width, record.header.height
    picture = Image.merge("RGB", [Image.frombytes("L", size, plane) for plane in planes[:3]])
    changed = change(picture).convert("RGB").split()
    record.image_data.set_data([band.tobytes() for band in changed] + planes[3:], record.header)
    file.save(path)


def darker_on_the_right(picture):
    picture.paste((0, 0, 0, 255)[: len(picture.getbands())], (30, 0, 40, 20))
    return picture


@FORMATS
def test_what_equals_its_own_picture_gives_no_warning(tmp_path, end):
    path = write_layers(document(), tmp_path / f"a{end}")
    read = read_layers(path)
    assert checked(read).warnings == ()
    torch.testing.assert_close(read.merged(), composite(document()), atol=0.6 / 255, rtol=0)


@FORMATS
def test_a_difference_is_told_with_its_place_its_size_and_a_layer(tmp_path, end):
    path = write_layers(document(), tmp_path / f"a{end}")
    with_preview(path, darker_on_the_right)
    (line,) = checked(read_layers(path)).warnings
    ramp = torch.linspace(0, 1, 20)[10:]
    gone = (1 + ramp) / 2 + ramp / 2 + ramp / 2  # the red, green and blue that were painted black
    mean = float(gone.mean()) / 3 / 4 * 255
    assert f"differ by {mean:.1f}/255 on average" in line
    assert "at the right, x 30..40, y 0..20" in line
    assert "'right'" in line


def test_a_layer_that_was_left_out_is_named_as_the_likely_cause(tmp_path):
    path = write_layers(document(), tmp_path / "a.ora")
    with_preview(path, darker_on_the_right)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    stack = entries["stack.xml"].replace(b"</stack>", b'<layer name="lost"/></stack>')
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (entries | {"stack.xml": stack}).items():
            archive.writestr(name, data)
    first, second = checked(read_layers(path)).warnings
    assert "as said below" in first
    assert "'lost'" in second


@FORMATS
def test_a_small_difference_is_not_told(tmp_path, end):
    path = write_layers(document(), tmp_path / f"a{end}")
    with_preview(path, lambda picture: picture.point(lambda v: max(0, v - 2)))
    assert checked(read_layers(path)).warnings == ()


@FORMATS
@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_colour_is_a_stand_in(tmp_path, end, value):
    path = write_layers(document(), tmp_path / f"a{end}")
    with_preview(path, lambda picture: Image.new("RGB", picture.size, (value,) * 3))
    assert checked(read_layers(path)).warnings == ()


@FORMATS
def test_one_colour_is_compared_where_the_layers_give_one_too(tmp_path, end):
    path = write_layers(LayerDocument(8, 8, (Layer("a", red(8, 8)),)), tmp_path / f"a{end}")
    with_preview(path, lambda picture: Image.new("RGB", picture.size, (0, 200, 0)))
    (line,) = checked(read_layers(path)).warnings
    assert f"{(255 + 200) / 3:.1f}/255" in line
    assert "over the whole canvas" in line


@pytest.mark.parametrize("white", [True, False])
def test_a_transparent_picture_may_be_stored_over_white_or_straight(tmp_path, white):
    alpha = torch.linspace(0, 1, 20)[None, :, None].expand(20, 20, 1)
    layer = torch.cat([torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(1)), alpha], -1)
    path = write_layers(LayerDocument(20, 20, (Layer("a", layer),)), tmp_path / "a.psd")
    file = PSDImage.open(path)
    record = file._record
    shown = layer[..., :3] * alpha + (1 - alpha) if white else layer[..., :3]
    colours = (shown.movedim(-1, 0) * 255).round().to(torch.uint8)
    planes = record.image_data.get_data(record.header)
    record.image_data.set_data([c.numpy().tobytes() for c in colours] + planes[3:], record.header)
    record.layer_and_mask_information.layer_info.layer_count = -1
    file.save(path)
    read = read_layers(path)
    assert checked(read).warnings == ()
    torch.testing.assert_close(read.merged()[:, 10:], layer[:, 10:], atol=3 / 255, rtol=0)


def test_a_picture_of_another_size_is_not_compared_but_told(tmp_path):
    path = write_layers(document(), tmp_path / "a.ora")
    with_preview(path, lambda picture: picture.resize((20, 20)))
    (line,) = checked(read_layers(path)).warnings
    assert "20x20 pixels, the canvas 40x20" in line


def test_a_damaged_picture_does_not_refuse_the_layers(tmp_path):
    path = write_layers(document(), tmp_path / "a.psd")
    file = PSDImage.open(path)
    file._record.image_data = ImageData(Compression.ZIP, b"broken")
    file.save(path)
    read = read_layers(path)
    assert len(read.document) == 2
    assert "not compared with the file's own picture: a.psd is damaged" in checked(read).warnings[-1]


@FORMATS
def test_the_files_own_picture_lies_hidden_on_top(tmp_path, end):
    path = write_layers(document(), tmp_path / f"a{end}")
    read = read_layers(path)
    more = with_merged(read)
    assert [(layer.name, layer.visible) for layer in more.document][-1] == ("merged picture", False)
    assert torch.equal(more.document.layers[-1].image, read.merged())
    assert torch.equal(composite(more.document), composite(read.document))


def test_a_full_document_says_that_the_picture_is_not_added(tmp_path):
    layers = tuple(Layer(f"{n}", red(4, 4)) for n in range(MAX_LAYERS))
    read = read_layers(write_layers(LayerDocument(4, 4, layers), tmp_path / "a.ora"))
    more = with_merged(read)
    assert more.document is read.document
    assert "50 layers already" in more.warnings[-1]


def test_a_json_document_has_no_picture_of_its_own(tmp_path):
    read = read_layers(write_layers(document(), tmp_path / "a"))
    assert checked(read) == read
    assert "stored none" in with_merged(read).warnings[-1]


def test_warnings_of_one_kind_are_one_line():
    effects = [f"layer 'l{n}' has layer effects" for n in range(30)]
    assert condensed(effects) == (
        "layer 'l0' has layer effects (the same for 29 more: 'l1', 'l2', 'l3', ...)",
    )
    assert condensed(effects[:3]) == tuple(effects[:3])
    assert condensed(["a", "a", "a", "a", "b"]) == ("a", "a", "a", "a", "b")
