"""Element lists go between our nodes and ComfyUI's own, and nothing is read wrongly without a word."""

import copy
import json

import pytest
import torch
from graph import from_boxes, from_image, from_layout, load, node
from PIL import Image
from server import PromptServer

MEADOW = {"width": 200, "height": 100, "canvas_width": 200, "canvas_height": 100}


def layout_from(layers, **inputs):
    values = {"without_words": "name", "background": "element", "colours": 5}
    return node("LD_LayoutFromLayers", layers=[layers, 0], **{**values, **inputs})


def value(host, prompt, node_id, slot=0):
    """Return an output; the executor takes lists out of a prompt's ``__value__``, so it gets a copy."""
    return host.value(copy.deepcopy(prompt), node_id, slot)


def editor(*drawn, **inputs):
    """Return ComfyUI's box editor with boxes that were drawn by hand."""
    return node(
        "CreateBoundingBoxes", width=200, height=100, editor_state={"__value__": list(drawn)},
        last_incoming={"__value__": []}, **inputs,
    )  # fmt: skip


@pytest.fixture
def stack(host):
    """Return a prompt whose node "c" gives a meadow, a red ball with a picture, and a sign in front of it."""
    Image.new("RGBA", (40, 40), (255, 0, 0, 255)).save(host.input / "ball.png")
    return {
        "a": from_image(name="meadow", prompt="a meadow", **MEADOW),
        "b": load("ball.png", prompt="a red ball", x=20, y=30, layers=["a", 0]),
        "c": from_image(
            name="sign", prompt='"OPEN", neon', x=100, y=10, width=50, height=20, layers=["b", 0]
        ),
    }


ELEMENTS = [
    {"type": "obj", "bbox": [0, 0, 1000, 1000], "desc": "a meadow"},
    {"type": "obj", "bbox": [300, 100, 700, 300], "desc": "a red ball", "color_palette": ["#FF0000"]},
    {"type": "text", "bbox": [100, 500, 300, 750], "text": "OPEN", "desc": "neon"},
]


def test_cores_editor_gives_back_the_elements_and_the_boxes_that_it_gets(host, stack):
    for slot in (0, 1, 2):  # elements, boxes in pixels, JSON
        prompt = {**stack, "l": layout_from("c"), "e": editor(bboxes=["l", slot])}
        got = value(host, prompt, "e", 2)
        assert got == ELEMENTS
        assert [list(element) for element in got] == [list(element) for element in ELEMENTS]
        assert value(host, {**stack, "l": layout_from("c")}, "l", 0) == ELEMENTS
        pixels = [
            [{k: box[k] for k in ("x", "y", "width", "height")} for box in value(host, prompt, "l", 1)[0]]
        ]
        assert value(host, prompt, "e", 1) == pixels


def test_cores_json_prompt_takes_the_elements_and_the_background_apart(host, stack):
    prompt = {
        **stack,
        "l": layout_from("c", background="apart"),
        "j": node(
            "BuildJsonPromptIdeogram", element=["l", 0], background=["l", 3], high_level_description="",
            style="none", aesthetics="", lighting="", medium="", color_palette={"__value__": []},
        ),
        "back": from_layout(layout=["j", 0], width=200, height=100),
    }  # fmt: skip
    caption = value(host, prompt, "j", 0)["compositional_deconstruction"]
    assert caption == {"background": "a meadow", "elements": ELEMENTS[1:]}
    text = value(host, {**prompt, "s": node("ConvertArrayToString", array=["l", 0], indent=0)}, "s", 0)
    assert json.loads(text) == json.loads(value(host, prompt, "l", 2)) == ELEMENTS[1:]


def placed(document):
    return [(x.prompt, x.x, x.y, x.width, x.height) for x in document]


