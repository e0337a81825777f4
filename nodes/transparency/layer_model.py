"""List and read the files of the folder ``models/layer_model``. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from torch import Tensor

from ...demo.world.places import TRANSPARENT
from ...layered_core.transparency.layer_diffuse_files import (
    missing_file,
    published,
    published_for,
    read_layer_model_file,
)

KIND = "layer_model"
"""ComfyUI's name for the folder; more folders can be added under it in ``extra_model_paths.yaml``."""

STORYBOOK = "storybook (shipped)"
"""The choice that means this pack's own small files, for the storybook model."""

JOINT_LAYERS = "joint layers"
"""The task of the storybook's file for several layers; files of the task ``joint`` serve for it too."""

_STORYBOOK_FILES = {
    "transparent": "lora.safetensors",
    "joint": "joint.safetensors",
    JOINT_LAYERS: "joint_layers.safetensors",
    "encoder": "encoder.safetensors",
    "decoder": "decoder.safetensors",
}

_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Pickles are offered too: the error on choosing one says how to convert it."""

folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir, KIND)))


def layer_model_choices(task: str) -> list[str]:
    """Return what a node offers for a task, one of
    :data:`layered_core.transparency.layer_diffuse_files.TASKS`.

    That is the storybook's own file if there is one, the published files (missing ones too: the error on
    choosing one says where to get it), and the user's files under other names.
    """
    shipped = [STORYBOOK] if _storybook_file(task) is not None else []
    known = [f.name for f in published_for(task)]
    there = [f for f in folder_paths.get_filename_list(KIND) if f.lower().endswith(_ENDINGS)]
    own = [f for f in there if (p := published(f)) is None or (p.task == task and f not in known)]
    return shipped + sorted(known, key=lambda name: name not in there) + own


def read_layer_model(name: str, task: str) -> dict[str, Tensor]:
    """Return the tensors of a choice of :func:`layer_model_choices`.

    Raises:
        LayeredError: the file is missing (named with its repository, size and folder), cut short, or a
            pickle.
    """
    if name == STORYBOOK and (file := _storybook_file(task)) is not None:
        return read_layer_model_file(file)
    path = folder_paths.get_full_path(KIND, name)
    if path is None:
        raise missing_file(name, folder_paths.get_folder_paths(KIND)[0])
    return read_layer_model_file(path)


def read_joint_file(name: str, layers: int) -> dict[str, Tensor]:
    """Return the tensors of a choice of :func:`layer_model_choices` for the task ``joint`` that make ``layers``
    foregrounds; of the storybook's two files, one is for a single foreground. Errors as in :func:`read_layer_model`."""
    return read_layer_model(name, "joint" if layers == 1 else JOINT_LAYERS)


def _storybook_file(task: str) -> Path | None:
    file = TRANSPARENT / _STORYBOOK_FILES[task] if task in _STORYBOOK_FILES else None
    return file if file is not None and file.is_file() else None
