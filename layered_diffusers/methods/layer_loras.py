"""LoRAs that act in one layer, on diffusers models: for one run the layers that a LoRA changes add it in its places."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layered_core.attention.layer_loras import LoraPlaces, plan_loras
from layered_core.attention.lora_sum import Adapted, Delta, LowRank, Pixels, Reach, Rows
from layered_core.attention.regional_attention import KeysAndValues, ProjectWords, RegionalAttention
from layered_core.document import LayerDocument, Lora
from layered_core.errors import LayeredError
from layered_diffusers.models.adapters import adapter_file
from layered_diffusers.models.lora_files import File, Pair, read_lora
from layered_diffusers.sampling import Run

Change = Callable[[Tensor, Tensor], Tensor]
"""From a layer's own output and its input to the changed output."""


Part = tuple[int, str]
"""What is about one layer alone: the document's number and the layer's name. A name of none: no LoRA acts."""


class DocumentLoras:
    """The LoRAs of the layers of some documents, read for a model that stays as it is."""

    def __init__(
        self, model: Any, documents: Sequence[LayerDocument], folder: Path | None, growth: float = 0.0
    ) -> None:
        """Read the files, each once.

        Args:
            model: a loaded diffusers pipeline.
            documents: LoRAs of strength 0 and of layers that are not seen are left out.
            folder: folder of the files, safetensors; recipes may name them without the ending.
            growth: as in :func:`~layered_core.attention.layer_loras.plan_loras`.

        Raises:
            LayeredError: a file is missing, broken, no LoRA, or made for another family of models; the text names
                the layer.
        """
        self.model = model
        self.layers = [plan_loras(document, growth) for document in documents]
        self._files: dict[str, File] = {}
        for layer in (x for layers in self.layers for x in layers):
            for name in (lora.name for lora in layer.loras if lora.name not in self._files):
                try:
                    self._files[name] = read_lora(model, adapter_file(name, folder))
                except LayeredError as error:
                    raise LayeredError(f"layer {layer.layer!r}: {error}") from error

    def __bool__(self) -> bool:
        """Whether any LoRA acts."""
        return bool(self._files)

    def deltas(
        self, part: str, loras: Sequence[Lora], device: torch.device
    ) -> dict[str, tuple[nn.Module, Adapted]]:
        """Return the layers of a part of the model that LoRAs change, by name, and what the LoRAs add to them.

        Args:
            part: ``unet``, ``transformer``, ``text_encoder`` and so on.
            loras: numbered from 0; one may come twice.
            device: where the part computes.
        """
        network = getattr(self.model, part)
        found: dict[str, list[tuple[int, Delta]]] = {}
        for k, lora in enumerate(loras):
            for name, pair in self._files[lora.name].get(part, {}).items():
                module = network.get_submodule(name)
                found.setdefault(name, []).append(
                    (k, _scaled(pair, module, lora.strength, device, network.dtype))
                )
        modules = {name: network.get_submodule(name) for name in found}
        return {name: (modules[name], Adapted(added, _reach(modules[name]))) for name, added in found.items()}

    def speaks_for(self, document: int, layer: str) -> bool:
        """Whether a LoRA of a layer changes a text encoder."""
        loras = self._loras_of(document, layer) if self else ()
        return any(part.startswith("text_encoder") for lora in loras for part in self._files[lora.name])

    @contextmanager
    def encoding(self, document: int, layer: str) -> Iterator[None]:
        """Let the text encoders' half of a layer's LoRAs act for the length of a ``with`` block."""
        loras = self._loras_of(document, layer)
        parts = {part for lora in loras for part in self._files[lora.name] if part.startswith("text_encoder")}
        device = getattr(self.model, "_execution_device", self.model.device)
        with ExitStack() as stack:
            for part in sorted(parts):
                for module, adapted in self.deltas(part, loras, device).values():
                    change_output(module, _everywhere(adapted, len(loras)), stack)
            yield

    def _loras_of(self, document: int, layer: str) -> Sequence[Lora]:
        return next((x.loras for x in self.layers[document] if x.layer == layer), ())


