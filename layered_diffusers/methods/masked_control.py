"""Masked ControlNets and T2I-Adapters on diffusers UNets."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, T2IAdapter
from torch import Tensor

from demo.world.places import CONTROL
from layered_core.control.control_map import ControlMap, fitted, inpaint_hint, soft_weights, weighted
from layered_core.control.hints import document_hint
from layered_core.document import Control, LayerDocument
from layered_core.errors import LayeredError, invalid
from layered_core.noise.window import Window, sigma_at
from layered_core.painting.repaint import Repaint
from layered_diffusers.models.loading import DTYPE
from layered_diffusers.sampling import Method, Run

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class MaskedControl(Method):
    """One ControlNet or T2I-Adapter whose residuals are weighted per pixel by a control map. Several of these
    methods add up."""

    net: ControlNetModel | T2IAdapter
    hint: Tensor
    """The control picture, ``[3, H, W]`` in 0..1, of the sampled picture's aspect ratio."""
    map: ControlMap
    """The weights, of any size with that aspect ratio."""

    def cut_out(self, plan: Repaint) -> Self:
        """Return the same net with hint and weights cut as the picture is."""
        other = copy.copy(self)
        if not plan.is_whole:
            other.hint = plan.cut_layout(self.hint)
            other.map = replace(self.map, masks=plan.cut_layout(self.map.masks))
        return other

    def start(self, run: Run, stack: Any) -> None:
        """Check the net and fit the hint and the map to the size of the run."""
        check_fits(self.net, run)
        unit = 8 * 2 ** (len(run.unet.config.block_out_channels) - 1)
        height, width = (8 * s for s in run.latents.shape[-2:])
        self.picture = fitted(self.hint[None], height, width, unit).to(run.latents.device, self.net.dtype)
        self.fitted = replace(self.map, masks=fitted(self.map.masks, height, width, unit))
        self._alphas = run.scheduler.alphas_cumprod
        self._windows = [Window.of_shares(self._alphas, c.start, c.end) for c in self.map.controls]
        self.features: list[Tensor] = self.net(self.picture) if isinstance(self.net, T2IAdapter) else []

    def model_inputs(self, run: Run, model_input: Tensor, index: int) -> dict[str, Any]:
        """Return the net's weighted residuals; nothing if no layer's control is active at this step."""
        sigma = sigma_at(self._alphas, float(run.timesteps[index]))
        weight = self.fitted.at([window.acts(sigma) for window in self._windows])
        if not isinstance(weight, Tensor) and weight == 0:
            return {}
        cells = (model_input.shape[-2], model_input.shape[-1])
        cond_only = self.map.mode == "control"
        part = slice(len(model_input) // 2, None) if cond_only else slice(None)
        given = self._residuals(run, model_input[part], part, index)
        depths = soft_weights(len(given), self.map.mode, adapter=bool(self.features))
        residuals = [
            weighted(r, weight, cells) if d == 1 else weighted(r, weight, cells) * d
            for r, d in zip(given, depths, strict=True)
        ]
        if cond_only:
            residuals = [torch.cat([torch.zeros_like(r), r]) for r in residuals]
        if self.features:
            return {"down_intrablock_additional_residuals": residuals}
        return {
            "down_block_additional_residuals": tuple(residuals[:-1]),
            "mid_block_additional_residual": residuals[-1],
        }

    def _residuals(self, run: Run, seen: Tensor, part: slice, index: int) -> list[Tensor]:
        """Return the residuals for the rows ``part`` of the batch, from the outermost to the deepest."""
        if isinstance(self.net, T2IAdapter):
            return [f.expand(len(seen), -1, -1, -1) for f in self.features]
        added = {"added_cond_kwargs": {k: v[part] for k, v in run.added.items()}} if run.added else {}
        picture = self.picture.expand(len(seen), -1, -1, -1)
        down, middle = self.net(
            seen, run.timesteps[index], run.context[part], controlnet_cond=picture, return_dict=False, **added
        )
        return [*down, middle]


class InpaintControl(MaskedControl):
    """An inpainting ControlNet, e.g. lllyasviel/control_v11p_sd15_inpaint, which gets the picture with a hole
    where something new is to be painted."""

    def __init__(self, net: ControlNetModel, picture: Tensor, mask: Tensor) -> None:
        """Take ``picture`` ``[3, H, W]`` in 0..1 and ``mask`` ``[H, W]``, 1 where to paint. See
        :func:`layered_core.control.control_map.inpaint_hint`."""
        if not isinstance(net, ControlNetModel):
            raise invalid(
                "control",
                type(net).__name__,
                "a ControlNetModel",
                "Load a ControlNet that was made for inpainting",
            )
        super().__init__(net, picture, ControlMap(torch.ones(1, *mask.shape), (Control(),)))
        self.mask = mask

    def cut_out(self, plan: Repaint) -> Self:
        """Return the same net with picture and hole cut as the picture is."""
        other = super().cut_out(plan)
        if not plan.is_whole:
            other.mask = plan.cut_layout(self.mask)
        return other

    def start(self, run: Run, stack: Any) -> None:
        """Prepare as :class:`MaskedControl`, then cut the hole into the hint."""
        super().start(run, stack)
        unit = 8 * 2 ** (len(run.unet.config.block_out_channels) - 1)
        height, width = self.picture.shape[-2:]
        self.picture = inpaint_hint(self.picture, fitted(self.mask, height, width, unit))


def document_control(
    document: LayerDocument,
    net: ControlNetModel | T2IAdapter | None = None,
    *,
    strength: float = 1.0,
    mode: str = "balanced",
    outline: bool = False,
) -> MaskedControl:
    """Return the control that a document's recipes ask for, all of it by one net (None: the storybook's, for
    Canny edges).

    ``strength`` and ``mode`` are those of :class:`ControlMap`, ``outline`` is that of :func:`document_hint`.
    """
    control_map = ControlMap.of(document, strength=strength, mode=mode)
    return MaskedControl(
        load_controlnet() if net is None else net, document_hint(document, outline=outline), control_map
    )


def check_fits(net: ControlNetModel | T2IAdapter, run: Run) -> None:
    """Raise :class:`LayeredError` unless the net is of the UNet's family and shape."""
    config = run.unet.config
    if isinstance(net, T2IAdapter):
        levels = len(config.block_out_channels)
        full = net.config.adapter_type != "full_adapter_xl"
        pairs = {
            "channels": (net.config.channels[:levels], config.block_out_channels),
            "number of resolutions": (4 if full else 3, levels),
        }
    else:
        keys = ("in_channels", "cross_attention_dim", "block_out_channels", "down_block_types")
        pairs = {key: (net.config[key], config[key]) for key in keys}
    for key, (got, wanted) in pairs.items():
        if _plain(got) != _plain(wanted):
            raise invalid(
                f"ControlNet's {key}",
                got,
                str(wanted),
                "The net was made for another model family: load one for this model",
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def load_controlnet(
    folder: str | Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> ControlNetModel | T2IAdapter:
    """Load a ControlNet or T2I-Adapter from a folder in the diffusers layout; None loads the storybook's.

    Raises:
        LayeredError: the folder is missing or broken. Nothing is downloaded.
    """
    folder = Path(folder) if folder is not None else CONTROL
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
        net = {"ControlNetModel": ControlNetModel, "T2IAdapter": T2IAdapter}[kind]
        return (
            net.from_pretrained(folder, **{DTYPE: dtype}, local_files_only=True, use_safetensors=True)
            .to(device)
            .eval()
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        fix = "Name a folder with the config.json of a ControlNetModel or T2IAdapter and a .safetensors file"
        raise LayeredError(f"ControlNet {str(folder)!r} cannot be loaded: {error}. {fix}") from None
