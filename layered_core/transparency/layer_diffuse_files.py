"""The published files of LayerDiffuse: names, sizes and tasks, and safe reading with errors that say what is
wrong.

Sources of names, sizes and contents: LayerDiffusion/layerdiffusion-v1, lllyasviel/LayerDiffuse_Diffusers and
rootonchair/diffuser_layerdiffuse on Hugging Face. Nothing here downloads anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import LayeredError, invalid
from .transparent_networks import FLUX_CHANNELS

TASKS = (
    "transparent", "joint", "fg2ble", "bg2ble", "fgble2bg", "bgble2fg", "fg2bg", "bg2fg", "encoder",
    "decoder",
)  # fmt: skip
"""The tasks of files. The first eight change a UNet: ``transparent`` makes a transparent layer; ``joint``
makes foreground, background and blend at once; the others take some of foreground (fg), background (bg) and
blend (ble), named before the 2, and make those named after it. ``encoder`` and ``decoder`` extend the VAE by
alpha."""

FAMILIES = {"sdxl": "SDXL", "sd15": "SD1.5"}
"""The base models, and their names as shown to users."""


@dataclass(frozen=True)
class LayerDiffuseMode:
    """A way of making pictures for which a file changes a UNet."""

    name: str
    """Name as shown to users and in nodes."""
    task: str
    """One of :data:`TASKS`."""
    takes: tuple[str, ...]
    """Pictures that must be given, in the order that the file expects."""
    kinds: tuple[str, ...]
    """Kinds of pictures that are made, in the order of the batch. A foreground must be decoded with alpha."""

    def makes(self, layers: int = 1) -> tuple[str, ...]:
        """Return the kind of every picture of a scene, in the order of the batch: the first kind once for each of
        ``layers`` foregrounds, back to front. Neutral: 1.

        Raises:
            LayeredError: the mode makes one foreground at most, and ``layers`` is larger than 1.
        """
        if layers > 1 and self.task != "joint":
            several = next(m.name for m in LAYER_DIFFUSE_MODES if m.task == "joint")
            raise invalid(
                "layer count",
                layers,
                f"1 in the mode {self.name!r}",
                f"Several layers are made by {several!r}",
            )
        return (*(self.kinds[0],) * layers, *self.kinds[1:])


_FG, _BG, _BLEND = "foreground", "background", "blend"

LAYER_DIFFUSE_MODES = (
    LayerDiffuseMode("transparent layer", "transparent", (), (_FG,)),
    LayerDiffuseMode("foreground, background and blend", "joint", (), (_FG, _BG, _BLEND)),
    LayerDiffuseMode("foreground to blend", "fg2ble", (_FG,), (_BLEND,)),
    LayerDiffuseMode("background to blend", "bg2ble", (_BG,), (_BLEND,)),
    LayerDiffuseMode("foreground and blend to background", "fgble2bg", (_FG, _BLEND), (_BG,)),
    LayerDiffuseMode("background and blend to foreground", "bgble2fg", (_BG, _BLEND), (_FG,)),
    LayerDiffuseMode("foreground to background and blend", "fg2bg", (_FG,), (_BG, _BLEND)),
    LayerDiffuseMode("background to foreground and blend", "bg2fg", (_BG,), (_FG, _BLEND)),
)
"""All modes."""


def mode_of(name: str) -> LayerDiffuseMode:
    """Return the mode called ``name``.

    Raises:
        LayeredError: there is none.
    """
    found = next((m for m in LAYER_DIFFUSE_MODES if m.name == name), None)
    if found is None:
        raise invalid("mode", name, ", ".join(m.name for m in LAYER_DIFFUSE_MODES))
    return found


@dataclass(frozen=True)
class LayerModelFile:
    """A published file."""

    name: str
    """File name, ends in ``.safetensors``."""
    repository: str
    """Repository on Hugging Face."""
    megabytes: float
    """Size in 10**6 bytes."""
    family: str
    """Base model, a key of :data:`FAMILIES`."""
    task: str
    """One of :data:`TASKS`."""
    offset_scale: float = 1.0
    """Factor on the output of an encoder. Neutral: 1. It is not documented which of the published files
    already contain the factor of 300."""


def _family(
    repository: str, family: str, files: Mapping[str, tuple[float, str]], offset_scale: float = 1.0
) -> list[LayerModelFile]:
    return [
        LayerModelFile(
            f"{name}.safetensors", repository, size, family, task, offset_scale if task == "encoder" else 1.0
        )
        for name, (size, task) in files.items()
    ]


_FORGE = "LayerDiffusion/layerdiffusion-v1"
_DIFFUSERS = "lllyasviel/LayerDiffuse_Diffusers"
_PORT = "rootonchair/diffuser_layerdiffuse"

FILES: tuple[LayerModelFile, ...] = (
    *_family(_FORGE, "sdxl", {
        "layer_xl_transparent_attn": (743, "transparent"), "layer_xl_transparent_conv": (3620, "transparent"),
        "layer_xl_fg2ble": (702, "fg2ble"), "layer_xl_bg2ble": (702, "bg2ble"),
        "layer_xl_fgble2bg": (702, "fgble2bg"), "layer_xl_bgble2fg": (3620, "bgble2fg"),
        "vae_transparent_encoder": (2.37, "encoder"), "vae_transparent_decoder": (208, "decoder"),
    }),
    *_family(_FORGE, "sd15", {
        "layer_sd15_transparent_attn": (350, "transparent"), "layer_sd15_joint": (554, "joint"),
        "layer_sd15_fg2bg": (563, "fg2bg"), "layer_sd15_bg2fg": (563, "bg2fg"),
        "layer_sd15_vae_transparent_encoder": (2.37, "encoder"),
        "layer_sd15_vae_transparent_decoder": (208, "decoder"),
    }),
    *_family(_DIFFUSERS, "sdxl", {
        "ld_diffusers_sdxl_attn": (1910, "transparent"), "ld_diffusers_sdxl_conv": (3620, "transparent"),
        "ld_diffusers_sdxl_vae_transparent_encoder": (2.37, "encoder"),
        "ld_diffusers_sdxl_vae_transparent_decoder": (208, "decoder"),
    }, offset_scale=300.0),
    *_family(_PORT, "sdxl", {
        "diffuser_layer_xl_transparent_attn": (743, "transparent"),
        "diffuser_layer_xl_transparent_conv": (3620, "transparent"),
        "diffuser_layer_xl_fg2ble": (702, "fg2ble"), "diffuser_layer_xl_bg2ble": (702, "bg2ble"),
        "diffuser_layer_xl_fgble2bg": (702, "fgble2bg"), "diffuser_layer_xl_bgble2fg": (3620, "bgble2fg"),
    }),
)  # fmt: skip
"""All published files; those for the same task are in the order in which they are offered."""


def published(name: str) -> LayerModelFile | None:
    """Return the published file called ``name``, ignoring folders in it; None for a file of the user's
    own."""
    own = re.split(r"[/\\]", name)[-1]
    return next((f for f in FILES if f.name == own), None)


def offset_scale_of(name: str, latent_channels: int) -> float:
    """Return the factor on an encoder's output: as published; for files of the user's own 300 for Flux (16
    latent channels), else 1."""
    known = published(name)
    return known.offset_scale if known is not None else 300.0 if latent_channels == FLUX_CHANNELS else 1.0


def described(name: str) -> str:
    """Return a file's name and the base model that it was published for, for error texts."""
    known = published(name)
    return f"file {name!r}" if known is None else f"file {name!r} (for {FAMILIES[known.family]})"


