"""Put the thresholds of a change map on a model. The map itself is the latents' noise mask, which ComfyUI
keeps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ...layered_core.errors import LayeredError, invalid
from ...layered_core.noise.change_map import free_places, fresh_noise, noise_level, schedule_place
from .cut_out import CutOut, with_cut_out
from .split_runs import Run, SplitRuns, pin_noise, uncut

KEY = "layered diffusion: change map"
"""The key of our wrappers on a model; a later call replaces those of an earlier one."""


def with_change_map(
    model: comfy.model_patcher.ModelPatcher,
    threshold: str = "absolute",
    noise: str = "fixed",
    dilation: float = 0.0,
    softness: float = 0.0,
    cut: CutOut | None = None,
) -> comfy.model_patcher.ModelPatcher:
    """Return a clone that reads the noise mask of the latents it samples as a change map. See
    :mod:`layered_core.noise.change_map`.

    Latents without a noise mask are sampled as usual. A mask function that the model has already, such as
    Differential Diffusion's, stays: a place is then as free as the product of both. With a noise mask, cells
    of 0 come out as they went in, to the bit. At full denoise, cells that are free from the start keep
    nothing of the latents, unless the sampler adds no noise.

    A run that is cut in two goes on as one run, see :mod:`.split_runs`. ``cut`` is the picture of the node, or
    the part of it that is sampled: layouts follow it, see :mod:`.cut_out`. Its latents hold no noise, so a
    sampler that adds none may begin with them.
    """
    patched = model.clone()
    other = patched.model_options.get("denoise_mask_function")
    if getattr(other, "change_map", False):
        other = other.other  # an earlier one of ours, which this one replaces

    def mask_function(sigma: Tensor, denoise_mask: Tensor, extra_options: Mapping[str, Any]) -> Tensor:
        free = free_places(denoise_mask, _level(sigma, threshold, extra_options), dilation, softness)
        return free if other is None else free * other(sigma, denoise_mask, extra_options=extra_options)

    mask_function.change_map, mask_function.other = True, other  # type: ignore[attr-defined]  # marks of ours
    patched.set_model_denoise_mask_function(mask_function)
    outer = _outer(SplitRuns(None if cut is None else cut.latents), threshold, dilation)
    for kind, wrapper in (("SAMPLER_SAMPLE", _forget), ("OUTER_SAMPLE", outer)):
        patched.remove_wrappers_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), KEY)
        patched.add_wrapper_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), KEY, wrapper)
    with_cut_out(patched, cut)
    if isinstance(patched.object_patches.get("scale_latent_inpaint"), _Fresh):
        del patched.object_patches["scale_latent_inpaint"]
    if noise == "fresh":
        patched.add_object_patch("scale_latent_inpaint", _Fresh(model.model))
    return patched


def _level(sigma: Tensor, threshold: str, extra_options: Mapping[str, Any]) -> float:
    """Return the noise level of ``sigma``, 0..1: its place in the model's whole schedule (absolute), or that
    of its timestep among those of the run (normalised)."""
    sampling, sigmas = extra_options["model"].inner_model.model_sampling, extra_options["sigmas"]
    if threshold == "absolute":
        return noise_level(
            schedule_place(float(sigma.flatten()[0]), sampling.sigmas), len(sampling.sigmas) - 1, 0
        )
    start, end = sigmas[0], max(sigmas[-1], sampling.sigma_min)
    t, first, last = (
        float(sampling.timestep(torch.as_tensor(s).reshape(1).to(sigma)))
        for s in (sigma.flatten()[0], start, end)
    )
    return noise_level(t, first, last)


def _forget(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any,
noise: Tensor, latent_image: Any = None,
            denoise_mask: Any = None, *more: Any, **named: Any) -> Tensor:  # fmt: skip
    """At full denoise, start from noise alone in cells that are free: ComfyUI would leave a trace of the
    latents there.

    If the sampler adds no noise, the latents already hold the noise and are left as they are.
    """
    full = executor.class_obj.max_denoise(guider, sigmas) and bool(noise.any())
    if denoise_mask is not None and latent_image is not None and full:
        function = extra_args["model_options"]["denoise_mask_function"]
        free = function(sigmas[:1], denoise_mask, extra_options={"model": guider, "sigmas": sigmas})
        latent_image = torch.where(free == 1, torch.zeros_like(latent_image), latent_image)
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *more, **named)


def _outer(runs: SplitRuns, threshold: str, dilation: float) -> Callable[..., Tensor]:
    """Return the wrapper of a whole run."""

    def outer(executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor,
    denoise_mask: Any = None, callback: Any = None, disable_pbar: bool = False, seed: Any = None,
              **named: Any) -> Tensor:  # fmt: skip
        """Let a part of a run go on as the whole would. At the end of a run that leaves no noise, set cells of
        0 to the latents they had, which scaling and sampling have rounded."""
        if denoise_mask is None:
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **named
            )
        sigma_min = float(executor.class_obj.model_patcher.get_model_object("model_sampling").sigma_min)
        part = Run(noise, latent_image, sampler)
        pins = bool((denoise_mask < 1).any()) or int(dilation) > 0
        whole = uncut(runs, part, sigmas, sigma_min, pins)
        last = float(sigmas[-1])  # read before the run: UniPC writes into it
        if whole is not part or last > sigma_min:
            _check_part(executor.class_obj.model_options, threshold, denoise_mask, dilation)
        out = executor(
            whole.noise, whole.latents, whole.sampler, sigmas, denoise_mask, callback, disable_pbar, seed,
            **named,
        )  # fmt: skip
        if last == 0:
            out = torch.where(denoise_mask.to(out.device) > 0, out, whole.latents.to(out))
        if last <= sigma_min:
            runs.remember_clean(out)
            return out
        runs.remember(out, whole.latents, pin_noise(whole.sampler, whole.noise, seed))
        if pins:
            logging.info(
                "Per-Layer Freedom (SDEdit), Regenerate Layers: this run leaves noise. The sampler that goes on "
                "with it must get the model of the same node"
            )
        return out

    return outer


def _check_part(options: Mapping[str, Any], threshold: str, mask: Tensor, dilation: float) -> None:
    """Raise :class:`LayeredError` if a part of a run would be compared with the steps of that part alone."""
    if not bool(((mask > 0) & (mask < 1)).any()) and not int(dilation):
        return  # no level decides anything
    if threshold == "normalised":
        raise invalid(
            "threshold",
            "normalised",
            "absolute, where a run is cut in two",
            "This run leaves noise or goes on with noise that another has left, so the steps of the whole run "
            "are unknown",
        )
    function = options.get("denoise_mask_function")
    if getattr(function, "other", function) is not None:
        raise LayeredError(
            "model: another node, such as Differential Diffusion, decides which places are free by the steps of "
            "this run, which leaves noise or goes on with noise that another has left. Take that node off where "
            "a run is cut in two"
        )


class _Fresh:
    """Replaces a model's ``scale_latent_inpaint``, so that pinned cells get new noise at every step."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **named: Any) -> Tensor:
        """Call the model's own function with other noise."""
        fresh = fresh_noise(noise, float(sigma.flatten()[0]))
        return type(self.model).scale_latent_inpaint(
            self.model, sigma=sigma, noise=fresh, latent_image=latent_image, **named
        )
