"""LoRAs that act in one layer: how much each of them counts for every token and every pixel of a network.

A LoRA changes modules ``f`` of a network. With the LoRAs of layers, every changed module gives

    f(x) + sum_k w_k (adapted_k(x) - f(x))

at the price of one pass. ``w_k`` is, row by row of the module's input,

* for a token or pixel of the picture: the visible mask of the layers that have LoRA k, at that map's size, 0..1; while
  the layout is forming, the masks are grown as those of the layers' words are;
* for a token of a layer's own words: 1 if the layer has LoRA k, else 0;
* for all that has no place (the main prompt's words, embeddings of time and labels, modulations, pooled text):
  1 if a layer with LoRA k covers the whole picture, else 0.

So a layer that covers everything gets its LoRA exactly as a LoRA for the whole picture, and nothing of a LoRA
reaches the places and the words of other layers, but through attention.

A host finds the weights with :class:`LoraPlaces`, prepares them with :class:`Rows` or :class:`Pixels` once for
each size, and adds with :class:`~.lora_sum.Adapted`, module by module.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..canvas.masks import document_masks, grown_masks
from ..document import LayerDocument, Lora
from .spans import Spans, patch_masks
from .tiles import LEAST_WEIGHT

NOBODY = -1
"""The number of no layer, for :class:`Alone`."""


@dataclass(frozen=True, eq=False)
class LayerLoras:
    """The LoRAs of one layer that is seen."""

    layer: str
    """Name of the layer."""
    mask: Tensor
    """Visible mask, float32 ``[H, W]``, 0..1."""
    forming: Tensor
    """The mask while the layout is forming, ``[H, W]``."""
    loras: tuple[Lora, ...]
    """Its LoRAs of a strength other than 0; two of them add up."""


def plan_loras(document: LayerDocument, growth: float = 0.0) -> tuple[LayerLoras, ...]:
    """Return the layers whose LoRAs act: those that are seen somewhere and have a LoRA of a strength other than 0.

    Args:
        document: the stack.
        growth: how far masks are grown while the layout is forming, see
            :class:`~.regional_plan.Settings`. Neutral: 0.
    """
    if not any(_loras(layer.recipe.loras) for layer in document if layer.visible):
        return ()
    masks, _ = document_masks(document)
    forming = grown_masks(masks, round(growth * min(masks.shape[-2:])))
    return tuple(
        LayerLoras(layer.name, mask, grown, loras)
        for layer, mask, grown in zip(document, masks, forming, strict=True)
        if (loras := _loras(layer.recipe.loras)) and bool((mask >= LEAST_WEIGHT).any())
    )


def _loras(loras: Iterable[Lora]) -> tuple[Lora, ...]:
    return tuple(lora for lora in loras if lora.strength != 0)


class View(Protocol):
    """What rows of a batch show of the picture: a :class:`~.parts.Part` of it, or one layer :class:`Alone`."""

    def cut(self, masks: Tensor) -> Tensor:
        """Return the masks ``[L, H, W]`` of the whole picture as these rows see them, ``[L, H', W']``."""

    def __hash__(self) -> int:
        """Views are keys of a cache."""


class Alone(NamedTuple):
    """A view of rows that are about one layer by itself: its LoRAs act on all of them, no other layer's do."""

    layer: int
    """Number of the layer in :attr:`LoraPlaces.layers`, or :data:`NOBODY`."""

    def cut(self, masks: Tensor) -> Tensor:
        """Return masks ``[L, 1, 1]``, 1 for the layer."""
        alone = masks.new_zeros(len(masks), 1, 1)
        if self.layer != NOBODY:
            alone[self.layer] = 1
        return alone


