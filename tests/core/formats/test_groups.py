"""What becomes of the groups of a PSD or OpenRaster file: the picture stays the same, or it is told."""

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools.constants import BlendMode, Clipping

from layered_core.canvas.compositing import composite
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.formats.limits import Limits
from tests.core.formats.test_openraster import archive, layer, png
from tests.core.formats.test_psd import GREEN, RED, stack_of
from tests.core.formats.test_psd_of_others import masked_group, new

OLIVE, BLUE = (200, 200, 0, 255), (0, 0, 255, 255)
HALF = 128 / 255


def square(psd, colour, name, size=(8, 8), **options):
    return psd.create_pixel_layer(Image.new("RGBA", size, colour), name=name, **options)


def scene(colour=OLIVE):
    """Return a file of 8 x 8 pixels with a layer called ``bottom`` all over."""
    psd = new(size=(8, 8))
    if colour is not None:
        square(psd, colour, "bottom")
    return psd


def group(psd, items, name, blend_mode=BlendMode.NORMAL, **options):
    """Add a group that is isolated unless its mode is pass-through."""
    return psd.create_group(items, name=name, blend_mode=blend_mode, **options)


def at(file, x=0, y=0):
    """Return a pixel of the composite, 0..255."""
    return [round(v * 255, 1) for v in composite(file.document, "photoshop")[y, x].tolist()]


def names(file):
    return [item.name for item in file.document]


# Isolated groups


def test_a_layer_of_a_blend_mode_acts_only_inside_an_isolated_group(tmp_path):
    psd = scene()
    group(psd, [square(psd, GREEN, "a", blend_mode=BlendMode.MULTIPLY)], name="g")
    file = stack_of(psd, tmp_path)
    assert at(file) == [0, 255, 0, 255]
    assert (names(file), file.warnings) == (["bottom", "a"], ())


def test_the_same_in_openraster(tmp_path):
    pictures = {"data_green.png": png(Image.new("RGBA", (4, 3), GREEN))}
    inside = layer('composite-op="svg:multiply"', "a", "data/green.png")
    bottom = layer(name="bottom")
    stacks = {"isolate": [0, 255, 0, 255], "auto": [0, 0, 0, 255]}
    for isolation, expected in stacks.items():
        stack = f'<stack name="g" isolation="{isolation}">{inside}</stack>{bottom}'
        file = read_layers(archive(tmp_path / "a.ora", stack, (4, 3), **pictures))
        assert at(file) == expected


def test_layers_that_overlap_in_a_translucent_group_become_one(tmp_path):
    psd = scene()
    group(psd, [square(psd, RED, "a"), square(psd, GREEN, "b")], name="g: grass", opacity=128)
    file = stack_of(psd, tmp_path)
    assert at(file) == [round(200 * (1 - HALF), 1), round(200 * (1 - HALF) + 255 * HALF, 1), 0, 255]
    one = file.document.layers[1]
    assert (one.name, one.prompt, one.opacity, one.blend_mode) == ("g", "grass", HALF, "normal")
    assert file.warnings == (
        "group 'g: grass' is merged into one layer: its opacity acts on its layers together",
    )


def test_layers_that_do_not_overlap_are_taken_out_of_a_translucent_group(tmp_path):
    psd = scene()
    inside = [square(psd, RED, "a", (4, 8)), square(psd, GREEN, "b", (4, 8), left=4)]
    group(psd, inside, name="g", opacity=128, blend_mode=BlendMode.SCREEN)
    file = stack_of(psd, tmp_path)
    assert [(x.name, x.opacity, x.blend_mode) for x in file.document][1:] == [
        ("a", HALF, "screen"),
        ("b", HALF, "screen"),
    ]
    assert file.warnings == ()
    assert at(file) == [round(200 + 55 * HALF, 1), 200, 0, 255]


def test_a_shade_on_what_is_in_its_group_is_taken_apart(tmp_path):
    psd = scene()
    inside = [square(psd, (100, 100, 100, 255), "ball"), square(psd, (128, 128, 128, 255), "shade", (4, 4))]
    inside[1].blend_mode = BlendMode.MULTIPLY
    group(psd, inside, name="g")
    file = stack_of(psd, tmp_path)
    assert (names(file), file.warnings) == (["bottom", "ball", "shade"], ())
    assert at(file)[0] == round(100 * 128 / 255, 1)


