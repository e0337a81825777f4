"""Masked ControlNets on diffusers UNets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor
from torch.nn import functional

from layered_core.control import ControlMap, active_at, depth_weight, weighted
from layered_core.errors import LayeredError, invalid
from layered_diffusers.loading import STORYBOOK
from layered_diffusers.sampling import Method, Run

STORYBOOK_EDGES = STORYBOOK / "controlnet"
"""The storybook's own ControlNet: white edges on black."""


@dataclass
class MaskedControl(Method):
    """One ControlNet whose residuals act where and as strongly as a map says; several of them add up."""

    net: ControlNetModel
    hint: Tensor
    """``[3, H, W]`` in 0..1, scaled to the picture's size."""
    map: ControlMap

    def start(self, run: Run, stack: Any) -> None:  # noqa: ANN401
        """See :class:`Method`."""
        check_fits(self.net, run)
        height, width = (8 * s for s in run.latents.shape[-2:])
        hint = functional.interpolate(self.hint[None], (height, width), mode="bilinear", antialias=True)
        self.picture = hint.to(run.latents.device, self.net.dtype)

    def model_inputs(self, run: Run, model_input: Tensor, index: int) -> dict[str, Any]:
        """The net's weighted residuals; nothing where no layer's control is active."""
        weight = self.map.at(active_at(self.map.controls, index / max(len(run.timesteps) - 1, 1)))
        if not isinstance(weight, Tensor) and weight == 0:
            return {}
        cond_only = self.map.mode == "control"
        part = slice(len(model_input) // 2, None) if cond_only else slice(None)
        seen = model_input[part]
        added = {"added_cond_kwargs": {k: v[part] for k, v in run.added.items()}} if run.added else {}
        down, middle = self.net(
            seen, run.timesteps[index], run.context[part], controlnet_cond=self.picture.expand(len(seen), -1, -1, -1), return_dict=False, **added
        )
        cells = (model_input.shape[-2], model_input.shape[-1])
        residuals = [
            weighted(r, weight, cells) * depth_weight(i, len(down) + 1, self.map.mode) if self.map.mode != "balanced" else weighted(r, weight, cells)
            for i, r in enumerate([*down, middle])
        ]
        if cond_only:
            residuals = [torch.cat([torch.zeros_like(r), r]) for r in residuals]
        return {"down_block_additional_residuals": tuple(residuals[:-1]), "mid_block_additional_residual": residuals[-1]}


def check_fits(net: ControlNetModel, run: Run) -> None:
    """Raise :class:`LayeredError` unless the ControlNet is of the UNet's family and shape."""
    for key in ("in_channels", "cross_attention_dim", "block_out_channels", "down_block_types"):
        wanted, got = run.unet.config[key], net.config[key]
        if list(wanted if isinstance(wanted, (list, tuple)) else [wanted]) != list(got if isinstance(got, (list, tuple)) else [got]):
            raise invalid(f"ControlNet's {key}", got, str(wanted), "It was made for another model family: load one for this model")


def load_controlnet(folder: str | Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """A ControlNet from a folder in the diffusers layout; None for the storybook's.

    Raises:
        LayeredError: the folder is missing or broken. Nothing is downloaded.
    """
    folder = Path(folder) if folder is not None else STORYBOOK_EDGES
    try:
        return ControlNetModel.from_pretrained(folder, local_files_only=True, torch_dtype=dtype, use_safetensors=True).to(device).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise LayeredError(f"ControlNet {str(folder)!r} cannot be loaded: {error}. Name a folder with config.json and a .safetensors file") from None
