"""LoRAs of a layer are written as people write them."""

import json
from pathlib import Path

import pytest

from layered_core.document import Lora
from layered_core.errors import LayeredError
from layered_core.formats.lora_text import loras_as_text, read_loras

TEXTS = json.loads((Path(__file__).resolve().parents[2] / "data/lora_texts.json").read_text(encoding="utf-8"))
"""Texts, and the names and strengths that they mean; the board's field in the page reads the same."""


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: case["text"])
def test_a_text_names_loras_and_their_strengths(case):
    loras = read_loras(case["text"])
    assert [[lora.name, lora.strength] for lora in loras] == case["loras"]
    assert read_loras(loras_as_text(loras)) == loras


def test_a_strength_of_one_is_written_without_a_point():
    assert loras_as_text([Lora("ink", 1.0), Lora("soft", 0.25)]) == "ink:1, soft:0.25"


@pytest.mark.parametrize("text", ["ink:5", "ink, soft:-4.1", "../ink", "<lora:/ink:1>", ":0.5"])
def test_a_text_that_no_layer_can_have_is_refused(text):
    with pytest.raises(LayeredError, match="lora"):
        read_loras(text)
