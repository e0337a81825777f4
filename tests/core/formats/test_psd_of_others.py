"""PSD files that other programs made: the documents that they become, and the warnings."""

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode, ChannelID, Clipping, ColorMode, Resource, Tag
from psd_tools.psd.layer_and_mask import ChannelInfo, MaskFlags, MaskParameters
from psd_tools.psd.tagged_blocks import TaggedBlock

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.limits import Limits
from tests.core.formats.test_psd import GREEN, RED, pixel, scene, stack_of, write


def new(mode="RGBA", size=(20, 10), **options):
    return PSDImage.new(mode, size, **options)


def test_names_places_and_looks_are_read(tmp_path):
    psd = new()
    shown = psd.create_pixel_layer(
        Image.new("RGBA", (4, 3), RED), left=-2, top=5, opacity=128, blend_mode=BlendMode.VIVID_LIGHT
    )
    hidden = psd.create_pixel_layer(Image.new("RGBA", (2, 2), GREEN))
    shown.name = hidden.name = "Über: ein ❤"
    hidden.visible = False
    first, second = stack_of(psd, tmp_path).document
    assert (first.name, first.prompt, first.x, first.y, first.width, first.height) == (
        "Über",
        "ein ❤",
        -2,
        5,
        4,
        3,
    )
    assert (first.opacity, first.blend_mode, first.visible) == (128 / 255, "vivid-light", True)
    assert (second.name, second.visible) == ("Über 2", False)


def test_groups_are_flattened_with_their_opacity_and_visibility(tmp_path):
    psd = new()
    inner = [psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name=n, opacity=128) for n in ("a", "b")]
    deep = psd.create_group(inner, name="deep", opacity=128)
    outside = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="c")
    hidden = psd.create_group([deep, outside], name="hidden")
    hidden.visible = False
    psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="d")
    document = stack_of(psd, tmp_path).document
    assert [(x.name, round(x.opacity, 4), x.visible) for x in document] == [
        ("a", round((128 / 255) ** 2, 4), False), ("b", round((128 / 255) ** 2, 4), False), ("c", 1, False),
        ("d", 1, True),
    ]  # fmt: skip


def test_an_artboard_is_told_of(tmp_path):
    psd = new()
    board = psd.create_group([psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")], name="g")
    board.tagged_blocks[Tag.ARTBOARD_DATA1] = TaggedBlock(key=Tag.ARTBOARD_DATA1, data=b"")
    assert stack_of(psd, tmp_path).warnings == (
        "group 'g' is an artboard: its colour is left out, and its layers are not cut at its edges",
    )


def test_a_mask_of_another_box_is_brought_to_the_layers_own(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (6, 4), RED), name="a", left=2, top=1)
    values = Image.fromarray(np.arange(0, 120, 20, dtype=np.uint8).reshape(2, 3))
    layer.create_mask(values)
    layer._record.mask_data.left, layer._record.mask_data.right = 6, 9
    layer._record.mask_data.top, layer._record.mask_data.bottom = 0, 2
    for outside in (0, 255):
        layer._record.mask_data.background_color = outside
        mask = (stack_of(psd, tmp_path).document.layer("a").mask * 255).round().int()
        expected = torch.full((4, 6), outside)
        expected[0, 4:6] = torch.tensor([60, 80])
        assert torch.equal(mask, expected.int())


def test_density_counts_and_a_switched_off_mask_is_told_of(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")
    layer.create_mask(Image.new("L", (4, 4), 0))
    data = layer._record.mask_data
    data.flags = MaskFlags(parameters_applied=True)
    data.parameters = MaskParameters(user_mask_density=51, user_mask_feather=3.0)
    file = stack_of(psd, tmp_path)
    assert torch.allclose(file.document.layer("a").mask, torch.full((4, 4), 0.8))
    assert file.warnings == ("layer 'a': the mask's feather is left out",)
    data.flags.mask_disabled = True
    file = stack_of(psd, tmp_path)
    assert file.document.layer("a").mask is None
    assert file.warnings == ("layer 'a': the mask is switched off and left out",)


def with_vector_mask(psd, pixel, product, alpha=255, **parameters):
    """Add a layer of 4 x 4 with a vector mask and, unless None, a pixel mask, as Photoshop stores them, with
    the product of both rendered."""
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (*RED[:3], alpha)), name="a")
    layer.create_mask(Image.fromarray(np.array(product, dtype=np.uint8)))
    record = layer._record
    record.tagged_blocks[Tag.VECTOR_MASK_SETTING1] = TaggedBlock(key=Tag.VECTOR_MASK_SETTING1, data=b"")
    record.mask_data.flags = MaskFlags(user_mask_from_render=True, parameters_applied=bool(parameters))
    record.mask_data.parameters = MaskParameters(**parameters) if parameters else None
    if pixel is not None:
        donor = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="donor")
        donor.create_mask(Image.fromarray(np.array(pixel, dtype=np.uint8)))
        at = [info.id for info in donor._record.channel_info].index(ChannelID.USER_LAYER_MASK)
        record.channel_info.append(
            ChannelInfo(ChannelID.REAL_USER_LAYER_MASK, donor._record.channel_info[at].length)
        )
        layer._channels.append(donor._channels[at])
        box = {"real_left": 0, "real_top": 0, "real_right": 4, "real_bottom": 4}
        for key, value in {"real_flags": MaskFlags(), "real_background_color": 255, **box}.items():
            setattr(record.mask_data, key, value)
        donor.delete_layer()
    return layer


