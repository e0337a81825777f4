"""ControlNet per layer: where and how strongly the residuals of one net act.

Collage Diffusion (arXiv 2303.00262, section 4) multiplies a ControlNet's residuals by a map of per-layer
weights. Layers that use the same net are evaluated together: their hints form one picture, their weights one
map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from ..canvas.masks import document_masks
from ..canvas.resizing import resized
from ..document import Control, LayerDocument
from ..errors import LayeredError, check_number, invalid

CONTROL_MODES = ("balanced", "prompt", "control")
"""Which of prompt and control matters more. The weights are those of sd-webui-controlnet's control modes (its
``hook.py``).

* ``balanced``: both alike; all residuals keep their weight.
* ``prompt``: the prompt; residuals are weaker by a factor of 0.825 for each level outwards from the deepest.
* ``control``: the control; weights as with ``prompt``, and only on cond, so that guidance amplifies the
  control.
"""

SOFT = 0.825
"""Factor from one residual to the next one outwards, in the modes ``prompt`` and ``control``."""

SOFT_ADAPTER = (0.25, 0.62, 0.825, 1.0)
"""Factors of the four features of a T2I-Adapter in these modes, outermost first."""


@dataclass(frozen=True, eq=False)
class ControlMap:
    """Weights of one net's residuals over the canvas, as a sum over layers."""

    masks: Tensor
    """Visible masks of K layers, float ``[K, H, W]`` in 0..1."""
    controls: tuple[Control, ...]
    """Strength, start and end of each layer's control, K of them."""
    mode: str = "balanced"
    """One of ``CONTROL_MODES``."""
    strength: float = 1.0
    """Factor on the strength of every layer, 0..2. Neutral: 1."""

    def __post_init__(self) -> None:
        check_number("control strength", self.strength, 0, 2)
        if self.mode not in CONTROL_MODES:
            raise invalid("control mode", self.mode, ", ".join(CONTROL_MODES))
        if (
            self.masks.ndim != 3
            or len(self.masks) != len(self.controls)
            or not self.masks.shape[-1]
            or not self.masks.shape[-2]
        ):
            raise invalid(
                "control masks' shape",
                list(self.masks.shape),
                f"[{len(self.controls)}, height, width], one mask a control",
            )
        if not bool(((self.masks >= 0) & (self.masks <= 1)).all()):
            raise invalid(
                "control masks' values",
                f"{float(self.masks.min())}..{float(self.masks.max())}",
                "0..1 and no NaN",
            )

    @classmethod
    def of(cls, document: LayerDocument, *, strength: float = 1.0, mode: str = "balanced") -> ControlMap:
        """Return the map of a document: the visible masks of the layers whose recipe has a control hint.
        ``strength`` is a factor on all of them, 0..2.

        Raises:
            LayeredError: no visible layer has a hint.
        """
        shown, _ = document_masks(document)
        chosen = [
            i for i, layer in enumerate(document) if layer.visible and layer.recipe.control.hint != "none"
        ]
        if not chosen:
            names = ", ".join(repr(layer.name) for layer in document) or "none"
            raise LayeredError(
                f"layers: no visible layer has a control hint (layers: {names}). Set control_hint on a "
                f"layer, e.g. canny"
            )
        return cls(shown[chosen], tuple(document.layers[i].recipe.control for i in chosen), mode, strength)

    def at(
        self,
        active: Sequence[bool],
        masks: Tensor | None = None,
        response: Callable[[float], float] = float,
    ) -> Tensor | float:
        """Return the sum of mask times strength over the ``active`` layers, ``[H, W]``; a plain number if it
        is the same everywhere.

        Args:
            active: whether each layer acts.
            masks: ``[B, K, H, W]``, e.g. those of tiles; they take the place of the map's own and give
                ``[B, H, W]``.
            response: makes the factor on the residuals of a strength.
        """
        masks = self.masks if masks is None else masks
        total = masks.new_zeros(*masks.shape[:-3], *masks.shape[-2:])
        for mask, control, on in zip(masks.unbind(-3), self.controls, active, strict=True):
            if on:
                total = total + mask * response(control.strength * self.strength)
        first = total.flatten()[0]
        return float(first) if bool((total == first).all()) else total


def soft_weights(count: int, mode: str, adapter: bool = False) -> list[float]:
    """Return the factors of ``count`` residuals, from the outermost to the deepest, which has 1. With
    ``adapter`` they are for the features of a T2I-Adapter, 4 or fewer."""
    if mode == "balanced":
        return [1.0] * count
    return list(SOFT_ADAPTER[-count:]) if adapter else [SOFT ** (count - 1 - i) for i in range(count)]


