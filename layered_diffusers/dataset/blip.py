"""Captions by BLIP."""

from __future__ import annotations

import torch

from layered_diffusers.dataset import hub
from layered_diffusers.dataset.phrases import phrases_of
from layered_diffusers.dataset.protocols import Caption, Picture

MODEL = "Salesforce/blip-image-captioning-base"
"""The model that is looked for if none is named."""

_MOST_TOKENS = 50
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the colours in CLIP's training."""


class Blip:
    """Describes pictures with BLIP; the things are the noun phrases of its caption."""

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        """Load ``model``, a folder or an id in the local cache."""
        name = model or MODEL
        self.model = hub.load_model("BlipForConditionalGeneration", name, "captioner", device)
        self.tokenizer = hub.load("AutoTokenizer", name, "captioner", device)
        self.about = hub.about(name)

    @torch.no_grad()
    def describe(self, picture: Picture) -> Caption:
        """Return BLIP's caption and its phrases."""
        side = int(self.model.config.vision_config.image_size)
        pixels = hub.squared(picture, side, *_CLIP, self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=_MOST_TOKENS, do_sample=False)
        text = self.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()
        return Caption(text, phrases_of(text))
