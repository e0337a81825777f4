"""The checksum of all that an item's result depends on, by which a batch knows what is made already."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from layered_cli.batching.items import Item
from layered_core import __version__
from layered_core.errors import invalid
from layered_core.files import content_hash, file_hash

WEIGHTS = ("model", "control", "inpaint_control", "file", "decoder")
"""Options that name weights: these count by their content, wherever they lie."""

NO_MATTER = (*WEIGHTS, "adapters", "memory_limit", "out", "document", "picture")
"""Options whose value changes no result, or that are counted in another way."""


class Identities:
    """Checksums of weights, each computed once."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self.known = dict(known or {})

    def of(self, option: str, value: Any) -> str:
        """Return the checksum of the weights that an option names.

        Raises:
            LayeredError: there is no such model.
        """
        key = f"{option} {value}"
        if key not in self.known:
            self.known[key] = _of_weights(option, value)
        return self.known[key]

    def of_all(self, options: argparse.Namespace) -> dict[str, str]:
        """Return the checksums of all weights that ``options`` name, by option."""
        named = {x: getattr(options, x, None) for x in WEIGHTS}
        return {x: self.of(x, value) for x, value in named.items() if value is not None or x == "model"}


def _of_weights(option: str, value: Any) -> str:
    from demo.world.places import MODEL, TRANSFORMER
    from layered_diffusers.models.loading import find_model

    if option == "model":
        path = find_model(value)
        path = MODEL if path == TRANSFORMER else path  # it borrows the storybook's VAE and text encoder
    else:
        path = Path(value or MODEL).expanduser()
        if not path.exists():
            raise invalid(f"--{option.replace('_', '-')}", str(value), "an existing file or folder")
    return folder_hash(path) if os.path.isdir(path) else file_hash(path)


def folder_hash(folder: Path) -> str:
    """Return a SHA-256 hash of the names and the content of all files in a folder, but for hidden ones."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(x.startswith(".") or x == "__pycache__" for x in name.parts):
            digest.update(f"{name.as_posix()}\0{file_hash(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def recipe_of(item: Item, options: argparse.Namespace, identities: Identities) -> str:
    """Return the SHA-256 hash of all that an item's result depends on: the content of its document, its options, its
    weights, and the version of this package.

    Raises:
        LayeredError, OSError: the document or the weights cannot be read.
    """
    said = {k: v for k, v in vars(options).items() if k not in NO_MATTER}
    whole = {
        "version": __version__,
        "way": item.way,
        "format": item.name.rpartition(".")[2],
        "prompt": item.prompt,
        "document": content_hash(item.document) if item.document else None,
        "options": said,
        "weights": identities.of_all(options),
        "adapters": _adapters(item, options) if getattr(options, "adapters", None) else None,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def _adapters(item: Item, options: argparse.Namespace) -> dict[str, str]:
    """Return the hashes of the LoRAs and embeddings that the layers' recipes name."""
    from layered_core.files import read_layers
    from layered_core.formats.limits import Limits
    from layered_core.learning.word_files import ENDING, VALUES_ENDING
    from layered_diffusers.models.adapters import adapter_file

    if item.document is None:
        return {}
    limits = Limits.of_memory(int(options.memory_limit * 2**30), "--memory-limit")
    document = read_layers(item.document, limits, options.groups).document
    names = {x.name for layer in document for x in layer.recipe.loras}
    names |= {layer.recipe.embedding for layer in document if layer.recipe.embedding}
    files = [adapter_file(name, options.adapters) for name in names]
    beside = [x.with_name(f"{x.name.removesuffix(ENDING)}{VALUES_ENDING}") for x in files]
    return {x.name: file_hash(x) for x in (*files, *beside) if x.is_file()}
