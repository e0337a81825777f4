"""Lists of elements as language models, detectors and ComfyUI write them become the layers that they mean."""

import json
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layered_core.document import LayerDocument
from layered_core.errors import LayeredError
from layered_core.formats.layout.loose_json import read_values
from layered_core.formats.layout.reading import read_layout

TWO = [("a red house", 100, 200, 300, 400), ("a cat", 500, 600, 100, 50)]
"""Words and x, y, width, height of the two layers that every answer below means, on a canvas of 1000 x 1000."""

ANSWERS = {
    "as asked": '[{"bbox": [200, 100, 600, 400], "desc": "a red house"}, '
    '{"bbox": [600, 500, 650, 600], "desc": "a cat"}]',
    "fenced, with prose around it": """Sure! Here's the layout (I've placed the house on the left):

```json
{
  "elements": [
    {"type": "obj", "bbox": [200, 100, 600, 400], "desc": "a red house", "color_palette": ["#FF0000"]},
    {"type": "obj", "bbox": [600, 500, 650, 600], "desc": "a cat"}
  ]
}
```

Let me know if you'd like [more] changes!""",
    "gemini": """```json
[
  {"box_2d": [200, 100, 600, 400], "label": "a red house"},
  {"box_2d": [600, 500, 650, 600], "label": "a cat"},
]
```""",
    "qwen": """```json
[
\t{"bbox_2d": [100, 200, 400, 600], "label": "a red house"},
\t{"bbox_2d": [500, 600, 600, 650], "label": "a cat"}
]
```""",
    "python, with comments": """layout = [
    # the house first
    {'bbox': (200, 100, 600, 400), 'desc': 'a red house', 'text': None, 'flipped': False},
    {'bbox': (600, 500, 650, 600), 'desc': 'a cat'},  # in front
]""",
    "javascript": """const layout = {objects: [
  {label: "a red house", box: {x: 100, y: 200, width: 300, height: 400}},
  {label: "a cat", box: {x: 500, y: 600, width: 100, height: 50}}, /* front */
]};""",
    "no fence, cut off": '{"elements": [{"bbox": [200, 100, 600, 400], "desc": "a red house"}, '
    '{"bbox": [600, 500, 650, 600], "desc": "a cat"}, {"bbox": [10, 20',
    "fractions": '{"objects": [{"name": "a red house", "box": [0.1, 0.2, 0.4, 0.6]}, '
    '{"name": "a cat", "box": [0.5, 0.6, 0.6, 0.65]}]}',
    "percent": '[{"name": "a red house", "left": "10%", "top": "20%", "width": "30%", "height": "40%"},'
    ' {"name": "a cat", "left": "50%", "top": "60%", "width": "10%", "height": "5%"}]',
    "corners by name": '{"boxes": [{"caption": "a red house", "bounding_box": {"xmin": 100, "ymin": 200, "xmax": 400,'
    ' "ymax": 600}}, {"caption": "a cat", "bounding_box": {"xmin": 500, "ymin": 600, "xmax": 600, "ymax": 650}}]}',
    "LLM-grounded diffusion": "Objects: [('a red house', [100, 200, 300, 400]), ('a cat', [500, 600, 100, 50])]\n"
    "Background prompt: a village street",
    "florence": "{'bboxes': [[100.0, 200.0, 400.0, 600.0], [500.0, 600.0, 600.0, 650.0]], "
    "'labels': ['a red house', 'a cat']}",
    "by name": '{"a red house": [100, 200, 400, 600], "a cat": [500, 600, 600, 650]}',
    "a line each": "1. a red house: [100, 200, 400, 600]\n2. a cat: [500, 600, 600, 650]",
    "an object a line": '{"bbox": [200, 100, 600, 400], "desc": "a red house"}\n'
    '{"bbox": [600, 500, 650, 600], "desc": "a cat"}',
    "curved quotes": "[{“bbox”: [200, 100, 600, 400], “desc”: “a red house”}, "
    "{“bbox”: [600, 500, 650, 600], “desc”: “a cat”}]",
    "after thinking": '<think>Maybe [{"bbox": [1, 2, 3, 4], "desc": "x"}, {"bbox": [1, 2, 3, 4]}, {"bbox": '
    '[1, 2, 3, 4]}]?</think>[{"bbox": [200, 100, 600, 400], "desc": "a red house"}, '
    '{"bbox": [600, 500, 650, 600], "desc": "a cat"}]',
    "a draft first": 'Draft: [{"bbox": [1, 2, 3, 4], "desc": "x"}]. Better: [{"bbox": [200, 100, 600, 400], "desc": '
    '"a red house"}, {"bbox": [600, 500, 650, 600], "desc": "a cat"}]',
    "a string of JSON": json.dumps(
        '[{"bbox": [200, 100, 600, 400], "desc": "a red house"}, {"bbox": [600, 500, 650, 600], "desc": "a cat"}]'
    ),
    "a comma missing": '[{"bbox": [200, 100, 600, 400]\n "desc": "a red house"}\n {"bbox": [600, 500, 650, 600], '
    '"desc": "a cat"}]',
}


