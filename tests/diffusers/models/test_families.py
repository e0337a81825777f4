"""Families other than the storybook's generate as their own pipelines do."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_unets import sd15, sdxl

from layered_diffusers.pipeline import LayeredDiffusionPipeline


@pytest.fixture(scope="module", params=[sd15, sdxl], ids=["sd15", "sdxl"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param.__name__)
    request.param().save_pretrained(path)
    return path


def test_a_folder_of_either_family_generates_adds_and_keeps_what_is_outside(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(folder, device="cpu")
    first = pipeline.generate_layer("a cat", steps=2, width=72, height=56)
    assert first.size == (72, 56)
    mask = Image.new("L", first.size)
    mask.paste(255, (8, 8, 40, 40))
    second = np.asarray(pipeline.add_layer(first, "a dog", mask, steps=2))
    outside = np.asarray(mask) == 0
    assert np.array_equal(second[outside], np.asarray(first)[outside])
    assert not np.array_equal(second, np.asarray(first))


def test_our_loop_equals_the_familys_own_pipeline(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(folder, device="cpu")
    ours = pipeline.generate(
        ["a cat"], negative="a dog", seeds=[3], steps=3, guidance=4.0, width=64, height=64
    )
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    theirs = pipeline.model(
        "a cat",
        negative_prompt="a dog",
        latents=latents,
        num_inference_steps=3,
        guidance_scale=4.0,
        width=64,
        height=64,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours, theirs.float(), atol=2e-4, rtol=0)


def test_fresh_noise_is_the_familys_own_with_one_generator_a_picture(folder):
    pipeline = LayeredDiffusionPipeline.from_pretrained(folder, device="cpu", sampler="euler_ancestral")
    ours = pipeline.generate(
        ["a cat", "a dog"], negative="a tree", seeds=[3, 4], steps=3, guidance=4.0, width=64, height=64
    )
    theirs = pipeline.model(
        ["a cat", "a dog"], negative_prompt=["a tree"] * 2,
        generator=[torch.Generator().manual_seed(s) for s in (3, 4)], num_inference_steps=3,
        guidance_scale=4.0, width=64, height=64, output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs.float(), atol=2e-4, rtol=0)
