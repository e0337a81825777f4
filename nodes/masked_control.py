"""ControlNet per layer: the residuals of one net weighted by where layers are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.controlnet
import torch
from comfy_api.latest import io
from torch import Tensor

from ..layered_core.control import MODES, ControlMap, centre_crop, depth_weight, weighted
from ..layered_core.document import Control
from ..layered_core.errors import LayeredError, check_number, invalid
from ..layered_core.hints import document_hint
from .control_hint import preprocessor
from .layers import LAYERS, read_stack


class MaskedControl(comfy.controlnet.ControlBase):
    """A CONTROL_NET whose residuals are multiplied by a map; everything else is the inner net's own doing."""

    def __init__(self, inner: comfy.controlnet.ControlBase, control_map: ControlMap) -> None:
        super().__init__()
        self.inner, self.map = inner, control_map
        self.ranges: list[tuple[float, float]] = []

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:  # noqa: ANN401
        """Before sampling: refuses a net of another family."""
        super().pre_run(model, percent_to_timestep_function)
        check_family(self.inner, model)
        self.ranges = [(percent_to_timestep_function(c.start), percent_to_timestep_function(c.end)) for c in self.map.controls]
        self.inner.pre_run(model, percent_to_timestep_function)

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: Any, batched_number: int, transformer_options: dict[str, Any]) -> Any:  # noqa: ANN401
        """The residuals, after those of the nets before; the net is not asked where no layer is active."""
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        sigma = float(t[0])
        weight = self.map.at([begin >= sigma >= end for begin, end in self.ranges])
        if not isinstance(weight, Tensor) and weight == 0:
            return previous
        control = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if control is None:
            return previous
        cells = (x_noisy.shape[-2], x_noisy.shape[-1])
        if isinstance(weight, Tensor):
            weight = centre_crop(weight, *cells)
        rows = self._rows(len(x_noisy), transformer_options)
        out = {k: [None if x is None else self._weighted(x, weight, i, len(v) + 1, cells, rows) for i, x in enumerate(v)] for k, v in control.items()}
        if "middle" in out:
            out["middle"] = [None if x is None else self._weighted(x, weight, 0, 1, cells, rows) for x in control["middle"]]
        return self.control_merge(out, previous, output_dtype=None)

    def _weighted(self, residual: Tensor, weight: Tensor | float, index: int, count: int, cells: tuple[int, int], rows: Tensor | None) -> Tensor:
        out = weighted(residual, weight, cells)
        if residual.ndim == 4 and self.map.mode != "balanced":
            out = out * depth_weight(index, count, self.map.mode)
        return out if rows is None else out * rows.to(out).view(-1, *[1] * (out.ndim - 1))

    def _rows(self, batch: int, transformer_options: Mapping[str, Any]) -> Tensor | None:
        """1 for the rows that are controlled; None for all. ComfyUI marks each chunk of the batch: 0 positive, 1 negative."""
        marks = transformer_options.get("cond_or_uncond")
        if self.map.mode != "control" or not marks:
            return None
        return torch.tensor([float(m == 0) for m in marks]).repeat_interleave(batch // len(marks))

    def copy(self) -> MaskedControl:
        """As ComfyUI asks."""
        other = MaskedControl(self.inner.copy(), self.map)
        self.copy_to(other)
        return other

    def cleanup(self) -> None:
        """After sampling."""
        super().cleanup()
        self.inner.cleanup()

    def get_models(self) -> list[Any]:
        """What must be on the device."""
        return super().get_models() + self.inner.get_models()

    def get_extra_hooks(self) -> list[Any]:
        """Hooks of the inner net and of those before."""
        return super().get_extra_hooks() + self.inner.get_extra_hooks()

    def inference_memory_requirements(self, dtype: torch.dtype) -> float:
        """Bytes beside the weights."""
        return super().inference_memory_requirements(dtype) + self.inner.inference_memory_requirements(dtype)

    def deepclone_multigpu(self, load_device: torch.device, autoregister: bool = False) -> MaskedControl:
        """A copy for another GPU."""
        other = MaskedControl(self.inner.deepclone_multigpu(load_device), self.map)
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


def check_family(net: comfy.controlnet.ControlBase, model: Any) -> None:  # noqa: ANN401
    """Raise :class:`LayeredError` where a ControlNet reads words of another width than the model: it was made for another family."""
    own = getattr(net, "control_model", None)
    wanted, got = _context_width(model.diffusion_model), _context_width(own)
    if own is None or wanted is None or got == wanted:
        return
    raise invalid(
        "control_net: width of the words it reads", got, f"{wanted}, that of the model ({type(model).__name__})", "Load a ControlNet of this family"
    )


def _context_width(module: torch.nn.Module | None) -> int | None:
    """Width of the words that a UNet's cross-attention reads; None where there is none."""
    named = [] if module is None else module.named_parameters()
    return next((int(p.shape[1]) for n, p in named if n.endswith("attn2.to_k.weight")), None)


class MaskedControlNetApply(io.ComfyNode):
    """Conditioning with a ControlNet that acts inside layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the user sees."""
        return io.Schema(
            node_id="LD_MaskedControlNetApply",
            display_name="Masked ControlNet Apply",
            category="layered diffusion/control",
            description=(
                "Let a ControlNet act where layers are seen, each with its own strength and range. However many layers, the net runs once a step. "
                "Chains with ComfyUI's own Apply ControlNet."
            ),
            search_aliases=["controlnet", "regional controlnet", "controlnet mask", "apply controlnet", "control per layer"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="Words the picture follows."),
                io.Conditioning.Input("negative", tooltip="Words the picture avoids."),
                io.ControlNet.Input("control_net", tooltip="The net; it is not changed."),
                LAYERS.Input(
                    "layers", optional=True,
                    tooltip="Layers whose recipe has a control hint: each acts where it is seen, with its own strength, start and end.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="The hint. Not connected: drawn from the layers, as Layer Control Hint does with its defaults.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="Without layers: where the net acts, 1 is full. With layers: multiplies them. Neutral: all 1.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=2.0, step=0.01,
                    tooltip="Weight of the residuals, 0 to 2; multiplies the layers' own. Neutral: 0.",
                ),
                io.Float.Input(
                    "start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Share of the sampling at which it begins. Neutral: 0.",
                ),
                io.Float.Input(
                    "end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Share of the sampling at which it ends. Neutral: 1.",
                ),
                io.Combo.Input(
                    "mode", options=list(MODES), default="balanced", advanced=True,
                    tooltip="Who leads: both, the prompt (weaker outer residuals), or the control (those, on the positive alone). Neutral: balanced.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="For nets that read latents (SD3, Flux, Qwen). Not connected: none."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="With control."),
                io.Conditioning.Output(display_name="negative", tooltip="With control."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strength: float | None = None, start_percent: float | None = None, end_percent: float | None = None) -> bool | str:
        """What can be known before running; inputs that are linked come as None."""
        try:
            Control(strength=1.0 if strength is None else strength, start=start_percent or 0.0, end=1.0 if end_percent is None else end_percent)
        except LayeredError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, positive: Sequence[Any], negative: Sequence[Any], control_net: comfy.controlnet.ControlBase, strength: float, start_percent: float,
        end_percent: float, mode: str, layers: Mapping[str, Any] | None = None, image: Tensor | None = None, mask: Tensor | None = None,
        vae: Any = None,  # noqa: ANN401
    ) -> io.NodeOutput:  # fmt: skip
        """Wrap the net and put it on both conditionings, in front of what controls them already."""
        check_number("strength", strength, 0, 2)
        if strength == 0:
            return io.NodeOutput(positive, negative)
        control = Control(strength=strength, start=start_percent, end=end_percent)
        if layers is not None:
            document = read_stack(layers)
            control_map = _within(ControlMap.of(document, strength=strength, mode=mode), control, mask)
            if image is None:
                image = document_hint(document, preprocess=preprocessor)[None].movedim(1, -1)
        else:
            if image is None:
                raise LayeredError("image: nothing is connected, and no layers either. Connect a hint picture, or layers with a control hint")
            shown = torch.ones(1, *image.shape[1:3]) if mask is None else _one_mask(mask)
            control_map = ControlMap(shown, (control,), mode)
        _check_aspect(image, control_map)
        hint = image[..., :3].movedim(-1, 1)
        wrapped: dict[Any, MaskedControl] = {}
        return io.NodeOutput(*(_controlled(c, control_net, hint, control_map, vae, wrapped) for c in (positive, negative)))


def _controlled(
    conditioning: Sequence[Any], net: comfy.controlnet.ControlBase, hint: Tensor, control_map: ControlMap, vae: Any, wrapped: dict[Any, MaskedControl]  # noqa: ANN401
) -> list[list[Any]]:  # fmt: skip
    """Each conditioning with the net on top; those that had one net in common still have (ComfyUI batches by identity)."""
    out = []
    for words, options in conditioning:
        before = options.get("control")
        if before not in wrapped:
            control = MaskedControl(net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0), vae=vae), control_map)
            wrapped[before] = control.set_previous_controlnet(before)
        out.append([words, {**options, "control": wrapped[before], "control_apply_to_uncond": False}])
    return out