@pytest.mark.parametrize("way", ["elements", "boxes", "json", "editor", "prompt"])
def test_layers_come_back_with_their_words_order_and_boxes(host, stack, pack, way):
    back = {
        "elements": from_layout(layout=["l", 0], width=200, height=100),
        "boxes": from_layout(layout=["l", 1], width=200, height=100),
        "json": from_layout(["l", 2], width=200, height=100),
        "editor": from_layout(layout=["e", 2], width=200, height=100),
        "prompt": from_layout(layout=["j", 0], width=200, height=100),
    }[way]
    prompt = {
        **stack, "l": layout_from("c", background="apart" if way == "prompt" else "element"),
        "e": editor(bboxes=["l", 0]), "back": back,
        "j": node(
            "BuildJsonPromptIdeogram", element=["l", 0], background=["l", 3], high_level_description="",
            style="none", aesthetics="", lighting="", medium="", color_palette={"__value__": []},
        ),
    }  # fmt: skip
    document = pack("nodes.layers.socket").read_stack(value(host, prompt, "back", 0))
    assert (document.width, document.height) == (200, 100)
    assert placed(document) == [
        ("a meadow", 0, 0, 200, 100),
        ("a red ball", 20, 30, 40, 40),
        ('"OPEN", neon', 100, 10, 50, 20),
    ]
    if way == "boxes":
        assert [x.name for x in document] == ["meadow", "ball", "sign"]


def test_boxes_without_words_of_cores_editor_become_layers_without_words(host, pack):
    drawn = {"x": 20, "y": 30, "width": 40, "height": 40, "metadata": {"type": "obj"}}
    prompt = {"e": editor(drawn), "back": from_layout(layout=["e", 1], width=200, height=100)}
    document = pack("nodes.layers.socket").read_stack(value(host, prompt, "back", 0))
    assert placed(document) == [("", 20, 30, 40, 40)]
    assert "Without words: elements 1." in value(host, prompt, "back", 4)


def test_cores_nodes_for_boxes_take_ours(host, stack):
    prompt = {
        **stack,
        "l": layout_from("c"),
        "p": node("EmptyImage", width=200, height=100, batch_size=3, color=0),
        "d": node("DrawBBoxes", image=["p", 0], bboxes=["l", 1]),
        "s": node(
            "LayersFromBoundingBoxes", image=["p", 0], bboxes=["l", 1], crop_to_content=True, canvas_width=200,
            canvas_height=100,
        ),
    }  # fmt: skip
    drawn = value(host, prompt, "d", 0)
    assert drawn.shape == (3, 100, 200, 3)
    assert drawn[0, 30, 20].sum() > 0
    assert [item["name"] for item in value(host, prompt, "s", 0)["layers"]] == ["meadow", "ball", "sign"]


def test_boxes_of_a_detector_lie_on_its_picture(host, pack):
    made = pack("nodes.layers.layers_from_layout").LayersFromLayout
    frame = [{"x": 10.4, "y": 5.0, "width": 20.2, "height": 10.0, "label": "cat", "score": 0.9}]
    result = made.execute("", "auto", "as listed", 7, 7, [frame], torch.rand(1, 60, 90, 3)).result
    document = pack("nodes.layers.socket").read_stack(result[0])
    assert (result[1:3], placed(document)) == ((90, 60), [("cat", 10, 5, 21, 10)])
    assert result[3].shape == (1, 60 * 9, 90 * 9, 3)