def test_a_shade_beyond_what_is_in_its_group_is_merged(tmp_path):
    psd = scene()
    inside = [square(psd, (100, 100, 100, 255), "ball", (4, 4)), square(psd, (128, 128, 128, 255), "shade")]
    inside[1].blend_mode = BlendMode.MULTIPLY
    group(psd, inside, name="g")
    file = stack_of(psd, tmp_path)
    assert (names(file), at(file)[0], at(file, 7, 7)[0]) == (["bottom", "g"], round(100 * 128 / 255, 1), 128)
    assert file.warnings == (
        "group 'g' is merged into one layer: its layers of the mode multiply act inside it only",
    )


def test_a_groups_blend_mode_acts_on_its_layers_together(tmp_path):
    psd = scene((100, 100, 100, 255))
    inside = [square(psd, (40, 40, 40, 255), "a"), square(psd, (90, 90, 90, 255), "b")]
    group(psd, inside, name="g", blend_mode=BlendMode.LINEAR_DODGE)
    file = stack_of(psd, tmp_path)
    assert (names(file), at(file)[0]) == (["bottom", "g"], 190)
    assert file.document.layer("g").blend_mode == "linear-dodge"


def test_a_groups_mask_acts_on_its_layers_together(tmp_path):
    psd = scene()
    masked_group(
        psd, [square(psd, RED, "a"), square(psd, GREEN, "b")], 128, name="g", blend_mode=BlendMode.NORMAL
    )
    file = stack_of(psd, tmp_path)
    assert at(file) == [round(200 * (1 - HALF), 1), round(200 * (1 - HALF) + 255 * HALF, 1), 0, 255]
    assert at(file, 4, 0) == [200, 200, 0, 255]
    one = file.document.layer("g")
    assert torch.equal(one.mask[0, :5], torch.tensor([HALF] * 3 + [0, 0]))


def test_only_the_smallest_group_is_merged(tmp_path):
    psd = scene()
    half = group(psd, [square(psd, RED, "a"), square(psd, GREEN, "b")], name="half", opacity=128)
    group(psd, [half, square(psd, BLUE, "c", (2, 2))], name="g")
    file = stack_of(psd, tmp_path)
    assert names(file) == ["bottom", "half", "c"]


# Pass-through groups


def test_layers_of_a_pass_through_group_act_on_what_is_below_it(tmp_path):
    psd = scene()
    group(
        psd,
        [square(psd, GREEN, "a", blend_mode=BlendMode.MULTIPLY)],
        name="g",
        blend_mode=BlendMode.PASS_THROUGH,
        opacity=128,
    )
    file = stack_of(psd, tmp_path)
    assert (at(file), file.warnings) == ([round(200 * (1 - HALF), 1), 200, 0, 255], ())
    assert file.document.layer("a").blend_mode == "multiply"


@pytest.mark.parametrize("below", [255, 128])
def test_a_translucent_pass_through_group_gets_the_blended_pixels(tmp_path, below):
    psd = scene((200, 100, 50, below))
    inside = [square(psd, (128, 255, 255, 255), n, blend_mode=BlendMode.MULTIPLY) for n in "ab"]
    group(psd, inside, name="g", blend_mode=BlendMode.PASS_THROUGH, opacity=128)
    file = stack_of(psd, tmp_path)
    alpha = below / 255
    first = alpha * 200 * HALF + (1 - alpha) * 128  # the group's first layer is opaque
    twice = first * HALF
    red = alpha * 200 * (1 - HALF) + twice * HALF
    shown = alpha * (1 - HALF) + HALF
    assert names(file) == ["bottom", "g"]
    assert at(file)[0] == pytest.approx(red / shown, abs=1)
    assert at(file)[3] == pytest.approx(255 * shown, abs=0.2)


# Clipping


def clipped(item):
    item._record.clipping = Clipping.NON_BASE
    return item


def test_what_is_clipped_to_a_group_is_cut_by_the_groups_alpha(tmp_path):
    psd = scene()
    inside = [square(psd, RED, "a", (2, 8)), square(psd, RED, "b", (2, 8), left=4)]
    group(psd, inside, name="g")
    clipped(square(psd, GREEN, "top"))
    file = stack_of(psd, tmp_path)
    assert [at(file, x)[:2] for x in (0, 3, 5, 7)] == [[0, 255], [200, 200], [0, 255], [200, 200]]
    assert (names(file), file.warnings) == (["bottom", "a", "b", "top"], ())


