"""LayerDiffuse on a diffusers model: transparent layers, and layers made to fit given ones, with the
published files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from layered_core.attention.cross_attention import plain
from layered_core.errors import LayeredError, check_number, invalid
from layered_core.joint.network import LayersAtOnce
from layered_core.noise.window import Window, sigma_at
from layered_core.transparency.layer_diffuse_files import LayerDiffuseMode, mode_of, read_layer_model_file
from layered_core.transparency.layer_diffuse_frames import (
    AttentionSharing,
    Base,
    check_rows,
    fitting_frames,
    frame_contexts,
    is_attention_sharing,
    signal_for,
)
from layered_core.transparency.layer_diffuse_weights import (
    LowRank,
    check_picture,
    concat_term,
    fitting_patches,
    patched_weight,
    transformer_blocks,
    with_pictures,
)
from layered_core.transparency.transparent_networks import CELL, over_mid_grey
from layered_diffusers.models import vae
from layered_diffusers.models.loading import StableDiffusion, require_unet
from layered_diffusers.models.text import encode
from layered_diffusers.sampling import Method, Run


class LayerDiffuse(Method):
    """Change a UNet by a LayerDiffuse file for the length of a run. See
    :data:`layered_core.transparency.layer_diffuse_files.LAYER_DIFFUSE_MODES`.

    The file's tensors may be named as in Forge (layerdiffusion-v1) or as in diffusers
    (LayerDiffuse_Diffusers, diffuser_layerdiffuse).
    """

    def __init__(
        self,
        model: StableDiffusion,
        file: str | Path,
        mode: str = "transparent layer",
        *,
        pictures: Mapping[str, Tensor] | None = None,
        words: Mapping[str, str] | None = None,
        weight: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
    ) -> None:
        """Read the file and check that it fits the model.

        Args:
            model: the pipeline that samples.
            file: a LayerDiffuse file, safetensors.
            mode: the name of a mode.
            pictures: the pictures that the mode takes, by name, RGB or RGBA ``[B, 3 or 4, H, W]`` in 0..1, of
                the size that is sampled.
            words: for modes that make several pictures: prompts of single pictures, by their names, in place
                of the common prompt.
            weight: how far the file changes the model, 0..2. Neutral: 0.
            start, end: shares of the sampling between which the change acts, 0..1.

        Raises:
            LayeredError: the file is missing, broken, for another model or another mode; a picture is
                missing; a number is out of range.
        """
        require_unet(model, "LayerDiffuse")
        check_number("weight", weight, 0, 2)
        check_number("start", start, 0, 1)
        check_number("end", end, start, 1)
        self.mode = mode_of(mode)
        self.weight, self.begin, self.end = weight, start, end
        name = Path(file).name
        weights = read_layer_model_file(file)
        given = _given(self.mode, pictures or {})
        self.sizes = {p: (image.shape[-2], image.shape[-1]) for p, image in given.items()}
        unknown = sorted(set(words or {}) - set(self.mode.kinds if len(self.mode.kinds) > 1 else ()))
        if unknown:
            raise invalid(
                "words",
                unknown,
                f"the names of pictures that are made together: {', '.join(self.mode.kinds)}",
            )
        family = type(model).__name__
        self.acting: _Weights | SharedAttentions
        if is_attention_sharing(weights):
            modules = [(a.to_q.in_features, a.to_k.in_features) for a in attentions(model.unet).values()]
            network = fitting_frames(weights, self.mode, modules, name, family)
            network = network.to(model.unet.device, model.unet.dtype)
            own = [
                encode(model, [words[f]])[0][0][None] if words and words.get(f) else None
                for f in self.mode.kinds
            ]
            self.acting = SharedAttentions(model.unet, network, own, _signals(network, given), weight)
        else:
            shapes = {k: tuple(p.shape) for k, p in _own_names(model.unet).items()}
            patches = fitting_patches(weights, self.mode, shapes, _blocks(model.unet), name, family)
            term = None
            if patches.concat is not None:
                term = concat_term(
                    _encoded(model, given), patches.concat.to(model.unet.device, model.unet.dtype), weight
                )
            self.acting = _Weights(model.unet, {**patches.diff, **patches.lora}, term, weight)

    @property
    def joins_rows(self) -> bool:  # type: ignore[override]
        """Whether the file makes several pictures together."""
        return isinstance(self.acting, SharedAttentions)

    def start(self, run: Run, stack: ExitStack) -> None:
        """Check the sizes and the batch, which are known only now."""
        for name, size in self.sizes.items():
            check_picture(name, size, (run.latents.shape[-2], run.latents.shape[-1]))
        self.acting.check(len(run.latents))
        self._window = Window.of_shares(run.scheduler.alphas_cumprod, self.begin, self.end)
        stack.callback(self.acting.switch, False)

    def before_step(self, run: Run, index: int) -> None:
        """Switch the change on inside its window and off outside."""
        sigma = sigma_at(run.scheduler.alphas_cumprod, float(run.timesteps[index]))
        self.acting.switch(self._window.acts(sigma) and self.weight > 0)

    def switch(self, on: bool, guided: bool = True) -> None:
        """Put the change on the UNet, or take it off so that the weights are exactly as before. For
        diffusers' own pipelines, outside a :class:`Run`.

        Args:
            on: put the change on. Call it again after the pipeline was moved to another device.
            guided: the batch holds uncond rows, then cond rows, as with guidance above 1; otherwise all rows
                are cond.
        """
        self.acting.switch(on and self.weight > 0, guided)


def _own_names(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """Return the UNet's weights by their original names, also while LoRAs are loaded (peft then moves the
    original weights to ``base_layer``)."""
    return {k.replace(".base_layer.", "."): p for k, p in unet.named_parameters()}


class _Weights:
    """The change of files that hold weights: they are added to the UNet's, and given pictures to the output
    of its first convolution."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        changes: Mapping[str, Tensor | LowRank],
        term: Tensor | None,
        weight: float,
    ) -> None:
        self.unet, self.changes, self.term, self.weight = unet, changes, term, weight
        self.before: dict[str, Tensor] = {}
        self.hooks: list[Any] = []

    def check(self, rows: int) -> None:
        if self.term is not None and rows % len(self.term):
            raise invalid("pictures: number", len(self.term), f"1, or {rows} as in the batch")

    @torch.no_grad()
    def switch(self, on: bool, guided: bool = True) -> None:
        if on == bool(self.before or self.hooks):
            return
        weights = _own_names(self.unet)
        if on:
            for key, change in self.changes.items():
                # Kept on the CPU: a file may change every weight, and the copies are then as large as the UNet.
                self.before[key] = weights[key].detach().to("cpu", copy=True)
                weights[key].copy_(patched_weight(weights[key], change, self.weight))
            if self.term is not None:
                self.hooks.append(self.unet.conv_in.register_forward_hook(self._add))
            return
        for key, before in self.before.items():
            weights[key].copy_(before)
        self.before.clear()
        while self.hooks:
            self.hooks.pop().remove()

    def _add(self, module: nn.Module, arguments: object, out: Tensor) -> Tensor:
        assert self.term is not None
        return with_pictures(out, self.term)


