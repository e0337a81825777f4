"""Bring regional attention into a sampling run of ComfyUI.

The regions travel in the conditioning, under a private key that ComfyUI's own nodes pass on; the MODEL only
gets a wrapper that looks for them. Everything else is made when a run begins, in that run's own copy of the
model's options, and is dropped with it: :mod:`.unet_run` for UNets, :mod:`.transformer_run` for transformers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

from ...layered_core.attention.families import Family
from ...layered_core.attention.regional_plan import Settings
from ...layered_core.errors import invalid
from ..noise.cut_out import cut_of
from .carried_patch import carrying, take_off
from .conditionings import KEY, LORAS, Half, acting_halves
from .regional_run import Run
from .transformer_families import WORKING, family_of, way_out
from .transformer_run import TransformerRun
from .unet_run import UNetRun, cross_attentions


def check_model(model: comfy.model_patcher.ModelPatcher) -> Family | None:
    """Return the transformer's family, or None for a UNet.

    Raises:
        LayeredError: the model is neither a UNet whose cross-attention can be reached nor a transformer of a
            known family.
    """
    family = family_of(model)
    if family is None and not cross_attentions(model.model.diffusion_model):
        raise invalid("model: family", type(model.model.model_config).__name__, WORKING, way_out(model))
    return family


def check_mode(family: Family | None, settings: Settings) -> None:
    """Raise :class:`LayeredError` if the mode does not work on the family; None is a UNet."""
    if settings.mode == "eligen" and (family is None or family.cross):
        name = "a UNet" if family is None else family.name
        raise invalid(
            f"mode: on {name}", "eligen", "regions, joint, collage, paint with words",
            "EliGen's rule needs a transformer in which texts and picture share one attention, such as Flux or "
            "Qwen-Image",
        )  # fmt: skip


def patched(
    model: comfy.model_patcher.ModelPatcher, expected: Collection[str] = ()
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of the model that applies the regions in its conditionings. If the model does so
    already, the clone still applies them only once.

    Args:
        model: a model that :func:`check_model` accepts.
        expected: names of the halves that have regions; the log says so if a run lacks them.
    """
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    if clone.get_wrappers(kind, KEY):
        logging.info(
            "Regional Prompt Attention: the model already comes from another Regional Prompt Attention; "
            "the layers of this node take the place of that one's"
        )
        clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(kind, KEY, partial(_sample, frozenset(expected)))
    return clone


def acting_alone(*halves: list[list[Any]]) -> list[list[list[Any]]]:
    """Return the conditionings so that their regions act on any model that :func:`check_model` accepts, whether or
    not it is one of :func:`patched`."""
    return carrying(KEY, partial(_sample, frozenset()), *halves)


def _sample(
    expected: Collection[str],
    executor: comfy.patcher_extension.WrapperExecutor,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Wrap a whole sampling run: install the regions that its conditionings carry, unless the model or another
    conditioning has brought the same wrapper along and it has done so already."""
    guider = executor.class_obj
    if guider.model_options.get(KEY):
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)
    guider.model_options[KEY] = True
    cut = cut_of(guider, latent_image, denoise_mask)
    entries = [entry for conditions in guider.conds.values() for entry in conditions or ()]
    take_off(entries, KEY)
    take_off(entries, LORAS)  # which else keep texts from being kept
    carried = [entry[KEY] for entry in entries if KEY in entry]
    _warn_of_missing(expected, carried)
    for half in carried:
        if half.maps is not None:
            half.maps.clear(cut)
    acting = acting_halves(guider.conds)
    if acting:
        if cut is not None:
            cut.check_size(noise)
        _tell_of_cfg(guider, list(acting.values()))
        own = {
            name: {entry["uuid"] for entry in conditions or ()} for name, conditions in guider.conds.items()
        }
        family = check_model(guider.model_patcher)
        run: Run = (
            UNetRun(guider, own, tuple(noise.shape[-2:]))
            if family is None
            else TransformerRun(guider, own, tuple(noise.shape[-2:]), family)
        )
        run.start(acting, cut)
        if any(half.settings.guidance != 1 or half.settings.rescale for half in acting.values()):
            after = guider.model_options.get("sampler_post_cfg_function", [])
            guider.model_options["sampler_post_cfg_function"] = [*after, run.guide]
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def _warn_of_missing(expected: Collection[str], carried: Sequence[Half]) -> None:
    """Say in the log which halves have layers whose words are in none of the run's conditionings."""
    missing = sorted(set(expected) - {half.name for half in carried if half.regions}, reverse=True)
    if missing and not carried:
        logging.warning(
            "Regional Prompt Attention: no layer acts in this run. Connect the node's positive and "
            "negative to the sampler as well"
        )
    elif missing:
        logging.warning(
            "Regional Prompt Attention: the layers' words in its %s do not act in this run. Connect its %s "
            "to the sampler; a node that mixes two conditionings must get it as the first, which it keeps",
            *[" and ".join(missing)] * 2,
        )


def _tell_of_cfg(guider: Any, halves: Sequence[Half]) -> None:
    """Say in the log what has no effect because the run has no classifier-free guidance."""
    if not math.isclose(getattr(guider, "cfg", 0), 1) or guider.model_options.get(
        "disable_cfg1_optimization"
    ):
        return
    idle = []
    if any(half.name == "negative" and half.regions for half in halves):
        idle.append("the layers' negatives")
    if any(half.settings.guidance != 1 for half in halves):
        idle.append("guidance")
    if any(half.settings.rescale for half in halves):
        idle.append("rescale")
    if idle:
        logging.warning(
            "Regional Prompt Attention: without effect in this run, whose cfg is 1 and computes no negative: %s",
            " and ".join(idle),
        )
