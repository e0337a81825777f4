"""Photoshop's fill opacity, darker and lighter color, blend-if and knockout, as Photoshop shows them."""

import pytest
import torch
from PIL import Image
from psd_tools.constants import BlendMode, Tag
from psd_tools.psd.layer_and_mask import LayerBlendingRanges

from tests.core.formats.test_groups import GREEN, OLIVE, RED, at, clipped, group, names, scene, square
from tests.core.formats.test_psd import stack_of
from tests.core.formats.test_psd_of_others import new

ALL = (0, 65535)


def fill(layer, value):
    layer.tagged_blocks.set_data(Tag.BLEND_FILL_OPACITY, value)
    return layer


# Fill opacity


def test_a_groups_fill_opacity_is_opacity(tmp_path):
    psd = scene()
    fill(group(psd, [square(psd, GREEN, "a")], "g", opacity=204), 51)
    file = stack_of(psd, tmp_path)
    assert file.document.layer("a").opacity == pytest.approx(0.8 * 0.2)
    assert at(file) == [168, round(200 + 55 * 0.16, 1), 0, 255]


@pytest.mark.parametrize(
    ("mode", "red"),
    [
        (BlendMode.COLOR_BURN, 1 - 0.4 / 0.8),
        (BlendMode.LINEAR_BURN, 0.6 - 0.2),
        (BlendMode.COLOR_DODGE, 0.6 / 0.7),
        (BlendMode.LINEAR_DODGE, 0.6 + 0.3),
        (BlendMode.VIVID_LIGHT, 0.6 / (1 - 2 * 0.05)),
        (BlendMode.LINEAR_LIGHT, 0.6 + 2 * 0.05),
        (BlendMode.DIFFERENCE, 0.6 - 0.3),
        (BlendMode.HARD_MIX, (0.6 - 0.5 * 0.4) / 0.5),
    ],
)
def test_fill_opacity_in_the_special_modes_weakens_the_colour(tmp_path, mode, red):
    """The backdrop is 0.6, the source 0.6 with a fill opacity of 0.5: halfway to 1, 0 or 0.5, which change nothing."""
    psd = scene((153, 153, 153, 255))
    fill(square(psd, (153, 153, 153, 255), "a", blend_mode=mode), 128)
    file = stack_of(psd, tmp_path)
    assert at(file)[0] == pytest.approx(red * 255, abs=1.5)
    kept = file.document.layer("a").blend_mode
    assert kept == ("normal" if mode == BlendMode.HARD_MIX else mode.name.lower().replace("_", "-"))
    how = "for what lies below it now" if mode == BlendMode.HARD_MIX else "mixed into its colours"
    assert len(file.warnings) == 1
    assert how in file.warnings[0]


def test_the_special_modes_over_translucent_layers_look_as_photoshops_preview(tmp_path):
    """The layers and the preview are those of ag-psd's test file of fill opacity, saved by Photoshop."""
    psd = new(size=(1, 1))
    square(psd, (0, 0, 255, 255), "blue", (1, 1), opacity=153)
    square(psd, GREEN, "green", (1, 1), opacity=102, blend_mode=BlendMode.LINEAR_LIGHT)
    top = fill(square(psd, RED, "red", (1, 1), blend_mode=BlendMode.LINEAR_LIGHT), 51)
    top.tagged_blocks.set_data(Tag.TRANSPARENCY_SHAPES_LAYER, 0)
    file = stack_of(psd, tmp_path)
    assert at(file) == pytest.approx([63, 77, 65, 206], abs=1.5)
    told = "layer 'red' is merged with all layers below it: it acts on them, and they are translucent"
    assert (names(file), file.warnings) == (["blue"], (told,))


def test_fill_opacity_does_not_fade_what_is_clipped_unless_it_is_blended_as_a_group(tmp_path):
    psd = scene()
    base = fill(square(psd, RED, "base"), 51)
    base.tagged_blocks.set_data(Tag.BLEND_CLIPPING_ELEMENTS, 0)
    clipped(square(psd, GREEN, "top", (4, 8)))
    file = stack_of(psd, tmp_path)
    assert [at(file), at(file, 7)] == [[0, 255, 0, 255], [211, 160, 0, 255]]
    base.tagged_blocks.set_data(Tag.BLEND_CLIPPING_ELEMENTS, 1)
    assert at(stack_of(psd, tmp_path)) == [160, 211, 0, 255]


