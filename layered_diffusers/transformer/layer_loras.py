"""LoRAs that act in one layer, on transformers of diffusers: every token of texts and picture has its own weight."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from layered_core.attention.lora_sum import Adapted, Pixels, Rows
from layered_core.attention.spans import tokens
from layered_diffusers.methods.layer_loras import Change, DocumentLoras, Part, PlacedLoras, change_output
from layered_diffusers.transformer.hosts import Host
from layered_diffusers.transformer.joining import Layout, Row
from layered_diffusers.transformer.latents import PATCH

_OF_TEXTS = re.compile(
    r"(^|\.)(context_embedder|txt_in|cap_embedder|context_refiner|ff_context|txt_mlp|add_[qkv]_proj|to_add_out)(\.|$)"
)
"""Modules that get texts alone."""

_OF_PICTURE = re.compile(r"(^|\.)(all_)?x_embedder(\.|$)")
"""Modules that get the picture alone, perhaps of all rows of the batch one after the other."""


class JointLoras:
    """The LoRAs of layers in one run of a transformer."""

    def __init__(
        self,
        loras: DocumentLoras,
        host: Host,
        latents: Tensor,
        cut: Callable[[Tensor], Tensor] | None,
    ) -> None:
        """Prepare a run.

        Args:
            loras: those of the run's documents.
            host: the pipeline's row.
            latents: of the run, ``[B, C, h, w]``.
            cut: as in :class:`~layered_diffusers.methods.layer_loras.PlacedLoras`.
        """
        self.host, self.placed, self._device = host, PlacedLoras(loras, cut), latents.device
        self._changed = loras.deltas("transformer", self.placed.loras, self._device)
        size = int(latents.shape[-2]), int(latents.shape[-1])
        self._size, self._forming = size, False
        self._rows: dict[Hashable, Rows] = {}
        self._laid: Sequence[tuple[Row, Layout, int]] = ()
        self._parts: Sequence[Part] = ()

    def start(self, stack: ExitStack) -> None:
        """Change the transformer's modules until ``stack`` closes."""
        for name, (module, adapted) in self._changed.items():
            change_output(module, self._change(name, adapted), stack)

    def lay_out(
        self, rows: Sequence[Row], layouts: Sequence[Layout], lengths: Sequence[int], forming: bool = False
    ) -> None:
        """Note where texts and picture stand in the rows of the next call.

        Args:
            rows: those of the batch; empty: LoRAs do not act.
            layouts: of each row.
            lengths: of each row, number of its text tokens, with those that nobody reads.
            forming: whether the layout is forming.
        """
        self._forming = forming
        self._laid, self._rows = list(zip(rows, layouts, lengths, strict=True)), {}

    @contextmanager
    def alone(self, parts: Sequence[Part]) -> Iterator[None]:
        """Let each row of a batch be about one layer alone, for the length of a ``with`` block: its LoRAs act on all
        of it, no other layer's do."""
        self._parts, self._rows = parts, {}
        try:
            yield
        finally:
            self._parts, self._rows = (), {}

    def _change(self, name: str, adapted: Adapted) -> Change:
        kind = "text" if _OF_TEXTS.search(name) else "picture" if _OF_PICTURE.search(name) else ""

        def change(y: Tensor, x: Tensor) -> Tensor:
            if not self._laid and not self._parts:
                return y
            if y.ndim == 4:
                return adapted.to_pixels(y, x, self._of_patches(len(y), y.shape[2:]))
            return adapted.to_rows(y, x, self._of_rows(x, kind))

        return change

    def _cells(self, document: int) -> Tensor:
        return self.placed.documents[document].cells(self._size, patch=PATCH, forming=self._forming)

    def _of_patches(self, count: int, size: torch.Size) -> Pixels:
        if self._parts:
            return Pixels.of(
                self.placed.of_parts(self._parts)[..., None, None].expand(-1, -1, *size), self._device
            )
        return Pixels.of(self.placed.of_rows(count, self._cells), self._device)

    def _of_rows(self, x: Tensor, kind: str) -> Rows:
        """Return the weights of the rows of an input ``[R, N, C]``, ``[R, C]``, or ``[R N, C]``."""
        key = kind, x.shape[:-1]
        if key not in self._rows:
            if self._parts:
                weights = self.placed.of_parts(self._parts)
                weights = weights.repeat_interleave(x[..., 0].numel() // len(self._parts), 1)
            elif x.ndim == 2 and len(x) == len(self._laid):
                weights = self.placed.of_rows(len(x), lambda i: self.placed.documents[i].placeless())
            else:
                weights = self._of_tokens(x, kind)
            self._rows[key] = Rows.of(weights, self._device)
        return self._rows[key]

    def _of_tokens(self, x: Tensor, kind: str) -> Tensor:
        """Return the weights of all rows' tokens, one row after the other, ``[K, R N]``."""
        found = []
        for r, (row, layout, length) in enumerate(self._laid):
            document = r % len(self.placed.documents)
            text, picture = self._of_one(document, row, layout, length)
            own = {"text": [text], "picture": [picture]}.get(kind)
            if own is None:
                alone = x.ndim == 3 and x.shape[1] == picture.shape[1]
                both = [picture, text] if self.host.picture_first else [text, picture]
                own = [picture] if alone else both
            weights = torch.cat(own, 1)
            if x.ndim == 3:  # shorter rows of a batch are filled up
                weights = torch.nn.functional.pad(weights, (0, x.shape[1] - weights.shape[1]))
            out = weights.new_zeros(len(self.placed.loras), weights.shape[1])
            out[self.placed.numbers(document)] = weights
            found.append(out)
        return torch.cat(found, 1)

    def _of_one(self, document: int, row: Row, layout: Layout, length: int) -> tuple[Tensor, Tensor]:
        """Return the weights of one row's text and picture tokens, ``[K_d, T]`` and ``[K_d, I]``."""
        places, cells, spans = self.placed.documents[document], self._cells(document), layout.spans
        names = [] if row.regions is None else [region.name for region in row.regions.regions]
        live = places.sequence(spans, names[: len(spans.texts)], cells)
        text = live.new_zeros(len(live), length)
        where = tokens(spans.main, *spans.texts, spans.pads).sort().values
        text[:, layout.text.cpu()] = live[:, where]
        padding = self.host.family.multiple if self.host.listed else 1
        count = len(spans.image)
        picture = torch.cat(
            [
                live[:, spans.image.start : spans.image.stop],
                places.placeless()[:, None].expand(-1, -count % padding),
            ],
            1,
        )
        return text, picture
