"""Choices and comments that nothing has resolved, as in prompts of the API, are told of in the log."""

import logging

import pytest
from graph import add_layer, from_image, node, regional
from sampling import LOADER

MASKS = {"seed": 0, "steps": 1, "cfg": 1.0, "threshold": 0.5, "largest": True}


def words_of(node_id, **words):
    """Return a prompt in which a node encodes a layer's words and its own."""
    layer = {
        "prompt": "a red ball",
        "width": 64,
        "height": 128,
        "canvas_width": 128,
        "canvas_height": 128,
        **words,
    }
    link = {"model": ["loader", 0], "clip": ["loader", 1], "layers": ["a", 0]}
    own = {"prompt": "a meadow", "negative": "{night|day}"}
    nodes = {
        "Regional Prompt Attention": regional("a", **own),
        "Layer Mask from Attention": node("LD_LayerMaskFromAttention", **link, **MASKS, **own),
    }
    return {**LOADER, "a": from_image(name="left", **layer), "it": nodes[node_id]}


@pytest.mark.parametrize("name", ["Regional Prompt Attention", "Layer Mask from Attention"])
def test_words_that_are_used_as_they_stand_are_told_of_once(host, caplog, name):
    with caplog.at_level(logging.WARNING):
        host.value(words_of(name, prompt="a {red|blue} ball", negative="moon /* or star */"), "it", 1)
    told = [r.getMessage() for r in caplog.records if "braces" in r.getMessage()]
    assert told == [
        f"{name}: negative has '{{night|day}}', layer 'left': prompt has '{{red|blue}}', layer 'left': negative has "
        "'/* or star */': choices in braces and comments are used as they stand, because only the prompt fields of "
        "ComfyUI's page resolve them. Write the words out"
    ]


def test_words_of_a_hidden_layer_are_not_told_of(host, caplog):
    prompt = words_of("Regional Prompt Attention", prompt="a {red|blue} ball", visible=False)
    prompt["it"]["inputs"]["negative"] = ""
    with caplog.at_level(logging.WARNING):
        host.value(prompt, "it", 1)
    assert "braces" not in caplog.text


def test_words_of_a_stage_are_told_of_once(host, caplog):
    stage = add_layer("a {red|blue} ball", name="ball", width=64, height=64, steps=1)
    with caplog.at_level(logging.WARNING):
        host.value({**LOADER, "it": stage}, "it", 1)
    told = [r.getMessage() for r in caplog.records if "braces" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("Stage Layer: layer 'ball': prompt has '{red|blue}': choices in braces")
