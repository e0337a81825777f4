"""LoRAs and textual-inversion embeddings that act only while one layer or picture is made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError, invalid
from layered_core.formats.untrusted import file_inside
from layered_diffusers.models.loading import require_unet


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
                file = adapter_file(lora.name, folder)
                _load(
                    file,
                    lambda f=file, n=name: model.load_lora_weights(
                        f.parent, weight_name=f.name, adapter_name=n
                    ),
                )
            model.set_adapters(names, [x.strength for x in recipe.loras])
        words = ""
        if recipe.embedding:
            words = f"{_embed(model, recipe.embedding, folder, stack)} "
        yield words


@contextmanager
def embedded(
    model: DiffusionPipeline, documents: Sequence[LayerDocument], folder: Path | None
) -> Iterator[None]:
    """Load the embeddings of all visible layers with words into a model for the length of a ``with`` block.

    There, the token of an embedding ``krk`` is ``<krk>``: :func:`with_tokens` puts it before the words of
    its layers. After the block the model is as before, also after an error. Embeddings that the model has
    already are left as they are.

    Args:
        model: any diffusers pipeline.
        documents: their layers' recipes name the embeddings.
        folder: as in :func:`adapted`.

    Raises:
        LayeredError: a file is missing, broken or made for another model; the text names the layer.
    """
    with ExitStack() as stack:
        for layer in (x for document in documents for x in document if _has_embedding(x)):
            name = layer.recipe.embedding or ""
            if not _is_loaded(model, embedding_token(name)):
                try:
                    _embed(model, name, folder, stack)
                except LayeredError as error:
                    raise LayeredError(f"layer {layer.name!r}: {error}") from error
        yield


def with_tokens(model: DiffusionPipeline, document: LayerDocument, needed: bool = True) -> LayerDocument:
    """Return a document whose layers' words begin with the tokens of their embeddings, in place of the
    recipes' names.

    Args:
        model: its tokenizer has the tokens, see :func:`embedded`.
        document: hidden layers and those without words stay as they are.
        needed: whether an embedding that is not loaded is an error; otherwise it is left out.

    Raises:
        LayeredError: an embedding is not loaded; the text names the layer.
    """
    layers = []
    for layer in document:
        if _has_embedding(layer):
            name = layer.recipe.embedding or ""
            token = embedding_token(name)
            is_loaded = _is_loaded(model, token)
            if needed and not is_loaded:
                raise LayeredError(
                    f"layer {layer.name!r}: its embedding {name!r} is not loaded. Give 'render' the folder "
                    f"that holds it as 'adapters', or plan and sample within 'embedded' of "
                    f"layered_diffusers.models.adapters"
                )
            prompt = f"{token} {layer.prompt.strip()}" if is_loaded else layer.prompt
            layer = replace(layer, prompt=prompt, recipe=replace(layer.recipe, embedding=None))
        layers.append(layer)
    return replace(document, layers=tuple(layers))


def embedding_token(name: str) -> str:
    """Return the token that stands for an embedding in words: ``<krk>`` for ``krk`` or ``krk.safetensors``."""
    return f"<{Path(name.removesuffix('.safetensors')).name}>"


def _has_embedding(layer: Layer) -> bool:
    return layer.visible and bool(layer.prompt.strip()) and bool(layer.recipe.embedding)


def _is_loaded(model: DiffusionPipeline, token: str) -> bool:
    return token in model.tokenizer.get_added_vocab()


def _embed(model: DiffusionPipeline, name: str, folder: Path | None, stack: ExitStack) -> str:
    """Load an embedding until ``stack`` closes, and return its token."""
    require_unet(model, f"embedding {name!r}")
    file, token = adapter_file(name, folder), embedding_token(name)
    before = set(model.tokenizer.get_added_vocab())
    _load(file, lambda: model.load_textual_inversion(file.parent, weight_name=file.name, token=token))
    # Further vectors have tokens of their own, which diffusers does not unload with the first.
    added = {t: i for t, i in model.tokenizer.get_added_vocab().items() if t not in before}
    stack.callback(model.unload_textual_inversion, sorted(added, key=added.__getitem__))
    return token


def adapter_file(name: str, folder: Path | None) -> Path:
    """Return the file of a LoRA or embedding that a recipe names, with or without its ending.

    Raises:
        LayeredError: there is none in ``folder``, which may be None: no folder was given.
    """
    if folder is None:
        raise LayeredError(
            f"LoRA or embedding {name!r} was not found, because no folder of LoRAs and embeddings is given. "
            f"Name the folder that holds it as 'adapters'"
        )
    for ending in ("", ".safetensors"):
        file = file_inside(folder, f"{name}{ending}")
        if file is None:
            raise invalid(
                "LoRA or embedding",
                name,
                f"a file in {str(folder)!r}",
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