# Darker and lighter color


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [(BlendMode.DARKER_COLOR, OLIVE, (0, 0, 255, 255)), (BlendMode.LIGHTER_COLOR, (250, 250, 0, 255), OLIVE)],
)
def test_of_two_colours_the_darker_or_lighter_is_shown(tmp_path, mode, left, right):
    psd = scene()
    source = Image.new("RGBA", (8, 8), (250, 250, 0, 255))
    source.paste((0, 0, 255, 255), (4, 0, 8, 8))
    psd.create_pixel_layer(source, name="a", blend_mode=mode)
    file = stack_of(psd, tmp_path)
    assert [at(file), at(file, 7)] == [list(left), list(right)]
    assert file.document.layer("a").blend_mode == "normal"
    mode = mode.name.lower().replace("_", "-")
    told = f"layer 'a': its blend mode {mode} is put into its colours, for what lies below it now"
    assert file.warnings == (told,)


# Blend-if


def limit(layer, own=ALL, below=ALL):
    layer._record.blending_ranges = LayerBlendingRanges([own, below], [[ALL, ALL]] * 4)


def grey(psd, name, *values):
    picture = Image.new("RGBA", (8, 8))
    for i, value in enumerate(values):
        picture.paste((value, value, value, 255), (2 * i, 0, 2 * i + 2, 8))
    return psd.create_pixel_layer(picture, name=name)


def test_blend_if_of_a_layers_own_colours_is_a_mask(tmp_path):
    psd = scene()
    limit(grey(psd, "a", 50, 100, 150, 255), own=(50 << 8 | 150, 200 << 8 | 255))
    file = stack_of(psd, tmp_path)
    expected = torch.tensor([0.0, 0, 0.5, 0.5, 1, 1, 0, 0])
    assert torch.allclose(file.document.layer("a").mask[0], expected, atol=1e-6)
    assert file.warnings == ()


def test_blend_if_of_what_is_below_is_a_mask_for_now(tmp_path):
    psd = new(size=(8, 8))
    grey(psd, "bottom", 0, 150, 200, 255)
    limit(square(psd, RED, "a"), below=(200 << 8 | 200, 255 << 8 | 255))
    file = stack_of(psd, tmp_path)
    assert [at(file, x)[:2] for x in (0, 2, 4, 6)] == [[0, 0], [150, 150], [255, 0], [255, 0]]
    assert file.document.layer("a").mask[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    told = "layer 'a': its limit to some colours below it (blend-if) is put into its mask, for what lies below it now"
    assert file.warnings == (told,)


def test_blend_if_of_a_channel_counts(tmp_path):
    psd = scene()
    layer = square(psd, (200, 10, 10, 255), "a")
    ranges = [[ALL, ALL], [(100 << 8 | 100, 65535), ALL], [ALL, ALL], [ALL, ALL]]
    layer._record.blending_ranges = LayerBlendingRanges([ALL, ALL], ranges)
    assert at(stack_of(psd, tmp_path)) == list(OLIVE)


def test_blend_if_of_a_group_and_restricted_channels_are_told_of(tmp_path):
    psd = scene()
    limit(group(psd, [square(psd, RED, "a")], "g"), own=(100 << 8 | 100, 65535))
    square(psd, RED, "b").tagged_blocks.set_data(Tag.CHANNEL_BLENDING_RESTRICTIONS_SETTING, [0])
    assert stack_of(psd, tmp_path).warnings == (
        "group 'g' shows in some colours only (blend-if); this is left out",
        "layer 'b' changes some colour channels only; this is left out",
    )


# Knockout


def knockout(layer, depth):
    layer.tagged_blocks.set_data(Tag.KNOCKOUT_SETTING, depth)
    return fill(layer, 0)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_knockout_makes_a_hole(tmp_path, depth):
    psd = scene()
    knockout(square(psd, RED, "ko", (4, 4)), depth)
    file = stack_of(psd, tmp_path)
    assert [at(file), at(file, 7)] == [[0, 0, 0, 0], list(OLIVE)]
    assert file.warnings == ("layer 'ko' knocks out what is below it; masks of the layers below do so now",)


def test_a_shallow_knockout_stops_at_the_group_and_a_deep_one_at_the_background(tmp_path):
    for depth, expected in ((1, [0, 255, 0, 255]), (2, list(OLIVE))):
        psd = new("RGB", (8, 8))
        psd.create_pixel_layer(Image.new("RGB", (8, 8), OLIVE[:3]), name="background")
        record = psd[0]._record
        at_alpha = next(i for i, info in enumerate(record.channel_info) if info.id == -1)
        del record.channel_info[at_alpha], psd[0]._channels[at_alpha]
        square(psd, GREEN, "b")
        inside = [square(psd, (0, 0, 255, 255), "c"), knockout(square(psd, RED, "ko"), depth)]
        group(psd, inside, "g", blend_mode=BlendMode.PASS_THROUGH)
        assert at(stack_of(psd, tmp_path)) == expected


def test_an_opaque_knockout_changes_nothing(tmp_path):
    psd = scene()
    fill(knockout(square(psd, RED, "ko"), 1), 255)
    file = stack_of(psd, tmp_path)
    assert (at(file), file.document.layer("bottom").mask, file.warnings) == ([255, 0, 0, 255], None, ())
