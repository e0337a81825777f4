"""A ControlNet of ComfyUI whose residuals are weighted by layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.controlnet
import torch
from torch import Tensor

from ...layered_core.canvas.resizing import resized
from ...layered_core.control.control_map import ControlMap, centre_crop, soft_weights, weighted
from ...layered_core.errors import LayeredError
from ...layered_core.noise.window import Window
from ..noise.cut_out import CutOut, size_of
from .control_family import check_family
from .control_masks import is_whole

IS_POSITIVE_KEY = "layered_diffusion_led"
"""Key of an entry in a conditioning's ``model_conds`` that marks each row of the batch as positive (1) or
negative (0). The numbers that ComfyUI gives the chunks of a batch would not do: guiders count differently,
and split batches when memory is short."""

_SAME_SIZE = (
    "Connect the layers too if it shows the whole picture, or choose another size in Regenerate Layers; for a "
    "hint of the cut-out without a mask, take ComfyUI's Apply ControlNet"
)
"""What to do where it is not known whether a hint shows the whole picture or the cut-out."""


class MaskedControl(comfy.controlnet.ControlBase):
    """A CONTROL_NET whose residuals are multiplied by a map; everything else is left to the inner net."""

    def __init__(
        self, inner: comfy.controlnet.ControlBase, control_map: ControlMap, on_canvas: bool = False
    ) -> None:
        """Wrap a net with its hint. ``on_canvas``: whether hint and map are laid out on the canvas of layers;
        otherwise they may also be made for a cut-out."""
        self.inner, self.map, self.on_canvas = inner, control_map, on_canvas
        self.windows: list[Window] = []
        super().__init__()

    @property
    def cond_hint_original(self) -> Tensor:
        """The hint with the masks as further channels, ``[B, C + K, H, W]``: nodes of other packs that sample
        tile by tile cut it, and set what is left here or as ``cond_hint``."""
        hint, masks = self.inner.cond_hint_original, self.map.masks
        fit = resized(masks, hint.shape[-2], hint.shape[-1]).to(hint)
        return torch.cat([hint, fit.expand(len(hint), *fit.shape)], 1)

    @cond_hint_original.setter
    def cond_hint_original(self, hint: Tensor | None) -> None:
        if hint is None:  # ComfyUI's constructor: the inner net has the hint
            return
        own, masks = self._split(hint)
        if bool((masks != masks[:1]).any()):
            raise LayeredError(
                f"layers: a node samples {len(hint)} tiles in one batch, in which Masked ControlNet Apply has "
                f"different masks. Set its number of tiles in a batch to 1"
            )
        self.inner.cond_hint_original, self.map = own, replace(self.map, masks=masks[0].clamp(0, 1))

    def _split(self, hint: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hint ``[B, C, H, W]`` and the masks ``[B, K, H, W]``."""
        channels = hint.shape[1] - len(self.map.masks)
        return hint[:, :channels], hint[:, channels:]

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Prepare for sampling; raises :class:`LayeredError` for a net of another model family."""
        super().pre_run(model, percent_to_timestep_function)
        check_family(self.inner, model)
        self.windows = [
            Window(percent_to_timestep_function(c.start), percent_to_timestep_function(c.end))
            for c in self.map.controls
        ]
        self.inner.pre_run(model, percent_to_timestep_function)

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: dict[str, Any]
    ) -> Any:
        """Return the residuals, added to those of the nets before. The net does not run when no layer is
        active."""
        rows = cond.get(IS_POSITIVE_KEY) if self.map.mode == "control" else None  # nets before remove it
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(
                x_noisy, t, cond, batched_number, transformer_options
            )
        cond.pop(IS_POSITIVE_KEY, None)  # the model itself does not know it
        if self.cond_hint is None:
            tile, masks = None, None
        else:
            tile, masks = self._split(self.cond_hint)
        sigma = float(t[0])
        active = [window.acts(sigma) for window in self.windows]
        weight = self.map.at(active, masks)
        if not isinstance(weight, Tensor) and weight == 0:
            return previous
        # One number for all cells becomes the net's own strength: the result is then ComfyUI's to the bit,
        # however the net uses its strength.
        everywhere = not isinstance(weight, Tensor)
        self.inner.strength = weight if everywhere else 1.0
        with _hinted(self.inner, tile):
            control = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if control is None:
            return previous
        cells = (x_noisy.shape[-2], x_noisy.shape[-1])
        weight = 1.0 if everywhere else centre_crop(self.map.at(active, masks, self._response()), *cells)
        out = self._weighted(control, weight, cells, rows)
        return self.control_merge(out, previous, output_dtype=None)

    def _response(self) -> Callable[[float], float]:
        """Return what the net makes of its strength. Qwen-Image's Fun ControlNets take the root of it."""
        is_fun = isinstance(self.inner, getattr(comfy.controlnet, "QwenFunControlNet", ()))
        return math.sqrt if is_fun else float

    def _weighted(
        self, control: Mapping[str, Any], weight: Tensor | float, cells: tuple[int, int], rows: Tensor | None
    ) -> dict[str, list[Any]]:
        """Return all residuals of one evaluation, weighted. A transformer uses one residual in many blocks;
        they share its weighted copy too."""
        # ComfyUI takes residuals from the end: an adapter's (input) outermost first, a ControlNet's (output)
        # deepest first.
        places = (
            *reversed(control.get("input") or ()),
            *(control.get("output") or ()),
            *(control.get("middle") or ()),
        )
        outwards_in = [r for r in places if r is not None]
        depths = soft_weights(len(outwards_in), self.map.mode, adapter=bool(control.get("input")))
        done = {
            id(r): _weigh(r, weight, depth, cells, rows) for r, depth in zip(outwards_in, depths, strict=True)
        }
        return {
            place: [None if r is None else done[id(r)] for r in residuals]
            for place, residuals in control.items()
        }

    def copy(self) -> MaskedControl:
        """Return a copy with a copy of the inner net and the same map."""
        return self._around(self.inner.copy())

    def _around(self, inner: comfy.controlnet.ControlBase) -> MaskedControl:
        other = MaskedControl(inner, self.map, self.on_canvas)
        self.copy_to(other)
        # The line above has set hint and masks from one picture of both.
        inner.cond_hint_original, other.map = self.inner.cond_hint_original, self.map
        return other

    def cut_out(self, cut: CutOut) -> MaskedControl:
        """Return a copy whose hint and map are cut as a picture is.

        Raises:
            LayeredError: it is not known whether they show the whole picture or the cut-out alone.
        """
        other, hint, masks = self.copy(), self.inner.cond_hint_original, self.map.masks
        if self.on_canvas:
            hint_is_whole = size_of(hint) in (cut.picture, size_of(masks)) or size_of(hint) != cut.part
            masks_are_whole = True
        elif cut.is_own_mask(masks):
            hint_is_whole = masks_are_whole = False
        else:
            hint_is_whole, masks_are_whole = (
                is_whole(x, cut, f"{w} of Masked ControlNet Apply", _SAME_SIZE)
                for x, w in ((hint, "image"), (masks, "mask"))
            )
        if hint_is_whole:
            other.inner.cond_hint_original = cut.plan.cut_layout(hint)
        if masks_are_whole:
            other.map = replace(self.map, masks=cut.plan.cut_layout(masks))
        return other

    def cleanup(self) -> None:
        """Release what sampling needed, here and in the inner net."""
        super().cleanup()
        self.inner.cleanup()

    def get_models(self) -> list[Any]:
        """Return the models that must be on the device."""
        return super().get_models() + self.inner.get_models()

    def get_extra_hooks(self) -> list[Any]:
        """Return the hooks of the inner net and of the nets before."""
        return super().get_extra_hooks() + self.inner.get_extra_hooks()

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Return the bytes that are needed beside the weights."""
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> MaskedControl:
        """Return a copy for another GPU."""
        other = self._around(self.inner.deepclone_multigpu(load_device))
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


@contextmanager
def _hinted(net: comfy.controlnet.ControlBase, hint: Tensor | None) -> Iterator[None]:
    """Give a net another hint for a while; None: its own."""
    own = net.cond_hint_original, net.cond_hint
    if hint is not None:
        net.cond_hint_original, net.cond_hint = hint, None
    try:
        yield
    finally:
        if hint is not None:
            net.cond_hint_original, net.cond_hint = own


def _weigh(
    residual: Tensor, weight: Tensor | float, depth: float, cells: tuple[int, int], rows: Tensor | None
) -> Tensor:
    out = weighted(residual, weight, cells)
    if depth != 1 and out.ndim == 4:
        out = out * depth
    return out if rows is None else out * rows.to(out).view(-1, *[1] * (out.ndim - 1))