def placed(document):
    return [(x.prompt, x.x, x.y, x.width, x.height) for x in document]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_becomes_the_layers_that_it_means(name):
    document, remarks = read_layout(ANSWERS[name], 1000, 1000)
    assert placed(document) == TWO
    assert (document.width, document.height) == (1000, 1000)
    assert any("are read as" in remark for remark in remarks)


def test_what_was_lost_of_an_answer_is_told():
    _, remarks = read_layout(ANSWERS["no fence, cut off"], 1000, 1000)
    assert "A part of the text could not be read, or it breaks off. See if elements are missing." in remarks
    assert "Left out, as they have no box that can be read: elements 3." in remarks
    _, remarks = read_layout(ANSWERS["a draft first"], 1000, 1000)
    assert "The text holds 2 lists of elements: the one with most boxes is used." in remarks
    _, remarks = read_layout(ANSWERS["fenced, with prose around it"], 1000, 1000)
    assert "Palettes are left out: a layer has no place for one." in remarks


def test_a_broken_element_is_left_out_by_its_number_and_the_next_one_is_read():
    text = ANSWERS["as asked"].replace(', {"bbox"', ', {"bbox": [1, 2 oops: }, {"bbox"')
    document, remarks = read_layout(text, 1000, 1000)
    assert placed(document) == TWO
    assert "Left out, as they have no box that can be read: elements 2." in remarks


def test_quotes_inside_words_need_no_backslash():
    text = '[{"bbox": [0, 0, 9, 9], "desc": "a sign that says "OPEN" in red"}]'
    assert read_layout(text, 100, 100).document.layers[0].prompt == 'a sign that says "OPEN" in red'
    text = "[{'bbox': [0, 0, 9, 9], 'desc': 'a dog\\'s bone, the cat's tail'}]"
    assert read_layout(text, 100, 100).document.layers[0].prompt == "a dog's bone, the cat's tail"


def test_a_text_element_becomes_words_that_begin_with_its_text():
    elements = [
        {"type": "text", "bbox": [0, 0, 100, 100], "text": "OPEN", "desc": "red neon"},
        {"type": "text", "bbox": [0, 0, 100, 100], "text": 'the "x"', "desc": ""},
        {"type": "text", "bbox": [0, 0, 100, 100], "text": "", "desc": "empty"},
    ]
    document = read_layout(elements, 100, 100).document
    assert [x.prompt for x in document] == ['"OPEN", red neon', '“the "x"”', "empty"]
    assert [x.name for x in document] == ["OPEN", 'the "x"', "empty"]


def test_names_are_unique_short_and_never_empty():
    long = "a very long description of an old house by the sea at night"
    elements = [{"bbox": [0, 0, 9, 9], "desc": d} for d in (long, "ball", "ball", "")]
    elements.append({"bbox": [0, 0, 9, 9], "name": "dog", "description": "a brown dog"})
    document, remarks = read_layout(elements, 1000, 1000)
    names = ["a very long description of an old house", "ball", "ball 2", "element 4", "dog"]
    assert [x.name for x in document] == names
    assert [x.prompt for x in document] == [long, "ball", "ball", "", "a brown dog"]
    assert "Without words: elements 4." in remarks


def test_background_and_words_of_the_whole_become_the_bottom_layer_and_the_documents_words():
    caption = {
        "high_level_description": "a house at the sea",
        "compositional_deconstruction": {
            "background": "a beach",
            "elements": [{"type": "obj", "bbox": [0, 0, 500, 500], "desc": "a house"}],
        },
    }
    for source in (caption, json.dumps(caption)):
        document = read_layout(source, 200, 100).document
        assert document.prompt == "a house at the sea"
        assert placed(document) == [("a beach", 0, 0, 200, 100), ("a house", 0, 0, 100, 50)]


