"""Train the storybook's joint generator: foreground, background and blend of one scene, side by side in one
batch.

LayerDiffuse's attention sharing
(:mod:`layered_core.transparency.layer_diffuse_frames`) is trained on the frozen UNet with the UNet's own
objective. The foreground's low-rank changes start as the layer generator's LoRA, reduced to the rank used
here; all others start at no change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.train.diffusion import Objective, frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer, device, half_precision, start_from
from demo.train.replay import ReplayStore
from demo.train.sprites import draw_sprite, padded
from demo.train.transparent import Autoencoder, encode, frozen_autoencoder
from demo.train.transparent_lora import PROJECTIONS, file_name
from demo.train.words import encode as encode_words
from demo.train.words import pad, training_caption, word_ids
from demo.world.drawing import draw_background
from demo.world.places import MODEL
from demo.world.vocabulary import BACKGROUNDS, THINGS, Thing
from layered_core.transparency.layer_diffuse_frames import AttentionSharing, Base, SharingUnit
from layered_diffusers.methods.layer_diffuse import attentions

RANK = 16

FRAMES = 3
"""Pictures of a scene: foreground, background, blend."""


def new_network(unet: UNet2DConditionModel) -> AttentionSharing:
    """Return a network whose units change nothing yet."""
    units = [
        SharingUnit(a.to_q.in_features, a.to_k.in_features, RANK, FRAMES) for a in attentions(unet).values()
    ]
    for unit in units:
        nn.init.zeros_(unit.temporal_o.weight)
        nn.init.zeros_(unit.temporal_o.bias)
        for part in ("q", "k", "v", "out"):
            for change in getattr(unit, f"to_{part}_lora"):
                nn.init.zeros_(change.up.weight)
    return AttentionSharing(units)


def start_from_lora(network: AttentionSharing, unet: UNet2DConditionModel, file: Path) -> None:
    """Copy the layer generator's changes into the foreground's frame, approximated at this rank."""
    tensors = load_file(file)
    layers = int(unet.config.layers_per_block)
    for name, unit in zip(attentions(unet), network.units, strict=True):
        for part, projection in zip(("q", "k", "v", "out"), PROJECTIONS, strict=True):
            key = f"{file_name(f'{name}.{projection}', layers)}.weight::lora"
            up, size, down = torch.linalg.svd(
                tensors[f"{key}::0"].float() @ tensors[f"{key}::1"].float(), full_matrices=False
            )
            root = size[:RANK].sqrt()
            change = getattr(unit, f"to_{part}_lora")[0]
            change.up.weight.data = up[:, :RANK] * root
            change.down.weight.data = root[:, None] * down[:RANK]


class SharedAttention:
    """An attention processor that calls a unit in place of diffusers' attention."""

    def __init__(self, unit: SharingUnit) -> None:
        self.unit = unit

    def __call__(
        self, attention: Attention, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Attend as diffusers' ``AttnProcessor`` does on three-dimensional input, but through the unit."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q, k, v))
            shares = (q @ k.transpose(-1, -2) * attention.scale).float().softmax(-1).to(v.dtype)
            return (shares @ v).transpose(1, 2).flatten(2)

        base = Base(attention.to_q, attention.to_k, attention.to_v, attention.to_out[0], attend)
        words = (
            None
            if encoder_hidden_states is None
            else [encoder_hidden_states[f::FRAMES] for f in range(FRAMES)]
        )
        return self.unit(hidden, words, base)


class Scenes(ReplayStore):
    """A growing store of scenes with one object: the latents of foreground with alpha, background and
    blend."""

    def __init__(
        self, vae: AutoencoderTiny, autoencoder: Autoencoder, rng: np.random.Generator, capacity: int = 12_000
    ) -> None:
        super().__init__(rng, capacity)
        self.vae, self.autoencoder = vae, autoencoder
        self.latents = torch.zeros(capacity, FRAMES, 4, 16, 16)
        self.words: list[tuple[str, Thing]] = [("", THINGS[0])] * capacity

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw, encode and store ``count`` new scenes."""
        for _ in range(count):
            thing, place = THINGS[self.rng.integers(len(THINGS))], str(self.rng.choice(list(BACKGROUNDS)))
            sprite, background = (
                draw_sprite(thing, self.rng),
                Image.fromarray(draw_background(place, self.rng)),
            )
            blend = background.copy()
            blend.paste(Image.fromarray(sprite), (0, 0), Image.fromarray(sprite))
            rgba = torch.stack([padded(sprite), opaque(background), opaque(blend)])
            latents = encode(self.vae, rgba).cpu()
            latents[:1] += self.autoencoder.offset(rgba[:1].to(device())).cpu()
            slot = self.take_slot()
            self.latents[slot], self.words[slot] = latents, (place, thing)

    def batch(self, count: int, ids: dict[str, int]) -> tuple[Tensor, Tensor]:
        """Return latents ``[3 B, 4, 16, 16]`` and token ids ``[3 B, 77]``; the frames of a scene follow each
        other.

        Usually all frames of a scene have its caption. In one scene of four the foreground has only the
        object's words and the background only the landscape's; in one of ten all captions are empty.
        """
        chosen = self.draw(count)
        rows = []
        for index in chosen:
            place, thing = self.words[index]
            chance, tokens = self.rng.random(), training_caption(self.rng, place, [thing], ids)[0]
            if chance < 0.1:
                rows += [pad([])] * FRAMES
            elif chance < 0.35:
                rows += [
                    pad(encode_words(thing.words, ids)),
                    training_caption(self.rng, place, [], ids)[0],
                    tokens,
                ]
            else:
                rows += [tokens] * FRAMES
        latents = self.latents[torch.from_numpy(chosen)].flatten(0, 1)
        return latents.to(device()), torch.tensor(rows).to(device())


def opaque(picture: Image.Image) -> Tensor:
    """Return a picture with alpha 1, ``[4, H, W]`` in 0..1."""
    rgb = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
    return torch.cat([rgb, torch.ones_like(rgb[:1])])


def train(rank: int, processes: int, options: Any) -> None:
    """Train the joint generator in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text = frozen_vae(export), frozen_text_encoder(export)
    autoencoder = frozen_autoencoder(export)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    network = new_network(unet)
    start_from_lora(network, unet, export / "transparent" / "lora.safetensors")
    start_from(network, MODEL / "transparent" / "joint.safetensors", options.fresh)
    for attention, unit in zip(attentions(unet).values(), network.units, strict=True):
        attention.set_processor(SharedAttention(unit))
    prepare(unet)
    network.to(device())
    trainer = Trainer(
        network,
        Path(options.folder) / "joint",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1e-3,
        average=0.998,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    scenes = Scenes(vae, autoencoder, rng)
    scenes.add(128)
    objective, going = Objective(), True
    while going:
        count = options.scale * 8
        scenes.add(max(count // (4 if scenes.filled < 2000 else 8), 1))
        latents, tokens = scenes.batch(count, ids)
        batch = objective.noised(latents, FRAMES)
        with half_precision():
            v = unet(batch.noisy, batch.t, text(tokens)[0]).sample
        error = objective.error(v, batch)
        apart = objective.errors(v, batch).detach().unflatten(0, (count, FRAMES)).mean(0)
        going = trainer.update(error, count, foreground=apart[0], background=apart[1], blend=apart[2])
        if trainer.due(4.0) or not going:
            if rank == 0:
                save_file(
                    {k: w.detach().cpu().half().contiguous() for k, w in trainer.averaged().items()},
                    export / "transparent" / "joint.safetensors",
                )
            trainer.save()
