"""Masks by SAM 3, from words."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from layered_core.canvas.resizing import resized
from layered_diffusers.dataset import hub
from layered_diffusers.dataset.protocols import Found, Picture

MODEL = "facebook/sam3"
"""The model that is looked for if none is named; it has a licence of its own."""

LEAST = 0.05
"""Least confidence of a mask that is returned; the thresholds decide among them."""

_TOKENS = 32
"""Length of SAM 3's texts."""


class Sam3:
    """Finds all things of each phrase with SAM 3. A score is ``sigmoid(query) * sigmoid(presence)``."""

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        """Load ``model``, a folder or an id in the local cache."""
        name = model or MODEL
        self.model = hub.load_model("Sam3Model", name, "segmenter", device)
        self.tokenizer = hub.load("AutoTokenizer", name, "segmenter", device)
        self.about = hub.about(name)

    @torch.no_grad()
    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return the masks of all things that each phrase names."""
        side = int(self.model.config.image_size)
        pixels = hub.squared(picture, side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), self.model.device)
        seen = self.model.vision_encoder(pixels) if phrases else None
        found = []
        for phrase in phrases:
            text = self.tokenizer(
                [phrase], padding="max_length", truncation=True, max_length=_TOKENS, return_tensors="pt"
            ).to(self.model.device)
            out = self.model(
                vision_embeds=seen, input_ids=text["input_ids"], attention_mask=text["attention_mask"]
            )
            scores = out.pred_logits[0].sigmoid()
            if out.presence_logits is not None:
                scores = scores * out.presence_logits[0].sigmoid()
            for query in (scores > LEAST).nonzero()[:, 0].tolist():
                logits = out.pred_masks[0, query].float().cpu()
                mask = (resized(logits, *picture.size) > 0).float()
                found.append(Found(phrase, mask, float(scores[query])))
        return found
