"""Models of transformers on disk: found, loaded and quiet. Nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it when it is imported

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from layered_core.errors import LayeredError, invalid
from layered_core.formats.pictures import to_image
from layered_diffusers.dataset.protocols import Picture
from layered_diffusers.models.loading import quiet

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of the colours of ImageNet."""


def find(model: str, role: str) -> Path:
    """Return the folder of a model: ``model`` itself, or that of an id in the local Hugging Face cache.

    Raises:
        LayeredError: it is not on this machine; the text says how to get it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):
        raise invalid(
            f"model of the {role}", model, "a folder, or an id in the local Hugging Face cache",
            f"Nothing is downloaded at run time: fetch it first with 'hf download {model}', or choose another {role}",
        ) from None  # fmt: skip


def load(kind: str, model: str, role: str, device: str | None, **options: Any) -> Any:
    """Load a model or a processor of transformers by the name of its class.

    Raises:
        LayeredError: the class is not in the installed transformers, or the model is missing, broken or of another
            kind.
    """
    maker = getattr(transformers, kind, None)
    if maker is None:
        raise LayeredError(
            f"{role} {model!r} needs {kind}, which transformers {transformers.__version__} does not have. Update it: "
            f"pip install -U transformers"
        )
    folder = find(model, role)
    try:
        with quiet():
            loaded = maker.from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)
        raise LayeredError(
            f"model {model!r} of the {role} cannot be loaded: {reason}. Copy or download it again, or choose another"
        ) from error
    return loaded.to(_device(device)).eval() if isinstance(loaded, torch.nn.Module) else loaded


def load_model(kind: str, model: str, role: str, device: str | None) -> Any:
    """Load a model's weights, from safetensors only, in single precision. Errors as :func:`load`."""
    return load(kind, model, role, device, use_safetensors=True, dtype=torch.float32)


def about(*models: str) -> dict[str, str]:
    """Return what a record says of a part that runs ``models``."""
    return {"model": ", ".join(models), "transformers": transformers.__version__}


def image_of(picture: Picture) -> Any:
    """Return the picture as a Pillow image."""
    return to_image(picture.pixels.permute(1, 2, 0))


def squared(
    picture: Picture, side: int, mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
) -> Tensor:
    """Return the picture scaled to ``side`` x ``side`` pixels, whatever its aspect, and normalised:
    ``[1, 3, side, side]``."""
    scaled = functional.interpolate(
        picture.pixels[None].float(), (side, side), mode="bilinear", antialias=True
    ).clamp(0, 1)
    middle, width = (torch.tensor(x)[None, :, None, None] for x in (mean, deviation))
    return ((scaled - middle) / width).to(device)


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
