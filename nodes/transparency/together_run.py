"""Sample the pictures of a scene at once, some of them held, with a preview of all of them in one strip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import latent_preview
import torch
from comfy.taesd.taesd import TAESD
from torch import Tensor

from ...layered_core.joint.editing import LayersPlan, frames_to_encode
from ...layered_core.joint.frames import SceneFrames
from ...layered_core.joint.network import LayersAtOnce
from ...layered_core.joint.self_mask import WINDOW, blurred_inside, frame_masks, self_mask_guided
from ...layered_core.transparency.layer_diffuse_files import mode_of, offset_scale_of
from ...layered_core.transparency.transparent_encode import encode
from ...layered_core.transparency.transparent_networks import TransparentDecoder, TransparentEncoder
from ..noise.change_map_patch import with_change_map
from .layer_diffuse_apply import act, join_network
from .layer_diffuse_run import ModelChange
from .transparent_decode import decode_pictures, managed
from .transparent_encode import posterior

JOINT = "foreground, background and blend"
"""The mode of LayerDiffuse whose frames are made."""

_DENOISED = "sample"
"""What ComfyUI's predictions are, to the core: pictures."""

DEAR = 4
"""Steps for which masks are kept where reading them is dear."""


@dataclass(frozen=True)
class Sampler:
    """Settings of KSampler."""

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


def model_at_once(
    model: comfy.model_patcher.ModelPatcher, units: LayersAtOnce, words: Sequence[Tensor | None],
    guide: SelfMask | None = None, held: bool = False,
) -> comfy.model_patcher.ModelPatcher:  # fmt: skip
    """Return a clone of a model that makes the frames of scenes at once. Keep it until nothing refers to ``units``:
    ComfyUI takes a network whose patcher is gone for lost memory.

    Args:
        model: the base model.
        units: what takes the place of its attentions.
        words: encoded words of each frame, ``[1, T, C]``; None: the scene's.
        guide: self-mask guidance. None: none.
        held: whether something is held, so that a noise mask is given.
    """
    clone = model.clone()
    join_network(clone, units)
    act(clone, ModelChange(mode_of(JOINT), 1.0, 0.0, 1.0, {}, sharing=units, words=tuple(words)))
    if guide is not None:
        clone.set_model_sampler_post_cfg_function(guide.guided)
    return with_change_map(clone) if held else clone


def sample_frames(
    model: comfy.model_patcher.ModelPatcher, frames: int, conds: Sequence[Any], start: Tensor,
    change: Tensor | None, settings: Sampler,
) -> Tensor:  # fmt: skip
    """Sample scenes, as KSampler does behind LayerDiffuse Apply.

    Args:
        model: of :func:`model_at_once`.
        frames: F.
        conds: positive and negative, as ComfyUI's CONDITIONING.
        start: latents of what is held, ``[R, C, h, w]`` in the VAE's scale; 0 where everything is made.
        change: how far each cell may change, ``[R, h, w]`` in 0..1. None: everything is made.
        settings: of the sampler.

    Returns:
        Latents ``[R, C, h, w]`` in the VAE's scale.
    """
    start = comfy.sample.fix_empty_latent_channels(model, start)
    noise = comfy.sample.prepare_noise(start, settings.seed)
    mask = None if change is None else change[:, None]
    shown = latent_preview.prepare_callback(model, settings.steps)
    return comfy.sample.sample(
        model, noise, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler, *conds, start,
        noise_mask=mask, callback=in_a_strip(shown, frames), seed=settings.seed,
    )  # fmt: skip


def in_a_strip(callback: Callable[..., Any], frames: int) -> Callable[..., Any]:
    """Return a sampler's callback to which the ``frames`` pictures of a scene, side by side, are one picture."""

    def shown(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        rows = x0.unflatten(0, (-1, frames))
        callback(step, rows.movedim(1, -2).flatten(-2), x, total)

    return shown


def held_latents(
    vae: comfy.sd.VAE, encoder: TransparentEncoder, file: str, plan: LayersPlan, frames: Sequence[int]
) -> Tensor:
    """Return the latents of what some frames show now, ``[n, C, h, w]`` in the VAE's scale.

    Args:
        vae: the model's.
        encoder: encodes layers with alpha.
        file: name of the encoder's file.
        plan: what the frames show.
        frames: their numbers.
    """
    scale = offset_scale_of(file, encoder.latent_channels)
    patcher, _ = managed(encoder, None)
    opaque = frames_to_encode(plan)
    found = []
    for frame in frames:
        behind = frame - plan.scene.layers
        if behind >= 0:
            found.append(vae.encode(opaque[behind : behind + 1].movedim(1, -1)).cpu())
            continue
        rgba = plan.pictures[frame : frame + 1]
        comfy.model_management.load_models_gpu(
            [patcher], memory_required=rgba.numel() * encoder.widths[0] * 4
        )
        rgba = rgba.to(patcher.load_device)
        found.append(encode(encoder, rgba, lambda grey: posterior(vae, grey), scale).cpu())
    return torch.cat(found)


class SelfMask:
    """Self-mask guidance of a run: see :mod:`layered_core.joint.self_mask`."""

    def __init__(
        self, amount: float, scene: SceneFrames, vae: comfy.sd.VAE, decoder: TransparentDecoder
    ) -> None:
        """Take what reads the layers' masks.

        Args:
            amount: g, above 0.
            scene: the frames.
            vae, decoder: decode the denoised latents.
        """
        self.amount, self.scene, self.vae, self.decoder = amount, scene, vae, decoder
        self._held = managed(decoder, None)
        # The storybook's decoder costs less than a step of its UNet; those of large VAEs cost several.
        self.every = 1 if isinstance(vae.first_stage_model, TAESD) else DEAR
        self._masks: Tensor | None = None
        self._age = 0

    def guided(self, given: dict[str, Any]) -> Tensor:
        """Return the guided prediction; ComfyUI calls this after classifier-free guidance."""
        sigma, x, cond = float(given["sigma"].flatten()[0]), given["input"], given["cond_denoised"]
        denoised: Tensor = given["denoised"]
        if not WINDOW.acts(sigma):
            return denoised
        masks = self._read(given["model"], cond)
        if not bool(masks.any()):
            return denoised
        size = (1 + sigma**2) ** 0.5
        blurred = size * blurred_inside(x / size, cond, masks, sigma, _DENOISED)
        (less,) = comfy.samplers.calc_cond_batch(
            given["model"], [given["cond"]], blurred, given["sigma"], given["model_options"]
        )
        return self_mask_guided(denoised, cond, x, less, blurred, self.amount, sigma, _DENOISED)

    def _read(self, model: comfy.model_base.BaseModel, picture: Tensor) -> Tensor:
        """Return the masks of all rows ``[R, h, w]``, read from denoised latents in the model's scale."""
        if self._masks is None or self._age >= self.every:
            latents = model.process_latent_out(picture).float().unflatten(0, (-1, self.scene.frames))
            alphas = self._alphas(latents[:, : self.scene.layers].flatten(0, 1))
            size = int(picture.shape[-2]), int(picture.shape[-1])
            masks = frame_masks(alphas.unflatten(0, (len(latents), -1)), self.scene, size)
            self._masks, self._age = masks.to(picture), 0
            # What decoding may have moved away.
            patcher = model.current_patcher
            comfy.model_management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
        self._age += 1
        return self._masks

    def _alphas(self, latents: Tensor) -> Tensor:
        pixels = self.vae.decode(latents)[..., :3].movedim(-1, 1)
        return decode_pictures(self.decoder, pixels, latents.to(pixels), 1, held=self._held)[..., 3]