# Boxes


def one(box, key="box", width=640, height=480, **how):
    document, remarks = read_layout([{key: box, "desc": "a"}], width, height, **how)
    (layer,) = document
    return (layer.x, layer.y, layer.x + layer.width, layer.y + layer.height), remarks


@pytest.mark.parametrize(
    ("key", "box", "edges", "rule"),
    [
        ("bbox", [100, 200, 500, 600], (128, 48, 384, 240), "0..1000 y x y x"),
        ("box_2d", [100, 200, 500, 600], (128, 48, 384, 240), "0..1000 y x y x"),
        ("bbox", [100, 200, 500, 1003], (128, 48, 640, 240), "0..1000 y x y x"),
        ("bbox", [0.1, 0.2, 0.5, 0.6], (64, 96, 320, 288), "0..1 x y x y"),
        ("bbox", [0, 0, 1, 1], (0, 0, 640, 480), "0..1 x y x y"),
        ("bbox", [0.5, 0.5, 1.02, 1.02], (320, 240, 640, 480), "0..1 x y x y"),
        ("bbox_2d", [100, 200, 500, 600], (64, 96, 320, 288), "0..1000 x y x y"),
        ("box", [100, 200, 500, 300], (100, 200, 500, 300), "pixels x y x y"),
        ("box", [100, 200, 500, 600], (64, 96, 320, 288), "0..1000 x y x y"),
        ("box", [500, 200, 100, 150], (500, 200, 600, 350), "pixels x y w h"),
        ("box", "100, 200, 500, 300", (100, 200, 500, 300), "pixels x y x y"),
        ("box", [[100, 200], [500, 300]], (100, 200, 500, 300), "pixels x y x y"),
        ("Bounding Box", ["100", "200", "500px", "300"], (100, 200, 500, 300), "pixels x y x y"),
        ("rect", {"x": 5, "y": 6, "w": 7, "h": 8}, (5, 6, 12, 14), "pixels x y w h"),
        ("rect", {"Left": 5, "Top": 6, "Right": 7, "Bottom": 8}, (5, 6, 7, 8), "pixels x y x y"),
        ("rect", {"x1": 0.5, "y1": 0.5, "x2": 1, "y2": 1}, (320, 240, 640, 480), "0..1 x y x y"),
    ],
)
def test_auto_reads_boxes_by_their_name_and_size_and_tells_how(key, box, edges, rule):
    got, remarks = one(box, key)
    assert got == edges
    assert remarks[0].startswith(f"The boxes are read as {rule}: ")


def test_pixels_above_1000_are_pixels_on_a_large_canvas():
    assert one([100, 200, 1500, 600], "bbox", 2000, 1000)[0] == (100, 200, 1500, 600)
    assert one([100, 200, 1500, 600], "bbox_2d", 2000, 1000)[0] == (100, 200, 1500, 600)


def test_one_rule_holds_for_all_boxes_of_a_list():
    elements = [{"box": [10, 20, 30, 40], "desc": "a"}, {"box": [10, 20, 900, 40], "desc": "b"}]
    document = read_layout(elements, 500, 500).document
    assert placed(document) == [("a", 5, 10, 10, 10), ("b", 5, 10, 445, 10)]


@pytest.mark.parametrize(
    ("rule", "box", "edges"),
    [
        ("0..1000 y x y x", [100, 200, 500, 600], (128, 48, 384, 240)),
        ("0..1000 x y x y", [100, 200, 500, 600], (64, 96, 320, 288)),
        ("0..1000 x y w h", [100, 200, 500, 600], (64, 96, 384, 384)),
        ("0..1 y x y x", [0.1, 0.2, 0.5, 0.6], (128, 48, 384, 240)),
        ("0..1 x y x y", [0.1, 0.2, 0.5, 0.6], (64, 96, 320, 288)),
        ("0..1 x y w h", [0.1, 0.2, 0.5, 0.6], (64, 96, 384, 384)),
        ("pixels y x y x", [20, 10, 60, 50], (10, 20, 50, 60)),
        ("pixels x y x y", [10, 20, 50, 60], (10, 20, 50, 60)),
        ("pixels x y w h", [10, 20, 50, 60], (10, 20, 60, 80)),
    ],
)
def test_a_rule_that_is_set_holds(rule, box, edges):
    for key in ("bbox", "bbox_2d", "box"):
        got, remarks = one(box, key, boxes=rule)
        assert (got, remarks) == (edges, ())