PIXEL, VECTOR = np.full((4, 4), 204), np.array([[255, 255, 0, 0]] * 4)


@pytest.mark.parametrize("densities", [(255, 255), (51, 255), (255, 51), (102, 51)])
def test_a_pixel_mask_and_a_vector_mask_multiply_each_with_its_density(tmp_path, densities):
    psd = new()
    pixel, vector = densities
    with_vector_mask(psd, PIXEL, PIXEL * VECTOR // 255, user_mask_density=pixel, vector_mask_density=vector)
    file = stack_of(psd, tmp_path)
    inside = 1 - pixel / 255 * (1 - 204 / 255)
    expected = torch.tensor(
        [inside, inside, inside * (1 - vector / 255), inside * (1 - vector / 255)]
    ).expand(4, 4)
    mask = file.document.layer("a").mask
    assert torch.allclose(mask, expected, atol=1e-6)
    assert file.warnings == ()


def test_a_vector_mask_alone_has_its_own_density(tmp_path):
    psd = new()
    with_vector_mask(psd, None, VECTOR, vector_mask_density=102)
    file = stack_of(psd, tmp_path)
    assert torch.allclose(file.document.layer("a").mask, torch.tensor([1, 1, 0.6, 0.6]).expand(4, 4))
    assert file.warnings == ()


def test_beside_a_pixel_mask_that_is_switched_off_the_vector_mask_counts(tmp_path):
    psd = new()
    layer = with_vector_mask(psd, PIXEL, VECTOR)
    layer._record.mask_data.real_flags.mask_disabled = True
    file = stack_of(psd, tmp_path)
    assert torch.equal(file.document.layer("a").mask, torch.tensor([1.0, 1, 0, 0]).expand(4, 4))
    assert file.warnings == ("layer 'a': the mask is switched off and left out",)


def test_the_soft_edge_of_a_shape_is_not_cut_twice(tmp_path):
    """Photoshop stores a shape's pixels with the shape's edge applied."""
    psd = new()
    layer = with_vector_mask(psd, None, np.full((4, 4), 128), alpha=128)
    layer.tagged_blocks[Tag.SOLID_COLOR_SHEET_SETTING] = TaggedBlock(
        key=Tag.SOLID_COLOR_SHEET_SETTING, data=b""
    )
    file = stack_of(psd, tmp_path)
    assert (file.document.layer("a").mask, file.warnings) == (None, ())
    assert pixel(file.document, "a") == [255, 0, 0, 128]


def masked_group(psd, members, value=255, **options):
    """Add a group with a mask that is ``value`` over 3 x 4 pixels and 0 elsewhere."""
    group = psd.create_group(members, **options)
    donor = psd.create_pixel_layer(Image.new("RGBA", (3, 4), RED), name="donor")
    donor.create_mask(Image.new("L", (3, 4), value))
    group._record.mask_data = donor._record.mask_data
    at = [info.id for info in donor._record.channel_info].index(ChannelID.USER_LAYER_MASK)
    group._record.channel_info.append(donor._record.channel_info[at])
    group._channels = type(group._channels)(
        [*group._channels, donor._channels[at]]
    )  # psd-tools shares this list with the record of the group's other end
    donor.delete_layer()
    return group


def test_a_groups_mask_goes_into_its_layers(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a", left=1)
    layer.create_mask(Image.new("L", (4, 4), 128))
    masked_group(psd, [layer], name="g")
    mask = (stack_of(psd, tmp_path).document.layer("a").mask * 255).round().int()
    assert torch.equal(mask, torch.tensor([128, 128, 0, 0]).int().expand(4, 4))


def test_a_clipped_layer_is_cut_by_the_one_below(tmp_path):
    psd = new()
    base = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    base.putpixel((1, 1), (0, 0, 0, 128))
    psd.create_pixel_layer(base, name="base", left=2, top=2, opacity=51)
    top = psd.create_pixel_layer(Image.new("RGBA", (9, 9), RED), name="top")
    top._record.clipping = Clipping.NON_BASE
    layer = stack_of(psd, tmp_path, groups="apart").document.layer("top")
    expected = torch.zeros(9, 9)
    expected[3, 3] = 128 / 255
    assert torch.equal(layer.mask, expected)
    assert layer.opacity == pytest.approx(0.2)


def test_what_is_clipped_to_a_hidden_layer_or_in_a_hidden_group_needs_no_room(tmp_path):
    psd = new()
    layers = {
        n: psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name=n)
        for n in ("a", "base", "clipped", "in", "b")
    }
    layers["base"].visible = False
    layers["clipped"]._record.clipping = Clipping.NON_BASE
    psd.create_group([layers["in"]], name="g").visible = False
    psd.save(tmp_path / "a.psd")
    file = read_layers(tmp_path / "a.psd", Limits(max_layers=3))
    assert [layer.name for layer in file.document] == ["a", "b"]
    assert file.warnings == ("2 hidden layers are left out: with them there are 5, and at most 3 are read",)


def test_a_clipped_layer_in_a_group_has_the_groups_opacity_and_mask_once(tmp_path):
    psd = new()
    base = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="base", opacity=204)
    top = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="top")
    masked_group(psd, [base, top], 128, name="g", opacity=51)
    top._record.clipping = Clipping.NON_BASE
    below, above = stack_of(psd, tmp_path, groups="apart").document
    assert torch.equal(above.mask, below.mask)
    assert torch.allclose(above.mask, torch.tensor([128 / 255] * 3 + [0]).expand(4, 4))
    assert above.opacity == below.opacity == pytest.approx(0.2 * 0.8)


