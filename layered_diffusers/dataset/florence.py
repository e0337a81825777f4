"""Captions and masks by Florence-2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from layered_diffusers.dataset import hub
from layered_diffusers.dataset.protocols import Caption, Found, Picture

MODEL = "florence-community/Florence-2-base"
"""The model that is looked for if none is named, in the layout that transformers reads without code from the model's
own folder; its licence is MIT."""

_MOST_TOKENS = 512


class Florence2:
    """Describes pictures with Florence-2 and finds the phrases of its caption, and finds masks from words."""

    def __init__(self, model: str | None = None, device: str | None = None) -> None:
        """Load ``model``, a folder or an id in the local cache."""
        name = model or MODEL
        self.model = hub.load_model(
            "Florence2ForConditionalGeneration", name, "captioner or segmenter", device
        )
        self.processor = hub.load("Florence2Processor", name, "captioner or segmenter", device)
        self.about = hub.about(name)

    def describe(self, picture: Picture) -> Caption:
        """Return a detailed caption, and the phrases of it that are seen."""
        text, _ = self.answer(picture, "<DETAILED_CAPTION>")
        grounded, _ = self.answer(picture, "<CAPTION_TO_PHRASE_GROUNDING>", text)
        sizes: dict[str, float] = {}
        for label, (left, top, right, bottom) in zip(grounded["labels"], grounded["bboxes"], strict=True):
            phrase = " ".join(str(label).split())
            if phrase:
                sizes[phrase] = max(sizes.get(phrase, 0.0), (right - left) * (bottom - top))
        return Caption(text, tuple(sorted(sizes, key=lambda x: -sizes[x])))

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return one mask for each phrase that is found. Its score is the mean probability of the answer's tokens."""
        found = []
        for phrase in phrases:
            answer, score = self.answer(picture, "<REFERRING_EXPRESSION_SEGMENTATION>", phrase)
            mask = polygons_mask(answer["polygons"], picture.size)
            if bool(mask.any()):
                found.append(Found(phrase, mask, score))
        return found

    @torch.no_grad()
    def answer(self, picture: Picture, task: str, words: str = "") -> tuple[Any, float]:
        """Return what the model answers to a task, as transformers parses it, and the mean probability of the answer's
        tokens, 0..1."""
        image = hub.image_of(picture)
        given = self.processor(text=task + words, images=image, return_tensors="pt").to(self.model.device)
        made = self.model.generate(
            **given, max_new_tokens=_MOST_TOKENS, do_sample=False, num_beams=1, return_dict_in_generate=True,
            output_scores=True,
        )  # fmt: skip
        chances = [
            float(x[0].float().log_softmax(-1)[t])
            for x, t in zip(made.scores, made.sequences[0, -len(made.scores) :].tolist(), strict=True)
        ]
        score = float(np.exp(np.mean(chances))) if chances else 0.0
        text = self.processor.batch_decode(made.sequences, skip_special_tokens=False)[0]
        parsed = self.processor.post_process_generation(
            text, task=task, image_size=(picture.size[1], picture.size[0])
        )
        return parsed[task], min(max(score, 0.0), 1.0)


def polygons_mask(instances: Sequence[Sequence[Any]], size: tuple[int, int]) -> Tensor:
    """Return the mask ``[H, W]`` of all polygons of Florence-2's answer; each is a list of alternating columns and rows
    in pixels. ``size`` is height and width."""
    image = Image.new("L", (size[1], size[0]), 0)
    draw = ImageDraw.Draw(image)
    for polygons in instances:
        for polygon in polygons:
            numbers = [float(x) for x in np.ravel(polygon)]
            points = list(zip(numbers[::2], numbers[1::2], strict=False))
            if len(points) >= 3:
                draw.polygon(points, fill=255)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