def test_named_sides_keep_their_order_under_any_rule_and_that_is_told():
    got, remarks = one({"x": 100, "y": 100, "width": 200, "height": 100}, boxes="0..1000 y x y x")
    assert got == (64, 48, 192, 96)
    assert remarks == ("Boxes with named sides are read as 0..1000 x y w h.",)


def test_boxes_are_put_right_cut_off_or_left_out_and_told_by_number_and_name():
    elements = [
        {"bbox": [600, 400, 200, 100], "desc": "swapped"},
        {"bbox": [-100, 500, 500, 1000], "desc": "over the edge"},
        {"bbox": [100, 100, 100, 500], "desc": "empty"},
        {"bbox": [100, 1001, 200, 1050], "desc": "off"},
        {"desc": "no box"},
        "nothing",
        {"bbox": [1, 2, None, "x"], "desc": "no numbers"},
        {"bbox": [0, 0, float("nan"), 10**400], "desc": "no real numbers"},
    ]
    document, remarks = read_layout(elements, 1000, 1000)
    assert placed(document) == [("swapped", 100, 200, 300, 400), ("over the edge", 500, 0, 500, 500)]
    assert remarks[0] == "Left out, as they have no box that can be read: elements 5, 6, 7, 8."
    assert remarks[2:] == (
        "Corners are swapped and were put right: elements 1 (swapped).",
        "Cut off at the edge of the canvas: elements 2 (over the edge).",
        "Left out, as their boxes are empty or off the canvas: elements 3 (empty), 4 (off).",
    )


def test_boxes_smaller_than_a_pixel_are_a_pixel():
    assert one([999.6, 999.6, 1000, 1000], "bbox", 8, 8)[0] == (7, 7, 8, 8)
    assert one([0, 0, 1, 1], "bbox", 8, 8, boxes="0..1000 y x y x")[0] == (0, 0, 1, 1)


def test_the_largest_is_at_the_back_if_asked():
    elements = [{"bbox": [0, 0, size, size], "desc": str(size)} for size in (300, 900, 100)]
    for order, want in (("as listed", ["300", "900", "100"]), ("large to small", ["900", "300", "100"])):
        assert [x.prompt for x in read_layout(elements, 100, 100, order=order).document] == want


def test_the_first_50_elements_are_kept_and_that_is_told():
    elements = [{"bbox": [0, 0, 9, 9], "desc": str(n)} for n in range(60)]
    document, remarks = read_layout(elements, 1000, 1000)
    assert [x.prompt for x in document] == [str(n) for n in range(50)]
    assert "The first 50 of 60 elements are kept: there is no room for more layers." in remarks
    document, _ = read_layout({"background": "sea", "elements": elements}, 1000, 1000)
    assert [x.prompt for x in document] == ["sea", *(str(n) for n in range(49))]


def test_boxes_of_a_detector_are_pixels_and_those_of_the_first_picture_count():
    frames = [
        [],
        [{"x": 1.6, "y": 2, "width": 3, "height": 4, "label": "cat"}],
        [{"x": 1, "y": 2, "width": 3, "height": 4}],
    ]
    document, remarks = read_layout(frames, 64, 64)
    assert placed(document) == [("cat", 2, 2, 3, 4)]
    assert "The boxes are of 2 pictures: those of the first that has any are used." in remarks
    assert placed(read_layout(frames[2][0], 64, 64).document) == [("", 1, 2, 3, 4)]


# Errors and hostile input


@pytest.mark.parametrize(
    "source",
    [
        "",
        "no list here",
        "- name: cat\n  bbox: [1, 2, 3, 4]",
        "[]",
        "{}",
        "[1, 2, 3, 4]",
        '{"elements": []}',
        "42",
        [],
        {},
        None,
        7,
        [[]],
        [None],
    ],
)
def test_no_list_is_an_error_that_shows_what_was_got(source):
    with pytest.raises(
        LayeredError, match="allowed: a list of elements, each with a box and words. For example"
    ):
        read_layout(source, 100, 100)


