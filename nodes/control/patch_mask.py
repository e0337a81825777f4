"""Where and when a model patch acts in one sampling run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
from torch import Tensor

from ...layered_core.control.control_map import ControlMap
from ...layered_core.control.token_weights import PictureTokens, patch_weights
from ...layered_core.errors import LayeredError, invalid
from ...layered_core.noise.window import Window
from ..noise.cut_out import CutOut, cut_of, tell_of_hint, text_of
from .control_masks import is_whole

KEY = "layered_diffusion_patch_run"
"""The key of the run among a model's transformer options, and of our wrapper."""


@dataclass(eq=False)
class PatchRun:
    """One sampling run of a model with weighed patches. It keeps the weights, which are the same in every block
    and step."""

    cells: tuple[int, int]
    """Height and width of the latents that the run samples, cells."""
    percent_to_sigma: Callable[[float], float]
    """Of the model's noise schedule: a share of the sampling, 0..1, to a sigma."""
    cut: CutOut | None
    """The part of a picture that is sampled; None: the whole."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What was computed once for the run."""
    latest: tuple[Any, float] = (None, 0.0)
    """The sigmas of the latest evaluation, and the greatest of them."""

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return ``make()``, computed once for ``key``."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def sigma(self, sigmas: Tensor) -> float:
        """Return the sigma of an evaluation. It is read once for all blocks, as a GPU must be waited for."""
        latest = self.latest
        if latest[0] is not sigmas:
            self.latest = latest = (sigmas, float(sigmas.max()))
        return latest[1]


@dataclass(frozen=True, eq=False)
class PatchMask:
    """The weight of a model patch's change over the canvas and the run."""

    map: ControlMap
    """Masks, strengths and ranges."""
    on_canvas: bool
    """Whether the masks are laid out on the canvas of layers; otherwise they may also be made for a cut-out."""
    patch: int = 1
    """Side of the square of cells that one token of the model stands for."""
    multiple: int = 1
    """The model pads a picture's tokens to a multiple of it."""

    def weight(self, options: Mapping[str, Any]) -> Tensor | float:
        """Return the weight in this evaluation: ``[H, W]``, or a number if it is the same everywhere."""
        run = run_of(options)
        windows = run.once((self, "windows"), lambda: self._windows(run.percent_to_sigma))
        sigma = run.sigma(options["sigmas"])
        active = tuple(window.acts(sigma) for window in windows)
        return run.once((self, active), lambda: self.map.at(active, self._masks(run.cut)))

    def _windows(self, percent_to_sigma: Callable[[float], float]) -> list[Window]:
        return [Window(percent_to_sigma(c.start), percent_to_sigma(c.end)) for c in self.map.controls]

    def _masks(self, cut: CutOut | None) -> Tensor:
        """Return the masks ``[K, H, W]``, cut as the picture is."""
        masks = self.map.masks
        if cut is None or masks.shape[-2:] == (1, 1):
            return masks
        if not self.on_canvas:
            fix = "Connect layers, or choose another size in Regenerate Layers"
            if cut.is_own_mask(masks) or not is_whole(masks, cut, "mask of Masked Model Patch", fix):
                return masks
        return cut.plan.cut_layout(masks)

    def of_tokens(self, weight: Tensor, options: Mapping[str, Any], features: Tensor, **where: Any) -> Tensor:
        """Return the weights of image tokens ``[B, N, C]``, ``[1, N, 1]``; ``where``: see
        :meth:`PictureTokens.find`."""
        run, total = run_of(options), features.shape[1]

        def make() -> Tensor:
            found = PictureTokens.find(total, run.cells, self.patch, multiple=self.multiple, **where)
            return found.weights(weight).to(features.device)[None, :, None]

        return run.once((id(weight), total, features.device, *sorted(where.items())), make)

    def of_patches(self, weight: Tensor, options: Mapping[str, Any], features: Tensor) -> Tensor:
        """Return the weights of features ``[B, T, rows, columns, C]``, ``[1, 1, rows, columns, 1]``."""
        run = run_of(options)
        made = run.once(
            (id(weight), "patches", features.device),
            lambda: patch_weights(weight, run.cells, self.patch).to(features.device)[None, None, ..., None],
        )
        self.check_size(options, features.shape[2] * self.patch, features.shape[3] * self.patch)
        return made

    def check_size(self, options: Mapping[str, Any], height: int, width: int) -> None:
        """Raise :class:`LayeredError` unless the model samples the whole latent of the run, ``height`` and
        ``width`` cells after padding to whole patches."""
        own = run_of(options).cells
        if tuple(-(-n // self.patch) for n in own) != tuple(-(-n // self.patch) for n in (height, width)):
            raise invalid(
                "Masked Model Patch: size of the part that is sampled, in latent cells",
                text_of((width, height)),
                f"{text_of((own[1], own[0]))}, the whole latent: a model patch shows all of its picture to any part",
                "Use no tiles, and Conditioning (Set Mask) instead of (Set Area)",
            )


def run_of(options: Mapping[str, Any]) -> PatchRun:
    """Return the run that an evaluation belongs to."""
    run = options.get(KEY)
    if run is None:
        raise LayeredError(
            "Masked Model Patch: the model is evaluated outside ComfyUI's sampling (its wrapper OUTER_SAMPLE), so "
            "that masks have no size. Use KSampler, or a node with a GUIDER"
        )
    return run


def sample(
    executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, latent_image: Tensor, sampler: Any,
    sigmas: Tensor, denoise_mask: Tensor | None = None, *more: Any, **named: Any,
) -> Tensor:  # fmt: skip
    """Wrap a whole sampling run: tell the weighed patches what is sampled."""
    guider = executor.class_obj
    cut = cut_of(guider, latent_image, denoise_mask)
    options = guider.model_options.setdefault("transformer_options", {})
    if cut is not None:
        cut.check_size(noise)
        for patch in {id(p): p for group in options.get("patches", {}).values() for p in group}.values():
            tell_of_hint(picture_of(patch), cut)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    shapes = named.get("latent_shapes") or [noise.shape]
    options[KEY] = PatchRun((shapes[0][-2], shapes[0][-1]), sampling.percent_to_sigma, cut)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def picture_of(patch: Any) -> Tensor | None:
    """Return the control picture of a patch, ``[B, C, H, W]``, where it keeps one as ComfyUI's own do."""
    picture = getattr(patch, "image", None)
    return picture.movedim(-1, 1) if isinstance(picture, Tensor) and picture.ndim == 4 else None
