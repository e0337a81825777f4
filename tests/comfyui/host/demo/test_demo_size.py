"""Load Demo Model gives a latent of its size, and tells who samples at a size that it was not made for."""

import logging

import pytest
import torch
from graph import node
from sampling import words
from server import PromptServer


def graph(latent, network="UNet"):
    return {
        "loader": node("LD_LoadDemoModel", network=network),
        **words(),
        "e": node("EmptyLatentImage", batch_size=1, **(latent or {"width": 512, "height": 512})),
        "k": node(
            "KSampler", model=["loader", 0], positive=["p", 0], negative=["n", 0],
            latent_image=["e", 0] if latent else ["loader", 3], seed=1, steps=1, cfg=2.0, sampler_name="euler",
            scheduler="normal", denoise=1.0,
        ),
    }  # fmt: skip


@pytest.fixture
def told(host, monkeypatch, caplog):
    """Sample a latent and return what is shown, with the node, having checked that the log says the same."""

    def run(latent, network="UNet"):
        texts = []
        monkeypatch.setattr(
            PromptServer.instance, "send_progress_text", lambda text, node_id: texts.append((node_id, text))
        )
        host.fresh()
        with caplog.at_level(logging.WARNING):
            host.value(graph(latent, network), "k")
        assert all(text in caplog.messages for _, text in texts)
        return texts

    return run


@pytest.mark.parametrize("network", ["UNet", "transformer"])
def test_a_size_that_it_was_not_made_for_is_told_on_the_sampler_and_in_the_log(told, network):
    ((where, text),) = told({"width": 512, "height": 128}, network)
    assert where == "k"
    assert text.startswith(
        "Load Demo Model: the demo model was made for 128x128 pixels, and at 512x128 it shows things several times."
    )
    assert "latent of Load Demo Model" in text


@pytest.mark.parametrize(
    ("width", "height", "effect"),
    [(64, 128, "lacks things"), (96, 96, "lacks things"), (144, 144, "shows things several times")],
)
def test_a_size_that_is_a_little_too_small_or_large_is_told(told, width, height, effect):
    ((_, text),) = told({"width": width, "height": height})
    assert f"at {width}x{height} it {effect}" in text


@pytest.mark.parametrize(
    "latent",
    [None, {"width": 96, "height": 128}, {"width": 160, "height": 128}, {"width": 104, "height": 104}],
)
def test_its_own_latent_and_sizes_near_it_are_not_told(told, latent):
    assert told(latent) == []


def test_its_latent_is_that_of_an_empty_picture_of_128_pixels(host):
    prompt = {**graph(None), "w": node("EmptyLatentImage", width=128, height=128, batch_size=1)}
    assert torch.equal(host.value(prompt, "loader", 3)["samples"], host.value(prompt, "w")["samples"])
