"""LoRAs and textual-inversion embeddings that act only while one layer is made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from layered_core.document import Recipe
from layered_core.errors import LayeredError, invalid
from layered_core.formats.untrusted import file_inside


@contextmanager
def adapted(model: DiffusionPipeline, recipe: Recipe, folder: Path | None) -> Iterator[str]:
    """Load a recipe's LoRAs and embedding into a model for the length of a ``with`` block, which gets the
    token of the embedding and a space, to put before the prompt (empty without an embedding).

    After the block the model is as before, also after an error.

    Args:
        model: any diffusers pipeline.
        recipe: its ``loras`` and ``embedding`` are used.
        folder: folder of their files, safetensors; recipes may name them without the ending.

    Raises:
        LayeredError: a file is missing, broken or made for another model; or peft, which diffusers needs for
            LoRAs, is not installed.
    """
    with ExitStack() as stack:
        if recipe.loras:
            if importlib.util.find_spec("peft") is None:
                raise LayeredError("LoRAs need the package peft: pip install 'layered-diffusion[lora]'")
            stack.callback(model.unload_lora_weights)
            names = [f"lora_{i}" for i in range(len(recipe.loras))]
            for name, lora in zip(names, recipe.loras, strict=True):
                file = _file(lora.name, folder)
                _load(
                    file,
                    lambda f=file, n=name: model.load_lora_weights(
                        f.parent, weight_name=f.name, adapter_name=n
                    ),
                )
            model.set_adapters(names, [x.strength for x in recipe.loras])
        words = ""
        if recipe.embedding:
            file = _file(recipe.embedding, folder)
            token = f"<{file.stem}>"
            _load(file, lambda: model.load_textual_inversion(file.parent, weight_name=file.name, token=token))
            stack.callback(model.unload_textual_inversion, token)
            words = f"{token} "
        yield words


def _file(name: str, folder: Path | None) -> Path:
    if folder is None:
        raise LayeredError(
            f"LoRA or embedding {name!r} was not found, because no folder of LoRAs and embeddings is given. "
            f"Name the folder that holds it as 'adapters'"
        )
    for ending in ("", ".safetensors"):
        file = file_inside(folder, f"{name}{ending}")
        if file is None or file.parent != folder:
            raise invalid(
                "LoRA or embedding",
                name,
                f"a file name in {str(folder)!r}",
                "Folders and links that lead out of it are not followed: copy the file into it",
            )
        if file.suffix == ".safetensors" and os.path.isfile(file):
            _check_tensors(file)
            return file
    there = ", ".join(sorted(f.name for f in folder.glob("*.safetensors"))) or "none"
    raise invalid("LoRA or embedding", name, f"a safetensors file in {str(folder)!r}, which has: {there}")


def _check_tensors(file: Path) -> None:
    """Raise :class:`LayeredError` for a file without tensors, which diffusers would take in silence."""
    try:
        with safe_open(file, "pt") as tensors:
            count = len(tensors.keys())
    except (SafetensorError, OSError):  # broken: the error on loading it says how
        return
    if not count:
        raise LayeredError(f"file {file.name!r} has no tensors. Copy it again")


def _load(file: Path, load: object) -> None:
    try:
        load()  # type: ignore[operator]  # a lambda
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LayeredError(
            f"{file.name!r} cannot be used with this model: {str(error).splitlines()[0]}"
        ) from error
