"""Maps of the attention to words, and masks made from them, in the real host."""

import pytest
import torch
from graph import from_image, node, regional
from sampling import LOADER

SAMPLER = {"seed": 3, "steps": 6, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def stack():
    left = from_image(
        width=64, height=128, prompt="a red ball", name="ball", canvas_width=128, canvas_height=128
    )
    right = from_image(x=64, width=64, height=128, prompt="a blue star", name="star")
    right["inputs"]["layers"] = ["a", 0]
    return {**LOADER, "a": left, "b": right}


def recorded(batch=1, **values):
    return {
        **stack(),
        "r": regional("b", record=True, **values),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=batch),
        "s": node(
            "KSampler", model=["r", 0], positive=["r", 1], negative=["r", 2], latent_image=["l", 0], **SAMPLER
        ),
        "d": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
        "it": node("LD_AttentionPreview", positive=["r", 1], image=["d", 0], size=128),
    }


def heat(picture):
    """Return how much brighter than the dimmed picture's grey the left and the right half are."""
    colour = picture.amax(-1) - picture.amin(-1)
    return float(colour[24:, :64].mean()), float(colour[24:, 64:].mean())


@pytest.mark.parametrize("mode", ["regions", "joint", "collage", "paint with words"])
def test_each_layers_map_is_hot_on_its_side(host, mode):
    ball, star = host.value(recorded(mode=mode), "it")
    assert ball.shape == (128, 128, 3)
    assert heat(ball)[0] > 1.5 * heat(ball)[1]
    assert heat(star)[1] > 1.5 * heat(star)[0]


def test_a_batch_has_maps_of_every_picture(host):
    maps = host.value(recorded(batch=2), "it")
    assert len(maps) == 4
    assert not torch.equal(maps[0], maps[2])


def test_another_run_has_maps_of_its_own(host):
    host.fresh()
    first = host.value(recorded(), "it")
    other = recorded()
    other["s"]["inputs"]["seed"] = 4
    second = host.value(other, "it")
    host.fresh()
    assert torch.equal(host.value(recorded(), "it"), first)
    assert not torch.equal(first, second)


def test_recording_changes_no_bit_of_the_picture(host):
    without = recorded()
    without["r"]["inputs"]["record"] = False
    assert torch.equal(host.value(recorded(), "s")["samples"], host.value(without, "s")["samples"])


def test_a_plain_run_shows_what_words_attend_to_of_their_own_accord(host):
    maps = host.value(recorded(strength=0.0), "it")
    assert len(maps) == 2
    assert not torch.equal(*maps)


def test_without_a_record_the_fix_is_told(host):
    prompt = recorded()
    prompt["r"]["inputs"]["record"] = False
    assert "'record' on" in host.error_of({**prompt, "out": node("PreviewImage", images=["it", 0])})


def mask_prompt(**values):
    words = {
        "prompt": "a red ball and a blue star in a meadow",
        "negative": "",
        "seed": 3,
        "steps": 6,
        "cfg": 4.0,
        "threshold": 0.5,
        "largest": True,
    }
    return {
        **stack(),
        "it": node(
            "LD_LayerMaskFromAttention",
            model=["loader", 0],
            clip=["loader", 1],
            layers=["b", 0],
            **{**words, **values},
        ),
    }


def test_layers_get_masks_inside_their_boxes(host, pack):
    document = pack("nodes.layers.socket").read_stack(host.value(mask_prompt(), "it"))
    masks = host.value(mask_prompt(), "it", 1)
    assert masks.shape == (2, 16, 16)
    for i, (layer, mask) in enumerate(zip(document, masks, strict=True)):
        assert (layer.x, layer.y, layer.width, layer.height) == (0, 0, 128, 128)
        assert torch.equal(layer.mask, mask)
        assert 0 < float(mask.sum()) < 128
        assert float(mask[:, 8:].sum() if i == 0 else mask[:, :8].sum()) == 0
    assert document.words == "a blue star, a red ball"


def test_a_higher_threshold_gives_smaller_masks(host):
    areas = [
        float(host.value(mask_prompt(threshold=t, largest=False), "it", 1).sum()) for t in (0.2, 0.5, 0.8)
    ]
    assert areas == sorted(areas, reverse=True)
    assert areas[0] > areas[2]


def test_layers_with_pictures_or_masks_or_no_words_stay(host, pack):
    prompt = mask_prompt()
    prompt["a"]["inputs"]["prompt"] = ""
    prompt["m"] = node("SolidMask", value=0.0, width=8, height=8)
    prompt["b"]["inputs"]["mask"] = ["m", 0]
    assert host.value(prompt, "it") is host.value(prompt, "b")


def test_a_mask_found_by_words_lies_on_the_thing_that_the_same_noise_makes(host, pack):
    """The layer's box is the whole canvas, so the model alone chooses the place."""
    whole = from_image(
        width=128, height=128, prompt="a red ball", name="ball", canvas_width=128, canvas_height=128
    )
    words = {"prompt": "a red ball in a meadow", "negative": "", "threshold": 0.4, "largest": True}
    hits = []
    for seed in range(4):
        settings = {**SAMPLER, "seed": seed, "steps": 12}
        prompt = {
            **LOADER,
            "a": whole,
            "m": node(
                "LD_LayerMaskFromAttention",
                model=["loader", 0],
                clip=["loader", 1],
                layers=["a", 0],
                seed=seed,
                steps=8,
                cfg=3.0,
                **words,
            ),
            "p": node("CLIPTextEncode", clip=["loader", 1], text=words["prompt"]),
            "n": node("CLIPTextEncode", clip=["loader", 1], text=""),
            "l": node("EmptyLatentImage", width=128, height=128, batch_size=1),
            "s": node(
                "KSampler",
                model=["loader", 0],
                positive=["p", 0],
                negative=["n", 0],
                latent_image=["l", 0],
                **settings,
            ),
            "d": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
        }
        mask, picture = host.value(prompt, "m", 1)[0], host.value(prompt, "d")[0]
        red = (picture[..., 0] - picture[..., 1:].amax(-1) > 0.25).float()
        red = torch.nn.functional.adaptive_avg_pool2d(red[None], 16)[0]
        hits.append(float((red * mask).sum() / mask.sum()) - float(red.mean()))
    assert sum(h > 0.2 for h in hits) >= 3, hits


def test_an_interrupted_look_leaves_the_model_alone(host, monkeypatch):
    import comfy.model_management
    import comfy.sample

    host.fresh()
    model = host.value(LOADER, "loader", 0)
    before = dict(model.model_options["transformer_options"])

    def interrupted(*_, **__):
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.sample, "sample", interrupted)
    assert (
        host.error_of({**mask_prompt(), "out": node("MaskPreview", mask=["it", 1])})
        == "execution_interrupted"
    )
    assert model.model_options["transformer_options"] == before
