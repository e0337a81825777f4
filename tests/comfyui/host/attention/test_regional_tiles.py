"""Layers act where they are in nodes that sample tile by tile, too."""

import comfy.samplers
import pytest
import torch
from regional_scene import MODES, apply, encode, in_tiles


def wide(regions, left=0, width=256):
    """The part ``left``..``left + width`` of a scene of 256 x 128 pixels, as a canvas of its own: a ball at
    pixels 64..160, and stars everywhere else."""
    pair = [
        regions.document.Layer("star", x=-left, width=256, height=128, prompt="a blue star"),
        regions.document.Layer("ball", x=64 - left, width=96, height=128, prompt="a red ball"),
    ]
    return regions.layers.write_stack(regions.document.LayerDocument(width, 128, tuple(pair)))


def predicted(model, positive, negative, noise, sigma=5.0):
    """Return the guided prediction of the picture."""
    found = []

    def look(m, x, sigmas, extra_args=None, **_):
        found.append(m(x, sigmas[:1].expand(len(x)), **extra_args))
        return found[0]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(3.0)
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(look), torch.tensor([sigma, 0.0]), seed=0
        )
    return found[0]


def noise(batch=1):
    return torch.randn(batch, 4, 16, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("together", [False, True])
def test_a_tile_is_predicted_as_if_it_were_a_picture_of_its_own(regions, loaded, mode, together):
    model, clip = loaded
    values = {"mode": mode, "prompt": "a red ball and a blue star in a meadow", "negative": "blurry"}
    patched, *words = apply(regions, model, clip, wide(regions), **values)
    x = noise(2)
    got = predicted(in_tiles(patched, [(0, 16), (16, 32)], together), *words, x)
    for left in (0, 16):
        alone = apply(regions, model, clip, wide(regions, 8 * left, 128), **values)
        wanted = predicted(*alone, x[..., left : left + 16])
        torch.testing.assert_close(got[..., left : left + 16], wanted, atol=1e-4, rtol=0)


def test_the_tile_of_a_layer_gets_its_words_and_no_other(regions, loaded):
    model, clip = loaded

    def tiles(prompt):
        stack = wide(regions)
        stack["layers"][1]["layered_diffusion"]["prompt"] = prompt
        patched, *words = apply(regions, model, clip, stack, prompt="a meadow")
        return predicted(in_tiles(patched, [(0, 20), (20, 32)]), *words, noise())

    changed = tiles("a yellow house") != tiles("a red ball")
    assert bool(changed[..., :20].any())
    assert not bool(changed[..., 20:].any())


def test_tiles_whose_place_is_not_known_are_refused(regions, loaded):
    model, clip = loaded
    patched, *words = apply(regions, model, clip, wide(regions))
    flipped = in_tiles(patched, [(0, 16), (16, 32)], change=lambda x: x.flip(-1))
    with pytest.raises(
        regions.error, match="over 16x16 latent cells, of which it is not known where they lie"
    ):
        predicted(flipped, *words, noise())


def test_without_layers_that_act_tiles_may_be_anything(regions, loaded):
    model, clip = loaded
    plain = encode(clip, "a meadow"), encode(clip, "")
    patched, *words = apply(regions, model, clip, wide(regions), strength=0.0, prompt="a meadow")
    boxes = [(0, 16), (16, 32)]
    changed = {"change": lambda x: x.flip(-1)}
    assert torch.equal(
        predicted(in_tiles(patched, boxes, **changed), *words, noise()),
        predicted(in_tiles(model, boxes, **changed), *plain, noise()),
    )
