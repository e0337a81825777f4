"""Bring the LoRAs of layers into a sampling run of ComfyUI.

They travel in the conditionings, under a private key, and the conditionings bring the wrapper of the run along. The
networks' modules get their sums when a run begins and lose them when it ends, so no MODEL is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sd
import torch
from torch import Tensor

from ...layered_core.attention.joint_regions import relative_noise
from ...layered_core.attention.layer_loras import LayerLoras, LoraPlaces, plan_loras
from ...layered_core.attention.lora_sum import Pixels, Rows
from ...layered_core.document import LayerDocument
from ...layered_core.noise.guidance import FORMING
from ...layered_core.noise.window import Window
from ..noise.cut_out import CutOut, cut_of
from .carried_patch import carrying, take_off
from .conditionings import LORAS
from .lora_files import LoraFile, check_fit, read_lora
from .lora_modules import Changes
from .lora_run import LoraRun
from .transformer_families import family_of

Entry = Sequence[Any]
"""One entry of a conditioning: the encoded words, and their options by name."""


@dataclass(frozen=True, eq=False)
class LoadedLoras:
    """The LoRAs of a document's layers, read; the value under :data:`LORAS` in a conditioning."""

    layers: tuple[LayerLoras, ...]
    """The layers that have LoRAs which act."""
    files: Mapping[str, LoraFile]
    """The LoRAs' files, by the names that recipes give them."""
    start: float = 0.0
    """Share of the sampling at which the LoRAs begin to act, 0..1."""
    end: float = 1.0
    """Share of the sampling at which they stop acting, ``start``..1."""
    alone: str | None = None
    """The layer that the conditioning is about by itself, empty for one without LoRAs; None: the whole picture."""

    @property
    def covering(self) -> str | None:
        """The layer with LoRAs that covers the whole picture; None: none does."""
        return LoraPlaces(self.layers).covering

    def named(self, layer: str) -> str:
        """Return the name of a layer that has LoRAs; empty for any other."""
        return layer if any(x.layer == layer for x in self.layers) else ""

    @property
    def remark(self) -> str:
        """Which LoRAs act in which layers, for the user."""
        told = [
            f"{x.layer!r}: " + ", ".join(f"{lora.name} ({lora.strength:g})" for lora in x.loras)
            for x in self.layers
        ]
        return f"LoRAs act in their layers: {'; '.join(told)}"

    @contextmanager
    def encoding(self, clip: comfy.sd.CLIP, layer: str | None) -> Iterator[None]:
        """Let a layer's LoRAs act on the text encoders for the length of a ``with`` block, on all words alike. Without
        LoRAs, and for None, nothing changes."""
        own = [lora for x in self.layers if x.layer == layer for lora in x.loras]
        loras = [(k, self.files[lora.name].texts, lora.strength) for k, lora in enumerate(own)]
        known: dict[Any, Rows | Pixels] = {}

        def everywhere(x: Tensor, y: Tensor) -> Rows | Pixels:
            key = x.ndim, x.shape[:-1].numel(), x.device
            if key not in known:
                known[key] = Rows.of(torch.ones(len(own), key[1]), x.device)
            return known[key]

        handles = Changes(clip.cond_stage_model, loras).put_on(lambda name: everywhere)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def load_loras(
    document: LayerDocument, model: comfy.model_patcher.ModelPatcher, clip: comfy.sd.CLIP, start: float = 0.0,
    end: float = 1.0, growth: float = 0.0,
) -> LoadedLoras | None:  # fmt: skip
    """Read the LoRAs of a document's layers; None if no layer that is seen has one of a strength other than 0.

    Args:
        document: the stack.
        model, clip: what the LoRAs change.
        start, end: share of the sampling at which they begin and stop to act, 0..1.
        growth: as in :func:`~...layered_core.attention.layer_loras.plan_loras`.

    Raises:
        LayeredError: see :func:`~.lora_files.read_lora`.
    """
    layers = plan_loras(document, growth)
    files = {lora.name: read_lora(own.layer, lora.name, model, clip) for own in layers for lora in own.loras}
    return LoadedLoras(layers, files, start, end) if layers else None


def with_loras(loras: LoadedLoras | None, *conditionings: Sequence[Entry]) -> list[Any]:
    """Return conditionings that bring the LoRAs to the runs that they are used in."""
    if loras is None:
        return list(conditionings)
    copies = [[[words, options.copy()] for words, options in entries] for entries in conditionings]
    for options in (options for entries in copies for _, options in entries):
        options.setdefault(LORAS, loras)
    return carrying(LORAS, _sample, *copies)


def patched(
    model: comfy.model_patcher.ModelPatcher, loras: LoadedLoras | None
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of the model that looks for LoRAs in its conditionings; the model itself if there are none."""
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if loras is None or model.get_wrappers(kind, LORAS):
        return model
    clone = model.clone()
    clone.add_wrapper_with_key(kind, LORAS, _sample)
    return clone


def _sample(
    executor: comfy.patcher_extension.WrapperExecutor, noise: Tensor, latent_image: Tensor, sampler: Any,
    sigmas: Tensor, denoise_mask: Tensor | None = None, *more: Any, **named: Any,
) -> Tensor:  # fmt: skip
    """Wrap a whole sampling run: put the LoRAs that its conditionings carry on the model while it lasts, unless the
    model or another conditioning has brought the same wrapper along and it has done so already."""
    guider = executor.class_obj
    entries = [entry for conditions in guider.conds.values() for entry in conditions or ()]
    carried = {entry["uuid"]: entry[LORAS] for entry in entries if LORAS in entry}
    if guider.model_options.get(LORAS) or not carried:
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)
    guider.model_options[LORAS] = True
    take_off(entries, LORAS)
    run = _run(guider, carried, noise, cut_of(guider, latent_image, denoise_mask))
    try:
        run.start()
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)
    finally:
        run.stop()


def _run(guider: Any, carried: Mapping[UUID, LoadedLoras], noise: Tensor, cut: CutOut | None) -> LoraRun:
    """Return the run of the LoRAs of some conditionings; a layer that several of them have counts once."""
    if cut is not None:
        cut.check_size(noise)
    layers = {(x.layer, x.loras): x for loras in carried.values() for x in loras.layers}
    files = {name: file for loras in carried.values() for name, file in loras.files.items()}
    places = LoraPlaces(tuple(layers.values()), None if cut is None else cut.plan.cut_regions)
    model = guider.model_patcher
    for own in layers.values():
        for lora in own.loras:
            where = f"layer {own.layer!r}: LoRA {lora.name!r}"
            check_fit(where, model.model, files[lora.name].model, type(model.model.model_config).__name__)
    sampling = model.get_model_object("model_sampling")
    window = Window(
        float(sampling.percent_to_sigma(min(loras.start for loras in carried.values()))),
        float(sampling.percent_to_sigma(max(loras.end for loras in carried.values()))),
    )
    relative = relative_noise if isinstance(sampling, comfy.model_sampling.CONST) else float
    views = {u: places.alone(loras.alone) for u, loras in carried.items() if loras.alone is not None}
    latent = int(noise.shape[-2]), int(noise.shape[-1])
    used = [files[lora.name] for lora in places.loras]
    return LoraRun(
        guider,
        places,
        used,
        family_of(model),
        views,
        latent,
        window.acts,
        lambda sigma: relative(sigma) > FORMING,
    )