class SharedAttentions:
    """The change of files whose frames attend to each other: their units replace every attention of the UNet."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        network: AttentionSharing | LayersAtOnce,
        words: list[Tensor | None],
        signals: list[Tensor],
        weight: float,
    ) -> None:
        """Take the model, and what makes the frames together.

        Args:
            unet: the model.
            network: the units.
            words: for every frame encoded text ``[1, T, C]`` in place of its row's, or None.
            signals: of the given picture, see :func:`signal_for`; empty if there is none.
            weight: factor on everything that the units add. Neutral: 0.
        """
        self.unet, self.network, self.words, self.signals, self.weight = unet, network, words, signals, weight
        self.before: dict[str, Any] = {}
        self.guided = True

    def check(self, rows: int) -> None:
        """Raise :class:`LayeredError` unless a batch of ``rows`` holds whole scenes."""
        check_rows(rows, self.network.frames)

    def switch(self, on: bool, guided: bool = True) -> None:
        """Put the units on the UNet or take them off. See :meth:`LayerDiffuse.switch`."""
        self.guided = guided
        if on:
            self.network.to(self.unet.device, self.unet.dtype)
        if on == bool(self.before):
            return
        if on:
            self.before = dict(self.unet.attn_processors)
            found: Sequence[Callable[..., Tensor]] = self.network.units
            units = {
                id(a): (u, i % 2 == 1)
                for i, (a, u) in enumerate(zip(attentions(self.unet).values(), found, strict=True))
            }
            for module in self.unet.modules():
                if id(module) in units:
                    unit, crossed = units[id(module)]
                    module.set_processor(_Processor(partial(self._attend, unit, crossed)))
        else:
            self.unet.set_attn_processor(dict(self.before))
            self.before = {}

    def _attend(
        self,
        unit: Callable[..., Tensor],
        crossed: bool,
        attn: Attention,
        hidden: Tensor,
        context: Tensor | None,
    ) -> Tensor:
        base = Base(attn.to_q, attn.to_k, attn.to_v, attn.to_out[0], plain(attn.heads))
        contexts = None
        if crossed and context is not None:
            conditional_from = len(hidden) // 2 if self.guided else 0
            words = [None if w is None else w.to(context) for w in self.words]
            contexts = self.network.texts(
                frame_contexts(
                    context, self.network.frames, words, [i >= conditional_from for i in range(len(hidden))]
                )
            )
        signal = signal_for(self.signals, hidden.shape[1])
        return unit(hidden, contexts, base, None if signal is None else signal.to(hidden), self.weight)


class _Processor:
    """An attention processor that calls a function in place of the attention."""

    def __init__(self, attend: Callable[[Attention, Tensor, Tensor | None], Tensor]) -> None:
        self.attend = attend

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        return self.attend(attn, hidden_states, encoder_hidden_states)


def attentions(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """Return every attention of a UNet by its name, in the order of the published files."""
    names = [
        f"{block}.{part}"
        for block in transformer_blocks(name for name, _ in unet.named_parameters())
        for part in ("attn1", "attn2")
    ]
    return {name: unet.get_submodule(name) for name in names}


def _blocks(unet: UNet2DConditionModel) -> int:
    """Return the number of residual blocks of each level."""
    count = unet.config.layers_per_block
    return int(count if isinstance(count, int) else count[0])


def _given(mode: LayerDiffuseMode, pictures: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the pictures that a mode takes, over mid-grey, after checking their names and numbers."""
    if set(pictures) != set(mode.takes):
        raise invalid(
            "pictures", sorted(pictures), f"{', '.join(mode.takes) or 'none'} in the mode {mode.name!r}"
        )
    if len({len(p) for p in pictures.values()} - {1}) > 1:
        raise invalid(
            "pictures: batch sizes",
            sorted(len(p) for p in pictures.values()),
            "one picture, or the same number of each",
        )
    return {name: over_mid_grey(pictures[name].float()) for name in mode.takes}


def _encoded(model: StableDiffusion, pictures: Mapping[str, Tensor]) -> Tensor:
    """Encode the pictures and join their latents, in the UNet's scale, along the channels."""
    for name, picture in pictures.items():
        if picture.shape[-2] % CELL or picture.shape[-1] % CELL:
            raise invalid(
                f"{name}: size of the picture",
                f"{picture.shape[-1]}x{picture.shape[-2]}",
                f"sides that are multiples of {CELL}",
            )
    found = [vae.encode(model, picture) for picture in pictures.values()]
    rows = max(len(x) for x in found)
    return torch.cat([x.expand(rows, -1, -1, -1) for x in found], 1)


@torch.no_grad()
def _signals(network: AttentionSharing, pictures: Mapping[str, Tensor]) -> list[Tensor]:
    if network.encoder is None:
        return []
    ((name, picture),) = pictures.items()
    if len(picture) != 1:
        raise LayeredError(f"{name}: {len(picture)} pictures are given; allowed: one, for the whole batch")
    weight = next(network.parameters())
    return network.encoder(picture.to(weight))
