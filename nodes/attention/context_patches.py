"""Call other packs' patches of the context (ComfyUI's attn2_patch) on layers' texts as on the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...layered_core.attention.regional_attention import RegionalAttention
from ...layered_core.errors import LayeredError, invalid
from .lora_places import words_of

Patch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], tuple[Tensor, Tensor, Tensor]]
"""Changes what comes before the projections of a cross-attention: features of the picture ``[B, N, C]``, context
of the keys and context of the values ``[B, T, C']``."""


def check_has_patch(model_options: Mapping[str, Any], per_token: int) -> None:
    """Raise :class:`LayeredError` if the text encoder gives several vectors for one token, and the model has
    no patch of the context that could make one key of them."""
    patches = model_options.get("transformer_options", {}).get("patches", {}).get("attn2_patch")
    if per_token > 1 and not patches:
        raise _several_vectors(per_token)


@dataclass
class ContextPatches:
    """Other packs' patches of the context, in one forward pass."""

    patches: Sequence[Patch]
    per_token: int
    """Number of encoded vectors for one token, of which the patches make one key."""
    features: Tensor | None = None
    """Features of the picture that the patches of this block get, ``[B, N, C]``; None without patches."""
    tokens: int = 0
    """Number of vectors of the prompt that the patches of this block get."""

    def note(
        self, features: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Note what the patches get. A patch itself, to come before them; it changes nothing."""
        self.features, self.tokens = features.clone(), context.shape[1]
        return features, context, value

    def check(self, q: Tensor, k: Tensor) -> None:
        """Raise :class:`LayeredError` if the patches made something of the prompt that layers cannot share.

        Args:
            q: queries after the patches, ``[B, N, C]``.
            k: the prompt's keys after the patches, ``[B, K, C]``.
        """
        if self.features is None:
            return
        if q.shape[:2] != self.features.shape[:2]:
            raise invalid(
                f"model: pictures and pixels in a cross-attention after its patches ({self._names()})",
                tuple(q.shape[:2]),
                f"{tuple(self.features.shape[:2])}, as before them",
                "Words per layer cannot act beside a patch that divides the picture or the prompt itself: "
                "take it off",
            )
        if self.per_token > 1 and k.shape[1] * self.per_token != self.tokens:
            raise _several_vectors(self.per_token)

    def project(
        self,
        module: nn.Module,
        at: slice,
        extra: Mapping[str, Any],
        attention: RegionalAttention,
        texts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values of layers' texts: ``[L, T, C]``, or with patches ``[L, B, T, C]``.

        Args:
            module: the cross-attention.
            at: rows of the batch that the texts are for.
            extra: what a patch is told of these rows.
            attention: its regions of that length have the texts.
            texts: encoded, ``[L, T, C']``.
        """
        layers = [attention.regions[i].name for i in attention.regions_of_length(texts.shape[1])]
        if self.features is None:
            with words_of(extra, layers):
                return module.to_k(texts), module.to_v(texts)
        features, keys, values = self.features[at], [], []
        for layer, text in zip(layers, texts, strict=True):
            key, value = self._patched(features, text.repeat(len(features), 1, 1), extra)
            with words_of(extra, [layer]):
                keys.append(module.to_k(key))
                values.append(module.to_v(value))
        return torch.stack(keys), torch.stack(values)

    def _patched(self, features: Tensor, text: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the contexts of keys and of values that the patches make of a text ``[B, T, C']``."""
        changed, context, value, told = features.clone(), text, text, dict(extra)
        for patch in self.patches:
            changed, context, value = patch(changed, context, value, told)
        return context, value

    def _names(self) -> str:
        return ", ".join(sorted({getattr(p, "__qualname__", type(p).__qualname__) for p in self.patches}))


def _several_vectors(per_token: int) -> LayeredError:
    return invalid(
        "clip: encoded vectors for one token",
        per_token,
        "1, as this model has no patch that makes one key of them",
        "Connect the model of the node that has changed the clip, such as CLIP NegPip, as well",
    )
