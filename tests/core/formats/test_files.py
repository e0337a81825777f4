"""A document that is written to a layered file and read again is equal."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from any_documents import ALL, FILES, documents, noise
from hypothesis import given

from layered_core.canvas.compositing import composite
from layered_core.document import BLEND_MODES, HINTS, Control, Layer, LayerDocument, Lora, Recipe, identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_folder, write_layers
from layered_core.formats.dynamic_prompts import dynamic_remark
from layered_core.formats.file_layers import split_title
from layered_core.formats.limits import Limits
from layered_core.formats.to_file import rounded

SCHEMA = json.loads(
    (Path(__file__).parents[3] / "layered_core/formats/schema/document.schema.json").read_text()
)
WORKFLOW = {
    "workflow": {"nodes": [{"id": 1, "title": "größe <&>\n"}]},
    "prompt": {"1": {"inputs": {"a": [1, 2.5, None, True]}}},
}


@pytest.mark.parametrize("end", [".psd", ".psb", ".ora"])
@pytest.mark.parametrize(("bits", "exact"), [(8, 255), (16, 65535), (32, None)])
def test_any_document_comes_back_equal(tmp_path, end, bits, exact):
    @FILES
    @given(documents(exact))
    def check(document):
        back = read_layers(write_layers(document, tmp_path / f"scene{end}", WORKFLOW, bits), ALL)
        assert identical(back.document, document)
        assert back.workflow == WORKFLOW
        remark = dynamic_remark(document, document.prompt, document.negative)
        assert back.warnings == ((remark,) if remark else ())

    check()


@FILES
@given(documents(255))
def test_any_8_bit_document_comes_back_equal_from_a_folder_and_follows_the_schema(tmp_path_factory, document):
    path = write_layers(document, tmp_path_factory.mktemp("folder") / "scene", WORKFLOW)
    back = read_layers(path.parent, ALL)
    assert identical(back.document, document)
    assert back.workflow == WORKFLOW
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMA)


def test_the_schema_knows_every_name_that_a_document_has():
    layer = SCHEMA["$defs"]["layer"]["properties"]
    assert set(layer) == {f for f in Layer.__dataclass_fields__}
    assert tuple(layer["blend_mode"]["enum"]) == BLEND_MODES
    assert set(SCHEMA["properties"]) == {
        *LayerDocument.__dataclass_fields__,
        "version",
        "workflow",
        "$schema",
    }
    recipe = SCHEMA["$defs"]["recipe"]["properties"]
    assert set(recipe) == {f for f in Recipe.__dataclass_fields__}
    assert set(recipe["control"]["properties"]) == set(Control.__dataclass_fields__)
    assert tuple(recipe["control"]["properties"]["hint"]["enum"]) == HINTS
    assert set(recipe["loras"]["items"]["properties"]) == set(Lora.__dataclass_fields__)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_rounding_to_8_bits_changes_no_pixel_by_more_than_half_a_step(tmp_path, end):
    document = LayerDocument(
        8, 8, (Layer("a", torch.rand(8, 8, 4)), Layer("b", torch.rand(5, 5, 4), rotation=30))
    )
    back = read_layers(write_layers(document, tmp_path / f"a{end}", bits=8)).document
    assert identical(back, rounded(document, 8))
    for ours, theirs in zip(document, back, strict=True):
        assert float((ours.image - theirs.image).abs().max()) <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("end", [".psd", ".psb", ".ora", ""])
@pytest.mark.parametrize(
    "name",
    ["\x00\x01\n\tname", "half \ud800 pair", "\ufffe\uffff", "a" * 1000, "‮right to left ❤️ 層", "a: b: c"],
)
def test_names_and_prompts_that_no_format_can_hold_come_back(tmp_path, end, name):
    document = LayerDocument(
        4,
        4,
        (
            Layer(name, noise(4, 4, 4), prompt=f"{name}\n: \x7f"),
            Layer("above", width=2, height=2, prompt="x: y"),
        ),
    )
    assert identical(read_layers(write_layers(document, tmp_path / f"scene{end}")).document, document)


@pytest.mark.parametrize("end", [".psd", ".psb", ".ora", ""])
def test_an_empty_document_comes_back(tmp_path, end):
    document = LayerDocument(3, 5, prompt="nothing yet")
    assert identical(read_layers(write_layers(document, tmp_path / f"scene{end}")).document, document)


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_fifty_layers_on_a_background_come_back(tmp_path, end):
    document = LayerDocument(
        8, 8, tuple(Layer(f"l{i}", noise(2, 2, 4, seed=i), x=i % 8) for i in range(50)), (1, 0.5, 0)
    )
    assert identical(read_layers(write_layers(document, tmp_path / f"scene{end}")).document, document)


@pytest.mark.parametrize(
    ("title", "name", "prompt"),
    [
        ("sky: a blue sky", "sky", "a blue sky"),
        ("sky", "sky", ""),
        ("  sky :  blue, wide: very ", "sky", "blue, wide: very"),
        ("ratio 16:9", "ratio 16:9", ""),
        ("sky:", "sky:", ""),
        (": nameless", ": nameless", ""),
        ("", "layer 7", ""),
        (" ", "layer 7", ""),
    ],
)
def test_a_title_is_a_name_and_a_prompt_after_colon_and_space(title, name, prompt):
    got = split_title(title, 7)
    assert (got[0].strip(), got[1]) == (name, prompt)


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_a_layer_of_more_pixels_a_side_than_a_file_can_hold_comes_back_whole(tmp_path, end):
    layer = Layer("wide", noise(2, 8, 4), width=16384, height=3000, rotation=10, x=-8000, y=-1500)
    document = LayerDocument(20, 20, (layer,))
    path = write_layers(document, tmp_path / f"a{end}")
    assert path.stat().st_size < 100_000
    assert identical(read_layers(path).document, document)


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_an_enlarged_layer_costs_no_more_than_the_canvas_and_comes_back_whole(tmp_path, end):
    """Written as it looks, it would have more pixels than reading allows."""
    layers = (
        Layer("huge", noise(3, 3, 4), x=-6000, y=-6000, width=12_000, height=12_000),
        Layer("away", noise(3, 3, 4), x=100, width=12_000, height=12_000),
    )
    document = LayerDocument(32, 24, layers)
    path = write_layers(document, tmp_path / f"a{end}")
    assert path.stat().st_size < 100_000
    assert identical(read_layers(path).document, document)


# Writing


@pytest.mark.parametrize("end", [".psd", ".ora", ""])
def test_a_write_that_fails_leaves_nothing(tmp_path, end, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises((OSError, LayeredError), match="disk full"):
        write_layers(LayerDocument(4, 4, (Layer("a", noise(4, 4, 4)),)), tmp_path / f"scene{end}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_written_into(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(LayeredError, match="taken.*allowed: a name that is not taken"):
        write_folder(LayerDocument(4, 4), tmp_path / "taken")


def test_a_file_is_replaced_as_a_whole(tmp_path):
    for text in ("first", "second"):
        write_layers(LayerDocument(4, 4, prompt=text), tmp_path / "a.psd")
    assert [p.name for p in tmp_path.iterdir()] == ["a.psd"]
    assert read_layers(tmp_path / "a.psd").document.prompt == "second"
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.psd").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("name", ["a.png", "a.psd.gz", "a.xcf"])
def test_a_name_of_no_layered_format_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    for use in (read_layers, lambda path: write_layers(LayerDocument(4, 4), path)):
        with pytest.raises(LayeredError, match=r"a name that ends in \.psd"):
            use(tmp_path / name)


def test_a_missing_output_folder_is_named(tmp_path):
    with pytest.raises(LayeredError, match=r"output folder is .*gone"):
        write_layers(LayerDocument(4, 4), tmp_path / "gone" / "a.psd")


def test_a_number_of_bits_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(LayeredError, match="bits is 12; allowed: 8, 16, 32"):
        write_layers(LayerDocument(4, 4), tmp_path / "a.psd", bits=12)


@pytest.mark.parametrize(
    ("workflow", "says"),
    [({"a": object()}, "cannot be stored as JSON"), ({"a": "x" * 2**24}, "size of the workflow")],
)
@pytest.mark.parametrize("end", [".psd", ".ora", ""])
def test_a_workflow_that_could_not_be_read_again_is_refused(tmp_path, end, workflow, says):
    with pytest.raises(LayeredError, match=says):
        write_layers(LayerDocument(4, 4), tmp_path / f"a{end}", workflow)
    assert list(tmp_path.iterdir()) == []


# Limits


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(max_side=30), "size of the canvas is '40x20'; allowed: at least 1 and at most 30"),
        (Limits(max_pixels=500), "40x20"),
        (Limits(max_layers=1), "number of layers is"),
        (Limits(max_file_bytes=100), "allowed: 1..100 bytes"),
        (Limits(max_alloc_bytes=20_000), "memory for pixels"),
    ],
)
@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_every_limit_is_kept(tmp_path, limits, says, end):
    stack = tuple(Layer(f"l{i}", noise(20, 40, 4, seed=i)) for i in range(3))
    path = write_layers(LayerDocument(40, 20, stack), tmp_path / f"a{end}")
    with pytest.raises(LayeredError) as caught:
        read_layers(path, limits)
    assert says in str(caught.value)
    assert str(caught.value).startswith((f"a{end}: ", f"size of a{end} "))
    read_layers(path, Limits(max_side=40, max_pixels=800, max_layers=3, max_alloc_bytes=3 * 800 * 16))


def shown_and_hidden(shown, hidden):
    layers = [Layer(f"l{i}", noise(2, 2, 4), visible=i >= hidden) for i in range(shown + hidden)]
    return LayerDocument(8, 8, tuple(layers), (0.0, 0.0, 0.0))


@pytest.mark.parametrize("end", [".psd", ".ora"])
def test_hidden_layers_are_left_out_where_there_is_no_room_for_all(tmp_path, end):
    document = shown_and_hidden(4, 3)
    path = write_layers(document, tmp_path / f"a{end}")
    assert identical(read_layers(path, Limits(max_layers=7)).document, document)
    file = read_layers(path, Limits(max_layers=4))
    assert identical(file.document, replace(document, layers=document.layers[3:]))
    (warning,) = file.warnings
    assert warning.startswith("3 hidden layers are left out")
    with pytest.raises(LayeredError, match="number of visible layers is 5; allowed: at most 4"):
        read_layers(path, Limits(max_layers=3))


def test_the_originals_of_turned_layers_count_as_memory_too(tmp_path):
    path = write_layers(
        LayerDocument(8, 8, (Layer("a", noise(100, 100, 4), width=4, height=4),)), tmp_path / "a.ora"
    )
    with pytest.raises(LayeredError, match=r"original image of layer 'a'.*max_alloc_bytes"):
        read_layers(path, Limits(max_alloc_bytes=100_000))


@pytest.mark.parametrize(
    "bad", [{"max_side": 0}, {"max_side": 20_000}, {"max_layers": 51}, {"max_pixels": 1.5}]
)
def test_a_limit_that_makes_no_sense_is_refused(bad):
    with pytest.raises(LayeredError, match="limits: max_"):
        Limits(**bad)


def test_more_memory_allows_larger_pictures_and_less_none_smaller():
    assert [Limits.of_memory(n * 2**30).max_pixels for n in (1, 4, 8)] == [2**27, 2**27, 2**28]
    assert Limits.of_memory(8 * 2**30).max_alloc_bytes == 2**33


def test_the_composite_of_what_comes_back_is_the_same(tmp_path):
    """test_psd, test_psd_of_others and test_openraster also compare the composite that other programs get,
    from the file without our own data."""
    document = LayerDocument(
        16,
        16,
        (
            Layer("a", noise(9, 9, 4), rotation=20, x=2.5),
            Layer("b", noise(5, 5, 4, seed=1), blend_mode="screen"),
        ),
    )
    for end in (".psd", ".ora"):
        back = read_layers(write_layers(document, tmp_path / f"a{end}")).document
        assert torch.equal(composite(back, rules="photoshop"), composite(document, rules="photoshop"))


def test_a_document_of_other_float_types_is_written(tmp_path):
    half = replace(Layer("a", noise(4, 4, 4)), image=noise(4, 4, 4).to(torch.float16))
    back = read_layers(write_layers(LayerDocument(4, 4, (half,)), tmp_path / "a.psd")).document
    assert torch.equal(back.layers[0].image, half.image.float())
