"""Arrangements by hand: the fields that they change and keep, and the warnings if the stack is another
one."""

import contextlib
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.document import BLEND_MODES, Layer, LayerDocument, Recipe, identical
from layered_core.editing.arrangement import FIELDS, MAX_NAMES, Arrangement, arrange, read_arrangement
from layered_core.errors import LayeredError


def stack(*names):
    layers = [
        Layer(name, torch.rand(4, 6, 4), prompt=f"a {name}", recipe=Recipe(noise=0.1, seed=5))
        for name in names
    ]
    return LayerDocument(64, 48, layers, (0.1, 0.2, 0.3), "words", "no words")


def names(document):
    return [layer.name for layer in document]


@pytest.mark.parametrize(
    "neutral",
    [
        None,
        {},
        "",
        " ",
        "{}",
        {"version": 1},
        {"version": 1, "layers": {}},
        {"version": 1, "layers": {"a": {}}},
    ],
)
def test_nothing_arranged_changes_nothing(neutral):
    document = stack("a", "b")
    arranged, absent = arrange(document, read_arrangement(neutral))
    assert absent == ()
    assert all(x is y for x, y in zip(arranged, document, strict=True))
    assert identical(arranged, document)


def test_only_the_named_fields_of_the_named_layers_change():
    document = stack("a", "b", "c")
    changes = {"x": -3.5, "y": 7, "width": 60, "height": 40, "rotation": 33.0, "flip_h": True, "flip_v": True}
    changes |= {"opacity": 0.25, "blend_mode": "multiply", "visible": False}
    assert set(changes) == set(FIELDS)
    arranged, absent = arrange(document, read_arrangement({"version": 1, "layers": {"b": changes}}))
    a, b, c = arranged
    assert absent == ()
    assert {key: getattr(b, key) for key in FIELDS} == changes
    assert (b.prompt, b.recipe) == ("a b", Recipe(noise=0.1, seed=5))
    assert b.image is document.layer("b").image
    assert a is document.layer("a")
    assert c is document.layer("c")
    assert (arranged.width, arranged.height, arranged.background, arranged.prompt) == (
        64,
        48,
        (0.1, 0.2, 0.3),
        "words",
    )


def test_text_and_parsed_json_are_the_same():
    data = {"version": 1, "layers": {"a": {"x": 3}}, "order": ["b", "a"]}
    assert (
        read_arrangement(json.dumps(data))
        == read_arrangement(data)
        == Arrangement({"a": {"x": 3}}, ("b", "a"))
    )


def test_the_order_is_the_users():
    for order in itertools.permutations("abc"):
        assert names(arrange(stack("a", "b", "c"), Arrangement(order=order))[0]) == list(order)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("abcn", "cban"),
        ("nabc", "ncba"),
        ("anbc", "cnba"),
        ("anmbc", "cnmba"),
        ("bcn", "cbn"),
        ("bc", "cb"),
        ("n", "n"),
        ("", ""),
    ],
)
def test_a_new_layer_keeps_its_own_number_whatever_the_order_of_the_others(now, expected):
    assert "".join(names(arrange(stack(*now), Arrangement(order=tuple("cba")))[0])) == expected


@given(st.permutations("abcdefgh"), st.integers(0, 8), st.permutations("abcdefghij"), st.integers(0, 10))
def test_no_layer_is_lost_or_doubled_and_the_order_holds_for_those_that_it_names(order, ordered, now, count):
    order, now = tuple(order[:ordered]), now[:count]
    arranged, absent = arrange(stack(*now), Arrangement(order=order))
    assert sorted(names(arranged)) == sorted(now)
    assert [n for n in names(arranged) if n in order] == [n for n in order if n in now]
    assert set(absent) == set(order) - set(now)


def test_changes_to_a_layer_that_is_gone_are_reported_once_and_harm_nothing():
    arrangement = read_arrangement(
        {"version": 1, "layers": {"gone": {"x": 5}, "a": {"x": 9}}, "order": ["old", "gone", "a"]}
    )
    arranged, absent = arrange(stack("a", "b"), arrangement)
    assert absent == ("gone", "old")
    assert [(layer.name, layer.x) for layer in arranged] == [("a", 9), ("b", 0)]


NAN, HUGE = float("nan"), 10**400

BAD = [
    ("[1]", "JSON is [1]", None),
    ("{", "JSON is '{'", None),
    ("[" * 100_000, "JSON is", None),
    ([], "JSON is []", None),
    (5, "JSON is 5", None),
    ({"layers": {}}, "version is None; allowed: 1", None),
    ({"version": 2}, "version is 2; allowed: 1", None),
    ({"version": 1, "layer": {}}, "key is 'layer'; allowed: version, layers, order", None),
    ({"version": 1, "layers": []}, "layers is []", None),
    ({"version": 1, "order": "ab"}, "order is 'ab'", None),
    ({"version": 1, "order": ["a", "a"]}, "every name once", None),
    ({"version": 1, "order": [3]}, "layer name is 3", None),
    ({"version": 1, "order": [["a"]]}, "layer name is ['a']", None),
    ({"version": 1, "layers": {" ": {}}}, "layer name is ' '", None),
    ({"version": 1, "layers": {"a": 5}}, "layer 'a' is 5", None),
    ({"version": 1, "layers": {"a": {"z": 5}}}, "layer 'a': field is 'z'; allowed: x, y, width", None),
    (
        {"version": 1, "layers": {str(i): {} for i in range(MAX_NAMES + 1)}},
        f"number of layer names is {MAX_NAMES + 1}",
        None,
    ),
    *(
        (None, "layer 'a': ", {field: value})
        for field in ("x", "y", "rotation", "opacity")
        for value in (NAN, HUGE, -HUGE, "1", None, True, [1])
    ),
    *(
        (None, f"layer 'a': {side}", {side: value})
        for side in ("width", "height")
        for value in (0, -1, 1.5, 16_385, NAN, "1", None, True)
    ),
    *(
        (None, f"layer 'a': {flag}", {flag: value})
        for flag in ("flip_h", "flip_v", "visible")
        for value in (1, 0, "on", None)
    ),
    *((None, "layer 'a': blend_mode", {"blend_mode": value}) for value in ("mulitply", None, 3, "")),
]


@pytest.mark.parametrize(("data", "told", "changes"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_state_is_named_and_refused(data, told, changes):
    data = data if changes is None else {"version": 1, "layers": {"a": changes}}
    with pytest.raises(LayeredError) as caught:
        read_arrangement(data)
    assert str(caught.value).startswith("arrangement: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIELDS, "version", "layers", "order", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_the_state_is_it_is_read_or_refused_with_a_named_error(data):
    if isinstance(data, dict):
        data["version"] = 1
    with contextlib.suppress(LayeredError):
        arrange(stack("a", "b"), read_arrangement(data))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "x": st.floats(-65_536, 65_536),
            "y": st.integers(-65_536, 65_536),
            "width": st.integers(1, 16_384),
            "height": st.integers(1, 16_384),
            "rotation": st.floats(-36_000, 36_000),
            "opacity": st.floats(0, 1),
            "blend_mode": st.sampled_from(BLEND_MODES),
            "visible": st.booleans(),
            "flip_h": st.booleans(),
        },
    )
)
def test_every_value_in_range_arrives_to_the_bit(changes):
    text = json.dumps({"version": 1, "layers": {"a": changes}})
    (layer,) = arrange(stack("a"), read_arrangement(text))[0]
    assert {key: getattr(layer, key) for key in changes} == changes