def test_no_box_on_the_canvas_is_an_error_that_says_why():
    with pytest.raises(LayeredError, match="none of its 1 elements makes a layer.*empty or off the canvas"):
        read_layout([{"bbox": [0, 0, 0, 0], "desc": "a"}], 100, 100)


@pytest.mark.parametrize("wrong", [{"boxes": "x"}, {"order": "x"}, {"width": 0}, {"height": 20_000}])
def test_a_wrong_argument_is_named(wrong):
    how = {"width": 100, "height": 100, **wrong}
    with pytest.raises(LayeredError, match=next(iter(wrong))):
        read_layout([{"bbox": [0, 0, 9, 9]}], **how)


def test_a_text_of_more_than_200_000_letters_is_refused():
    with pytest.raises(LayeredError, match="layout: length is '200,001 letters'; allowed: at most 200,000"):
        read_layout(" " * 200_001, 100, 100)


HOSTILE = [
    "[", "{", "[{", '{"a":', "[/* ", "```", "<think>", "['", '["\\', "[{'a':[", '[" ', "[[{x ", "[1", "[a:", "(", "[#",
    '[{"a" ', "[0", '{"elements":[', "a: [1,2,3,4]\n", '{"bbox":[1,2,3,4]}', "[9e", '"', "\\", "[{}", "\ud800[",
    "[1,2,3,4],",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_text_is_refused_or_read_in_little_time(piece):
    started = time.process_time()
    for text in ((piece * 200_000)[:200_000], "[" + (piece * 200_000)[:199_999]):
        with suppress(LayeredError):
            assert isinstance(read_layout(text, 100, 100).document, LayerDocument)
    assert time.process_time() - started < 30


def test_lists_that_are_nested_a_thousand_deep_are_refused():
    deep = []
    for _ in range(900):
        deep = [deep]
    for source in (deep, json.dumps(deep), "[" * 900 + "]" * 900):
        with pytest.raises(LayeredError):
            read_layout(source, 100, 100)


@pytest.mark.parametrize(
    "text",
    [
        'Here it is:\n{"aa": ["```"], "a": [1]}\nDone.',
        'As [asked]:\n```json\n{"aa": ["```"], "a": [1]}\n```\nDone [1].',
        'As [asked]: ```json\n{"aa": ["```"], "a": [1]}\n```',
        '```{"aa": ["```"], "a": [1]}```',
        '> ```\n{"aa": ["```"],\n"a": [1]} ``` [2]',
        'As [asked]:\n```json\n{"aa": ["```"], "a": [1]}',
    ],
)
def test_backticks_inside_a_text_are_no_fence(text):
    assert read_values(text, "text")[0] == ({"aa": ["```"], "a": [1]}, False)


def test_the_end_of_a_thought_inside_a_text_is_none():
    text = 'Think: [0] </think>\nHere it is: {"a": ["</think>"], "b": [1]}.'
    assert read_values(text, "text") == [({"a": ["</think>"], "b": [1]}, False)]


@settings(max_examples=400)
@given(st.sampled_from(sorted(ANSWERS)), st.data())
def test_a_mutilated_answer_is_read_or_refused(name, data):
    text = ANSWERS[name]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 9)))
    text = (
        text[:start] + data.draw(st.text("[]{}()\"'`,:\\/*#<>\n 019.-+eEbox\ud800", max_size=6)) + text[end:]
    )
    try:
        document = read_layout(text[: data.draw(st.integers(0, len(text)))], 300, 200).document
    except LayeredError:
        return
    for layer in document:
        assert 0 <= layer.x < layer.x + layer.width <= 300
        assert 0 <= layer.y < layer.y + layer.height <= 200
        layer.prompt.encode()


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("[{(\"',:)}] 12.e", max_size=60))
def test_any_text_is_read_or_refused(text):
    with suppress(LayeredError):
        read_layout(text, 300, 200)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from(["bbox", "x", "y", "w", "h", "boxes", "labels", "desc"]), inner)
        ),
    )
)
def test_any_plain_values_are_read_or_refused(value):
    with suppress(LayeredError):
        read_layout(value, 300, 200)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**6), 10**6)
        | st.text(max_size=8).filter(str.isprintable),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4)
        ),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, (list, dict)) and value)
)
def test_json_inside_prose_is_read_as_json_is(value):
    text = "Here it is:\n" + json.dumps(value, ensure_ascii=False) + "\nDone."
    assert read_values(text, "text")[0] == (value, False)