def test_every_layer_of_a_clipped_group_is_cut(tmp_path):
    psd = new()
    psd.create_pixel_layer(Image.new("RGBA", (9, 9), RED), name="bottom")
    psd.create_pixel_layer(Image.new("RGBA", (2, 2), RED), name="base", left=1, top=1)
    first = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="first")
    inner = psd.create_pixel_layer(Image.new("RGBA", (2, 9), GREEN), name="inner")
    clipped = psd.create_pixel_layer(Image.new("RGBA", (9, 9), GREEN), name="clipped")
    group = psd.create_group([first, psd.create_group([inner, clipped], name="deep")], name="g")
    above = psd.create_pixel_layer(Image.new("RGBA", (9, 9), GREEN), name="above")
    for layer in (group, clipped, above):
        layer._record.clipping = Clipping.NON_BASE
    file = stack_of(psd, tmp_path)
    cut = torch.zeros(9, 9)
    cut[1:3, 1:3] = 1
    masks = {layer.name: layer.mask for layer in file.document}
    assert [*masks] == ["bottom", "base", "first", "inner", "clipped", "above"]
    assert (masks["bottom"], masks["base"]) == (None, None)
    assert torch.equal(masks["first"], cut[:4, :4])
    assert torch.equal(masks["inner"], cut[:, :2])
    assert torch.equal(masks["above"], cut)
    cut[:, 2:] = 0
    assert torch.equal(masks["clipped"], cut)
    assert file.warnings == ()


