"""Pictures that a node shows."""

from __future__ import annotations

import json
import random
import string
from functools import partial
from pathlib import Path

import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...layered_core.formats.pictures import write_whole
from ...layered_core.progress import row_bands


class Preview(ui.PreviewImage):
    """A preview as ComfyUI's own, written in pieces: it shows progress, can be cancelled, and needs little memory
    besides the picture."""

    def __init__(self, image: Tensor, cls: type[io.ComfyNode] | None = None) -> None:
        """Write an IMAGE into ComfyUI's folder for temporary files.

        Args:
            image: ``[B, H, W, 3 or 4]`` in 0..1.
            cls: the node; its hidden inputs, if it has any, are stored with the picture.
        """
        letters = "".join(random.choices(string.ascii_lowercase, k=5))
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            f"ComfyUI_temp_{letters}", folder_paths.get_temp_directory(), image.shape[2], image.shape[1]
        )
        self.values, self.animated = [], False
        for number, picture in enumerate(image, counter):
            file = f"{name}_{number:05}_.png"
            save = partial(_as_saved(picture).save, format="PNG", compress_level=1, pnginfo=_metadata(cls))
            write_whole(Path(folder, file), save)
            self.values.append(ui.SavedResult(file, subfolder, io.FolderType.temp))


def _as_saved(picture: Tensor) -> Image.Image:
    """Return the bytes that ComfyUI's Save Image writes: cut off, not rounded."""
    out = torch.empty(picture.shape, dtype=torch.uint8)
    for rows in row_bands(*picture.shape):
        out[rows] = (picture[rows] * 255).clamp_(0, 255).to(torch.uint8)
    return Image.fromarray(out.numpy())


def _metadata(cls: type[io.ComfyNode] | None) -> PngInfo:
    info = PngInfo()
    hidden = None if cls is None or args.disable_metadata else cls.hidden
    if hidden is not None:
        for key, value in {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}.items():
            if value:
                info.add_text(key, json.dumps(value))
    return info
