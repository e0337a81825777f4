"""Texts that no tokenizer reads are named before they reach one."""

from types import SimpleNamespace

import pytest

from layered_core.errors import LayeredError
from layered_diffusers.models.text import encode


@pytest.mark.parametrize("text", ["a \ud800 ball", "\udfff", "a ball \ud83d"])
def test_half_a_letter_in_a_prompt_is_named(text):
    model = SimpleNamespace(tokenizer=None, text_encoder=None)
    with pytest.raises(LayeredError, match=r"prompt is .*allowed: whole letters. Letter \d+ is half of one"):
        encode(model, [text])
