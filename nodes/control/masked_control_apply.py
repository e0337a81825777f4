"""ControlNet per layer: the residuals of one net weighted by where layers are seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.conds
import comfy.controlnet
import torch
from comfy_api.latest import io
from torch import Tensor

from ...layered_core.control.control_map import MODES, ControlMap, centre_crop, soft_weights, weighted
from ...layered_core.control.hints import document_hint
from ...layered_core.document import Control
from ...layered_core.errors import LayeredError, check_number, invalid
from ..layers.socket import LAYERS, read_stack
from .control_hint import preprocessor

LED = "layered_diffusion_led"
"""Of our entry among what a conditioning gives the model: 1 for a positive, 0 for a negative, row by row. A net's mark of a chunk of the batch
would not tell: guiders count differently, and split batches where memory is short."""


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
        led = cond.get(LED) if self.map.mode == "control" else None  # those before take it out
        previous = None
        if self.previous_controlnet is not None:
            previous = self.previous_controlnet.get_control(x_noisy, t, cond, batched_number, transformer_options)
        cond.pop(LED, None)  # it is none of the model's
        sigma = float(t[0])
        weight = self.map.at([begin >= sigma >= end for begin, end in self.ranges])
        if not isinstance(weight, Tensor) and weight == 0:
            return previous
        # One number for all cells is the net's own strength: core's arithmetic to the bit, whatever the net makes of it.
        everywhere = not isinstance(weight, Tensor)
        self.inner.strength = weight if everywhere else 1.0
        control = self.inner.get_control(x_noisy, t, cond, batched_number, transformer_options)
        if control is None:
            return previous
        cells = (x_noisy.shape[-2], x_noisy.shape[-1])
        weight = 1.0 if everywhere else centre_crop(weight, *cells)
        out = self._weighted(control, weight, cells, led)
        return self.control_merge(out, previous, output_dtype=None)

    def _weighted(self, control: Mapping[str, Any], weight: Tensor | float, cells: tuple[int, int], rows: Tensor | None) -> dict[str, list[Any]]:
        """All residuals of one evaluation, weighted. A transformer hands one residual to many blocks: its weighted copy is shared too."""
        # Core takes residuals from the end: an adapter's (input) outermost first, a ControlNet's (output) deepest first.
        places = (*reversed(control.get("input") or ()), *(control.get("output") or ()), *(control.get("middle") or ()))
        outwards_in = [r for r in places if r is not None]
        depths = soft_weights(len(outwards_in), self.map.mode, adapter=bool(control.get("input")))
        done = {id(r): _weigh(r, weight, depth, cells, rows) for r, depth in zip(outwards_in, depths, strict=True)}
        return {place: [None if r is None else done[id(r)] for r in residuals] for place, residuals in control.items()}

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


def _weigh(residual: Tensor, weight: Tensor | float, depth: float, cells: tuple[int, int], rows: Tensor | None) -> Tensor:
    out = weighted(residual, weight, cells)
    if depth != 1 and out.ndim == 4:
        out = out * depth
    return out if rows is None else out * rows.to(out).view(-1, *[1] * (out.ndim - 1))


_KINDS = {"input_blocks.0.0.weight": "a UNet", "x_embedder.proj.weight": "an SD3 transformer", "img_in.weight": "a Flux or Qwen transformer"}
"""The first layer, by which ComfyUI's networks tell their kind; its outputs are as wide as the residuals."""

_WORDS = ("attn2.to_k.weight", "context_embedder.weight", "txt_in.weight")
"""The first layer that reads words."""


def check_family(net: comfy.controlnet.ControlBase, model: Any) -> None:  # noqa: ANN401
    """Raise :class:`LayeredError` where shapes say that a ControlNet or T2I-Adapter was made for another family than the model."""
    wanted = _shape(model.diffusion_model)
    got = _adapter_shape(net.t2i_model) if isinstance(net, comfy.controlnet.T2IAdapter) else _shape(getattr(net, "control_model", None))
    for what, own in got.items():
        if what in wanted and own != wanted[what]:
            allowed = f"{wanted[what]}, as the model has ({type(model).__name__})"
            raise invalid(f"control_net: {what}", own, allowed, "It was made for another model family: load one of this family")


def _shape(module: torch.nn.Module | None) -> dict[str, Any]:
    """What a model and its ControlNets have in common; nothing for a network that is not known."""
    if module is None:
        return {}
    # Packed weights (quantised to 4 bits) do not have the layer's shape.
    weights = {n.removeprefix("control_"): p for n, p in module.named_parameters() if p.is_floating_point()}
    first = next((n for n in _KINDS if n in weights), None)
    if first is None:
        return {}
    shape: dict[str, Any] = {"kind of network": _KINDS[first], "width of the residuals": int(weights[first].shape[0])}
    words = next((p for n, p in weights.items() if n.endswith(_WORDS)), None)
    if words is not None:
        shape["width of the words it reads"] = int(words.shape[1])
    if hasattr(module, "channel_mult"):
        shape["number of resolutions"] = len(module.channel_mult)
    return shape


def _adapter_shape(adapter: torch.nn.Module) -> dict[str, Any]:
    """The same of a T2I-Adapter for UNets: those for SDXL serve its three resolutions."""
    if not hasattr(adapter, "channels"):
        return {}
    return {
        "kind of network": "a UNet",
        "width of the residuals": int(adapter.channels[0]),
        "number of resolutions": 3 if getattr(adapter, "xl", False) else len(adapter.channels),
    }


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
        _check_aspect("image: size of the hint", *image.shape[1:3], control_map.masks)
        hint = image[..., :3].movedim(-1, 1)
        wrapped: dict[Any, MaskedControl] = {}
        halves = ((positive, 1.0), (negative, 0.0))
        return io.NodeOutput(*(_controlled(c, control_net, hint, control_map, vae, wrapped, led) for c, led in halves))


def _controlled(
    conditioning: Sequence[Any], net: comfy.controlnet.ControlBase, hint: Tensor, control_map: ControlMap, vae: Any,  # noqa: ANN401
    wrapped: dict[Any, MaskedControl], led: float,
) -> list[list[Any]]:  # fmt: skip
    """Each conditioning with the net on top; those that had one net in common still have (ComfyUI batches by identity)."""
    out = []
    for words, options in conditioning:
        before = options.get("control")
        if before not in wrapped:
            control = MaskedControl(net.copy().set_cond_hint(hint, 1.0, (0.0, 1.0), vae=vae), control_map)
            wrapped[before] = control.set_previous_controlnet(before)
        ours = {"control": wrapped[before], "control_apply_to_uncond": False}
        if control_map.mode == "control":
            ours["model_conds"] = {**options.get("model_conds", {}), LED: comfy.conds.CONDRegular(torch.tensor([led]))}
        out.append([words, {**options, **ours}])
    return out


def _within(control_map: ControlMap, control: Control, mask: Tensor | None) -> ControlMap:
    """The layers' map inside the node's own range and mask."""
    masks = control_map.masks
    if mask is not None:
        _check_aspect("mask: size", *mask.shape[-2:], masks)
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


def _check_aspect(what: str, height: int, width: int, canvas: Tensor) -> None:
    """Raise :class:`LayeredError` unless a picture has the aspect ratio of ``canvas``, by 2 %."""
    own_height, own_width = canvas.shape[-2:]
    if abs(width * own_height - own_width * height) > 0.02 * width * own_height:
        allowed = f"the aspect ratio of the {'layers' if what.startswith('mask') else 'masks or layers'}, {own_width}x{own_height}"
        raise invalid(what, f"{width}x{height}", allowed, "Crop it to that")
