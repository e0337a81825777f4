"""LoRAs, embeddings and learnt words that act only while one layer or picture is made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError, invalid
from layered_core.formats.untrusted import file_inside
from layered_core.learning.word_files import LearntWord, read_tensors, values_of
from layered_core.learning.word_values import WordValues
from layered_diffusers.models.loading import quiet, require_unet

SDXL_VECTORS = ("clip_l", "clip_g")
"""Names of an SDXL embedding's tensors, for the first and the second text encoder."""

_VALUES: WeakKeyDictionary[DiffusionPipeline, dict[str, WordValues]] = WeakKeyDictionary()
"""The values of learnt words that are loaded into each model, by token."""


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


@contextmanager
def spoken(model: DiffusionPipeline, words: Sequence[LearntWord]) -> Iterator[None]:
    """Load learnt words that are in no file into a model for the length of a ``with`` block: their tokens there are
    :func:`embedding_token` of their names."""
    with ExitStack() as stack:
        for word in words:
            where = f"learnt word {word.name!r}"
            _load_vectors(model, where, dict(word.vectors), word.values, embedding_token(word.name), stack)
        yield


def loaded_values(model: DiffusionPipeline) -> Mapping[str, WordValues]:
    """Return the values of the learnt words that are loaded into a model, by token."""
    return _VALUES.get(model, {})


def cross_attentions(unet: nn.Module) -> dict[str, Any]:
    """Return a UNet's cross-attentions by name, in the order in which it runs them, in which
    :class:`~layered_core.learning.word_values.WordValues` counts its blocks."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = {name: module for name, module in unet.named_modules() if name.endswith(".attn2")}
    return dict(sorted(found.items(), key=lambda x: order[x[0].split(".")[0]]))


def _embed(model: DiffusionPipeline, name: str, folder: Path | None, stack: ExitStack) -> str:
    """Load an embedding until ``stack`` closes, and return its token."""
    require_unet(model, f"embedding {name!r}")
    file, token = adapter_file(name, folder), embedding_token(name)
    values = values_of(file)
    if not _is_sdxl_embedding(file):
        before = set(model.tokenizer.get_added_vocab())
        _load(file, lambda: model.load_textual_inversion(file.parent, weight_name=file.name, token=token))
        _unload_later(model, before, None, stack)
        _add_values(model, f"embedding {name!r}", values, token, stack)
        return token
    tensors, _ = read_tensors(file)
    _load(file, lambda: _load_vectors(model, f"embedding {name!r}", tensors, values, token, stack))
    return token


def _is_sdxl_embedding(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as tensors:
            return set(SDXL_VECTORS) <= set(tensors.keys())
    except (SafetensorError, OSError):  # the error on loading it says how
        return False


def _load_vectors(
    model: DiffusionPipeline,
    where: str,
    vectors: Mapping[str, Tensor],
    values: WordValues | None,
    token: str,
    stack: ExitStack,
) -> None:
    """Load a word's vectors by encoder, and its values, until ``stack`` closes."""
    if set(vectors) == set(SDXL_VECTORS):
        if not hasattr(model, "text_encoder_2"):
            raise LayeredError(
                f"{where} is one for SDXL, and the model has one text encoder. Use an SDXL model"
            )
        second = {"text_encoder": model.text_encoder_2, "tokenizer": model.tokenizer_2}
        parts = [(vectors["clip_l"], {"text_encoder": model.text_encoder, "tokenizer": model.tokenizer})]
        parts.append((vectors["clip_g"], second))
    else:
        parts = [(next(iter(vectors.values())), {})]
    for vector, more in parts:
        tokenizer = more.get("tokenizer", model.tokenizer)
        before = set(tokenizer.get_added_vocab())
        with quiet():
            model.load_textual_inversion({token: vector}, token=token, **more)
        _unload_later(model, before, more or None, stack)
    _add_values(model, where, values, token, stack)


def _unload_later(
    model: DiffusionPipeline, before: set[str], parts: Mapping[str, Any] | None, stack: ExitStack
) -> None:
    """Take the tokens that were added since ``before`` out of a model again when ``stack`` closes."""
    tokenizer = model.tokenizer if parts is None else parts["tokenizer"]
    # Further vectors have tokens of their own, which diffusers does not unload with the first.
    added = {t: i for t, i in tokenizer.get_added_vocab().items() if t not in before}
    tokens = sorted(added, key=added.__getitem__)
    stack.callback(model.unload_textual_inversion, tokens, **(parts or {}))


def _add_values(
    model: DiffusionPipeline, where: str, values: WordValues | None, token: str, stack: ExitStack
) -> None:
    """Let the values of a learnt word act in a model until ``stack`` closes."""
    if values is None:
        return
    attentions = cross_attentions(model.unet).values()
    values.check_fits(where, [int(attention.to_k.out_features) for attention in attentions])
    loaded = _VALUES.setdefault(model, {})
    loaded[token] = values.to(next(model.unet.parameters()))
    stack.callback(loaded.pop, token)


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
        with quiet():
            load()  # type: ignore[operator]  # a lambda
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LayeredError(
            f"{file.name!r} cannot be used with this model: {str(error).splitlines()[0]}"
        ) from error
