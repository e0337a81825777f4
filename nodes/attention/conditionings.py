"""Regions that travel in a conditioning, and what other nodes did to that conditioning on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import torch
from torch import Tensor

from ...layered_core.attention.attention_maps import AttentionMaps
from ...layered_core.attention.regional_plan import Region, Settings
from .learnt_words import Spoken

KEY = "layered_diffusion_attention"
"""The key of our entry in a conditioning, of our wrappers on a model, and of what a forward pass hands to our
patches."""

LORAS = "layered_diffusion_loras"
"""The key of the layers' LoRAs in a conditioning, of their wrappers on a model, and of the pass in a network's
options."""


@dataclass(frozen=True)
class Half:
    """The value under :data:`KEY` in a conditioning: the encoded regions of one half of guidance."""

    name: str
    """Output that the conditioning comes from, "positive" or "negative"."""
    regions: tuple[Region, ...]
    settings: Settings
    contexts: tuple[Tensor | None, ...]
    """The encoded text of each region, ``[T_i, C]``; None if the region has no text of its own."""
    words: Tensor
    """The main prompt as it was encoded, ``[1, T, C]``, before other nodes changed it or appended to it."""
    tokens: int
    """Number of the main prompt's tokens, as the tokenizer counts them."""
    extras: tuple[Mapping[str, Any] | None, ...] = ()
    """What the text encoder gives beside each region's text, for transformers."""
    kept: tuple[Tensor | None, ...] = ()
    """Which tokens of each region's text a transformer reads, without padding; None: all of them."""
    maps: AttentionMaps | None = None
    """Records attention during a run and then holds the last run's maps; None: nothing is recorded."""
    spoken: Spoken | None = None
    """Where learnt words with values stand in the texts; None: nowhere."""

    @property
    def per_token(self) -> int:
        """Number of encoded vectors for one token: 1, or more with text encoders that other packs have
        patched. NegPip's has 2, one for the key and one for the value."""
        return max(1, self.words.shape[1] // self.tokens)

    @property
    def layers(self) -> str:
        """Names of the layers whose words act, for messages."""
        return ", ".join(dict.fromkeys(repr(r.name) for r in self.regions))


def acting_halves(conditions: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[UUID, Half]:
    """Return the regions of a run, by the uuid that ComfyUI gives to every conditioning of a run. Say in the
    log which of them do not act because another node has changed their conditioning.

    Args:
        conditions: the conditionings of ComfyUI's guider, by the name of its input.
    """
    carried = [(name, e) for name, entries in conditions.items() for e in entries or () if KEY in e]
    halves = [(name, e, followed(e[KEY], e["cross_attn"])) for name, e in carried if e[KEY].regions]
    for layers, name in dict.fromkeys((e[KEY].layers, name) for name, e, half in halves if half is None):
        logging.warning(
            "Regional Prompt Attention: the words of layers %s do not act in this run's %s, because another "
            "node has changed the encoded prompt behind it. Connect it without that node, or give the node "
            "the conditionings of plain prompts",
            layers,
            name,
        )
    return {e["uuid"]: half for _, e, half in halves if half is not None}


def followed(half: Half, words: Tensor) -> Half | None:
    """Return the half with its regions' texts changed as other nodes have changed the main prompt; None if
    that is not known.

    Known are nodes that append tokens, which change no region, and nodes that multiply the prompt by a
    factor, such as ConditioningZeroOut and ConditioningMultiply. A prompt that was shortened comes back as it
    is.

    Args:
        half: the regions, with the main prompt as it was encoded, ``[1, T, C]``.
        words: the main prompt now, ``[B, T', C]``.
    """
    before = half.words.float()
    now = words[:, : before.shape[1]].to(before)
    if words is half.words or now.shape[1] < before.shape[1]:
        return half
    if now.shape[-1] != before.shape[-1]:
        return None
    if _close(now, before):
        return half
    factor = (now[:1] * before).sum() / before.square().sum()
    if not _close(now, factor * before):
        return None
    contexts = tuple(None if c is None else c * factor.to(c) for c in half.contexts)
    return replace(half, contexts=contexts, spoken=half.spoken if factor else None)


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two encoded prompts differ by no more than rounding to half precision."""
    return torch.allclose(a, b.expand_as(a), rtol=2**-8, atol=1e-5)
