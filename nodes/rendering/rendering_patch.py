"""Bring layered rendering into a sampling run of ComfyUI.

The parts travel in the conditionings, under a private key that ComfyUI's own nodes pass on; the MODEL only gets a
wrapper that looks for them, which the conditionings bring along too. All else is made when a run begins, in that
run's own copy of the model's options, and is dropped with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
from torch import Tensor

from ...layered_core.errors import LayeredError
from ..attention.carried_patch import carrying, take_off
from ..noise.cut_out import cut_of
from ..noise.split_runs import goes_on
from ..transparency.layer_diffuse_run import frames_of
from .parts import EMPTY, KEY, WHOLE, Entry, Job, Role, role_of
from .rendering_run import RenderingRun, check_latents, level_of

NAME = "Layered Rendering"
"""The node's name, for messages."""


def patched(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Return a clone of the model that renders the layers in its conditionings. If the model does so already, the
    clone still does it only once."""
    clone = model.clone()
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    clone.remove_wrappers_with_key(kind, KEY)
    clone.add_wrapper_with_key(kind, KEY, _sample)
    return clone


def acting_alone(*halves: Sequence[Entry]) -> list[list[list[Any]]]:
    """Return the conditionings so that their layers are rendered on any model, whether or not it is one of
    :func:`patched`."""
    return carrying(KEY, _sample, *halves)


def check_frames(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise :class:`LayeredError` if a model makes several pictures of one scene together."""
    if (frames := frames_of(model)) > 1:
        raise LayeredError(
            f"model: LayerDiffuse Apply makes {frames} pictures of one scene together, which share their attention; "
            "Layered Rendering needs every picture alone. Take the model without it, or a mode that makes one picture"
        )


def _sample(
    executor: comfy.patcher_extension.WrapperExecutor,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """Wrap a whole sampling run: render the layers that its conditionings carry, unless the model or another
    conditioning has brought the same wrapper along and it has done so already."""
    guider = executor.class_obj
    if not guider.model_options.get(KEY):
        guider.model_options[KEY] = True
        _begin(guider, noise, latent_image, sampler, sigmas, denoise_mask)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *more, **named)


def _begin(
    guider: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, denoise_mask: Tensor | None
) -> None:  # fmt: skip
    """Set a run up to render the layers of its conditionings, if it does any step of their share."""
    entries = [entry for conditions in guider.conds.values() for entry in conditions or ()]
    take_off(entries, KEY)
    roles = [role for entry in entries if (role := role_of(entry)) is not None]
    if not roles:
        logging.info("%s: no conditioning of this run has layers that it renders", NAME)
        return
    job = _only(roles)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    first = 1.0 if goes_on(noise, sampler) else level_of(sampling, float(sigmas[0]))
    run = RenderingRun(guider, job, first, {}, len(noise))
    if run.acts(float(sigmas[0])):
        check_frames(guider.model_patcher)
        check_latents(job, noise)
        _check_entries(guider.conds)
        cut = cut_of(guider, latent_image, denoise_mask)
        if cut is not None:
            cut.check_size(noise)
        run.masks = _seen(job, noise, None if cut is None else cut.plan.cut_regions)
        _tell_of_cfg(guider, job)
        run.start()
    left = {*run.masks, *((WHOLE, EMPTY) if run.masks else ())}
    guider.conds = {
        name: [e for e in conditions or () if KEY not in e or e[KEY].number in left]
        for name, conditions in guider.conds.items()
    }


def _only(roles: Sequence[Role]) -> Job:
    """Return the job that all entries of a run belong to."""
    jobs = list(dict.fromkeys(role.job for role in roles))
    if len(jobs) > 1:
        raise LayeredError(
            f"positive, negative: they come from {len(jobs)} nodes Layered Rendering. Connect positive and negative of "
            "one and the same node, or join their layers in one stack"
        )
    return jobs[0]


def _seen(job: Job, noise: Tensor, cut: Any) -> dict[int, Tensor]:
    """Return where each part is seen, by its number, and say in the log which layers are too small to be."""
    height, width = int(noise.shape[-2]), int(noise.shape[-1])
    seen = job.plan.seen(height, width, cut)
    if seen.missed:
        logging.warning(
            "%s: layers %s are too small to be seen in any of the picture's %s x %s cells, and are left out. Enlarge "
            "them",
            NAME, ", ".join(repr(name) for name in seen.missed), width, height,
        )  # fmt: skip
    number = {id(part): n for n, part in enumerate(job.parts)}
    return {number[id(part)]: mask for part, mask in zip(seen.parts, seen.masks, strict=True)}


def _check_entries(conditions: Mapping[str, Sequence[Mapping[str, Any]] | None]) -> None:
    """Raise :class:`LayeredError` if an entry acts in an area, or wherever no other does."""
    for name, entries in conditions.items():
        for entry in entries or ():
            if "area" in entry or entry.get("set_area_to_bounds"):
                raise LayeredError(
                    f"{name}: one of its conditionings has an area, in which Layered Rendering cannot render layers. "
                    "Use a mask (Conditioning (Set Mask) with 'default'), or a layer with these words"
                )
            if "default" in entry:
                raise LayeredError(
                    f"{name}: one of its conditionings acts where no other does (Cond Set Default Combine), and the "
                    "parts of Layered Rendering leave no such place. Take it off, or give a layer its words"
                )


def _tell_of_cfg(guider: Any, job: Job) -> None:
    """Say in the log what has no effect because the run has no classifier-free guidance."""
    if not math.isclose(getattr(guider, "cfg", 0), 1) or guider.model_options.get(
        "disable_cfg1_optimization"
    ):
        return
    idle = ["the negatives of layers"] if any(part.negative for part in job.parts) else []
    idle += ["the preset fast"] if job.rendering.preset == "fast" else []
    if idle:
        logging.warning(
            "%s: without effect in this run, whose cfg is 1 and computes no negative: %s",
            NAME,
            " and ".join(idle),
        )
