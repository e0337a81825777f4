"""Vision Guidance Preview in a real ComfyUI."""

import pytest
import torch
from graph import from_image, node, rendering
from sampling import LOADER

SAMPLER = {"seed": 3, "steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


def previewed(batch=1, **values):
    left = from_image(
        width=64, height=128, prompt="a red ball", name="ball", canvas_width=128, canvas_height=128
    )
    right = from_image(x=64, width=32, height=128, prompt="a blue star", name="star")
    right["inputs"]["layers"] = ["a", 0]
    return {
        **LOADER,
        "a": left,
        "b": right,
        "r": rendering("b", **values),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=batch),
        "s": node(
            "KSampler", model=["r", 0], positive=["r", 1], negative=["r", 2], latent_image=["l", 0], **SAMPLER
        ),
        "it": node(
            "LD_VisionGuidancePreview",
            model=["loader", 0],
            vae=["loader", 2],
            positive=["r", 1],
            samples=["s", 0],
        ),
    }


def test_each_layers_colour_is_inside_and_its_opposite_around_it(host):
    white = previewed(colour="constant", constant="#ffffff")
    white["r"]["inputs"]["vae"] = ["loader", 2]
    ball, star = host.value(white, "it")
    assert ball.shape == (128, 128, 3)
    assert float(ball[16:112, 8:48].mean()) > 0.6 > 0.4 > float(ball[16:112, 80:120].mean())
    assert float(star[16:112, 72:88].mean()) > 0.6 > 0.4 > float(star[16:112, 8:48].mean())


def test_a_batch_has_pictures_of_every_picture_with_colours_of_its_own(host):
    planted = host.value(previewed(batch=2), "it")
    assert len(planted) == 4
    assert not torch.equal(planted[0], planted[1])


@pytest.mark.parametrize(
    ("values", "fix"), [({"share": 0.0}, "share above 0"), ({"strength": 0.0}, "strength above 0")]
)
def test_without_anything_planted_the_fix_is_told(host, values, fix):
    prompt = previewed(**values)
    assert fix in host.error_of({**prompt, "out": node("PreviewImage", images=["it", 0])})
