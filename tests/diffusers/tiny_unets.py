"""Families other than the storybook's: tiny random models of SD1.5 with AutoencoderKL, and of SDXL."""

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from layered_diffusers.models.loading import STORYBOOK


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
