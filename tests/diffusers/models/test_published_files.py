"""The published LayerDiffuse files in ``$LAYER_MODEL_DIR`` are complete, fit the weights that they name, and
need the offset scale that we give them.

Without the variable the same checks run on the storybook's own small networks under published names, so that
the checks themselves are tested. The factor of an encoder's file (1, or 300 if it is not folded into the
weights)
is found from two figures: the norm of the last convolution compared with the other publication of the same
network, and the PSNR of alpha after the ordinary VAE and the decoder. The second needs the folders
``vae_sdxl`` and ``vae_sd15`` in ``$LAYER_MODEL_DIR``, in the diffusers layout, or the models in Hugging
Face's cache.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from demo.train.sprites import draw_sprite, padded
from demo.world.vocabulary import Thing
from layered_core.errors import LayeredError
from layered_core.metrics.picture_metrics import alpha_psnr
from layered_core.transparency.layer_diffuse_files import (
    FILES,
    LAYER_DIFFUSE_MODES,
    published,
    read_layer_model_file,
)
from layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    check_frames,
    check_modules,
    is_attention_sharing,
)
from layered_core.transparency.layer_diffuse_weights import check_pictures, read_patches
from layered_core.transparency.transparent_decode import decode
from layered_core.transparency.transparent_encode import encode
from layered_core.transparency.transparent_networks import TransparentDecoder, TransparentEncoder
from layered_diffusers.methods.layer_diffuse import attentions
from layered_diffusers.models.loading import STORYBOOK

FOLDER = os.environ.get("LAYER_MODEL_DIR")

AUTOENCODERS = {
    "vae_transparent_encoder": "vae_transparent_decoder",
    "ld_diffusers_sdxl_vae_transparent_encoder": "ld_diffusers_sdxl_vae_transparent_decoder",
    "layer_sd15_vae_transparent_encoder": "layer_sd15_vae_transparent_decoder",
}
"""The encoders, each with its decoder."""

TWINS = ("vae_transparent_encoder", "ld_diffusers_sdxl_vae_transparent_encoder")
"""Two publications of one network."""

VAES = {
    "sdxl": [("madebyollin/sdxl-vae-fp16-fix", ""), ("stabilityai/sdxl-vae", ""),
    ("stabilityai/stable-diffusion-xl-base-1.0", "vae")],
    "sd15": [("stable-diffusion-v1-5/stable-diffusion-v1-5", "vae"),
    ("runwayml/stable-diffusion-v1-5", "vae"), ("stabilityai/sd-vae-ft-mse", "")],
}  # fmt: skip

UNETS = {
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8,
    "cross_attention_dim": 768},
}  # fmt: skip


@pytest.fixture(scope="module")
def storybook_folder(tmp_path_factory):
    """Write the storybook's networks under published names. In one of the two encoder files the scale of 300
    is not folded in, as in the published one."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(STORYBOOK / "vae", folder / "vae_sdxl")
    encoder, decoder = (
        load_file(STORYBOOK / "transparent" / f"{part}.safetensors") for part in ("encoder", "decoder")
    )
    save_file(encoder, folder / f"{TWINS[0]}.safetensors")
    unfolded = {k: v.float() / 300 if k.startswith("blocks.16.") else v for k, v in encoder.items()}
    save_file(unfolded, folder / f"{TWINS[1]}.safetensors")
    for name in TWINS:
        save_file(decoder, folder / f"{AUTOENCODERS[name]}.safetensors")
    return folder


@pytest.fixture(params=["storybook", "published"])
def folder(request, storybook_folder, skip_suite):
    if request.param == "storybook":
        return storybook_folder
    if not FOLDER:
        skip_suite("published LayerDiffuse files", "LAYER_MODEL_DIR does not name a folder with them")
    return Path(FOLDER)


def needed(folder, *names):
    """Return the paths of files; skip the test if one is missing."""
    paths = [folder / f"{name}.safetensors" for name in names]
    for path in paths:
        if not path.is_file():
            pytest.skip(f"{path.name} is not there")
    return paths


def ordinary_vae(folder, family):
    """Load the family's VAE; skip the test if there is none."""
    for place, part in [(str(folder / f"vae_{family}"), ""), *VAES[family]]:
        for kind in (AutoencoderTiny, AutoencoderKL):
            try:
                return kind.from_pretrained(place, subfolder=part or None, local_files_only=True).eval()
            except (OSError, ValueError):
                continue
    return pytest.skip(f"no VAE of {family}: put one in the diffusers layout into vae_{family}")


