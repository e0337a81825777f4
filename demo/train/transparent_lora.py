"""Train the storybook's layer generator: a LoRA on the UNet's attention, like LayerDiffuse's, with which it
makes one object with its transparency.

The UNet is frozen. The LoRA learns the latents of single objects on grey with the transparent encoder's
offset, with the UNet's own objective. The tensors are named as in the published
``layer_xl_transparent_attn``: ``diffusion_model.<path>.weight::lora::0`` (up) and ``::lora::1`` (down).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.train.diffusion import Objective, RecordingAttention, frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer, device, half_precision
from demo.train.replay import ReplayStore
from demo.train.sprites import draw_sprite, padded
from demo.train.tokenizer import START
from demo.train.transparent import Autoencoder, encode, frozen_autoencoder
from demo.train.unet import attention_loss
from demo.train.words import encode as encode_words
from demo.train.words import pad, training_caption, word_ids
from demo.world.places import MODEL
from demo.world.vocabulary import BACKGROUNDS, THINGS, Thing

RANK = 32

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of an attention that the LoRA changes."""


class Lora(nn.Module):
    """A frozen linear layer plus a trained low-rank product (Hu et al. 2021, arXiv 2106.09685), at weight
    1."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, 5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + U D x``."""
        return self.base(x) + self.up(self.down(x))


def add_loras(unet: UNet2DConditionModel) -> dict[str, Lora]:
    """Put a :class:`Lora` around every attention projection of ``unet`` and return them by the names of the
    projections."""
    names = [n for n, m in unet.named_modules() if n.split(".")[-1] in ("attn1", "attn2")]
    loras = {}
    for name in (f"{n}.{p}" for n in names for p in PROJECTIONS):
        parent, last = name.rsplit(".", 1)
        owner = unet.get_submodule(parent)
        loras[name] = Lora(owner.get_submodule(last))
        owner.add_module(last, loras[name])
    return loras


def file_name(module: str, layers: int) -> str:
    """Return the name in the file of the module that diffusers calls ``module``, for ``layers`` resnets a
    block.

    ``down_blocks.1.attentions.0.proj_in`` is ``diffusion_model.input_blocks.3.1.proj_in`` where ``layers`` is
    1.
    """
    parts = module.split(".")
    if parts[0] == "mid_block":
        return ".".join(["diffusion_model.middle_block.1", *parts[3:]])
    block = int(parts[1]) * (layers + 1) + int(parts[3])
    side = f"input_blocks.{block + 1}" if parts[0] == "down_blocks" else f"output_blocks.{block}"
    return ".".join(["diffusion_model", side, "1", *parts[4:]])


def weights_of(state: dict[str, Tensor], loras: dict[str, Lora], layers: int) -> dict[str, Tensor]:
    """Return the file's tensors in half precision, from the state dict of a UNet that holds ``loras``."""
    tensors = {}
    for name in loras:
        for index, part in enumerate(("up", "down")):
            tensors[f"{file_name(name, layers)}.weight::lora::{index}"] = (
                state[f"{name}.{part}.weight"].detach().cpu().half().contiguous()
            )
    return tensors


def start_from_file(loras: dict[str, Lora], layers: int, file: Path, fresh: bool) -> None:
    """Load the weights of ``file``; do nothing if there is no such file or with ``fresh``."""
    if fresh or not file.exists():
        return
    tensors = load_file(file)
    for name, lora in loras.items():
        key = f"{file_name(name, layers)}.weight::lora"
        lora.up.weight.data = tensors[f"{key}::0"].float()
        lora.down.weight.data = tensors[f"{key}::1"].float()


class LayerReplay(ReplayStore):
    """A growing store of the transparent latents of random single objects."""

    def __init__(
        self, vae: AutoencoderTiny, autoencoder: Autoencoder, rng: np.random.Generator, capacity: int = 12_000
    ) -> None:
        super().__init__(rng, capacity)
        self.vae, self.autoencoder = vae, autoencoder
        self.latents = torch.zeros(capacity, 4, 16, 16)
        self.masks = torch.zeros(capacity, 1, 16, 16)
        self.things: list[Thing] = [THINGS[0]] * capacity

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draw, encode and store ``count`` new objects."""
        things = [THINGS[i] for i in self.rng.integers(len(THINGS), size=count)]
        rgba = torch.stack([padded(draw_sprite(t, self.rng)) for t in things]).to(device())
        with half_precision():
            offset = self.autoencoder.offset(rgba).float()
        latents = encode(self.vae, rgba) + offset
        masks = nn.functional.avg_pool2d(rgba[:, 3:], 8)
        for thing, latent, mask in zip(things, latents, masks, strict=True):
            slot = self.take_slot()
            self.latents[slot], self.masks[slot], self.things[slot] = latent, mask, thing

    def batch(self, count: int, ids: dict[str, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return latents [B, 4, 16, 16], token ids [B, 77], masks [B, 1, 16, 16] and positions of the noun
        [B, 1] (0: empty caption)."""
        chosen = self.draw(count)
        captions = [layer_caption(self.rng, self.things[i], ids) for i in chosen]
        pick = torch.from_numpy(chosen)
        tensors = (
            self.latents[pick],
            torch.tensor([t for t, _ in captions]),
            self.masks[pick],
            torch.tensor([[n] for _, n in captions]),
        )
        a, b, c, d = (t.to(device()) for t in tensors)
        return a, b, c, d


def layer_caption(rng: np.random.Generator, thing: Thing, ids: dict[str, int]) -> tuple[list[int], int]:
    """Return a caption's 77 token ids and the position of its noun. Usually it names the object alone; one in
    six also names a place, which is not to be painted; one in eight has words outside the vocabulary; one in
    ten is empty.
    """
    chance = rng.random()
    if chance < 0.1:
        return pad([]), 0
    if chance < 0.27:
        tokens, nouns = training_caption(rng, str(rng.choice(list(BACKGROUNDS))), [thing], ids)
        return tokens, nouns[0]
    tokens = encode_words(thing.words, ids)
    strange = [int(i) for i in rng.integers(256, START, rng.integers(1, 7) if chance < 0.4 else 0)]
    before = int(rng.integers(len(strange) + 1))
    return pad(strange[:before] + tokens + strange[before:]), before + len(tokens)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the layer generator in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text = frozen_vae(export), frozen_text_encoder(export)
    autoencoder = frozen_autoencoder(export)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    layers = int(unet.config.layers_per_block)
    loras = add_loras(unet)
    start_from_file(loras, layers, MODEL / "transparent" / "lora.safetensors", options.fresh)
    record = RecordingAttention()
    unet.set_attn_processor(record)
    prepare(unet)
    trainer = Trainer(
        unet,
        Path(options.folder) / "transparent_lora",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 1e-3,
        average=0.999,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = LayerReplay(vae, autoencoder, rng)
    replay.add(256)
    objective, going = Objective(), True
    while going:
        count = options.scale * 16
        replay.add(count // 8 if replay.filled < 2000 else count // 16)
        latents, tokens, masks, nouns = replay.batch(count, ids)
        batch = objective.noised(latents)
        record.maps = []
        with half_precision():
            v = unet(batch.noisy, batch.t, text(tokens)[0]).sample
        error = objective.error(v, batch)
        attention = attention_loss(record.maps, masks, nouns, batch.clear)
        going = trainer.update(error + 0.1 * attention, count, v=error.detach(), attention=attention.detach())
        if trainer.due(4.0) or not going:
            if rank == 0:
                save_file(
                    weights_of(trainer.averaged(), loras, layers), export / "transparent" / "lora.safetensors"
                )
            trainer.save()