@pytest.mark.parametrize(("alpha", "opacity"), [(128, 255), (255, 128)])
def test_what_is_clipped_to_a_translucent_layer_is_merged_with_it(tmp_path, alpha, opacity):
    psd = scene()
    square(psd, (*RED[:3], alpha), "ball: a red ball", opacity=opacity)
    clipped(square(psd, (*GREEN[:3], 128), "top"))
    file = stack_of(psd, tmp_path)
    green = 200 * (1 - HALF) + HALF * HALF * 255
    assert at(file)[1] == pytest.approx(green, abs=0.1)
    assert file.document.layer("ball").prompt == "a red ball"
    assert file.warnings == (
        "layer 'ball: a red ball' is merged with the layers clipped to it: it is translucent",
    )


def test_the_soft_edge_of_a_layer_does_not_merge_what_is_clipped_to_it(tmp_path):
    psd = scene()
    ball = Image.new("RGBA", (8, 8), RED)
    ball.paste((*RED[:3], 128), (0, 0, 8, 1))
    psd.create_pixel_layer(ball, name="ball")
    clipped(square(psd, GREEN, "top"))
    file = stack_of(psd, tmp_path)
    assert (names(file), file.warnings) == (["bottom", "ball", "top"], ())


def test_clipped_layers_are_blended_by_the_mode_of_the_layer_they_are_clipped_to(tmp_path):
    psd = scene((100, 100, 100, 255))
    square(psd, (255, 255, 255, 255), "base", blend_mode=BlendMode.MULTIPLY)
    clipped(square(psd, (51, 51, 51, 255), "top"))
    file = stack_of(psd, tmp_path)
    assert (names(file), at(file)[0]) == (["bottom", "base"], 20)
    told = (
        "layer 'base' is merged with the layers clipped to it: its blend mode multiply acts on them together"
    )
    assert file.warnings == (told,)


def test_inherit_alpha_over_a_translucent_layer_merges_the_group_up_to_there(tmp_path):
    pictures = {"data_blue.png": png(Image.new("RGBA", (4, 3), BLUE))}
    inside = layer('composite-op="svg:src-atop"', "x") + layer('opacity="0.5"', "y", "data/blue.png")
    stack = f'<stack name="g" isolation="isolate">{layer(name="z")}{inside}</stack>'
    path = archive(
        tmp_path / "a.ora", stack.replace('name="z"', 'name="z" opacity="0.5"'), (4, 3), **pictures
    )
    file = read_layers(path)
    assert names(file) == ["y", "z"]
    assert at(file) == [255, 0, 0, pytest.approx(191.2, abs=0.1)]


# More than 50 layers


def crowded(psd, count, name):
    inside = [square(psd, RED, f"{name}{i}", (1, 1), left=i % 8) for i in range(count)]
    return group(psd, inside, name=name)


def test_groups_are_merged_until_there_are_50_layers(tmp_path):
    psd = scene()
    deep = crowded(psd, 9, "deep")
    group(psd, [deep, square(psd, BLUE, "on deep", (1, 1))], name="outer")
    crowded(psd, 30, "large")
    crowded(psd, 12, "small")
    file = stack_of(psd, tmp_path)
    assert len(file.document) == 53 - 8
    assert file.warnings == ("group 'deep' is merged into one layer to make room",)
    assert at(file) == [0, 0, 255, 255] or at(file) == [255, 0, 0, 255]


def test_too_many_layers_without_groups_are_refused(tmp_path):
    psd = scene()
    for i in range(50):
        square(psd, RED, f"a{i}", (1, 1))
    with pytest.raises(LayeredError, match="number of layers is 51; allowed: at most 50. Merge some of them"):
        stack_of(psd, tmp_path)


def test_too_many_layers_are_refused_when_groups_are_taken_apart(tmp_path):
    psd = scene()
    crowded(psd, 60, "g")
    with pytest.raises(LayeredError, match="number of layers is 61"):
        stack_of(psd, tmp_path, groups="apart")
    assert names(stack_of(psd, tmp_path, groups="merged")) == ["bottom", "g"]


def test_openraster_of_more_than_50_layers_is_read_by_merging(tmp_path):
    stack = f'<stack name="g">{layer() * 60}</stack>{layer(name="b") * 3}'
    file = read_layers(archive(tmp_path / "a.ora", stack))
    assert names(file) == ["b", "b 2", "b 3", "g"]


# Choosing


