"""Find a model on disk, check its files and load it. Nothing is ever downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

# huggingface_hub reads this when it is imported: a missing model then raises at once, without trying to connect.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from demo.world.places import MODEL
from layered_core.errors import LayeredError, invalid

StableDiffusion: TypeAlias = (
    StableDiffusionPipeline
    | StableDiffusionXLPipeline
    | StableDiffusionInpaintPipeline
    | StableDiffusionXLInpaintPipeline
)
"""The supported families: Stable Diffusion 1.x, 2.x and XL, and their inpainting models."""

STORYBOOK = MODEL
"""Folder of the shipped model."""

SAMPLERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
"""Schedulers by ComfyUI's names of the samplers; each keeps the model's own spacing of timesteps."""

DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"
"""Name of the argument of diffusers' ``from_pretrained`` for a model's dtype; 0.40 renamed it."""

_WEIGHTS = {"unet", "vae", "text_encoder", "text_encoder_2"}


def find_model(path_or_id: str | Path | None) -> Path:
    """Return the folder of a model in the diffusers layout. ``path_or_id`` is the folder itself, an id in the
    local Hugging Face cache, or None for the storybook.

    Raises:
        LayeredError: there is no such model on this machine.
    """
    if path_or_id is None:
        return STORYBOOK
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(str(path_or_id), local_files_only=True))
    except (OSError, ValueError):
        raise invalid(
            "model", str(path_or_id),
            "a folder in the diffusers layout, or an id in the local Hugging Face cache",
            "Nothing is downloaded at run time: fetch it first with 'hf download', or leave the model out to "
            "use the storybook",
        ) from None  # fmt: skip


def check_model(folder: Path) -> None:
    """Read the header of every weight file, to find a missing or truncated one before anything is loaded.

    Raises:
        LayeredError: a file is missing or broken; the text names it and how to restore it.
    """
    restore = (
        "Restore it with 'git checkout -- demo/model', or install the package again"
        if folder == STORYBOOK
        else "Copy or download the model again"
    )
    index = folder / "model_index.json"
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LayeredError(
            f"model file {str(index)!r} is missing, so this is no model in the diffusers layout. {restore}"
        ) from None
    except (OSError, ValueError) as error:
        raise LayeredError(f"model file {str(index)!r} is broken: {error}. {restore}") from None
    for part in sorted(_WEIGHTS & {k for k, v in parts.items() if isinstance(v, list) and v[0]}):
        files = sorted((folder / part).glob("*.safetensors"))
        if not files:
            pickled = [f.name for f in (folder / part).glob("*.bin")]
            hint = (
                f"{pickled[0]} is a pickle, which is not loaded: convert it to safetensors"
                if pickled
                else restore
            )
            raise LayeredError(f"model file '{folder / part}/*.safetensors' is missing. {hint}")
        for file in files:
            try:
                with safe_open(file, "pt") as tensors:
                    tensors.keys()
            except (SafetensorError, OSError) as error:
                raise LayeredError(f"model file {str(file)!r} is broken: {error}. {restore}") from None


def load_model(
    path_or_id: str | Path | None, device: torch.device, dtype: torch.dtype, sampler: str | None = None
) -> StableDiffusion:
    """Load a Stable Diffusion 1.x, 2.x or XL model, with one of :data:`SAMPLERS` or its own.

    Raises:
        LayeredError: the model is not on disk, broken or of another family, or there is no such sampler.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise invalid("sampler", sampler, ", ".join(SAMPLERS))
    folder = find_model(path_or_id)
    check_model(folder)
    try:
        with _quiet():
            model = DiffusionPipeline.from_pretrained(
                folder, **{DTYPE: dtype}, local_files_only=True, use_safetensors=True, safety_checker=None
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise LayeredError(f"model {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if not isinstance(model, StableDiffusion):
        raise invalid(
            "model family",
            type(model).__name__,
            "StableDiffusionPipeline (1.x, 2.x), StableDiffusionXLPipeline, or one of their inpainting pipelines",
        )
    if sampler is not None:
        model.scheduler = SAMPLERS[sampler].from_config(model.scheduler.config)
    model.set_progress_bar_config(disable=True)
    return model.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars of loading, and diffusers' warnings: they complain about the storybook's
    AutoencoderTiny, which is intended."""
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()