def weighted(residual: Tensor, weight: Tensor | float, cells: tuple[int, int]) -> Tensor:
    """Return a residual times a weight map, as a new tensor: the given one may be shared.

    Args:
        residual: ``[B, C, h, w]`` of a UNet, or ``[B, N, C]`` tokens of a transformer, row by row.
        weight: ``[H, W]`` of any size, or one for each row of the batch, ``[B, H, W]``, resized to the
            residual's by area (each cell is the mean of the pixels that it covers), or a number.
        cells: height and width of the latent, which give the grid of the tokens.

    Raises:
        LayeredError: the number of tokens fits no grid of the latent's shape.
    """
    if not isinstance(weight, Tensor):
        return residual * weight
    grid = (
        (residual.shape[-2], residual.shape[-1])
        if residual.ndim == 4
        else token_grid(residual.shape[1], cells)
    )
    small = on_grid(weight, grid).to(residual.device, residual.dtype)
    return residual * (small.unsqueeze(-3) if residual.ndim == 4 else small.flatten(-2).unsqueeze(-1))


def on_grid(weight: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize ``[..., H, W]`` to ``grid`` cells: by area if it shrinks, bilinear if it grows."""
    shrinks = weight.shape[-2] >= grid[0] and weight.shape[-1] >= grid[1]
    image = weight.reshape(-1, *weight.shape[-2:]).float()
    small = functional.adaptive_avg_pool2d(image, grid) if shrinks else resized(image, *grid)
    return small.reshape(*weight.shape[:-2], *grid)


def token_grid(tokens: int, cells: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the grid of ``tokens`` patches of a latent of ``cells`` (height, width).
    Patches are squares of 1, 2 or 4 cells; the last ones may be padded.

    Raises:
        LayeredError: no such grid has that number of tokens.
    """
    for patch in (1, 2, 4):
        rows, columns = -(-cells[0] // patch), -(-cells[1] // patch)
        if rows * columns == tokens:
            return rows, columns
    raise invalid(
        "control residual's number of tokens", tokens, f"a grid of the latent of {cells[1]}x{cells[0]} cells"
    )


def fitted(pictures: Tensor, height: int, width: int, unit: int) -> Tensor:
    """Fit pictures or masks ``[..., H, W]`` in 0..1 to the size of a model's picture.

    Where only the model's padding to a multiple of ``unit`` pixels is missing, the edge is repeated;
    otherwise they are scaled.

    Raises:
        LayeredError: the aspect ratio differs by more than 2 %.
    """
    own_height, own_width = pictures.shape[-2:]
    flat = pictures.reshape(1, pictures.shape[:-2].numel(), own_height, own_width)
    if 0 <= height - own_height < unit and 0 <= width - own_width < unit:
        fit = functional.pad(flat, (0, width - own_width, 0, height - own_height), mode="replicate")
    elif abs(own_width * height - own_height * width) > 0.02 * own_width * height:
        raise invalid(
            "control hint's size",
            f"{own_width}x{own_height}",
            f"the aspect ratio of the picture, {width}x{height}",
            "Crop it to that",
        )
    else:
        fit = resized(flat, height, width)
    return fit.clamp(0, 1).reshape(*pictures.shape[:-2], height, width)


def inpaint_hint(pictures: Tensor, mask: Tensor) -> Tensor:
    """Return the hint of an inpainting ControlNet: pictures ``[..., 3, H, W]`` in 0..1, with -1 where
    ``mask`` ``[H, W]`` is above 0.5.

    This is the form that lllyasviel/control_v11p_sd15_inpaint was trained with, and that diffusers'
    documentation of inpainting describes.
    """
    return pictures.masked_fill(mask.to(pictures.device) > 0.5, -1.0)


def centre_crop(weight: Tensor, height: int, width: int) -> Tensor:
    """Return the largest centred part of ``[..., H, W]`` with the aspect ratio ``height`` : ``width``, as ComfyUI
    crops a hint before it scales it."""
    own_height, own_width = weight.shape[-2:]
    if own_width * height > width * own_height:
        margin = round((own_width - own_height * width / height) / 2)
        return weight[..., margin : own_width - margin]
    margin = round((own_height - own_width * height / width) / 2)
    return weight[..., margin : own_height - margin, :]
