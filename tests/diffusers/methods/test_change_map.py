"""Per-pixel noise on diffusers runs is exact where it must be, with every scheduler, latent shape and kind of
UNet."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.gallery import collage_document
from demo.world.scenes import random_scene
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.painting.repaint import plan_repaint
from layered_diffusers.methods.change_map import ChangeMap
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline
from layered_diffusers.sampling import KeepOutside

SCHEDULERS = {
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def with_noise(document, noise, **others):
    return document.with_noise(noise).with_noise(others)


def pixels(image):
    return np.asarray(image)


def test_all_noise_one_is_the_picture_of_the_words_to_the_bit(pipeline):
    document = with_noise(collage_document(), 1.0)
    assert np.array_equal(
        pixels(pipeline.harmonize(document, seed=4, attention=None, steps=3)),
        pixels(pipeline.generate_layer(document.words, seed=4, steps=3)),
    )


def test_all_noise_zero_is_the_composite_to_the_bit(pipeline):
    document = with_noise(collage_document(), 0.0)
    composite = (pipeline.flat(document)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(pixels(pipeline.harmonize(document, background=0.0, steps=3)), composite)


def test_one_noise_for_all_is_a_redraw_at_that_strength(pipeline):
    """The result equals that of a plain SDEdit run exactly."""
    document = with_noise(collage_document(), 0.5)
    assert np.array_equal(
        pixels(pipeline.harmonize(document, background=0.5, seed=1, steps=4)),
        pixels(pipeline.render(document, strength=0.5, seed=1, steps=4)),
    )


def test_a_frozen_layer_keeps_its_pixels_exactly_and_the_others_move(pipeline):
    document = with_noise(collage_document(), 0.9, star=0.0)
    before = pixels(pipeline.harmonize(with_noise(document, 0.0), steps=1))
    after = pixels(pipeline.harmonize(document, steps=8))
    from layered_core.canvas.masks import layer_alphas, visible_masks

    shown, _ = visible_masks(layer_alphas(document))
    star = shown[[x.name for x in document].index("star")].numpy()
    assert np.array_equal(after[star == 1], before[star == 1])
    assert np.abs(after[star == 0].astype(int) - before[star == 0]).mean() > 4


def test_less_noise_keeps_a_layer_closer_to_what_it_was(pipeline):
    document = collage_document()
    start = pixels(pipeline.harmonize(with_noise(document, 0.0), background=0, steps=1)).astype(int)
    errors = [
        np.abs(pixels(pipeline.harmonize(with_noise(document, n), steps=4)) - start).mean()
        for n in (0.2, 0.5, 0.9)
    ]
    assert errors == sorted(errors)
    assert errors[2] > 2 * errors[0]


def latents_of(pipeline, change, name, *, steps=4, strength=1.0, **options):
    """Return the latents before and after a run with a change map."""
    start = torch.from_numpy(random_scene(2, count=2).picture().copy()).permute(2, 0, 1)[None] / 255
    clean = pipeline.encode(start)
    kind, settings = SCHEDULERS[name]
    original = pipeline.model.scheduler
    pipeline.model.scheduler = kind.from_config(original.config, **settings)
    seen = []
    pipeline.decode, decode = lambda latents: seen.append(latents) or decode(latents), pipeline.decode
    try:
        methods = [ChangeMap(clean, change, **options)]
        pipeline.generate(
            ["a red ball"], seeds=[5], start=start, strength=strength, steps=steps, methods=methods
        )
    finally:
        pipeline.model.scheduler, pipeline.decode = original, decode
    return clean, seen[0]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_on_every_scheduler_what_is_never_free_comes_out_equal_and_the_rest_is_finite(pipeline, name, noise):
    change = torch.linspace(0, 1, 16).expand(16, 16).clone()
    clean, out = latents_of(pipeline, change, name, noise=noise)
    assert torch.equal(out[..., 0], clean[..., 0])
    assert bool(torch.isfinite(out).all())
    moved = (out - clean).abs().mean((0, 1, 2))
    assert float(moved[12:].mean()) > 2 * float(moved[1:4].mean())


@pytest.mark.parametrize("name", ["ddim", "euler_ancestral"])
def test_a_change_map_of_ones_samples_the_same_bits_as_none(pipeline, name):
    clean, with_map = latents_of(pipeline, torch.ones(16, 16), name)
    _, without = latents_of(
        pipeline, torch.ones(16, 16), name, dilation=3, softness=0.3, noise="fresh", threshold="normalised"
    )
    assert torch.equal(with_map, without)


@pytest.mark.parametrize("threshold", ["absolute", "normalised"])
def test_a_run_of_one_step_is_defined(pipeline, threshold):
    change = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(torch.tensor([5, 5, 6])).expand(16, 16).clone()
    clean, out = latents_of(pipeline, change, "ddim", steps=1, threshold=threshold)
    assert torch.equal(out[..., :5], clean[..., :5])
    assert bool(torch.isfinite(out).all())
    assert float((out - clean)[..., 10:].abs().mean()) > 0.1


def test_no_strength_runs_no_step_and_gives_back_the_picture(pipeline):
    clean, out = latents_of(pipeline, torch.ones(16, 16), "ddim", strength=0.0)
    assert torch.equal(out, clean)


def test_absolute_numbers_mean_the_same_however_long_the_run_and_normalised_ones_follow_it(pipeline):
    """At strength 0.5 the absolute level begins at 0.5, so places above that are free from the start. The
    level relative to the run begins at 1."""
    change = torch.full((16, 16), 0.6)
    clean, free = latents_of(pipeline, change, "ddim", steps=6, strength=0.5)
    _, all_free = latents_of(pipeline, torch.ones(16, 16), "ddim", steps=6, strength=0.5)
    _, later = latents_of(pipeline, change, "ddim", steps=6, strength=0.5, threshold="normalised")
    assert torch.equal(free, all_free)
    assert not torch.equal(later, all_free)
    assert float((later - clean).abs().mean()) < float((free - clean).abs().mean())


def test_zeros_and_ones_are_blended_latent_diffusion(pipeline):
    start = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    clean, mask = pipeline.encode(start), torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    options = {"seeds": [2], "start": start, "steps": 4}
    ours = pipeline.generate(["a red ball"], methods=[ChangeMap(clean, mask)], **options)
    theirs = pipeline.generate(["a red ball"], methods=[KeepOutside(clean, mask)], **options)
    assert float((ours - theirs).abs().mean()) < 0.02


# --- other models ---


def tiny(channels=4, halvings=3, inpaint=False):
    """Return a random model with ``channels`` latent channels and a VAE that divides sides by
    ``2 ** halvings``."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=16,
        eos_token_id=49407,
    )
    parts = {
        "unet": UNet2DConditionModel(
            block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=2, sample_size=8,
            out_channels=channels, cross_attention_dim=16,
            in_channels=2 * channels + 1 if inpaint else channels,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * (halvings + 1),
            up_block_types=["UpDecoderBlock2D"] * (halvings + 1),
            block_out_channels=[32] * (halvings + 1), latent_channels=channels,
        ),
        "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, steps_offset=1),
        "tokenizer": CLIPTokenizer.from_pretrained(STORYBOOK / "tokenizer"),
        "text_encoder": CLIPTextModel(text),
    }  # fmt: skip
    kind = StableDiffusionInpaintPipeline if inpaint else StableDiffusionPipeline
    return kind(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.mark.parametrize(
    ("channels", "halvings", "inpaint"),
    [(16, 3, False), (4, 2, False), (8, 4, False), (4, 3, True), (16, 2, True)],
)
def test_any_latents_any_divisor_and_inpainting_unets_keep_what_is_outside(
    tmp_path, channels, halvings, inpaint
):
    tiny(channels, halvings, inpaint).save_pretrained(tmp_path)
    pipeline = LayeredDiffusionPipeline.from_pretrained(tmp_path, device="cpu")
    assert pipeline.inpaints == inpaint
    before = torch.rand(3, 61, 83, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(61, 83)
    mask[10:40, 20:60] = 1
    for side in (0, 96):
        plan = pipeline.stage_plan(before, mask, side=side)
        after = pipeline.repaint(plan, "a cat", steps=2)
        assert after.shape == before.shape
        assert torch.equal(after[:, mask == 0], before[:, mask == 0])
        assert float((after - before)[:, mask == 1].abs().mean()) > 0.01


def test_an_inpainting_unet_is_shown_the_hole_and_what_is_around_it(tmp_path):
    tiny(inpaint=True).save_pretrained(tmp_path)
    pipeline = LayeredDiffusionPipeline.from_pretrained(tmp_path, device="cpu")
    before, mask = torch.rand(3, 64, 64), torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    seen = []
    hook = pipeline.model.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    pipeline.repaint(plan_repaint(before, mask, soften=0, unit=pipeline.unit), "a cat", steps=1)
    hook.remove()
    assert seen[0].shape == (2, 9, 8, 8)
    assert seen[0][0, 4].tolist() == torch.nn.functional.max_pool2d(mask[None], 8)[0].tolist()
    hole = before * (1 - mask) + 0.5 * mask
    torch.testing.assert_close(seen[0][:, 5:], pipeline.encode(hole[None]).expand(2, -1, -1, -1))


def test_an_inpainting_unet_makes_a_picture_from_words_too(tmp_path):
    tiny(inpaint=True).save_pretrained(tmp_path)
    assert LayeredDiffusionPipeline.from_pretrained(tmp_path, device="cpu").generate_layer(
        "a cat", steps=1, width=64, height=64
    ).size == (64, 64)


def test_a_size_that_fits_no_cell_comes_out_as_it_went_in(pipeline):
    document = LayerDocument(
        101, 67, (Layer("back", torch.ones(67, 101, 4)), Layer("box", torch.rand(30, 30, 4), x=70, y=40))
    )
    assert pipeline.harmonize(document, steps=2).size == (101, 67)


@pytest.mark.parametrize("options", [{"background": 2.0}, {"blur": -1.0}, {"steps": 0}])
def test_bad_values_are_named(pipeline, options):
    with pytest.raises(LayeredError, match="allowed"):
        pipeline.harmonize(collage_document(), **options)
