"""Encode a transparent picture as a latent that carries its alpha, for image-to-image and inpainting."""

from __future__ import annotations

import comfy.ldm.modules.distributions.distributions
import comfy.model_management
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.errors import LayeredError, invalid
from ...layered_core.transparency.layer_diffuse_files import offset_scale_of
from ...layered_core.transparency.transparent_encode import crop_to_cells, encode, with_alpha
from ...layered_core.transparency.transparent_networks import TransparentEncoder
from ..layers.pictures import masks, pictures
from ..layers.socket import mask_to_presence
from .layer_model import layer_model_choices, read_layer_model
from .transparent_decode import managed


class TransparentEncode(io.ComfyNode):
    """Encode RGBA as LATENT."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the schema: everything that the user sees of the node."""
        choices = layer_model_choices("encoder")
        return io.Schema(
            node_id="LD_TransparentEncode",
            display_name="Transparent Encode",
            category="layered diffusion/transparency",
            description="Make a latent of a transparent picture that keeps its alpha, to sample further "
                "with LayerDiffuse Apply.",
            search_aliases=["layerdiffuse encode", "layered diffusion encode", "rgba to latent",
            "transparent vae", "img2img", "alpha"],
            inputs=[
                io.Image.Input("image", tooltip="RGBA with straight alpha, or RGB with a mask. Sides are "
                    "cut to multiples of 8, as VAE Encode does."),
                io.Vae.Input("vae", tooltip="The VAE of the model that will sample the latent."),
                io.Combo.Input(
                    "file", options=choices, default=choices[0],
                    tooltip="A transparent encoder of models/layer_model, of the model's family. "
                        "Published files that are missing are listed too: on running, the error says "
                        "where to get them.",
                ),
                io.Mask.Input(
                    "mask", optional=True,
                    tooltip="1 is transparent, as Load Image gives it; it replaces the image's alpha. "
                        "Not connected: the image's alpha, or opaque if it has none.",
                ),
                io.Float.Input(
                    "offset_scale", default=0.0, min=0.0, max=1000.0, step=1.0, advanced=True,
                    tooltip="Factor on the encoder's output: 1 or 300, depending on the file. 0: the "
                        "factor that the file is known to need, 300 for Flux, 1 for most. Neutral: 0.",
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The latent for the sampler, with "
                "LayerDiffuse Apply on the model.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        image: Tensor,
        vae: comfy.sd.VAE,
        file: str,
        mask: Tensor | None = None,
        offset_scale: float = 0.0,
    ) -> io.NodeOutput:
        """Load the encoder and encode the picture."""
        network = TransparentEncoder.from_weights(read_layer_model(file, "encoder"), file)
        scale = offset_scale or offset_scale_of(file, network.latent_channels)
        rgba = crop_to_cells(
            with_alpha(
                pictures(image).movedim(-1, 1), None if mask is None else mask_to_presence(masks(mask))
            )
        )
        patcher, dtype = managed(network, None)
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=rgba.numel() * network.widths[0] * 4
        )
        rgba = rgba.to(patcher.load_device)
        latents = torch.cat(
            [encode(network, picture, lambda grey: posterior(vae, grey), scale) for picture in rgba.split(1)]
        )
        return io.NodeOutput({"samples": latents.to(comfy.model_management.intermediate_device())})


def posterior(vae: comfy.sd.VAE, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a VAE's latents of ``picture`` [B, 3, H, W] in 0..1; the
    deviation is 1 for a VAE without one."""
    seen: list[Tensor] = []
    regularization = getattr(vae.first_stage_model, "regularization", None)
    hook = None
    if isinstance(regularization, torch.nn.Module):
        hook = regularization.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        mean = vae.encode(picture.movedim(1, -1))
    finally:
        if hook is not None:
            hook.remove()
    if mean.ndim != 4:
        raise invalid(
            "VAE: latent's shape",
            list(mean.shape),
            "[batch, channels, height, width]",
            "Load the VAE of an image model",
        )
    mean = mean.to(picture)
    if not seen or seen[0].shape[1] != 2 * mean.shape[1]:
        return mean, torch.ones_like(mean)
    if seen[0].shape[2:] != mean.shape[2:]:
        raise LayeredError(
            "VAE: memory was too short, so it encoded in tiles. Close other programs, or scale the image down"
        )
    moments = comfy.ldm.modules.distributions.distributions.DiagonalGaussianDistribution(seen[0])
    return mean, moments.std.to(picture)
