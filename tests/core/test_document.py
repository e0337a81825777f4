"""The document checks itself: errors name the bad value, what was got and what is allowed."""

import math

import pytest
import torch

from layered_core.document import (
    BLEND_MODES,
    Control,
    Layer,
    LayerDocument,
    Lora,
    Recipe,
    identical,
    short_name,
)
from layered_core.errors import LayeredError

PIXELS = torch.rand(6, 9, 4, generator=torch.Generator().manual_seed(0))


def test_a_layer_takes_its_size_from_its_picture():
    layer = Layer("a", PIXELS)
    assert (layer.width, layer.height) == (9, 6)
    assert (Layer("a", PIXELS, width=20).width, Layer("a", PIXELS, width=20).height) == (20, 6)
    assert Layer("m", mask=torch.ones(3, 5)).width == 5


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("opacity", math.nan, "opacity is nan; allowed: a number 0..1"),
        ("opacity", 1.5, "allowed: a number 0..1"),
        ("opacity", "1", "opacity is '1'"),
        ("width", -1, "width is -1; allowed: a whole number 0..16384"),
        ("width", 1.0, "a whole number"),
        ("height", 20_000, "height is 20000"),
        ("x", math.inf, "x is inf"),
        ("rotation", None, "rotation is None"),
        ("blend_mode", "dissolve", "normal, multiply"),
        ("visible", 1, "true or false"),
        ("prompt", None, "prompt is None; allowed: a string"),
        ("image", torch.zeros(3, 3, 3), "[height, width, 4] (RGBA)"),
        ("image", torch.zeros(0, 3, 4), "1..16384 pixels a side"),
        ("image", torch.full((2, 2, 4), math.nan), "0..1 and no NaN"),
        ("image", torch.full((2, 2, 4), 2.0), "values is '2.0..2.0'"),
        ("image", torch.zeros(2, 2, 4, dtype=torch.uint8), "torch.uint8"),
        ("mask", torch.zeros(2, 2, 1), "[height, width]"),
        ("recipe", {}, "a recipe"),
    ],
)
def test_a_bad_field_is_named_with_its_layer(field, value, says):
    with pytest.raises(LayeredError) as caught:
        Layer(**{"name": "sky", "width": 4, "height": 4, field: value})
    assert "layer 'sky'" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_without_picture_and_size_is_the_whole_canvas():
    (ghost, wide) = LayerDocument(70, 50, (Layer("ghost"), Layer("wide", y=20, height=8)))
    assert (ghost.x, ghost.y, ghost.width, ghost.height) == (0, 0, 70, 50)
    assert (wide.y, wide.width, wide.height) == (20, 70, 8)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("a red ball", "a red ball"),
        (" a red\nball ", "a red ball"),
        ("", ""),
        ("an old brass lantern with a burning candle in it", "an old brass lantern with a burning"),
        ("x" * 50, "x" * 40),
    ],
)
def test_a_name_made_of_words_is_one_short_line_of_whole_words(words, name):
    assert short_name(words) == name


@pytest.mark.parametrize(
    "make",
    [
        lambda: Recipe(noise=2.0),
        lambda: Recipe(inside=-0.1),
        lambda: Recipe(seed=-1),
        lambda: Recipe(seed=1.0),
    ],
)
def test_a_recipe_refuses_values_out_of_range(make):
    with pytest.raises(LayeredError, match="allowed"):
        make()


def test_control_cannot_end_before_it_starts():
    with pytest.raises(LayeredError, match=r"control.end is 0.2; allowed: a number 0.5..1"):
        Control(start=0.5, end=0.2)


@pytest.mark.parametrize("name", ["", "../x.safetensors", "/a", "a//b", "a/../b", "a/", "a\\b", ".a"])
def test_a_lora_is_a_file_in_the_hosts_folder_or_below_it(name):
    with pytest.raises(LayeredError, match="below the host's own folder"):
        Lora(name)
    assert Lora("people/anna.safetensors").name == "people/anna.safetensors"


