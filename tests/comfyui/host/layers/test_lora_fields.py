"""A layer gets LoRAs in the nodes that make it and in Edit Layer."""

from pathlib import Path

import folder_paths
import pytest
from graph import KEPT, from_image, node

INK, SOFT = "ink.safetensors", "people/soft.safetensors"


@pytest.fixture(autouse=True)
def files():
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    for file in (INK, SOFT):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    folder_paths.cache_helper.clear()


@pytest.fixture
def loras(host, pack):
    """Return the LoRAs of the layer 'ball' that a node of a prompt gives, as names and strengths."""
    read = pack("nodes.layers.socket").read_stack

    def of(prompt, which):
        return [(x.name, x.strength) for x in read(host.value(prompt, which)).layer("ball").recipe.loras]

    return of


def ball(**fields):
    return from_image(name="ball", prompt="a ball", canvas_width=64, canvas_height=64, **fields)


def edit(stack, **fields):
    return node("LD_EditLayer", layers=[stack, 0], layer="ball", **KEPT, **fields)


def chosen(lora, strength, prefix="loras", how="choose"):
    """Return the fields that choose one LoRA."""
    return {prefix: how, f"{prefix}.lora": lora, f"{prefix}.strength": strength}


TWO = {
    **chosen(INK, 0.5), "loras.second": "choose", "loras.second.lora": SOFT, "loras.second.strength": -1.0,
    "loras.second.third": "none",
}  # fmt: skip


def test_a_new_layer_has_no_loras_and_may_be_given_some(loras):
    prompt = {
        "old": ball(),
        "none": ball(loras="none"),
        "one": ball(**chosen(INK, 0.5), **{"loras.second": "none"}),
        "two": ball(**TWO),
        "text": ball(loras="as text", **{"loras.text": "ink:0.5, <lora:soft:-1>"}),
    }
    assert [loras(prompt, name) for name in prompt] == [
        [],
        [],
        [(INK, 0.5)],
        [(INK, 0.5), (SOFT, -1)],
        [("ink", 0.5), ("soft", -1)],
    ]


def test_edit_layer_keeps_replaces_adds_and_removes_loras(host, loras):
    prompt = {
        "ball": ball(**TWO),
        "old": edit("ball"),
        "kept": edit("ball", loras="keep"),
        "replaced": edit("ball", loras="as text", **{"loras.text": "other:2"}),
        "added": edit("replaced", **chosen(INK, 0.5, how="add")),
        "weighed": edit("added", **chosen(INK, 0.25, how="add")),
        "removed": edit("weighed", loras="none"),
    }
    two = [(INK, 0.5), (SOFT, -1)]
    assert [loras(prompt, name) for name in prompt] == [
        two,
        two,
        two,
        [("other", 2)],
        [("other", 2), (INK, 0.5)],
        [("other", 2), (INK, 0.25)],
        [],
    ]
    assert host.value(prompt, "kept") is host.value(prompt, "ball")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"loras": "as text", "loras.text": "ink:5"}, "layer 'ball': lora.strength is 5"),
        ({"loras": "as text", "loras.text": "../ink"}, "layer 'ball': lora.name is '../ink'"),
        ({**chosen("gone.safetensors", 1.0), "loras.second": "none"}, "gone.safetensors"),
    ],
)
def test_loras_that_cannot_be_are_refused_before_anything_is_sampled(host, fields, error):
    end = node("LD_LayerPreview", layers=["ball", 0], size=64)
    assert error in host.error_of({"ball": ball(**fields), "end": end})


def test_split_layer_gives_loras_as_the_text_that_edit_layer_takes(loras):
    prompt = {
        "ball": ball(**TWO),
        "split": node("LD_SplitLayer", layers=["ball", 0], layer="ball"),
        "none": edit("ball", loras="none"),
        "back": edit("none", loras="as text", **{"loras.text": ["split", 8]}),
    }
    assert loras(prompt, "none") == []
    assert loras(prompt, "back") == loras(prompt, "ball") == [(INK, 0.5), (SOFT, -1)]


def test_four_loras_are_chosen_in_one_node(loras):
    fields, prefix = chosen(INK, 1.0), "loras"
    for strength, name in ((2.0, "second"), (3.0, "third"), (4.0, "fourth")):
        prefix = f"{prefix}.{name}"
        fields |= chosen(SOFT, strength, prefix)
    assert loras({"ball": ball(**fields)}, "ball") == [(INK, 1), (SOFT, 2), (SOFT, 3), (SOFT, 4)]
