"""Families other than the storybook's: tiny random models of SD1.5 with AutoencoderKL, and of SDXL."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline


def text_config(width):
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=width,
        eos_token_id=49407,
    )


def parts(context, **unet):
    torch.manual_seed(0)
    shape = {
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
    }
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return {
        "unet": UNet2DConditionModel(**shape, **blocks, cross_attention_dim=context, **unet),
        "vae": AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[32] * 4,
            latent_channels=4,
        ),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(STORYBOOK / "tokenizer"),
        "text_encoder": CLIPTextModel(text_config(16)),
    }


def sd15():
    return StableDiffusionPipeline(
        **parts(16), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def sdxl():
    added = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * 6 + 16,
    }
    second = CLIPTextModelWithProjection(text_config(16))
    return StableDiffusionXLPipeline(
        **parts(32, **added),
        text_encoder_2=second,
        tokenizer_2=CLIPTokenizer.from_pretrained(STORYBOOK / "tokenizer"),
    )


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