def test_apart_keeps_every_layer_and_says_what_changes(tmp_path):
    psd = scene()
    group(psd, [square(psd, RED, "a"), square(psd, GREEN, "b")], name="g", opacity=128)
    square(psd, (*RED[:3], 128), "base")
    clipped(square(psd, GREEN, "top"))
    file = stack_of(psd, tmp_path, groups="apart")
    assert names(file) == ["bottom", "a", "b", "base", "top"]
    assert file.warnings == (
        "group 'g' is taken apart, which changes the picture: its opacity acts on its layers together",
        "layer 'base' is kept apart from the layers clipped to it, which changes the picture: it is translucent",
    )


def test_merged_makes_one_layer_of_every_outer_group(tmp_path):
    psd = scene()
    inner = group(psd, [square(psd, RED, "a", (4, 8))], name="inner", opacity=128)
    hidden = square(psd, BLUE, "b")
    hidden.visible = False
    outer = group(psd, [inner, hidden, square(psd, GREEN, "c", (1, 1))], name="g", opacity=51)
    file = stack_of(psd, tmp_path, groups="merged")
    one = file.document.layer("g")
    assert (names(file), one.opacity, one.width) == (["bottom", "g"], 0.2, 4)
    assert torch.allclose(one.image[1, 0], torch.tensor([1.0, 0, 0, HALF]))
    assert file.warnings == ("group 'g': 1 hidden layer in it is lost by merging",)
    outer.visible = False
    assert stack_of(psd, tmp_path, groups="merged").document.layer("g").visible is False


def test_places_to_be_generated_stay_beside_a_merged_group(tmp_path):
    psd = scene()
    place = square(psd, (0, 0, 0, 0), "ball: a ball", (4, 4))
    place.create_mask(Image.new("L", (4, 4), 255))
    group(psd, [square(psd, RED, "a"), square(psd, GREEN, "b"), place], name="g", opacity=128)
    file = stack_of(psd, tmp_path)
    assert names(file) == ["bottom", "g", "ball"]
    assert (file.document.layer("ball").image, file.document.layer("ball").prompt) == (None, "a ball")


def test_hidden_groups_are_taken_apart(tmp_path):
    psd = scene()
    inside = [square(psd, RED, "a", blend_mode=BlendMode.SCREEN), square(psd, GREEN, "b")]
    group(psd, inside, name="g", opacity=128, blend_mode=BlendMode.MULTIPLY).visible = False
    file = stack_of(psd, tmp_path)
    assert [(x.name, x.visible) for x in file.document] == [("bottom", True), ("a", False), ("b", False)]
    assert file.warnings == ()


@pytest.mark.parametrize("name", ["a.psd", "a.ora", "a"])
def test_an_unknown_choice_is_refused(tmp_path, name):
    with pytest.raises(LayeredError, match="groups is 'all'; allowed: auto, apart, merged"):
        read_layers(tmp_path / name, groups="all")


def test_merged_layers_count_as_memory(tmp_path):
    psd = scene()
    group(psd, [square(psd, RED, "a"), square(psd, GREEN, "b")], name="g", opacity=128)
    psd.save(tmp_path / "a.psd")
    with pytest.raises(LayeredError, match="memory for pixels up to"):
        read_layers(tmp_path / "a.psd", Limits(max_alloc_bytes=8 * 8 * 16 * 3))


def test_merged_layers_are_cut_at_the_canvas(tmp_path):
    psd = scene()
    inside = [square(psd, RED, "a", (20, 20), left=-4, top=2), square(psd, GREEN, "b")]
    group(psd, inside, name="g", opacity=128)
    one = stack_of(psd, tmp_path).document.layer("g")
    assert (one.x, one.y, one.width, one.height) == (0, 0, 8, 8)


@pytest.mark.parametrize("groups", ["auto", "apart", "merged"])
@pytest.mark.parametrize("name", ["a.psd", "a.ora"])
def test_our_own_files_are_read_alike_whatever_is_chosen(tmp_path, name, groups):
    from tests.core.formats.conftest import document

    written = document()
    path = write_layers(written, tmp_path / name)
    for before, after in zip(written, read_layers(path, groups=groups).document, strict=True):
        assert (before.name, before.prompt, before.opacity, before.blend_mode, before.x) == (
            after.name, after.prompt, after.opacity, after.blend_mode, after.x,
        )  # fmt: skip
        assert before.image is None or np.array_equal(before.image, after.image)
