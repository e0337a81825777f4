"""Check words before they are encoded: the textual-inversion embeddings that they name, which ComfyUI leaves out if
it cannot use them, and dynamic prompts that nothing has resolved."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from typing import Any

import comfy.sd1_clip
import folder_paths
from torch import Tensor

from ...layered_core.attention.words import layer_words
from ...layered_core.document import Layer, LayerDocument
from ...layered_core.errors import invalid
from ...layered_core.formats.dynamic_prompts import dynamic_remark

EMBEDDING = "embedding:"
"""The text that ComfyUI expects in front of an embedding's name."""

_SHOWN = 8
"""How many embeddings an error lists at most."""


def check_layer_words(clip: Any, layers: Iterable[Layer]) -> None:
    """Check the embeddings in the words, the negative and the recipe of every visible layer.

    Raises:
        LayeredError: see :func:`check_words`.
    """
    for layer in layers:
        if layer.visible:
            for text in (layer_words(layer, EMBEDDING), layer.negative):
                check_words(clip, text, f"layer {layer.name!r}: ")


def check_words(clip: Any, text: str, where: str) -> None:
    """Check the embeddings that a text names.

    Args:
        clip: ComfyUI's CLIP.
        text: words as ComfyUI reads them, with weights in parentheses.
        where: what the error begins with: the layer or the input, and ": ".

    Raises:
        LayeredError: there is no such embedding, or none of the CLIP's text encoders can use it.
    """
    tokenizers = _tokenizers(clip)
    if not tokenizers or EMBEDDING not in text:
        return
    for name in dict.fromkeys(_names(text)):
        # The name stands alone, so that ComfyUI finds no words after it.
        found = [t._try_get_embedding(name)[0] for t in tokenizers] if name else []
        widths = [x.shape[-1] if isinstance(x, Tensor) else None for x in found]
        if all(x is None for x in found):
            raise invalid(
                f"{where}embedding",
                re.split(r"[<\[]", name)[0].strip(","),
                f"a name in ComfyUI's folder models/embeddings, which has: {_there()}",
                "Put its file there, or correct the name",
            )
        if all(w not in (None, t.embedding_size) for w, t in zip(widths, tokenizers, strict=True)):
            sizes = " or ".join(str(t.embedding_size) for t in tokenizers)
            raise invalid(
                f"{where}embedding {name!r}: width",
                widths[0],
                f"{sizes}, as the text encoder has",
                "It was made for another model: take one that was made for this",
            )


def tell_dynamic(node: str, document: LayerDocument, prompt: str, negative: str) -> None:
    """Say in the log which words of the whole picture and of visible layers have choices in braces or comments.

    Args:
        node: the node's display name.
        document: its words count where ``prompt`` or ``negative`` is empty.
        prompt, negative: the node's inputs.
    """
    words = prompt.strip() or document.prompt, negative.strip() or document.negative
    remark = dynamic_remark((layer for layer in document if layer.visible), *words)
    if remark:
        logging.warning("%s: %s", node, remark)


def _tokenizers(clip: Any) -> list[comfy.sd1_clip.SDTokenizer]:
    """Return the tokenizers of a CLIP that read embeddings."""
    whole = getattr(clip, "tokenizer", None)
    parts = [whole, *getattr(whole, "__dict__", {}).values()]
    return [
        t for t in parts if isinstance(t, comfy.sd1_clip.SDTokenizer) and t.embedding_directory is not None
    ]


def _names(text: str) -> list[str]:
    """Return the names of embeddings in a text, where ComfyUI's tokenizer finds them: at the start of a part
    of one weight, or after a space."""
    escaped = comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0)
    parts = [comfy.sd1_clip.unescape_important(part) for part, _ in escaped]
    marked = [rest for part in parts for rest in re.split(rf"(?:^|(?<=\s)){re.escape(EMBEDDING)}", part)[1:]]
    return [rest.split()[0] if rest.split() else "" for rest in marked]


def _there() -> str:
    files = folder_paths.get_filename_list("embeddings")
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return (", ".join(files[:_SHOWN]) or "none") + more