class LoraPlaces:
    """How much every LoRA of a run counts where. The K LoRAs are numbered as in :attr:`loras`."""

    def __init__(self, layers: Sequence[LayerLoras], cut: Callable[[Tensor], Tensor] | None = None) -> None:
        """Prepare a run.

        Args:
            layers: the layers whose LoRAs act, L of them, from :func:`plan_loras`.
            cut: cuts masks ``[L, H, W]`` of the canvas as the sampled picture was cut out of it. None: the whole
                canvas is sampled.
        """
        self.layers: tuple[str, ...] = tuple(x.layer for x in layers)
        self.loras: tuple[Lora, ...] = tuple(dict.fromkeys(lora for x in layers for lora in x.loras))
        """Every LoRA once for each strength it is used with, however many layers have it."""
        nothing = torch.zeros(0, 1, 1)
        self._masks = torch.stack([x.mask for x in layers]) if layers else nothing
        self._forming = torch.stack([x.forming for x in layers]) if layers else nothing
        if cut is not None:
            self._masks, self._forming = cut(self._masks), cut(self._forming)
        self._owned = torch.tensor(
            [[float(x.loras.count(lora)) for x in layers] for lora in self.loras]
        ).reshape(len(self.loras), len(layers))
        self._cells: dict[Hashable, Tensor] = {}

    @property
    def covering(self) -> str | None:
        """The layer with LoRAs that covers the whole picture, so that they act on the main prompt too; None: none
        does."""
        full = (self._masks > 1 - LEAST_WEIGHT).flatten(1).all(1)
        return next((name for name, covers in zip(self.layers, full.tolist(), strict=True) if covers), None)

    def alone(self, layer: str | None) -> Alone:
        """Return the view of rows that are about one layer by itself; None, or a layer without LoRAs: no LoRA acts."""
        return Alone(self.layers.index(layer) if layer in self.layers else NOBODY)

    def cells(
        self, size: tuple[int, int], view: View | None = None, patch: int = 1, *, forming: bool = False
    ) -> Tensor:
        """Return the weights of the cells of a map of the picture, float32 ``[K, h, w]`` on the CPU.

        Masks are reduced by area, as regional attention does it; less than :data:`~.tiles.LEAST_WEIGHT` counts as 0,
        and as much below 1 counts as 1.

        Args:
            size: height and width of the map, cells; with ``patch``, of the latents.
            view: what the map shows of the picture; None: all of it.
            patch: side of a transformer's patch, latent cells; the map is then one of patches.
            forming: whether the layout is forming: noise is above :data:`~..noise.guidance.FORMING`.
        """
        key = size, view, patch, forming
        if key not in self._cells:
            shown = patch_masks(self._shown(view, forming), size, patch)
            shown = torch.where(shown >= LEAST_WEIGHT, shown, 0.0)
            shown = torch.where(shown > 1 - LEAST_WEIGHT, 1.0, shown)
            self._cells[key] = (self._owned @ shown.flatten(1)).view(-1, *shown.shape[1:])
        return self._cells[key]

    def placeless(self, view: View | None = None) -> Tensor:
        """Return the weights of what has no place, float32 ``[K]``: 1 for a LoRA of a layer that covers the whole
        view, else 0."""
        key = "placeless", view
        if key not in self._cells:
            full = (self._shown(view) > 1 - LEAST_WEIGHT).flatten(1).all(1)
            self._cells[key] = self._owned @ full.float()
        return self._cells[key]

    def words(self, layers: Sequence[str | None]) -> Tensor:
        """Return the weights of texts that are the own words of one layer each, float32 ``[K, n]``; None, or a layer
        without LoRAs: 0."""
        columns = [self.layers.index(x) if x in self.layers else NOBODY for x in layers]
        with_nobody = torch.cat([self._owned, self._owned.new_zeros(len(self._owned), 1)], 1)
        return with_nobody[:, columns]

    def sequence(
        self, spans: Spans, layers: Sequence[str | None], cells: Tensor, view: View | None = None
    ) -> Tensor:
        """Return the weights of the tokens of a transformer's sequence, float32 ``[K, N]``.

        Args:
            spans: where everything stands among the N tokens.
            layers: for each of the spans' ``texts``, the layer whose own words it is; None: nobody's.
            cells: the picture's, ``[K, h, w]``, from :meth:`cells`; every frame gets them.
            view: what the picture is of.
        """
        weights = self.placeless(view)[:, None].repeat(1, spans.length)
        weights[:, spans.image.start : spans.image.stop] = cells.flatten(1).repeat(1, spans.frames)
        own = self.words(layers)
        for i, text in enumerate(spans.texts):
            weights[:, text.start : text.stop] = own[:, i : i + 1]
        return weights

    def _shown(self, view: View | None, forming: bool = False) -> Tensor:
        masks = self._forming if forming else self._masks
        return masks if view is None else view.cut(masks)