def test_fill_opacity_counts(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a", opacity=128)
    layer.tagged_blocks.set_data(Tag.BLEND_FILL_OPACITY, 51)
    assert stack_of(psd, tmp_path).document.layer("a").opacity == pytest.approx(128 / 255 * 0.2)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_8_and_16_bits_in_colour_and_grey_are_read(tmp_path, depth, mode):
    psd = PSDImage.new(mode, (6, 4), depth=depth)
    shape = (4, 6) if mode == "L" else (4, 6, 3)
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    psd.create_pixel_layer(Image.fromarray(picture), name="a")
    image = stack_of(psd, tmp_path).document.layer("a").image
    expected = torch.from_numpy(picture.copy()).float() / 255
    assert torch.allclose(
        image[..., :3], expected[..., None].expand(4, 6, 3) if mode == "L" else expected, atol=1 / 65535
    )
    assert bool((image[..., 3] == 1).all())


@pytest.mark.parametrize(
    "mode",
    [
        ColorMode.CMYK,
        ColorMode.LAB,
        ColorMode.INDEXED,
        ColorMode.BITMAP,
        ColorMode.DUOTONE,
        ColorMode.MULTICHANNEL,
    ],
)
def test_other_colour_modes_are_refused_with_what_to_do(tmp_path, mode):
    psd = new()
    psd._record.header.color_mode = mode
    with pytest.raises(
        LayeredError,
        match=f"colour mode is '{mode.name}'; allowed: RGB, GRAYSCALE. In Photoshop: Image > Mode > RGB "
        f"Color",
    ):
        stack_of(psd, tmp_path)


def test_32_bits_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(LayeredError, match=r"bits a channel is 32; allowed: 8, 16\. In Photoshop"):
        stack_of(PSDImage.new("RGB", (4, 4), depth=32), tmp_path)


def test_dissolve_is_read_as_normal_and_told_of(tmp_path):
    psd = new()
    psd.create_pixel_layer(Image.new("RGBA", (2, 2), RED), name="a", blend_mode=BlendMode.DISSOLVE)
    file = stack_of(psd, tmp_path)
    assert file.document.layer("a").blend_mode == "normal"
    assert file.warnings == ("layer 'a': blend mode dissolve is read as normal",)


def test_an_empty_layer_with_a_mask_is_a_place_to_be_generated(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(
        Image.new("RGBA", (6, 4), (0, 0, 0, 0)), name="ball: a red ball", left=3, top=2
    )
    layer.create_mask(Image.new("L", (6, 4), 255))
    psd.create_pixel_layer(Image.new("RGBA", (6, 4), (0, 0, 0, 0)), name="nothing")
    file = stack_of(psd, tmp_path)
    (ball,) = file.document
    assert (ball.image, ball.prompt, ball.x, ball.y, ball.width, ball.height) == (
        None,
        "a red ball",
        3,
        2,
        6,
        4,
    )
    assert bool((ball.mask == 1).all())
    assert file.warnings == ("layer 'nothing' is empty and left out",)


def test_what_a_document_cannot_hold_is_told_of(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")
    layer.tagged_blocks[Tag.VECTOR_MASK_SETTING1] = TaggedBlock(key=Tag.VECTOR_MASK_SETTING1, data=b"")
    layer.tagged_blocks[Tag.EFFECTS_LAYER] = TaggedBlock(key=Tag.EFFECTS_LAYER, data=b"")
    levels = psd.create_pixel_layer(Image.new("RGBA", (1, 1)), name="levels")
    levels._record.right = levels._record.bottom = 0
    levels.tagged_blocks[Tag.LEVELS] = TaggedBlock(key=Tag.LEVELS, data=b"")
    psd.image_resources[Resource.ICC_PROFILE] = type(psd.image_resources[Resource.VERSION_INFO])(
        key=Resource.ICC_PROFILE, data=b"Adobe RGB"
    )
    warnings = " / ".join(stack_of(psd, tmp_path).warnings)
    assert "layer 'a' has layer effects, which are left out" in warnings
    assert "layer 'a': the vector mask is switched off or damaged, and is left out" in warnings
    assert "layer 'levels' is an adjustment layer and is left out" in warnings
    assert "the colour profile is not sRGB" in warnings


def test_layer_data_of_a_newer_version_is_refused(tmp_path):
    path = write(tmp_path, scene())
    path.write_bytes(path.read_bytes().replace(b'{"version": 1,', b'{"version": 2,'))
    with pytest.raises(LayeredError, match="version of the layer data is 2; allowed: 1.*update"):
        read_layers(path)