def glass(side=512):
    """Draw a translucent disc with a soft edge in front of an opaque bar, RGBA ``[1, 4, side, side]``."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    disc = ((0.55 - (x**2 + y**2).sqrt()) * 12).clamp(0, 1) * (0.45 + 0.25 * y)
    bar = ((0.12 - (y - 0.3).abs()) * 40).clamp(0, 1) * ((0.75 - x.abs()) * 40).clamp(0, 1)
    return torch.stack([0.55 + 0.3 * x, 0.5 + 0.2 * y, 0.7 - 0.2 * x, torch.maximum(disc, bar)])[None]


def storybook_glass():
    """Draw a glass object for networks that were trained on the storybook only."""
    return padded(draw_sprite(Thing("glass", "blue", "ball"), np.random.default_rng(0)))[None]


@torch.no_grad()
def alpha_through(rgba, encoder, decoder, vae, scale):
    """Return the PSNR of alpha after encoder, VAE and decoder, dB."""

    def posterior(picture):
        found = vae.encode(picture * 2 - 1)
        if hasattr(found, "latents"):
            return found.latents, torch.ones_like(found.latents)
        return found.latent_dist.mean, found.latent_dist.std

    z = encode(encoder, rgba, posterior, scale)
    pixels = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    return alpha_psnr(decode(decoder, pixels, z)[0, 3], rgba[0, 3])


def test_two_publications_of_one_encoder_give_the_same_offset_each_at_its_own_scale(folder):
    norms = []
    for path in needed(folder, *TWINS):
        norms.append(
            float(read_layer_model_file(path)["blocks.16.weight"].float().norm())
            * published(path.name).offset_scale
        )
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_alpha_comes_back_at_the_scale_of_the_file_and_not_at_the_other(folder, name):
    paths = needed(folder, name, AUTOENCODERS[name])
    known = published(paths[0].name)
    vae = ordinary_vae(folder, known.family)
    encoder = TransparentEncoder.from_weights(read_layer_model_file(paths[0]), name)
    decoder = TransparentDecoder.from_weights(read_layer_model_file(paths[1]), AUTOENCODERS[name])
    rgba = glass() if folder == Path(FOLDER or "") else storybook_glass()
    right, wrong = (
        alpha_through(rgba, encoder, decoder, vae, scale)
        for scale in (known.offset_scale, 301 - known.offset_scale)
    )
    assert right > 25, (
        f"{right:.1f} dB at {known.offset_scale:g}, {wrong:.1f} dB at {301 - known.offset_scale:g}"
    )
    assert right > wrong + 1, (
        f"{right:.1f} dB at {known.offset_scale:g}, {wrong:.1f} dB at {301 - known.offset_scale:g}"
    )


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_published_file_fits_the_model_it_is_for(file, skip_suite):
    if not FOLDER:
        skip_suite("published LayerDiffuse files", "LAYER_MODEL_DIR does not name a folder with them")
    (path,) = needed(Path(FOLDER), file.name.removesuffix(".safetensors"))
    assert path.stat().st_size == pytest.approx(file.megabytes * 1e6, rel=0.02)
    check_fits(read_layer_model_file(path), file)


def test_a_file_of_the_published_keys_and_shapes_passes_that_check_and_another_does_not():
    keys = json.loads((Path(__file__).parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text())[
        "layer_sd15_joint"
    ]
    weights = {k: torch.empty(shape, dtype=torch.float16, device="meta") for k, shape in keys.items()}
    check_fits(weights, published("layer_sd15_joint.safetensors"))
    with pytest.raises(LayeredError, match="makes 3 pictures, but the mode .* makes 2 pictures from one"):
        check_fits(weights, published("layer_sd15_fg2bg.safetensors"))


def check_fits(weights, file):
    """Check that a file's tensors fit the networks, or the UNet of its family in the mode of its task."""
    if file.task in ("encoder", "decoder"):
        network = {"encoder": TransparentEncoder, "decoder": TransparentDecoder}[file.task].from_weights(
            weights, file.name
        )
        assert network.widths == type(network)().widths
        return
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[file.family])
    mode = next(m for m in LAYER_DIFFUSE_MODES if m.task == file.task)
    if is_attention_sharing(weights):
        sharing = AttentionSharing.from_weights(weights, file.name)
        check_frames(sharing, mode, file.name)
        check_modules(
            sharing,
            [(a.to_q.in_features, a.to_k.in_features) for a in attentions(unet).values()],
            file.name,
            file.family,
        )
        return
    patches = read_patches(
        weights, {k: tuple(p.shape) for k, p in unet.named_parameters()}, 2, file.name, file.family
    )
    check_pictures(patches, mode, file.name)
    assert len(patches.lora) + len(patches.diff) >= 560