def test_two_layers_of_one_name_are_refused():
    with pytest.raises(LayeredError, match="2 layers have it"):
        LayerDocument(8, 8, (Layer("a", PIXELS), Layer("a", PIXELS)))


def test_fifty_layers_are_the_most():
    layers = tuple(Layer(str(i), width=1, height=1) for i in range(51))
    assert len(LayerDocument(8, 8, layers[:50])) == 50
    with pytest.raises(LayeredError, match="number of layers is 51; allowed: at most 50"):
        LayerDocument(8, 8, layers)


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (8, 16_385), (-1, 8), (8.0, 8), (True, 8)])
def test_an_absurd_canvas_is_refused(size):
    with pytest.raises(LayeredError, match="canvas"):
        LayerDocument(*size)


def test_an_unknown_layer_name_lists_those_there_are():
    document = LayerDocument(8, 8, (Layer("sky", PIXELS), Layer("sea", PIXELS)))
    with pytest.raises(LayeredError, match="'sky', 'sea'"):
        document.layer("sun")


def test_with_layer_replaces_in_place_or_puts_on_top():
    document = LayerDocument(8, 8, (Layer("sky", PIXELS), Layer("sea", PIXELS)))
    changed = document.with_layer(Layer("sky", PIXELS, opacity=0.5)).with_layer(Layer("sun", PIXELS))
    assert [x.name for x in changed] == ["sky", "sea", "sun"]
    assert changed.layer("sky").opacity == 0.5
    assert document.layer("sky").opacity == 1


def test_with_noise_frees_all_layers_or_those_that_are_named():
    document = LayerDocument(8, 8, (Layer("sky"), Layer("old sun", recipe=Recipe(0.5, seed=3))))
    free = document.with_noise(0.4)
    assert [x.recipe for x in free] == [Recipe(noise=0.4), Recipe(0.5, noise=0.4, seed=3)]
    assert [x.recipe.noise for x in free.with_noise({"old sun": 0})] == [0.4, 0]
    assert identical(document.with_noise({}), document)


def test_with_noise_names_a_layer_that_there_is_not_and_one_whose_value_is_out_of_range():
    document = LayerDocument(8, 8, (Layer("sky"), Layer("sun")))
    with pytest.raises(LayeredError, match="layer name is 'moon'; allowed: 'sky', 'sun'"):
        document.with_noise({"moon": 0})
    with pytest.raises(LayeredError, match=r"layer 'sun': noise is 1.5; allowed: a number 0\.\.1"):
        document.with_noise({"sun": 1.5})


def test_the_words_of_a_document_are_its_prompt_or_those_of_its_visible_layers_front_first():
    layers = (
        Layer("sky", PIXELS, prompt="a sky"),
        Layer("hidden", PIXELS, prompt="a bird", visible=False),
        Layer("sun", PIXELS, prompt="a sun"),
    )
    assert LayerDocument(8, 8, layers).words == "a sun, a sky"
    assert LayerDocument(8, 8, layers, prompt="a morning").words == "a morning"


def test_identical_sees_a_change_in_any_field_and_any_pixel():
    document = LayerDocument(8, 8, (Layer("sky", PIXELS),))
    assert identical(document, LayerDocument(8, 8, (Layer("sky", PIXELS.clone()),)))
    touched = PIXELS.clone()
    touched[0, 0, 0] = 1 - touched[0, 0, 0]
    others = [
        Layer("sky", touched),
        Layer("sky", PIXELS, x=1),
        Layer("sky", PIXELS, recipe=Recipe(noise=0.1)),
        Layer("sky", PIXELS, mask=torch.ones(6, 9)),
    ]
    assert not any(identical(document, LayerDocument(8, 8, (x,))) for x in others)
    assert not identical(document, LayerDocument(8, 8, (Layer("sky", PIXELS),), prompt="x"))


def test_every_blend_mode_of_comfyui_is_known():
    assert len(BLEND_MODES) == 26
    assert len(set(BLEND_MODES)) == 26
