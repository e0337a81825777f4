"""The parts of a picture, as they travel in conditionings to a sampling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import comfy.sd
from torch import Tensor

from ...layered_core.errors import check_letters
from ...layered_core.rendering.rendering_plan import Part, Rendering, RenderingPlan
from ..attention.conditionings import KEY as REGIONS
from ..attention.conditionings import LORAS
from ..attention.lora_patch import LoadedLoras

KEY = "layered_diffusion_rendering"
"""The key of our entries in a conditioning, and of our wrappers on a model."""

WHOLE, EMPTY = -1, -2
"""In place of a part's number: the whole picture's negative, shared by all parts; the empty prompt."""

Entry = Sequence[Any]
"""One entry of a conditioning: the encoded words, and their options by name."""

_OF_THE_PROMPT = frozenset({
    REGIONS, KEY, LORAS, "area", "strength", "mask", "mask_strength", "set_area_to_bounds", "default", "start_percent",
    "end_percent", "clip_start_percent", "clip_end_percent",
})  # fmt: skip
"""Options that say where and when a prompt acts; parts have their own places."""


class Led(NamedTuple):
    """How a part was led in a run; both tensors are on the CPU."""

    colours: Tensor
    """Its unit vectors, ``[B, C]``."""
    mask: Tensor
    """Where it was seen, ``[h, w]``."""


@dataclass(frozen=True, eq=False)
class Job:
    """What one node asks of the runs of its conditionings."""

    rendering: Rendering
    plan: RenderingPlan
    latents: Tensor | None = None
    """In the VAE's scale, ``[N, C, ..., h, w]``: of the colour ``constant``, or of the picture and of mid grey; None
    if the colours come from elsewhere."""

    led: dict[int, Led] = field(default_factory=dict)
    """The parts that were led in the last run, by their numbers, for Vision Guidance Preview."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The background and the layers, back to front; a part's number is its place here."""
        return (self.plan.background, *self.plan.layers)


@dataclass(frozen=True)
class Role:
    """The value under :data:`KEY` in a conditioning: what an entry is for while layers are rendered. Entries
    without one are for the steps that follow."""

    job: Job
    half: str
    """Output that the entry comes from, "positive" or "negative"."""
    number: int
    """Of the part whose words the entry has, 0..L; or :data:`WHOLE` or :data:`EMPTY`."""


def plain(conditioning: Sequence[Entry]) -> list[Entry]:
    """Return the entries of a conditioning that are no part's."""
    return [[words, options] for words, options in conditioning if KEY not in options]


def encode(clip: comfy.sd.CLIP, text: str) -> list[Entry]:
    """Encode a text as CLIP Text Encode does; several entries if the CLIP's hooks have a schedule."""
    check_letters("words", text)
    return [[c, rest] for c, rest in clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)]


def with_parts(
    job: Job, clip: comfy.sd.CLIP, half: str, follows: Sequence[Entry], loras: LoadedLoras | None = None,
    background: str = "",
) -> list[Entry]:  # fmt: skip
    """Return a conditioning with entries for all parts behind its own.

    They have what other nodes have put on the first entry, such as a ControlNet or reference pictures. A part
    that adds nothing to the negative has the conditioning's own. A part's LoRAs act on all of its passes.

    Args:
        job: the parts.
        clip: encodes their words.
        half: "positive" or "negative".
        follows: what the sampler uses after the share.
        loras: the layers' LoRAs.
        background: the layer whose words are the background's.
    """
    inherited = {k: v for k, v in follows[0][1].items() if k not in _OF_THE_PROMPT} if follows else {}
    own = [[w, {k: v for k, v in options.items() if k != REGIONS}] for w, options in follows]
    done: dict[tuple[str, str], Sequence[Entry]] = {}

    def entries(text: str, number: int) -> list[Entry]:
        layer = "" if number < 0 or loras is None else loras.named(job.parts[number].name or background)
        if half == "negative" and text == job.plan.negative and own:
            found = own
        else:
            if (text, layer) not in done:
                with nullcontext() if loras is None else loras.encoding(clip, layer):
                    encoded = encode(clip, text)
                done[text, layer] = [[w, {**inherited, **rest}] for w, rest in encoded]
            found = done[text, layer]
        added: dict[str, Any] = {KEY: Role(job, half, number)}
        if loras is not None:
            added[LORAS] = loras if number < 0 else replace(loras, alone=layer)
        return [[words, {**options, **added}] for words, options in found]

    if half == "positive":
        texts = {number: part.words for number, part in enumerate(job.parts)}
        if job.rendering.asks_model:
            texts[EMPTY] = ""
    elif job.rendering.preset == "fast":
        texts = {WHOLE: job.plan.negative}
    else:
        texts = {number: part.negative for number, part in enumerate(job.parts)}
    return [*follows, *(entry for number, text in texts.items() for entry in entries(text, number))]


def role_of(entry: Mapping[str, Any]) -> Role | None:
    """Return the role of a run's entry; None if it is no part's."""
    role: Role | None = entry.get(KEY)
    return role