def _within(control_map: ControlMap, control: Control, mask: Tensor | None) -> ControlMap:
    """The layers' map inside the node's own range and mask."""
    masks = control_map.masks
    if mask is not None:
        masks = masks * torch.nn.functional.interpolate(_one_mask(mask)[None], masks.shape[-2:], mode="bilinear", antialias=True)[0]
    ranges = [(max(c.start, control.start), min(c.end, control.end)) for c in control_map.controls]
    kept = [i for i, (start, end) in enumerate(ranges) if start <= end]
    controls = tuple(replace(control_map.controls[i], start=ranges[i][0], end=ranges[i][1]) for i in kept)
    return replace(control_map, masks=masks[kept], controls=controls)


def _one_mask(mask: Tensor) -> Tensor:
    """A MASK as ``[1, H, W]`` in 0..1 on the CPU."""
    mask = mask.reshape(-1, *mask.shape[-2:]).float().cpu()
    if len(mask) != 1:
        raise invalid("mask: batch", len(mask), "one mask", "Use layers for several")
    return mask.clamp(0, 1)


def _check_aspect(image: Tensor, control_map: ControlMap) -> None:
    height, width = image.shape[1:3]
    own_height, own_width = control_map.masks.shape[-2:]
    if abs(width * own_height - own_width * height) > 0.02 * width * own_height:
        raise invalid(
            "image: size of the hint", f"{width}x{height}", f"the aspect ratio of the masks or layers, {own_width}x{own_height}", "Crop it to that"
        )
