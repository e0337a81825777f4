"""Put the texts of regions beside the main prompt in the inputs of a transformer, and say where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layered_core.attention.joint_regions import JointRegions
from layered_core.attention.spans import NONE, Spans, tokens
from layered_diffusers.transformer.hosts import Host


@dataclass(frozen=True)
class Row:
    """What one picture reads in one half of classifier-free guidance."""

    main: int
    """Number of tokens of the text of the whole picture."""
    regions: JointRegions | None = None
    """Its regions; None: it reads the text of the whole picture only."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one row of the batch stand."""

    live: Tensor
    """Tokens that anybody reads, in the joint attention's sequence, rising, int64 ``[N]``."""
    text: Tensor
    """Those of the texts, in the sequence of texts alone, int64 ``[T]``."""
    spans: Spans
    """Places in ``live``."""

    def to(self, device: torch.device) -> Layout:
        """Return the same on a device."""
        return Layout(self.live.to(device), self.text.to(device), self.spans)


@dataclass(frozen=True)
class Joined:
    """The texts of one call of the transformer."""

    rows: Sequence[Row]
    """Every row of the batch."""
    texts: Sequence[Sequence[Tensor | None]]
    """For every row the texts of its regions that act, ``[T_i, C]``; empty where none acts."""

    @property
    def widths(self) -> list[int]:
        """Number of tokens that is kept free for each region: the texts of different rows may differ in
        length."""
        count = max((len(t) for t in self.texts), default=0)
        return [max((len(x) for t in self.texts for x in t[i : i + 1] if x is not None), default=0)
                for i in range(count)]  # fmt: skip

    def room(self, multiple: int = 1) -> int:
        """Return the number of tokens of a block, R, filled up to a multiple."""
        return -(-sum(self.widths) // multiple) * multiple

    def block(self, row: int, width: int, multiple: int = 1) -> Tensor:
        """Return the texts of one row's regions in their places, ``[R, C]``, 0 elsewhere; ``width`` is C."""
        block = torch.zeros(self.room(multiple), width)
        for start, text in zip(self._starts(), self.texts[row], strict=False):
            if text is not None:
                block = block.to(text)
                block[start : start + len(text)] = text
        return block

    def places(self, row: int) -> list[range]:
        """Return where the texts of one row's regions stand in its block; one for each of its regions."""
        regions = self.rows[row].regions
        found = [NONE] * (0 if regions is None else len(regions.regions))
        for i, (start, text) in enumerate(zip(self._starts(), self.texts[row], strict=False)):
            if text is not None:
                found[i] = range(start, start + len(text))
        return found

    def _starts(self) -> list[int]:
        widths = self.widths
        return [sum(widths[:i]) for i in range(len(widths))]


class Joiner:
    """Families whose texts are one tensor for all rows, ``[B, T, C]``.

    The sequence of the joint attention is text and picture, or picture and text.
    """

    def __init__(self, host: Host, transformer: Any, grid: tuple[int, int]) -> None:
        """Take the picture's ``grid`` of patches, h' and w'."""
        self.host, self.transformer, self.grid = host, transformer, grid
        self.joined: Joined | None = None

    def join(self, joined: Joined, given: tuple[Any, ...], named: dict[str, Any]) -> list[Layout]:
        """Put the texts into the transformer's arguments ``named``, and return every row's layout."""
        self.joined = joined
        states = named["encoder_hidden_states"]
        blocks = [joined.block(i, states.shape[2]).to(states) for i in range(len(joined.rows))]
        length = states.shape[1]
        named["encoder_hidden_states"] = torch.cat([states, torch.stack(blocks)], 1)
        room = len(blocks[0])
        if named.get("txt_ids") is not None:  # all texts stand at one place
            named["txt_ids"] = named["txt_ids"].new_zeros(length + room, 3)
        mask = named.get("encoder_hidden_states_mask")
        if mask is not None:
            named["encoder_hidden_states_mask"] = torch.cat([mask, mask.new_ones(len(mask), room)], 1)
        return [self._layout(i, joined, length, room).to(states.device) for i in range(len(joined.rows))]

    def lengths(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> list[int]:
        """Return every row's number of text tokens in the transformer, from its arguments after :meth:`join`."""
        states = named["encoder_hidden_states"]
        return [int(states.shape[1])] * len(states)

    @contextmanager
    def positions(self) -> Iterator[None]:
        """Let every region's text stand where it would stand as the prompt, inside the block."""
        if self.host.family.positions == "none":
            yield
            return
        hook = self.transformer.pos_embed.register_forward_hook(self._restart)
        try:
            yield
        finally:
            hook.remove()

    def _restart(self, module: object, given: object, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.joined is None:
            return found
        picture, text = found
        widths = self.joined.widths
        starts = [torch.arange(len(text) - sum(widths)), *(torch.arange(w) for w in widths)]
        return picture, text[torch.cat(starts).to(text.device)]

    def _layout(self, row: int, joined: Joined, length: int, room: int) -> Layout:
        count = self.grid[0] * self.grid[1]
        first, image = (count, 0) if self.host.picture_first else (0, length + room)
        main = range(joined.rows[row].main)
        texts = [_moved(r, length) for r in joined.places(row)]
        return lay_out(first, main, texts, range(image, image + count), self.grid)


class ListJoiner(Joiner):
    """Z-Image, which takes a list of texts, fills up each to a multiple of 32 tokens, and reads the padding.

    The sequence is picture, its padding, text, its padding. The transformer's own positions count from the
    joined text's start, and the picture's from its end.
    """

    def join(self, joined: Joined, given: tuple[Any, ...], named: dict[str, Any]) -> list[Layout]:
        """Put the texts into the list of texts, and return every row's layout."""
        self.joined = joined
        for i, text in enumerate(given[2]):
            if joined.texts[i]:
                block = joined.block(i, text.shape[-1], self.host.family.multiple)
                given[2][i] = torch.cat([text, block.to(text)])
        device = given[2][0].device
        return [self._layout_of(i, joined).to(device) for i in range(len(joined.rows))]

    def lengths(self, given: tuple[Any, ...], named: Mapping[str, Any]) -> list[int]:
        """Return every row's number of text tokens in the transformer, from its arguments after :meth:`join`."""
        multiple = self.host.family.multiple
        return [-(-len(text) // multiple) * multiple for text in given[2]]

    @contextmanager
    def positions(self) -> Iterator[None]:
        """Count texts' and pictures' positions as without regions, inside the block."""
        own = self.transformer.patchify_and_embed

        def patchify(*given: Any) -> Any:
            found = own(*given)
            if self.joined is not None:
                for i, (picture, text) in enumerate(zip(found[3], found[4], strict=True)):
                    self._recount(i, picture, text)
            return found

        self.transformer.patchify_and_embed = patchify
        try:
            yield
        finally:
            del self.transformer.patchify_and_embed

    def _recount(self, row: int, picture: Tensor, text: Tensor) -> None:
        assert self.joined is not None
        room = self._room(row, self.joined)
        main = self.joined.rows[row].main
        if not room:
            return
        picture[: self.grid[0] * self.grid[1], 0] -= room
        text[main : main + room] = 0
        for place in self.joined.places(row):
            text[main + place.start : main + place.stop, 0] = torch.arange(1, len(place) + 1).to(text)
        padding = -main % self.host.family.multiple
        count = torch.arange(main + 1, main + padding + 1)
        text[main + room : main + room + padding, 0] = count.to(text)

    def _room(self, row: int, joined: Joined) -> int:
        """Return the number of tokens of a row's block."""
        return joined.room(self.host.family.multiple) if joined.texts[row] else 0

    def _layout_of(self, row: int, joined: Joined) -> Layout:
        multiple = self.host.family.multiple
        count, main = self.grid[0] * self.grid[1], joined.rows[row].main
        padded = -(-count // multiple) * multiple
        room, padding = self._room(row, joined), -main % multiple
        texts = [_moved(r, main) for r in joined.places(row)]
        pads = range(main + room, main + room + padding)
        return lay_out(padded, range(main), texts, range(count), self.grid, pads, range(count, padded))


def lay_out(
    first: int,
    main: range,
    texts: Sequence[range],
    image: range,
    grid: tuple[int, int],
    pads: range = NONE,
    others: range = NONE,
) -> Layout:
    """Return the layout of a row.

    Args:
        first: place of the first text token in the sequence.
        main, texts, pads: places among the text tokens.
        image, others: places in the sequence, of the picture and of its padding.
        grid: the picture's patches, h' and w'.
    """
    placed: dict[str | int, range] = {
        "main": _moved(main, first),
        **{i: _moved(r, first) for i, r in enumerate(texts)},
        "pads": _moved(pads, first),
        "image": image,
        "others": others,
    }
    spans: dict[str | int, range] = {}
    live = []
    count = 0
    for name, place in sorted(placed.items(), key=lambda item: item[1].start):
        spans[name] = range(count, count + len(place)) if place else NONE
        count += len(place)
        live.append(tokens(place))
    text = torch.cat([tokens(r) for r in (main, *texts, pads)]).sort().values
    own = tuple(spans[i] for i in range(len(texts)))
    where = Spans(count, spans["main"], own, spans["image"], grid, spans["pads"])
    return Layout(torch.cat(live), text, where)


def _moved(place: range, by: int) -> range:
    return range(place.start + by, place.stop + by) if place else NONE
