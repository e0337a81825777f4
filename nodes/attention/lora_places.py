"""Which tokens and pixels the rows of a module's input are, in a pass of a UNet or a transformer."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...layered_core.attention.families import Family
from ...layered_core.attention.layer_loras import View
from ...layered_core.attention.lora_sum import Pixels, Rows
from ...layered_core.attention.spans import Spans
from .conditionings import LORAS

_PLACELESS = re.compile(
    r"(^|[._])(img_|txt_)?(mod|modulation|adaln\w*|time\w*|guidance\w*|vector_in|label_emb|emb_layers|[ty]_embedder"
    r"|distilled_guidance_layer|norm_out|tmlp|tproj)([._]|$)",
    re.IGNORECASE,
)
"""Names of modules of what has no place: embeddings of time, size and labels, pooled text, modulations."""

_TEXT = re.compile(
    r"txt|context|cap_embedder|add_[qkv]_proj|to_add_out|cross_attn\.[kv]_proj|attn2\.to_[kv]$|llm_adapter"
)
"""Names of modules of texts."""


_ROLES = ("placeless", "text", "joint", "picture")
"""What a module may be of; ``joint``: of texts and picture together, in a block that both share."""


def role_of(module: str) -> str:
    """Return what a module of this name is of, one of :data:`_ROLES`; modules of networks whose blocks are all shared
    count as ``picture``."""
    if _PLACELESS.search(module):
        return "placeless"
    if _TEXT.search(module):
        return "text"
    return "joint" if "single_blocks" in module else "picture"


def map_size(cells: int, picture: tuple[int, int]) -> tuple[int, int] | None:
    """Return height and width of a smaller map of a picture from its number of cells; None if it cannot be one.

    Args:
        cells: h w of the map.
        picture: height and width of the picture.
    """
    height, width = picture
    best = None
    for h in range(1, height + 1):
        w, rest = divmod(cells, h)
        if rest or w > width:
            continue
        # Each side is the picture's over one factor, rounded up or down.
        low, high = max((h - 1) / height, (w - 1) / width), min((h + 1) / height, (w + 1) / width)
        off = abs(h / height - w / width)
        if low < high and (best is None or off < best[0]):
            best = off, (h, w)
    return None if best is None else best[1]


@dataclass(frozen=True)
class Layout:
    """Where everything stands in a transformer's pass."""

    main: range
    """Tokens of the main prompt."""
    texts: tuple[range, ...]
    """Tokens of every region's own text."""
    names: tuple[str, ...]
    """The layer whose own words each of these texts is."""
    closed: range
    """Tokens that fill up the regions' texts."""
    pads: range
    """Tokens with which the model fills up the text."""
    grid: tuple[int, int]
    """Height and width of a frame, tokens."""
    frames: int
    """Frames whose tokens follow one another."""
    latent: tuple[int, int]
    """Height and width of the latents of this pass."""
    patch: int
    """Side of a patch, latent cells."""
    one_stream: bool
    """Whether texts and picture have the same modules in all blocks."""

    @classmethod
    def plain(cls, family: Family, tokens: int, latent: tuple[int, int], frames: int) -> Layout:
        """Return the layout of a pass with a prompt of so many tokens and without regions' texts."""
        pads = range(tokens, tokens + -tokens % family.multiple)
        height, width = (-(-side // family.patch) for side in latent)
        nothing = range(tokens, tokens)
        return cls(
            range(tokens),
            (),
            (),
            nothing,
            pads,
            (height, width),
            frames,
            latent,
            family.patch,
            family.refined,
        )

    @property
    def pixels(self) -> int:
        """Number of tokens of the picture."""
        return self.grid[0] * self.grid[1] * self.frames

    def spans(self, behind: int = 0) -> Spans:
        """Return where everything stands in the joint sequence, with so many tokens behind the picture's."""
        first = self.pads.stop
        image = range(first, first + self.pixels)
        return Spans(image.stop + behind, self.main, self.texts, image, self.grid, self.pads, self.closed)

    def tokens_of(self, role: str, count: int) -> tuple[int, range] | None:
        """Return how many tokens are behind the picture's, and which tokens of the joint sequence a module gets; None
        if it gets something else.

        Args:
            role: what the module is of, from :func:`role_of`.
            count: number of tokens that it gets.
        """
        first = self.pads.stop
        if role == "text":
            return (0, range(count)) if count in (first, self.pads.start) else None
        # Reference pictures stand behind the picture, also where it has modules of its own.
        if count >= first + self.pixels and (self.one_stream or role == "joint"):
            return count - first - self.pixels, range(count)
        if count >= self.pixels:
            return count - self.pixels, range(first, first + count)
        return None


@dataclass(eq=False)
class Pass:
    """One pass of a network, while its rows go through its modules; or the time outside passes."""

    views: tuple[View | None, ...]
    """What the rows of the batch show of the picture, in shares of equal length; None: all of it."""
    batch: int = 0
    """Number of rows that the network got; 0 outside passes."""
    picture: tuple[int, int] = (0, 0)
    """Height and width of the latents that it got."""
    layout: Layout | None = None
    """Where the tokens of a transformer stand; None for any other network."""
    forming: bool = False
    """Whether the layout is forming."""
    words: tuple[str, ...] | None = None
    """The layers whose own words the rows of a text are, one after the other; None: they are the prompt's."""
    known: dict[Hashable, Rows | Pixels] = field(default_factory=dict)
    """The weights that passes like this one have needed."""


@contextmanager
def words_of(options: Mapping[str, Any], layers: Sequence[str]) -> Iterator[None]:
    """Let the texts that a network's modules get meanwhile be the own words of these layers, a row each.

    Args:
        options: the transformer options of a pass, or of a run.
        layers: their names.
    """
    now: Pass | None = options.get(LORAS)
    if now is None:
        yield
        return
    before, now.words = now.words, tuple(layers)
    try:
        yield
    finally:
        now.words = before
