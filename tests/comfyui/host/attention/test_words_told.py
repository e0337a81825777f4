"""Layers that cannot act, as they have no words, are told by name."""

import logging

import pytest
from graph import from_image, load, regional
from PIL import Image
from sampling import LOADER
from server import PromptServer


@pytest.fixture
def told(host, monkeypatch, caplog):
    """Run Regional Prompt Attention on a stack and return what it shows, having checked that the log says the
    same."""
    Image.new("RGB", (64, 64), (200, 30, 40)).save(host.input / "photo.png")
    Image.new("RGB", (16, 16), (200, 230, 40)).save(host.input / "apple.png")

    def run(top, **layers):
        texts = []
        monkeypatch.setattr(
            PromptServer.instance, "send_progress_text", lambda text, node_id: texts.append(text)
        )
        host.fresh()
        with caplog.at_level(logging.INFO):
            host.value({**LOADER, **layers, "it": regional(top)}, "it", 1)
        assert all(f"Regional Prompt Attention: {text}" in caplog.messages for text in texts)
        return texts

    return run


def test_layers_without_words_are_told_by_name(told):
    (text,) = told(
        "c",
        a=from_image(
            name="ball", prompt="a red ball", width=32, height=64, canvas_width=64, canvas_height=64
        ),
        b=load("apple.png", layers=["a", 0]),
        c=from_image(name="box", x=40, width=20, height=20, layers=["b", 0]),
    )
    assert text.startswith("Layers without words: 'apple', 'box'.")


def test_a_backdrop_a_hidden_layer_and_one_with_a_negative_need_no_words(told):
    texts = told(
        "d",
        a=load("photo.png"),
        b=load("apple.png", negative="a worm", layers=["a", 0]),
        c=load("apple.png", visible=False, layers=["b", 0]),
        d=from_image(prompt="a red ball", x=32, width=32, height=32, layers=["c", 0]),
    )
    assert texts == []
