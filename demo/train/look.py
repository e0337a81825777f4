"""Train a LoRA that gives every object a look which no word names: ``python -m demo.train look --look pink``.

The UNet is frozen. The LoRA learns from scenes of which the objects have the look and the captions are the usual
ones. It changes the linear layers of the attention blocks and the 3 x 3 convolutions of the others: all that it
changes has a place in the picture, so that a host can let it act in a part of the picture alone. The tensors are named
as by kohya's scripts: ``lora_unet_<path, with underscores>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.train.diffusion import Objective, frozen_text_encoder, frozen_vae, prepare
from demo.train.loop import Trainer, half_precision
from demo.train.unet import Replay
from demo.train.words import word_ids
from demo.world.looks import LOOKS
from demo.world.places import LORAS, MODEL
from demo.world.scenes import Draw, Scene, random_scene

RANK = 4


class Lora(nn.Module):
    """A frozen linear layer or convolution plus a trained low-rank one (Hu et al. 2021, arXiv 2106.09685; for
    convolutions LoCon of LyCORIS, arXiv 2309.14859), at weight 1."""

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(base, nn.Linear):
            self.down = nn.Linear(base.in_features, RANK, bias=False)
            self.up = nn.Linear(RANK, base.out_features, bias=False)
        else:
            how: dict[str, Any] = {"stride": base.stride, "padding": base.padding, "bias": False}
            self.down = nn.Conv2d(base.in_channels, RANK, base.kernel_size, **how)  # type: ignore[arg-type]
            self.up = nn.Conv2d(RANK, base.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, 5**0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + U D x``."""
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


def add_loras(unet: UNet2DConditionModel) -> dict[str, Lora]:
    """Put a :class:`Lora` around every layer that learns, and return them by the layers' names."""
    names = [
        name
        for name, module in unet.named_modules()
        if (isinstance(module, nn.Linear) and ".attentions." in name)
        or (isinstance(module, nn.Conv2d) and name.split(".")[-1] in ("conv1", "conv2", "conv"))
    ]
    loras = {}
    for name in names:
        parent, last = name.rsplit(".", 1)
        owner = unet.get_submodule(parent)
        loras[name] = Lora(owner.get_submodule(last))
        owner.add_module(last, loras[name])
    return loras


def weights_of(state: dict[str, Tensor], loras: dict[str, Lora]) -> dict[str, Tensor]:
    """Return the file's tensors in half precision, from the state dict of a UNet that holds ``loras``."""
    tensors = {}
    for name in loras:
        key = f"lora_unet_{name.replace('.', '_')}"
        for part in ("down", "up"):
            weight = state[f"{name}.{part}.weight"].detach().cpu().half()
            tensors[f"{key}.lora_{part}.weight"] = weight.contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    return tensors


class LookReplay(Replay):
    """A growing store of encoded scenes whose objects have a look."""

    def __init__(self, vae: AutoencoderTiny, rng: np.random.Generator, draw: Draw) -> None:
        super().__init__(vae, rng, capacity=12_000)
        self.draw_object = draw

    def draw_scene(self, seed: int) -> Scene:
        """Draw the scene of a seed, its objects with the look."""
        return random_scene(seed, draw=self.draw_object)


def train(rank: int, processes: int, options: Any) -> None:
    """Train the LoRA of the look ``options.look`` in one process."""
    torch.manual_seed(options.seed + rank)
    export = Path(options.folder) / "export"
    ids = word_ids(export / "tokenizer")
    vae, text = frozen_vae(export), frozen_text_encoder(export)
    unet = UNet2DConditionModel.from_pretrained(export / "unet").float().requires_grad_(False)
    loras = add_loras(unet)
    prepare(unet)
    trainer = Trainer(
        unet,
        Path(options.folder) / f"look_{options.look}",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 4e-3,
        average=0.97,
        warmup=20,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    replay = LookReplay(vae, rng, LOOKS[options.look])
    for _ in range(8):
        replay.add(32)
    objective, going = Objective(), True
    while going:
        count = options.scale * 8
        replay.add(count // 8)
        latents, tokens, _, _ = replay.batch(count, ids)
        batch = objective.noised(latents)
        with half_precision():
            v = unet(batch.noisy, batch.t, text(tokens)[0]).sample
        going = trainer.update(objective.error(v, batch), count)
        if trainer.due(4.0) or not going:
            if rank == 0:
                folder = export / LORAS.relative_to(MODEL)
                folder.mkdir(parents=True, exist_ok=True)
                save_file(weights_of(trainer.averaged(), loras), folder / f"{options.look}.safetensors")
            trainer.save()
