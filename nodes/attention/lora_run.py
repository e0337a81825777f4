"""The LoRAs of layers in one sampling run of ComfyUI: which rows of every module's input they act on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from uuid import UUID

import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor, nn

from ...layered_core.attention.families import Family
from ...layered_core.attention.layer_loras import LoraPlaces, View
from ...layered_core.attention.lora_sum import Pixels, Rows
from ...layered_core.attention.parts import Part, find_part
from .conditionings import LORAS
from .lora_files import LoraFile
from .lora_modules import Changes, Weigh, has_pixels
from .lora_places import Layout, Pass, map_size, role_of
from .regional_run import unknown_part
from .transformer_families import network_of
from .transformer_run import PASS


class LoraRun:
    """The LoRAs of layers in one sampling run. Between :meth:`start` and :meth:`stop` the network has their sums."""

    def __init__(
        self, guider: Any, places: LoraPlaces, files: Sequence[LoraFile], family: Family | None,
        views: Mapping[UUID, View], latent: tuple[int, int], acts: Callable[[float], bool],
        forming: Callable[[float], bool],
    ) -> None:  # fmt: skip
        """Prepare a run.

        Args:
            guider: ComfyUI's guider of the run.
            places: where each LoRA acts.
            files: the LoRAs' files, in the order of ``places.loras``.
            family: the transformer's family; None for any other network.
            views: of the conditionings that are about one layer by itself, by ComfyUI's uuid.
            latent: height and width of the whole latent.
            acts: whether the LoRAs act at a sigma of the sampler.
            forming: whether the layout is forming at a sigma of the sampler.
        """
        self.guider, self.places, self.files, self.family = guider, places, files, family
        self.views, self.latent, self.acts, self.forming = views, latent, acts, forming
        self.latents: Tensor | None = None
        """The noisy latents of this step, of which tiles are parts."""
        self._networks: dict[int, _Network] = {}
        self._lock = threading.Lock()  # ComfyUI runs each GPU in a thread of its own

    def start(self) -> None:
        """Wrap the run, in its own copy of the model's options, and put the sums on the network."""
        kinds = comfy.patcher_extension.WrappersMP
        options = self.guider.model_options.setdefault("transformer_options", {})
        for kind, wrapper in ((kinds.CALC_COND_BATCH, self.predict), (kinds.APPLY_MODEL, self.apply)):
            comfy.patcher_extension.add_wrapper_with_key(kind, LORAS, wrapper, options)
        options[LORAS] = self._on(self.guider.model_patcher.model).outside

    def stop(self) -> None:
        """Take the sums off all networks."""
        for network in self._networks.values():
            network.take_off()
        self._networks.clear()

    def predict(
        self, executor: comfy.patcher_extension.WrapperExecutor, model: Any, conds: Any, x: Tensor, *more: Any
    ) -> Any:
        """Wrap the predictions of a step: keep the noisy latents."""
        self.latents = x
        return executor(model, conds, x, *more)

    def apply(
        self, executor: comfy.patcher_extension.WrapperExecutor, x: Tensor, t: Tensor, concat: Any = None,
        context: Any = None, control: Any = None, transformer_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> Tensor:  # fmt: skip
        """Wrap a pass of the model: say what its rows show."""
        options, now = transformer_options or {}, None
        sigma = float(options.get("sigmas", t).flatten()[0])
        if self.acts(sigma):
            now = Pass(self._views(x, options.get("uuids", ())), forming=self.forming(sigma))
        with self._on(executor.class_obj).over(now), _as_written():
            return executor(x, t, concat, context, control, {**options, LORAS: now}, **more)

    def _on(self, model: Any) -> _Network:
        """Return the network of a copy of the model (there is one for each GPU), with the sums put on."""
        with self._lock:
            root = network_of(model)
            if id(root) not in self._networks:
                self._networks[id(root)] = _Network(self, model, root)
            return self._networks[id(root)]

    def _views(self, x: Tensor, uuids: Sequence[UUID]) -> tuple[View | None, ...]:
        """Return what the rows of ``x`` ``[B', C, ..., h', w']`` show, in shares of as many rows as there are pictures.

        Raises:
            LayeredError: they are a part of the picture that lies nobody knows where.
        """
        size = int(x.shape[-2]), int(x.shape[-1])
        own = [self.views.get(uuid) for uuid in uuids] or [None]
        if size == self.latent or None not in own:
            return tuple(own)
        if self.latents is None:
            raise unknown_part(size, self.latent)
        whole = self.latents.to(x.device).flatten(1, -3)
        shares = x.flatten(1, -3).split(
            len(whole)
        )  # tiles follow one another, each with all its conditionings
        return tuple(own[i % len(own)] or self._part(rows, whole) for i, rows in enumerate(shares))

    def _part(self, rows: Tensor, whole: Tensor) -> Part:
        found = {find_part(*pair) for pair in zip(rows, whole, strict=False)}
        place = found.pop() if len(found) == 1 else None
        if place is None or len(rows) != len(whole):
            raise unknown_part((int(rows.shape[-2]), int(rows.shape[-1])), self.latent)
        return place


class _Network:
    """One network whose modules have the sums of a run's LoRAs."""

    def __init__(self, run: LoraRun, model: Any, root: nn.Module) -> None:
        """Put the sums on.

        Args:
            run: the run.
            model: ComfyUI's model.
            root: its network, as it was before torch.compile.
        """
        self.run, self.root = run, root
        self.outside = Pass((None,))
        self.now: Pass | None = self.outside
        """The pass that the network is in; None: one in which no LoRA acts."""
        self._known: dict[Any, dict[Any, Rows | Pixels]] = {}
        loras = enumerate(zip(run.files, run.places.loras, strict=True))
        self._changes = Changes(model, [(k, file.model, lora.strength) for k, (file, lora) in loras])
        self._handles = [
            root.register_forward_pre_hook(self._enter, with_kwargs=True),
            *self._changes.put_on(self._weigher),
        ]

    def take_off(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def over(self, now: Pass | None) -> Iterator[None]:
        """Be in a pass for the length of a ``with`` block."""
        self.now = now
        try:
            yield
        finally:
            self.now = self.outside

    def _enter(self, root: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Find out where everything stands, when the network is called."""
        now = self.now
        if now is None or now is self.outside:
            return
        x = given[0]
        now.batch, now.picture = len(x), (int(x.shape[-2]), int(x.shape[-1]))
        context = named.get("context", given[2] if len(given) > 2 else None)
        if self.run.family is not None and isinstance(context, Tensor):
            frames = x.shape[2] if x.ndim == 5 else 1
            if hasattr(root, "txtfusion"):  # Krea 2 takes frames for pictures of a batch
                now.batch, frames = now.batch * frames, 1
            ours = (named.get("transformer_options") or {}).get(PASS)
            plain = Layout.plain(self.run.family, context.shape[1], now.picture, frames)
            now.layout = plain if ours is None else ours.layout(plain)
        key = now.views, now.batch, now.picture, now.layout, now.forming
        now.known = self._known.setdefault(key, {})

    def _weigher(self, name: str) -> Weigh:
        """Return what weighs the LoRAs on a module, at each of its calls."""
        role = role_of(name.removeprefix("diffusion_model."))
        pixels = has_pixels(self._changes.modules[name])

        def weigh(x: Tensor, y: Tensor) -> Rows | Pixels | None:
            now = self.now
            if now is None:
                return None
            shape = (len(y), *y.shape[2:]) if pixels else x.shape[:-1]
            key = role, pixels, shape, now.words, x.device
            if key not in now.known:
                if pixels:
                    now.known[key] = Pixels.of(self._pixels(now, role, y), x.device)
                else:
                    now.known[key] = Rows.of(self._rows(now, role, shape), x.device)
            return now.known[key]

        return weigh

    def _rows(self, now: Pass, role: str, shape: torch.Size) -> Tensor:
        """Return the weights of the rows of a module's input, ``[K, R]``; ``shape`` is the input's without the last
        dimension."""
        places, count = self.run.places, shape.numel()
        shares = torch.stack([places.placeless(view) for view in now.views], 1)
        # Nodes that divide the picture inside a UNet put its pieces into the batch: then no row has a known place.
        whole = now.batch > 0 and count % now.batch == 0 and (shape[0] == now.batch or now.layout is not None)
        if now.words is not None:
            shares = places.words(now.words)
        elif role != "placeless" and whole:
            tokens = [self._tokens(now, role, count // now.batch, view) for view in now.views]
            if tokens[0] is not None and now.batch % len(tokens) == 0:
                weights = torch.stack([w for w in tokens if w is not None], 1)
                return weights.repeat_interleave(now.batch // len(tokens), 1).flatten(1)
        if count % shares.shape[1]:  # it is not known which rows are whose
            return shares.amin(1, keepdim=True).expand(-1, count)
        return shares.repeat_interleave(count // shares.shape[1], 1)

    def _tokens(self, now: Pass, role: str, count: int, view: View | None) -> Tensor | None:
        """Return the weights of the tokens of one row of the batch, ``[K, N]``; None if they have no place."""
        places, layout = self.run.places, now.layout
        if layout is None:
            size = (
                map_size(count, now.picture) if role != "text" and isinstance(self.root, UNetModel) else None
            )
            return None if size is None else places.cells(size, view, forming=now.forming).flatten(1)
        times = 1
        if role == "text":
            # Krea 2 gives several vectors to each token of a text, one after the other.
            length = next((n for n in (layout.pads.stop, layout.pads.start) if n and count % n == 0), 0)
            times, count = (count // length, length) if length else (1, count)
        found = layout.tokens_of(role, count)
        if found is None:
            return None
        behind, tokens = found
        cells = places.cells(layout.latent, view, layout.patch, forming=now.forming)
        weights = places.sequence(layout.spans(behind), layout.names, cells, view)
        return weights[:, tokens.start : tokens.stop].repeat_interleave(times, 1)

    def _pixels(self, now: Pass, role: str, y: Tensor) -> Tensor:
        """Return the weights of a convolution's output, ``[K, B, h', w']``."""
        places, size = self.run.places, (int(y.shape[-2]), int(y.shape[-1]))
        layout, placed = now.layout, now.batch > 0 and y.ndim > 3 and role == "picture"
        if placed and layout is not None and size == layout.grid:
            shares = [
                places.cells(layout.latent, view, layout.patch, forming=now.forming) for view in now.views
            ]
        elif placed and isinstance(self.root, UNetModel):
            shares = [places.cells(size, view, forming=now.forming) for view in now.views]
        else:
            shares = [places.placeless(view)[:, None, None] for view in now.views]
        weights = torch.stack(shares, 1)
        if len(y) % len(shares):
            return weights.amin(1, keepdim=True)
        return weights.repeat_interleave(len(y) // len(shares), 1)


def _as_written() -> AbstractContextManager[Any]:
    """Let networks run as they were written: code that torch.compile made knows modules as they were then."""
    compiles = "torch._dynamo" in sys.modules
    stance = getattr(torch.compiler, "set_stance", None) if compiles else None  # since PyTorch 2.6
    return nullcontext() if stance is None else stance("force_eager")
