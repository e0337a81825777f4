"""Vision guidance: a vector of the latent space, planted where a layer is to be.

After Qi et al., "Layered Rendering Diffusion Model for Controllable Zero-Shot Image Synthesis" (arXiv
2311.18435), section 3 and algorithm 1. While the noise is high, every layer is predicted by itself, with its own
words, at the latents shifted by ``Xi = lambda delta (2 M - 1)``; the layers' predictions are fused by their
masks. Three things differ from the paper, each because it measured better (docs/decisions/0018): delta has one
length for all layers and is found from the model's own prediction; masks are soft; and the *denoised* predictions
are fused, so that models which predict noise, velocity and flow do the same.

Tensors come in rows: one for every part of every picture of a batch, ``R`` in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import invalid
from ..noise.guidance import PREDICTIONS

CELLS = 0.03
"""Share of the cells, those in which a layer's words change the prediction most, whose mean gives its colour."""


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale vectors ``[R, C]`` to a root mean square of 1, so that a strength means the same for all of them; a
    vector of 0 stays 0."""
    length = vectors.square().mean(-1, keepdim=True).sqrt()
    return torch.where(length > 0, vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny), 0.0)


def vision_guidance(colours: Tensor, masks: Tensor, strengths: Tensor) -> Tensor:
    """Compute what is planted, ``strength * colour * (2 M - 1)``, as ``[R, C, h, w]`` in the scale of the model's
    input: the colour inside a part's mask, its opposite outside.

    Args:
        colours: unit vectors ``[R, C]``.
        masks: of the parts, ``[R, h, w]`` in 0..1.
        strengths: of the parts, ``[R]``, 0..1; 0 for a part that is not led.
    """
    return (strengths[:, None] * colours)[..., None, None] * (2 * masks[:, None] - 1)


def input_factor(sigma: float, flow: bool) -> float:
    """Return the factor from the scale of the model's input to that of latents ``x0 + sigma noise``:
    ``sqrt(sigma^2 + 1)``; 1 for flow models, whose latents are given to the model as they are."""
    return 1.0 if flow else (sigma**2 + 1) ** 0.5


def left_in(sigma: float, kind: str) -> float:
    """Return how much of what is planted must be taken off a prediction at the shifted latents, so that the
    picture predicted from the latents *without* the shift is the one that the model saw: ``D(x + Xi)``.

    Without it, a step on the latents takes out again what was planted: all of it with noise prediction, next to
    nothing with velocity prediction. The paper's algorithm 1, read literally, does that.

    Args:
        sigma: the current noise level, above 0; for ``flow_prediction`` in 0..1.
        kind: what is predicted, one of :data:`~layered_core.noise.guidance.PREDICTIONS`.
    """
    if kind not in PREDICTIONS:
        raise invalid("prediction type", kind, ", ".join(PREDICTIONS))
    if kind == "sample":
        return 0.0
    return input_factor(sigma, flow=kind != "epsilon") / sigma


def fuse(predictions: Tensor, masks: Tensor, picture: Tensor) -> Tensor:
    """Fuse the predictions of the parts by their masks, ``sum_i M_i D_i``, into ``[B, C, h, w]``.

    Args:
        predictions: ``[R, C, h, w]``.
        masks: ``[R, h, w]``; at every cell those of one picture sum to 1.
        picture: which of the B pictures each row belongs to, int64 ``[R]``; every picture has a row.
    """
    fused = predictions.new_zeros(int(picture.max()) + 1, *predictions.shape[1:])
    return fused.index_add_(0, picture, masks[:, None].to(predictions) * predictions)


def word_colours(cond: Tensor, empty: Tensor) -> Tensor:
    """Find the colour of each part from the model's own idea of what its words change: the unit vector of the
    mean of ``D(x; words) - D(x; "")`` over the cells in which this difference is largest.

    Args:
        cond: denoised predictions for the parts' words at the run's first noise level, ``[R, C, h, w]``.
        empty: those for the empty prompt, ``[R, C, h, w]``.

    Returns:
        ``[R, C]``.
    """
    difference = cond - empty
    return unit_vectors(mean_over(difference, strongest_cells(difference)))


def noise_colours(noisy: Tensor, cond: Tensor, empty: Tensor) -> Tensor:
    """Find the colour of each part as the paper does (its dynamic vector): the unit vector of the mean of the
    latents' *noise* over the cells where the part's words act. Arguments as for :func:`word_colours`, and the
    noisy latents ``[R, C, h, w]``; the result is ``[R, C]``."""
    return unit_vectors(mean_over(noisy, strongest_cells(cond - empty)))


def picture_colours(latents: Tensor, grey: Tensor, masks: Tensor) -> Tensor:
    """Find the colour of each part from a picture: the unit vector of the mean over the part's mask of the
    picture's latents minus those of mid grey.

    Args:
        latents, grey: of the picture and of mid grey, in the model's scale, ``[R, C, h, w]``.
        masks: of the parts at that size, ``[R, h, w]``; of each some cell is above 0.

    Returns:
        ``[R, C]``.
    """
    weights = masks / masks.sum((1, 2), keepdim=True)
    return unit_vectors(((latents - grey) * weights[:, None].to(latents)).sum((2, 3)))


def strongest_cells(values: Tensor) -> Tensor:
    """Return the indices of the ``CELLS`` of the cells of each row in which ``values`` ``[R, C, h, w]`` are
    largest over all channels, int64 ``[R, K]``; at least one."""
    size = values.square().sum(1).flatten(1)
    return size.topk(max(1, round(CELLS * size.shape[1])), 1).indices


def mean_over(values: Tensor, cells: Tensor) -> Tensor:
    """Return the mean of values ``[R, C, h, w]`` over cells ``[R, K]``, ``[R, C]``."""
    chosen = cells[:, None].expand(-1, values.shape[1], -1)
    return values.flatten(2).gather(2, chosen).mean(2)
