"""Pretrain the text encoder: the hidden state of every noun must contain its colour and material, that of the
end token the whole scene.

These seconds of training save the UNet from learning through its own loss that a colour belongs to the noun
after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demo.train.loop import Trainer, device
from demo.train.tokenizer import END
from demo.train.words import WIDTH, export, new_text_encoder, shrink, training_caption, word_ids
from demo.world.scenes import random_things
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS, MATERIALS


class Probe(nn.Module):
    """Linear classifiers on a text encoder's last hidden states."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text
        self.kind = nn.Linear(WIDTH, len(KINDS))
        self.colour = nn.Linear(WIDTH, len(COLOURS))
        self.material = nn.Linear(WIDTH, len(MATERIALS))
        self.place = nn.Linear(WIDTH, len(BACKGROUNDS) + 1)
        self.whole = nn.Linear(WIDTH, len(KINDS) * len(COLOURS))

    def forward(
        self, ids: Tensor, nouns: Tensor, things: Tensor, places: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy and the share of nouns whose material, colour and kind are all right.

        ``nouns`` [K, 2] (caption, position), ``things`` [K, 3] (material, colour, kind), ``places`` [B],
        ``counts`` [B, 36].
        """
        hidden = self.text(ids)[0]
        at = hidden[nouns[:, 0], nouns[:, 1]]
        outputs = (self.material(at), self.colour(at), self.kind(at))
        loss = sum(nn.functional.cross_entropy(o, things[:, i]) for i, o in enumerate(outputs))
        right = (
            torch.stack([o.argmax(1) == things[:, i] for i, o in enumerate(outputs)]).all(0).float().mean()
        )
        end = hidden[torch.arange(len(ids)), (ids == END).int().argmax(1)]
        loss = loss + nn.functional.cross_entropy(self.place(end), places)
        loss = loss + 4 * nn.functional.binary_cross_entropy_with_logits(self.whole(end), counts)
        return loss, right


def train(rank: int, processes: int, options: Any) -> None:
    """Pretrain the text encoder in one process."""
    torch.manual_seed(options.seed)
    export_folder = Path(options.folder) / "export"
    ids = word_ids(export_folder / "tokenizer")
    model = Probe(shrink(new_text_encoder(), ids)).to(device())
    trainer = Trainer(
        model,
        Path(options.folder) / "text",
        rank,
        processes,
        minutes=options.minutes,
        rate=options.rate or 2e-3,
        average=0.99,
    )
    rng = np.random.default_rng([options.seed, rank, trainer.step])
    materials, colours, kinds, places = list(MATERIALS), list(COLOURS), list(KINDS), list(BACKGROUNDS)
    going = True
    while going:
        rows, nouns, things, where, counts = [], [], [], [], []
        for b in range(32 * options.scale):
            place, scene = random_things(rng)
            tokens, positions = training_caption(rng, place, scene, ids)
            rows.append(tokens)
            nouns += [(b, p) for p in positions]
            things += [
                (materials.index(t.material), colours.index(t.colour), kinds.index(t.kind)) for t in scene
            ]
            named = any(ids[w] in tokens for w in place_words(place, ids))
            where.append(places.index(place) if named else len(places))
            counts.append(
                [float(any(t.kind == k and t.colour == c for t in scene)) for k in kinds for c in colours]
            )
        batch = [torch.tensor(x, device=device()) for x in (rows, nouns, things, where, counts)]
        loss, right = model(*batch)
        going = trainer.update(loss, len(rows), right=right)
    if rank == 0:
        state = {k[5:]: v for k, v in trainer.averaged().items() if k.startswith("text.")}
        export(model.text, state, export_folder / "text_encoder")
    trainer.save()


def place_words(place: str, ids: dict[str, int]) -> list[str]:
    """Return the words that name this background and no other."""
    return [
        w
        for phrase in BACKGROUNDS[place]
        for w in phrase.split()
        if w in ids and w not in {"a", "in", "the", "at", "by", "with", "over", "mountains"}
    ]
