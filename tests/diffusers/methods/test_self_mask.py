"""Self-mask guidance on the storybook: neutral where it says so, one more pass in its window, no mixing of scenes."""

import pytest
import torch

from demo.world.places import TRANSPARENT
from layered_core.errors import LayeredError
from layered_core.joint.frames import SceneFrames
from layered_core.joint.self_mask import WINDOW
from layered_core.noise.window import sigma_at
from layered_diffusers.methods.joint_layers import JointLayers
from layered_diffusers.methods.self_mask import SelfMask
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import Method
from layered_diffusers.together import SceneWords

FILE = TRANSPARENT / "joint.safetensors"
PROMPTS = ["a red ball", "by the sea", "a red ball by the sea"]
STEPS = 6


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu", sampler="ddim")


class Sigmas(Method):
    def __init__(self):
        self.found = []

    def before_step(self, run, index):
        self.found.append(sigma_at(run.scheduler.alphas_cumprod, float(run.timesteps[index])))


def sampled(pipeline, *methods):
    """Return the latents of one scene, and the number of the model's passes."""
    passes = []
    hook = pipeline.model.unet.register_forward_hook(lambda *_: passes.append(1))
    try:
        change = JointLayers(pipeline.model, FILE, SceneFrames(1))
        latents, _, _ = pipeline.sample_latents(PROMPTS, steps=STEPS, methods=[change, *methods])
    finally:
        hook.remove()
    return latents, len(passes)


def constant(value, calls=None):
    def alphas(latents):
        if calls is not None:
            calls.append(len(latents))
        return torch.full((len(latents), 128, 128), value)

    return alphas


def test_amount_0_and_a_mask_of_0_are_classifier_free_guidance_to_the_bit_and_cost_no_pass(pipeline):
    plain, passes = sampled(pipeline)
    assert passes == STEPS
    for method in (
        SelfMask(SceneFrames(1), PROMPTS, constant(1.0), 0.0),
        SelfMask(SceneFrames(1), PROMPTS, constant(0.0), 1.0),
    ):
        latents, passes = sampled(pipeline, method)
        assert torch.equal(latents, plain)
        assert passes == STEPS


def test_it_acts_in_its_window_alone_and_keeps_masks_between(pipeline):
    plain, _ = sampled(pipeline)
    sigmas, calls = Sigmas(), []
    latents, passes = sampled(pipeline, sigmas, SelfMask(SceneFrames(1), PROMPTS, constant(1.0, calls), 1.0))
    inside = sum(WINDOW.acts(sigma) for sigma in sigmas.found)
    assert 1 < inside < STEPS
    assert passes == STEPS + inside
    assert calls == [1] * inside
    assert float((latents[0] - plain[0]).abs().mean()) > 0.01
    rarely = []
    same, passes = sampled(
        pipeline, SelfMask(SceneFrames(1), PROMPTS, constant(1.0, rarely), 1.0, every=inside)
    )
    assert torch.equal(same, latents), "the masks are the same at every step"
    assert (passes, rarely) == (STEPS + inside, [1])


def test_the_background_is_not_blurred_and_is_led_only_as_far_as_it_sees_the_layer(pipeline):
    class First(SelfMask):
        def guided(self, run, prediction, cond, model_input, index):
            found = super().guided(run, prediction, cond, model_input, index)
            changes.append((found - prediction).abs().mean((1, 2, 3)))
            return found

    changes = []
    sampled(pipeline, First(SceneFrames(1), PROMPTS, constant(1.0), 1.0))
    layer, background, _ = next(x for x in changes if float(x.max()) > 0).tolist()
    assert layer > 5 * background > 0


def test_scenes_of_a_batch_are_guided_each_by_its_own_masks(pipeline):
    scenes = [
        SceneWords("a red ball by the sea", ("a red ball",), "by the sea"),
        SceneWords("a blue star at night", ("a blue star",), "at night"),
    ]
    how = {"steps": STEPS, "augmentations": 1, "self_mask": 1.0}
    both = pipeline.generate_scenes(scenes, seeds=[1, 2], **how)
    alone = pipeline.generate_scenes(scenes[1:], seeds=[2], **how)
    without = pipeline.generate_scenes(scenes[1:], seeds=[2], **{**how, "self_mask": 0.0})
    assert torch.allclose(both.layers[1], alone.layers[0], atol=2e-3)
    assert float((alone.layers[0] - without.layers[0]).abs().mean()) > 2e-3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"amount": 2.5}, "self-mask guidance is 2.5; allowed: a number 0..2"),
        ({"every": 0}, "steps between the masks of self-mask guidance is 0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, says):
    with pytest.raises(LayeredError, match=says):
        SelfMask(SceneFrames(1), PROMPTS, constant(1.0), **options)