def test_the_preview_shows_the_picture_with_the_box_on_it(host):
    prompt = {
        "p": node("EmptyImage", width=128, height=64, batch_size=1, color=0x00FF00),
        "it": from_layout('[{"bbox": [250, 250, 750, 750], "desc": "a"}]', image=["p", 0]),
    }
    shown = value(host, prompt, "it", 3)[0]
    green = torch.tensor([0.0, 1.0, 0.0])
    assert torch.equal(shown[10, 10], green)
    assert torch.equal(shown[shown.shape[0] // 2, shown.shape[1] // 2], green)
    top = shown[shown.shape[0] // 4 - 1, shown.shape[1] // 2 : -shown.shape[1] // 4]
    assert (top != green).any()


def test_neither_or_both_sources_are_refused(host):
    end = {"end": node("TestCatch", value=["it", 0])}
    assert "neither is given" in host.error_of({"it": from_layout(), **end})
    prompt = {"e": editor(), "it": from_layout("[]", layout=["e", 2]), **end}
    assert "both are given" in host.error_of(prompt)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a red ball on the left", "layout is 'a red ball on the left'; allowed: a list of elements"),
        ('[{"bbox": [0, 0, 0, 0], "desc": "a"}]', "Left out, as their boxes are empty"),
        ("[" * 200_001, "layout: length is '200,001 letters'"),
    ],
)
def test_a_text_without_any_layer_is_refused_with_what_was_got(host, text, error):
    assert error in host.error_of({"it": from_layout(text), "end": node("TestCatch", value=["it", 0])})


def test_a_stack_of_which_nothing_is_seen_is_refused(host):
    prompt = {
        "a": from_image(name="ghost", visible=False, **MEADOW),
        "it": layout_from("a"),
        "end": node("TestCatch", value=["it", 0]),
    }
    text = host.error_of(prompt)
    assert "layers: no layer makes an element. Left out, as they are hidden: 'ghost'." in text


def test_how_boxes_were_read_is_shown_on_the_node(host, monkeypatch):
    told = []
    monkeypatch.setattr(
        PromptServer.instance, "send_progress_text", lambda text, node_id: told.append((node_id, text))
    )
    host.run({"it": from_layout('[{"bbox_2d": [0, 0, 500, 500], "label": "a"}]')})
    assert told == [
        ("it", "The boxes are read as 0..1000 x y x y: the numbers are thousandths of the canvas.")
    ]


def drawn(x, y, width, height, desc="", **metadata):
    """Return a box as ComfyUI's box editor keeps it."""
    metadata = {"type": "obj", "text": "", "desc": desc, "palette": [], **metadata}
    return {"x": x, "y": y, "width": width, "height": height, "metadata": metadata}


DRAWN = (
    drawn(0, 0, 200, 100, "a meadow"),
    drawn(20, 30, 40, 40, "a red ball", palette=["#ff0000", "#800000"]),
    drawn(100, 10, 50, 20, "neon", type="text", text="OPEN"),
    drawn(150, 60, 30, 30),
)
"""A background, an object with colours, a sign, and a box without words."""


def test_drawn_boxes_become_layers_of_words_in_their_order(host, pack):
    prompt = {"e": editor(*DRAWN), "it": from_boxes("e", 2, width=200, height=100, prompt="a sunny day")}
    document = pack("nodes.layers.socket").read_stack(value(host, prompt, "it"))
    assert (document.width, document.height, document.prompt) == (200, 100, "a sunny day")
    assert placed(document) == [
        ("a meadow", 0, 0, 200, 100),
        ("a red ball", 20, 30, 40, 40),
        ('"OPEN", neon', 100, 10, 50, 20),
        ("", 150, 60, 30, 30),
    ]
    assert [x.name for x in document] == ["a meadow", "a red ball", "OPEN", "element 4"]
    assert all(x.image is None for x in document)
    assert value(host, prompt, "it", 1).splitlines() == [
        "Without words: elements 4.",
        "Palettes are left out: a layer has no place for one.",
    ]


def test_drawn_boxes_lie_on_a_connected_stack_and_have_its_canvas(host, pack):
    meadow = from_image(name="a red ball", prompt="a meadow", **MEADOW)
    prompt = {
        "a": meadow,
        "e": editor(DRAWN[1]),
        "it": from_boxes("e", 2, width=7, height=7, layers=["a", 0]),
    }
    document = pack("nodes.layers.socket").read_stack(value(host, prompt, "it"))
    assert placed(document) == [("a meadow", 0, 0, 200, 100), ("a red ball", 20, 30, 40, 40)]
    assert [x.name for x in document] == ["a red ball", "a red ball 2"]
    assert (document.width, document.height) == (200, 100)


def test_boxes_without_their_words_are_told_where_the_words_are(host, pack):
    prompt = {"e": editor(*DRAWN[:2]), "it": from_boxes("e", 1, width=200, height=100)}
    document = pack("nodes.layers.socket").read_stack(value(host, prompt, "it"))
    assert placed(document) == [("", 0, 0, 200, 100), ("", 20, 30, 40, 40)]
    assert "connect the output elements of Create Bounding Boxes" in value(host, prompt, "it", 1)


def test_an_empty_drawing_leaves_a_stack_as_it_is_and_is_refused_without_one(host, pack, stack):
    read = pack("nodes.layers.socket").read_stack
    for slot in (1, 2):
        alone = {"e": editor(), "it": from_boxes("e", slot)}
        assert "Draw a box in Create Bounding Boxes" in host.error_of(
            copy.deepcopy({**alone, "end": node("TestCatch", value=["it", 0])})
        )
        on_top = {**stack, "e": editor(), "it": from_boxes("e", slot, layers=["c", 0])}
        before, after = (read(value(host, on_top, key)) for key in ("c", "it"))
        assert pack("layered_core.document").identical(before, after)
