"""Find a model on disk, check its files and load it. Nothing is ever downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, get_args

# huggingface_hub reads this when it is imported: a missing model then raises at once, without trying to connect.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from demo.world.places import MODEL, TRANSFORMER, TRANSFORMER_SCHEDULER
from demo.world.vocabulary import CANVAS
from layered_core.errors import LayeredError, invalid

StableDiffusion: TypeAlias = (
    StableDiffusionPipeline
    | StableDiffusionXLPipeline
    | StableDiffusionInpaintPipeline
    | StableDiffusionXLInpaintPipeline
)
"""The supported families with a UNet: Stable Diffusion 1.x, 2.x and XL, and their inpainting models."""

TRANSFORMERS = {
    "FluxPipeline": "flux",
    "StableDiffusion3Pipeline": "sd3",
    "QwenImagePipeline": "qwen",
    "ZImagePipeline": "zimage",
}
"""The supported transformers: diffusers' pipeline class, and its row in
:data:`layered_core.attention.families.FAMILIES`."""

DEMO_TRANSFORMER = "demo-transformer"
"""Name of the storybook transformer, in place of a folder."""

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

_UNETS = "StableDiffusionPipeline (1.x, 2.x), StableDiffusionXLPipeline, or one of their inpainting pipelines"
_WEIGHTS = {"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}


def find_model(path_or_id: str | Path | None) -> Path:
    """Return the folder of a model in the diffusers layout. ``path_or_id`` is the folder itself, an id in the
    local Hugging Face cache, None for the storybook, or :data:`DEMO_TRANSFORMER`.

    Raises:
        LayeredError: there is no such model on this machine.
    """
    if path_or_id is None:
        return STORYBOOK
    if str(path_or_id) == DEMO_TRANSFORMER:
        return TRANSFORMER
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() and folder.suffix == ".safetensors":
        raise invalid(
            "model", str(path_or_id), "a folder in the diffusers layout, not a single file",
            "Write the file as a folder once, where diffusers may fetch its configuration; of SDXL, for example: "
            'python -c "from diffusers import StableDiffusionXLPipeline as P; '
            f"P.from_single_file({str(folder)!r}).save_pretrained({str(folder.with_suffix(''))!r})\"",
        )  # fmt: skip
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
        LayeredError: a file is missing or broken, or the model is of another family; the text names it and how
            to restore it.
    """
    if folder == TRANSFORMER:
        for weights in (TRANSFORMER, MODEL / "vae", MODEL / "text_encoder"):
            _check_weights(
                weights, "Restore it with 'git checkout -- demo/model', or install the package again"
            )
        return
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
    family = parts.get("_class_name") if isinstance(parts, dict) else None
    if family not in (*(c.__name__ for c in get_args(StableDiffusion)), *TRANSFORMERS):
        raise invalid("model family", family, f"{_UNETS}; or a transformer: {', '.join(TRANSFORMERS)}")
    for part in sorted(_WEIGHTS & {k for k, v in parts.items() if isinstance(v, list) and v[0]}):
        _check_weights(folder / part, restore)


def _check_weights(folder: Path, restore: str) -> None:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [f.name for f in folder.glob("*.bin")]
        hint = (
            f"{pickled[0]} is a pickle, which is not loaded: convert it to safetensors"
            if pickled
            else restore
        )
        raise LayeredError(f"model file '{folder}/*.safetensors' is missing. {hint}")
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise LayeredError(f"model file {str(file)!r} is broken: {error}. {restore}") from None


def is_transformer(model: object) -> bool:
    """Whether a loaded model is one of :data:`TRANSFORMERS`."""
    return type(model).__name__ in TRANSFORMERS


def holds_transformer(path_or_id: str | Path | None) -> bool:
    """Whether a model on disk is one of :data:`TRANSFORMERS`.

    Raises:
        LayeredError: there is no such model on this machine.
    """
    folder = find_model(path_or_id)
    if folder == TRANSFORMER:
        return True
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # loading it says what is wrong
        return False
    return isinstance(parts, dict) and parts.get("_class_name") in TRANSFORMERS


def require_unet(model: object, what: str) -> None:
    """Raise :class:`LayeredError` if the model is a transformer; the text says that ``what`` needs a UNet."""
    if is_transformer(model):
        raise LayeredError(
            f"{what} needs a model with a UNet, and {type(model).__name__} has a transformer; allowed: {_UNETS}"
        )


def load_model(
    path_or_id: str | Path | None, device: torch.device, dtype: torch.dtype, sampler: str | None = None
) -> Any:
    """Load a Stable Diffusion 1.x, 2.x or XL model or one of :data:`TRANSFORMERS`, with one of
    :data:`SAMPLERS` or its own.

    Raises:
        LayeredError: the model is not on disk, broken or of another family, or there is no such sampler.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise invalid("sampler", sampler, ", ".join(SAMPLERS))
    folder = find_model(path_or_id)
    if sampler not in (None, "euler") and holds_transformer(folder):
        raise invalid("sampler", sampler, "euler, with which flow models sample", "Leave the sampler out")
    check_model(folder)
    try:
        with quiet():
            model = _storybook_transformer(dtype) if folder == TRANSFORMER else _from_folder(folder, dtype)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise LayeredError(f"model {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    if is_transformer(model):
        if not isinstance(model.scheduler, FlowMatchEulerDiscreteScheduler):
            name = type(model.scheduler).__name__
            raise invalid("scheduler of the model", name, "FlowMatchEulerDiscreteScheduler")
    elif sampler is not None:
        model.scheduler = SAMPLERS[sampler].from_config(model.scheduler.config)
    model.set_progress_bar_config(disable=True)
    return model.to(device)


def _from_folder(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    more = {} if holds_transformer(folder) else {"safety_checker": None}
    return DiffusionPipeline.from_pretrained(
        folder, **{DTYPE: dtype}, local_files_only=True, use_safetensors=True, **more
    )


def _storybook_transformer(dtype: torch.dtype) -> FluxPipeline:
    """Put the storybook transformer together. It reads the hidden states of the CLIP text encoder, in place of
    T5's."""
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder", **{DTYPE: dtype}, local_files_only=True)
    model = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(TRANSFORMER_SCHEDULER),
        vae=AutoencoderTiny.from_pretrained(MODEL / "vae", **{DTYPE: dtype}),
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True),
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=FluxTransformer2DModel.from_pretrained(TRANSFORMER, **{DTYPE: dtype}),
    )
    model.default_sample_size = CANVAS // model.vae_scale_factor
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of loading, and warnings: diffusers complains about the storybook's AutoencoderTiny, and
    transformers about new embeddings, which are intended."""
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    level, other = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
        transformers_logging.set_verbosity(other)
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()
