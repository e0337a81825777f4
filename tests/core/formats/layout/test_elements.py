"""A document as a list of elements: what is seen of each layer, its words and its colours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.canvas.masks import document_masks, masks_from_front
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.formats.layout.elements import (
    box_layers,
    layout_of,
    pixel_boxes,
    plain_elements,
    split_text,
    text_words,
)
from layered_core.formats.layout.palette import dominant_colours
from layered_core.formats.layout.reading import read_layout


def plain(colour, height, width, alpha=1.0):
    return torch.tensor([*colour, alpha]).expand(height, width, 4)


def document(*layers, width=200, height=100):
    return LayerDocument(width, height, layers)


def test_elements_are_in_order_with_boxes_in_thousandths_and_keys_as_comfyui_writes_them():
    back = Layer("back", prompt="a meadow", width=200, height=100)
    sign = Layer("sign", prompt='"OPEN", neon', x=50, y=20, width=30, height=40)
    ball = Layer("ball", plain((1, 0, 0), 10, 10), prompt="a red ball", x=-4, y=95)
    got = plain_elements(layout_of(document(back, sign, ball)))
    assert [list(entry.items()) for entry in got] == [
        [("type", "obj"), ("bbox", [0, 0, 1000, 1000]), ("desc", "a meadow")],
        [("type", "text"), ("bbox", [200, 250, 600, 400]), ("text", "OPEN"), ("desc", "neon")],
        [
            ("type", "obj"),
            ("bbox", [950, 0, 1000, 30]),
            ("desc", "a red ball"),
            ("color_palette", ["#FF0000"]),
        ],
    ]


def test_the_box_holds_only_what_other_layers_leave_to_be_seen():
    under = Layer("under", prompt="a", x=10, y=10, width=100, height=50)
    over = Layer("over", plain((0, 0, 1), 50, 60), prompt="b", x=50, y=10)
    (element, _) = layout_of(document(under, over)).elements
    assert element.box == (10, 10, 50, 60)


def test_the_box_is_of_the_shape_not_of_the_picture_and_follows_the_layers_turn():
    picture = torch.zeros(40, 40, 4)
    picture[10:20, 5:35] = torch.tensor([1.0, 1.0, 0.0, 1.0])
    layer = Layer("a", picture, prompt="a", x=100, y=20, rotation=90.0)
    assert layout_of(document(layer)).elements[0].box == (120, 25, 130, 55)


def test_a_translucent_layer_is_seen_and_so_is_one_below_it():
    under = Layer("under", plain((1, 0, 0), 20, 20), prompt="a", x=10, y=10)
    veil = Layer("veil", plain((1, 1, 1), 100, 200), prompt="fog", opacity=0.6)
    boxes = [element.box for element in layout_of(document(under, veil)).elements]
    assert boxes == [(10, 10, 30, 30), (0, 0, 200, 100)]


def test_the_soft_rim_that_an_equal_layer_leaves_does_not_count_as_seen():
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij")
    soft = (20.25 - (((x - 19.5) ** 2 + (y - 19.5) ** 2) ** 0.5)).div(6).clamp(0, 1)
    picture = torch.cat([torch.ones(40, 40, 3), soft[..., None]], -1)
    layers = [Layer(name, picture, prompt=name, x=5, y=5) for name in ("under", "over")]
    layout = layout_of(document(*layers))
    assert [element.name for element in layout.elements] == ["over"]
    assert layout.remarks == ("Left out, as nothing of them can be seen: 'under'.",)


def test_layers_that_cannot_be_seen_are_left_out_and_told():
    hidden = Layer("hidden", prompt="a", width=5, height=5, visible=False)
    clear = Layer("clear", prompt="a", width=5, height=5, opacity=0)
    off = Layer("off", prompt="a", x=300, width=5, height=5)
    kept = Layer("kept", prompt="a", width=5, height=5)
    layout = layout_of(document(hidden, clear, off, kept))
    assert [element.name for element in layout.elements] == ["kept"]
    assert layout.remarks == (
        "Left out, as nothing of them can be seen: 'off'.",
        "Left out, as they are hidden: 'hidden', 'clear'.",
    )


@pytest.mark.parametrize(
    ("way", "descs", "remark"),
    [
        ("name", ["tree", "a ball"], "Described by their names, as they have no words: 'tree'."),
        ("leave out", ["a ball"], "Left out, as they have no words: 'tree'."),
        ("empty", ["", "a ball"], "Without a description, as they have no words: 'tree'."),
    ],
)
def test_a_layer_without_words_is_treated_as_asked_and_told(way, descs, remark):
    tree = Layer("tree", plain((0, 1, 0), 8, 8), prompt="  ")
    ball = Layer("ball", prompt="a ball", x=20, width=8, height=8)
    layout = layout_of(document(tree, ball), without_words=way)
    assert ([element.desc for element in layout.elements], layout.remarks) == (descs, (remark,))


def test_a_name_in_quotes_makes_no_text():
    layout = layout_of(document(Layer('"X"', width=8, height=8)))
    assert (layout.elements[0].text, layout.elements[0].desc) == ("", '"X"')


def test_backgrounds_are_put_apart_as_words():
    sky = Layer("sky", prompt="a sky", width=200, height=95)
    fog = Layer("fog", plain((1, 1, 1), 100, 200), prompt="fog", opacity=0.5)
    ball = Layer("ball", prompt="a ball", width=8, height=8)
    layout = layout_of(document(sky, ball, fog), background="apart")
    assert [element.name for element in layout.elements] == ["ball", "fog"]
    assert (layout.background, layout.remarks) == (
        "a sky",
        ("Not in the list, as they are the background: 'sky'.",),
    )
    assert plain_elements(layout_of(document(sky), background="apart")) == []
    assert pixel_boxes(layout_of(document(sky), background="apart")) == []


def test_nothing_to_be_seen_is_an_error_that_says_why():
    with pytest.raises(LayeredError, match="no layer makes an element. The document is empty. Add a visible"):
        layout_of(document())
    with pytest.raises(LayeredError, match="as they are hidden: 'a'"):
        layout_of(document(Layer("a", width=5, height=5, visible=False)))


@pytest.mark.parametrize("wrong", [{"without_words": "x"}, {"background": "x"}, {"colours": 6}])
def test_a_wrong_argument_is_named(wrong):
    with pytest.raises(LayeredError, match=next(iter(wrong))):
        layout_of(document(Layer("a", width=5, height=5)), **wrong)


def test_pixel_boxes_carry_names_words_and_colours():
    ball = Layer("ball", plain((1, 0, 0), 10, 20), prompt='"7" on a ball', x=3, y=4)
    assert pixel_boxes(layout_of(document(ball))) == [
        [
            {
                "x": 3, "y": 4, "width": 20, "height": 10,
                "metadata": {"name": "ball", "type": "text", "text": "7", "desc": "on a ball",
                             "palette": ["#FF0000"]},
            }
        ]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "text", "desc"),
    [
        ('"OPEN", red neon letters', "OPEN", "red neon letters"),
        ("“Grand Café” in gold", "Grand Café", "in gold"),
        ('"A\nB"', "A\nB", ""),
        ('a sign that says "OPEN"', "", 'a sign that says "OPEN"'),
        ('""', "", '""'),
        ("a red ball", "", "a red ball"),
    ],
)
def test_words_that_begin_with_a_quotation_are_a_text(words, text, desc):
    assert split_text(words) == (text, desc)


@given(st.text("ab\" '.é", min_size=1).map(str.strip).filter(bool), st.sampled_from(["", "red", "in blue"]))
def test_a_text_comes_back_from_its_words(text, desc):
    assert split_text(text_words(text, desc)) == (text, desc)


def test_a_thin_box_stays_one_thousandth_wide_at_either_edge():
    thin = [Layer(f"{x}", prompt="a", x=x, width=1, height=1) for x in (0, 4999)]
    got = plain_elements(layout_of(document(*thin, width=5000, height=8)))
    assert [element["bbox"][1::2] for element in got] == [[0, 1], [999, 1000]]


@given(st.data())
def test_a_document_comes_back_with_its_words_order_and_boxes_to_a_thousandth(data):
    width, height = (data.draw(st.integers(8, 3000)) for _ in "xy")
    layers = []
    for number in range(data.draw(st.integers(1, 4))):
        x, y = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
        wide, high = data.draw(st.integers(4, width - x)), data.draw(st.integers(4, height - y))
        words = data.draw(st.sampled_from(["a ball", '"OPEN", neon', "“x”"]))
        layers.append(Layer(f"l{number}", prompt=words, x=x, y=y, width=wide, height=high, opacity=0.2))
    layout = layout_of(LayerDocument(width, height, tuple(layers)))
    for source, error in ((plain_elements(layout), 1 / 1000), (pixel_boxes(layout), 0)):
        back = read_layout(source, width, height).document
        assert len(back) == len(layers)
        for before, after in zip(layers, back, strict=True):
            assert split_text(after.prompt) == split_text(before.prompt)
            for low, size, whole in (("x", "width", width), ("y", "height", height)):
                first, last = ((getattr(a, low), getattr(a, low) + getattr(a, size)) for a in (before, after))
                # Half a thousandth by the grid, and then half a pixel by whole pixels.
                reach = error and max(0.5 / 1000 * whole + 0.5, 1)
                assert all(abs(a - b) <= reach for a, b in zip(first, last, strict=True))
    assert [layer.name for layer in back] == [layer.name for layer in layers]


def test_boxes_of_whole_pixels_on_a_canvas_of_up_to_1000_come_back_exactly():
    for x in range(0, 700, 7):
        layer = Layer("a", prompt="a", x=x, y=3, width=61, height=x + 1)
        back = read_layout(plain_elements(layout_of(LayerDocument(1000, 767, (layer,)))), 1000, 767).document
        assert [(b.x, b.y, b.width, b.height) for b in back] == [(x, 3, 61, x + 1)]


def test_box_layers_are_the_boxes_with_the_words():
    sign = Layer("sign", plain((1, 1, 1), 10, 20), prompt='"OPEN" neon', x=5, y=6)
    (box,) = box_layers(layout_of(document(sign)))
    assert (box.name, box.image, box.prompt) == ("sign", None, '"OPEN", neon')
    assert (box.x, box.y, box.width, box.height) == (5, 6, 20, 10)


def test_the_masks_from_the_front_are_those_of_the_document():
    generator = torch.Generator().manual_seed(0)
    layers = [
        Layer(str(n), torch.rand(30, 40, 4, generator=generator), x=7 * n, rotation=10.0 * n, opacity=0.8)
        for n in range(4)
    ]
    layers[1] = Layer("1", layers[1].image, visible=False)
    whole = document(*layers)
    masks, _ = document_masks(whole)
    found = dict((number, seen) for number, _, seen in masks_from_front(whole))
    assert sorted(found) == [0, 2, 3]
    for number, seen in found.items():
        assert torch.allclose(seen, masks[number], atol=1e-7)


# Palettes


def palette(*parts, most=5):
    """Return the palette of flat colours, each so many pixels."""
    colours = torch.cat([torch.tensor(rgb).float().div(255).expand(count, 3) for rgb, count in parts])
    return dominant_colours(colours, torch.ones(len(colours)), most)


def test_flat_colours_come_out_exactly_the_most_frequent_first():
    assert palette(((255, 0, 0), 30), ((1, 2, 3), 50), ((0, 200, 77), 20)) == (
        "#010203",
        "#FF0000",
        "#00C84D",
    )


def test_no_more_colours_than_asked_and_none_of_less_than_a_hundredth():
    parts = [((250, 0, 0), 400), ((0, 250, 0), 300), ((0, 0, 250), 200), ((250, 250, 0), 5)]
    assert palette(*parts) == ("#FA0000", "#00FA00", "#0000FA")
    assert palette(*parts, most=1) in {("#FA0000",), ("#00FA00",), ("#0000FA",)}
    assert palette(*parts, most=0) == ()


def test_shades_of_one_colour_are_one_colour():
    assert len(palette(*[((200 + n, 10, 10), 10) for n in range(20)])) == 1


def test_pixels_count_by_how_much_is_seen_of_them():
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    assert dominant_colours(colours, torch.tensor([0.2, 0.9, 0.0])) == ("#00FF00", "#FF0000")
    assert dominant_colours(colours, torch.zeros(3)) == ()


def test_the_palette_is_of_what_is_seen_and_ignores_the_colour_of_clear_pixels():
    picture = torch.zeros(40, 40, 4)
    picture[:, :20] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    picture[:, 20:30] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    picture[:, 30:] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    under = Layer("under", picture, prompt="a")
    over = Layer("over", plain((1, 1, 1), 40, 20), prompt="b")
    assert [e.palette for e in layout_of(document(under)).elements] == [("#FF0000", "#0000FF")]
    assert [e.palette for e in layout_of(document(under, over)).elements] == [("#0000FF",), ("#FFFFFF",)]


def test_the_palette_of_a_large_picture_is_that_of_a_small_one():
    small = torch.tensor([[[1.0, 0, 0, 1], [0, 0, 1.0, 1]], [[0, 0, 1.0, 1], [0, 0, 1.0, 1]]])
    large = small.repeat_interleave(700, 0).repeat_interleave(700, 1)
    layout = layout_of(document(Layer("a", large, prompt="a"), width=1400, height=1400))
    assert layout.elements[0].palette == ("#0000FF", "#FF0000")
    assert layout_of(document(Layer("a", large)), colours=0).elements[0].palette == ()