def misfit(name: str, model: str, why: str) -> LayeredError:
    """Return the error for a file that does not fit the loaded model, which is of the kind ``model``."""
    return LayeredError(
        f"{described(name)} does not fit the model ({model}): {why}. Load a model of the file's kind, or "
        f"choose another file"
    )


def published_for(task: str, family: str | None = None) -> list[LayerModelFile]:
    """Return the published files for a task, of one base model or of all.

    Raises:
        LayeredError: ``task`` is unknown.
    """
    if task not in TASKS:
        raise invalid("task", task, ", ".join(TASKS))
    return [f for f in FILES if f.task == task and family in (None, f.family)]


def missing_file(name: str, folder: str | os.PathLike[str]) -> LayeredError:
    """Return the error for a missing file: it says where the file comes from, its size, and the folder for
    it."""
    known = published(name)
    if known is None:
        return LayeredError(f"file {name!r} is not in {os.fspath(folder)!r}. Put it there, or choose another")
    size = f"{known.megabytes / 1000:.2f} GB" if known.megabytes >= 1000 else f"{known.megabytes:g} MB"
    return LayeredError(
        f"file {known.name!r} is missing: {size}, for {FAMILIES[known.family]}, from "
        f"https://huggingface.co/{known.repository}. "
        f"Download it into {os.fspath(folder)!r}"
    )


def read_layer_model_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, on the CPU, memory-mapped.

    Raises:
        LayeredError: the file is missing (the error names the source), cut short or broken, or it is a
            pickle, which may run code and is never opened.
    """
    file = Path(path)
    if file.suffix.lower() != ".safetensors":
        raise invalid(
            "file", file.name, "a .safetensors file",
            "A pickle (.pth, .pt, .bin, .ckpt) may run code when it is opened. If you trust it, convert it: "
            "safetensors.torch.save_file(torch.load('x.pth', weights_only=True), 'x.safetensors')",
        )  # fmt: skip
    if not os.path.isfile(file):
        raise missing_file(file.name, file.parent)
    try:
        with safe_open(file, "pt") as tensors:
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise LayeredError(
            f"file {file.name!r} is cut short or no safetensors file ({error}). {_again(file.name)}"
        ) from None
    if not weights:
        raise LayeredError(f"file {file.name!r} has no tensors. {_again(file.name)}")
    return weights


def _again(name: str) -> str:
    known = published(name)
    return f"Download it again from https://huggingface.co/{known.repository}" if known else "Copy it again"
