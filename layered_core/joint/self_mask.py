"""Self-mask guidance: every layer is led away from what it would be if its own inside were blurred.

LayerDiff (arXiv 2403.11929) names such a guidance and gives no equation; this one is the project's own. It is
self-attention guidance (Hong et al., arXiv 2210.00939) with the layer's own mask, read from the layer itself, in place
of the model's attention, and on denoised predictions, so that models of all kinds do the same:

    X~ = X + m (G x0 - x0)                          in latents x0 + sigma noise
    D* = U + s (C - U) + g (C - D(X~; y))

X are a layer's noisy latents with its words y, U and C the pictures predicted from them without and with the words,
x0 = C, m where the layer is seen, G a Gaussian blur. Only the inside loses detail, and the noise stays the same.
Backgrounds and blends are not blurred; they are led as far as they see the layers. The published self-attention
guidance steps the noisy latents X~ themselves; its guidance is this one, with m = 1, less what the blur took away:
``g (G x0 - D(X~))``.

Letters: S scenes, F frames, K layers, R = S F rows, as in :mod:`layered_core.joint.frames`; x is the model's input,
``(x0 + sigma noise) / sqrt(1 + sigma^2)``, or on flow models ``(1 - sigma) x0 + sigma noise``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..canvas.masks import mask_pyramid, visible_masks
from ..canvas.soft_masks import gaussian_blur
from ..noise.guidance import of_empty_picture
from ..noise.window import Window
from .frames import SceneFrames

BLUR = 1.5
"""Standard deviation of the blur, cells."""

WINDOW = Window(8.0, 1.0)
"""Where it acts: before, there is no layer to be seen in the prediction; after, no form is left to be decided."""


def frame_masks(alphas: Tensor, scene: SceneFrames, size: tuple[int, int]) -> Tensor:
    """Return where each frame is blurred, ``[R, h, w]``: the visible mask of a layer; 0 for backgrounds, blends and
    absent layers.

    Args:
        alphas: of the layers of every scene, back to front, ``[S, K, H, W]`` in 0..1; those of absent layers are not
            used.
        scene: the frames.
        size: h and w, cells.
    """
    absent = scene.absent(len(alphas))
    if absent is not None:
        alphas = alphas.masked_fill(absent[:, : scene.layers, None, None].to(alphas.device), 0.0)
    seen = torch.stack([visible_masks(layers)[0] for layers in alphas])
    cells = mask_pyramid(seen, [size])[0]
    return torch.nn.functional.pad(cells, (0, 0, 0, 0, 0, scene.frames - scene.layers)).flatten(0, 1)


def predicted_picture(prediction: Tensor, x: Tensor, sigma: float, kind: str) -> Tensor:
    """Return the picture x0 that a prediction stands for, ``[R, C, h, w]``.

    Args:
        prediction: of the model, ``[R, C, h, w]``.
        x: the model's input, of the same shape.
        sigma: the noise level.
        kind: what is predicted, one of :data:`~layered_core.noise.guidance.PREDICTIONS`.
    """
    return (prediction - of_empty_picture(x, sigma, kind)) / _unit(sigma, kind)


def _unit(sigma: float, kind: str) -> float:
    """Return what the model predicts for each unit of the picture, its input being given."""
    if kind == "sample":
        return 1.0
    return -((1 + sigma**2) ** 0.5) / sigma if kind == "v_prediction" else -1 / sigma


def blurred_inside(x: Tensor, picture: Tensor, masks: Tensor, sigma: float, kind: str) -> Tensor:
    """Return the model's input with each frame blurred inside its own mask, and the same noise, ``[R, C, h, w]``.

    Args:
        x, sigma, kind: as in :func:`predicted_picture`.
        picture: x0, of the shape of ``x``.
        masks: ``[R, h, w]`` in 0..1. Neutral: 0.
    """
    share = 1 - sigma if kind == "flow_prediction" else (1 + sigma**2) ** -0.5
    lost = masks[:, None] * (gaussian_blur(picture, BLUR) - picture)
    return x + (share * lost).to(x)


def self_mask_guided(
    guided: Tensor, cond: Tensor, x: Tensor, blurred_cond: Tensor, blurred_x: Tensor, amount: float, sigma: float,
    kind: str,
) -> Tensor:  # fmt: skip
    """Return the guided prediction with self-mask guidance, ``[R, C, h, w]``.

    Args:
        guided: the prediction after classifier-free guidance.
        cond: the prediction with the words, from ``x``.
        x, sigma, kind: as in :func:`predicted_picture`.
        blurred_cond: the prediction with the words, from ``blurred_x``, which is what :func:`blurred_inside` gave.
        amount: g, 0 or more; usual .5 to 1. Neutral: 0.
    """
    if amount == 0:
        return guided
    sharp = cond - of_empty_picture(x, sigma, kind)
    blurred = blurred_cond - of_empty_picture(blurred_x, sigma, kind)
    return guided + (amount * (sharp - blurred)).to(guided)
