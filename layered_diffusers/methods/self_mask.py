"""Self-mask guidance of layers that are made at once, on a diffusers model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from layered_core.errors import check_number, check_whole
from layered_core.joint.frames import SceneFrames
from layered_core.joint.self_mask import (
    WINDOW,
    blurred_inside,
    frame_masks,
    predicted_picture,
    self_mask_guided,
)
from layered_core.noise.window import sigma_at
from layered_diffusers.sampling import Method, Run, taken

MOST = 2.0
"""Greatest amount."""


class SelfMask(Method):
    """Lead each layer away from itself with its inside blurred, see :mod:`layered_core.joint.self_mask`. It stands
    beside :class:`~layered_diffusers.methods.joint_layers.JointLayers`, and costs one more pass of all rows in the
    steps of its window."""

    def __init__(
        self,
        scene: SceneFrames,
        prompts: Sequence[str],
        alphas: Callable[[Tensor], Tensor],
        amount: float = 1.0,
        *,
        every: int = 1,
    ) -> None:
        """Take what tells where layers are seen.

        Args:
            scene: the frames of the scenes in the batch.
            prompts: of all rows.
            alphas: reads the alphas ``[n, H, W]`` of clean latents of layers, ``[n, C, h, w]``.
            amount: g, 0..``MOST``; usual .5 to 1. Neutral: 0.
            every: read the masks in every so many steps of the window, and keep them between; 1 or more.

        Raises:
            LayeredError: a number is out of range.
        """
        check_number("self-mask guidance", amount, 0, MOST)
        check_whole("steps between the masks of self-mask guidance", every, 1, 1000)
        self.scene, self.prompts, self.alphas = scene, list(prompts), alphas
        self.amount, self.every = amount, every
        self._masks: Tensor | None = None
        self._age = 0

    def start(self, run: Run, stack: ExitStack) -> None:
        """Forget the masks of an earlier run."""
        self._masks = None

    def guided(self, run: Run, prediction: Tensor, cond: Tensor, model_input: Tensor, index: int) -> Tensor:
        """Return the prediction with the guidance added, inside its window."""
        t = run.timesteps[index]
        sigma = sigma_at(run.scheduler.alphas_cumprod, float(t))
        if self.amount == 0 or not WINDOW.acts(sigma):
            return prediction
        kind = str(run.scheduler.config.prediction_type)
        picture = predicted_picture(cond, model_input, sigma, kind)
        masks = self.masks(picture.to(model_input.dtype))
        if not bool(masks.any()):
            return prediction
        blurred = blurred_inside(model_input, picture, masks.to(picture), sigma, kind)
        blurred_cond = self._pass(run, t, blurred)
        return self_mask_guided(
            prediction, cond, model_input, blurred_cond, blurred, self.amount, sigma, kind
        )

    def masks(self, picture: Tensor) -> Tensor:
        """Return where each row is blurred, ``[R, h, w]``, for the predicted pictures ``[R, C, h, w]``."""
        if self._masks is None or self._age >= self.every:
            scenes = picture.unflatten(0, (-1, self.scene.frames))
            alphas = self.alphas(scenes[:, : self.scene.layers].flatten(0, 1))
            size = int(picture.shape[-2]), int(picture.shape[-1])
            self._masks = frame_masks(alphas.unflatten(0, (len(scenes), -1)), self.scene, size).to(picture)
            self._age = 0
        self._age += 1
        return self._masks

    def _pass(self, run: Run, t: Tensor, model_input: Tensor) -> Tensor:
        """Return the conditional prediction of all rows for another input."""
        count = len(model_input)
        rows = torch.arange(count, 2 * count, device=model_input.device)
        if run.concat is not None:
            model_input = torch.cat([model_input, run.concat[rows]], 1)
        with run.texts(self.prompts):
            found: Tensor = run.unet(
                model_input, t, run.context[rows], **taken(run.more, rows, 2 * count)
            ).sample
        return found