class PlacedLoras:
    """The LoRAs of all documents of one run, numbered through: those of the first, then those of the second."""

    def __init__(self, loras: DocumentLoras, cut: Callable[[Tensor], Tensor] | None) -> None:
        """Prepare a run; ``cut`` as in :class:`~layered_core.attention.layer_loras.LoraPlaces`."""
        self.documents = [LoraPlaces(layers, cut) for layers in loras.layers]
        self.loras = [lora for places in self.documents for lora in places.loras]

    def numbers(self, document: int) -> slice:
        """Return the numbers of a document's own LoRAs."""
        first = sum(len(places.loras) for places in self.documents[:document])
        return slice(first, first + len(self.documents[document].loras))

    def of_rows(self, count: int, weights: Callable[[int], Tensor]) -> Tensor:
        """Return weights of the rows of a batch, ``[K, count, ...]``.

        Args:
            count: number of rows: all pictures once, or several times, half after half.
            weights: those of one document's own LoRAs by its number, ``[K_d, ...]``.
        """
        found = [weights(i) for i in range(len(self.documents))]
        out = found[0].new_zeros(len(self.loras), len(found), *found[0].shape[1:])
        for i, own in enumerate(found):
            out[self.numbers(i), i] = own
        return out.repeat(1, count // len(found), *[1] * (out.ndim - 2))

    def of_parts(self, parts: Sequence[Part]) -> Tensor:
        """Return weights of rows that are each about one layer alone, ``[K, R]``: 1 for its own LoRAs."""
        out = torch.zeros(len(self.loras), len(parts))
        for row, (document, layer) in enumerate(parts):
            out[self.numbers(document), row] = self.documents[document].words([layer])[:, 0]
        return out


class UNetLoras:
    """The LoRAs of layers in one run of a UNet."""

    def __init__(self, loras: DocumentLoras, run: Run, cut: Callable[[Tensor], Tensor] | None) -> None:
        """Prepare a run; ``cut`` as in :class:`PlacedLoras`."""
        self.placed = PlacedLoras(loras, cut)
        self._device = run.latents.device
        self._changed = loras.deltas("unet", self.placed.loras, self._device)
        height, width = run.latents.shape[-2:]
        levels = range(len(run.unet.config.block_out_channels))
        self._sizes = {(height >> i) * (width >> i): (height >> i, width >> i) for i in levels}
        self._rows: dict[Hashable, Rows] = {}
        self._pixels: dict[Hashable, Pixels] = {}
        self._texts: dict[Hashable, KeysAndValues] = {}
        self._parts: tuple[Part, ...] = ()
        self.idle = False
        """Whether nothing acts, because another method has come over these."""
        self.forming = False
        """Whether the layout is forming at this step."""

    def start(self, stack: ExitStack) -> None:
        """Change the UNet's layers until ``stack`` closes."""
        for name, (module, adapted) in self._changed.items():
            change_output(module, self._change(name, adapted), stack)

    @contextmanager
    def alone(self, parts: Sequence[Part]) -> Iterator[None]:
        """Let each row of a batch be about one layer alone, for the length of a ``with`` block: its LoRAs act on all
        of it, no other layer's do."""
        self._parts = tuple(parts)
        try:
            yield
        finally:
            self._parts = ()

    def texts(
        self, block: str, attention: RegionalAttention, document: int, like: Tensor, project: ProjectWords
    ) -> KeysAndValues | None:
        """Return keys and values of the regions' own words with the LoRAs of the layers whose words they are; None:
        no LoRA changes this block's projections.

        Args:
            block: name of the attention, up to its processor.
            attention: the regions of one document, in cond or uncond.
            document: its number.
            like: gives device and number format.
            project: the block's key and value projections.
        """
        path = block.removesuffix(".processor")
        if not any(f"{path}.{part}" in self._changed for part in ("to_k", "to_v")):
            return None
        key = block, id(attention)
        if key not in self._texts:
            keys: list[Tensor | None] = []
            values: list[Tensor | None] = []
            for region, context in zip(attention.regions, attention.contexts, strict=True):
                if context is None:
                    k = v = None
                else:
                    with self.alone([(document, region.name)]):
                        k, v = (x[0] for x in project(context[None].to(like.device, like.dtype)))
                keys.append(k)
                values.append(v)
            self._texts[key] = keys, values
        return self._texts[key]

    def _change(self, name: str, adapted: Adapted) -> Change:
        words = name.endswith((".attn2.to_k", ".attn2.to_v"))

        def change(y: Tensor, x: Tensor) -> Tensor:
            if self.idle:
                return y
            if y.ndim == 4:
                return adapted.to_pixels(y, x, self._of_map(y))
            return adapted.to_rows(y, x, self._of_rows(x, words))

        return change

    def _of_map(self, y: Tensor) -> Pixels:
        size = int(y.shape[2]), int(y.shape[3])
        key = size, len(y), self._parts, self.forming
        if key not in self._pixels:
            documents = self.placed.documents
            if self._parts:
                weights = self.placed.of_parts(self._parts)[..., None, None].expand(-1, -1, *size)
            else:
                count = 1 if len(documents) == 1 else len(y)
                weights = self.placed.of_rows(count, lambda i: documents[i].cells(size, forming=self.forming))
            self._pixels[key] = Pixels.of(weights, self._device)
        return self._pixels[key]

    def _of_rows(self, x: Tensor, words: bool) -> Rows:
        """Return the weights of the rows of a linear layer's input, ``[R, N, C]`` or ``[R, C]``."""
        count, length = len(x), x.shape[1] if x.ndim == 3 else 1
        size = None if words or x.ndim < 3 or self._parts else self._sizes.get(length)
        key = count, length, size, self._parts, self.forming
        if key not in self._rows:
            documents = self.placed.documents
            if size is not None:
                weights = self.placed.of_rows(
                    count, lambda i: documents[i].cells(size, forming=self.forming).flatten(1)
                )
            else:
                if self._parts:
                    weights = self.placed.of_parts(self._parts)
                else:
                    weights = self.placed.of_rows(count, lambda i: documents[i].placeless())
                weights = weights[..., None].expand(-1, -1, length)
            self._rows[key] = Rows.of(weights.flatten(1), self._device)
        return self._rows[key]


def change_output(module: nn.Module, change: Change, stack: ExitStack) -> None:
    """Change what a module gives, until ``stack`` closes."""
    own = module.forward
    replace_forward(module, lambda x, *more, **named: change(own(x, *more, **named), x), stack)


def replace_forward(module: nn.Module, forward: Callable[..., Any], stack: ExitStack) -> None:
    """Give a module another forward, until ``stack`` closes."""
    before: Mapping[str, Any] = {k: v for k, v in vars(module).items() if k == "forward"}

    def put_back() -> None:
        del module.forward
        vars(module).update(before)

    module.forward = forward
    stack.callback(put_back)


def _everywhere(adapted: Adapted, count: int) -> Change:
    """Return the change of a text encoder's layer: all of ``count`` LoRAs act on all of its rows."""
    return lambda y, x: adapted.to_rows(y, x, Rows.of(torch.ones(count, x[..., 0].numel()), x.device))


def _scaled(
    pair: Pair, module: nn.Module, strength: float, device: torch.device, dtype: torch.dtype
) -> Delta:
    """Return what a LoRA adds to a module at a strength."""
    down, up = pair.down.to(device, dtype), (pair.up * (pair.scale * strength)).to(device, dtype)
    if not isinstance(module, nn.Conv2d):
        return LowRank(down, up)
    how: Any = module.stride, module.padding, module.dilation, module.groups
    return lambda x, y: functional.conv2d(functional.conv2d(x, down, None, *how), up)


def _reach(module: nn.Module) -> Reach | None:
    """Return how a convolution's output depends on its input; None for other modules."""
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        return None
    sides = (module.kernel_size, module.stride, module.padding, module.dilation)
    return Reach(*((int(a), int(b)) for a, b in sides))
