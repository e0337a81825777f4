"""Masks by Grounding DINO, which finds boxes from words, and SAM 2, which finds the thing in a box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from layered_core.canvas.resizing import resized
from layered_diffusers.dataset import hub
from layered_diffusers.dataset.protocols import Found, Picture

DETECTOR = "IDEA-Research/grounding-dino-tiny"
"""The detector that is looked for if none is named; its licence is Apache-2.0."""

MASKER = "facebook/sam2.1-hiera-small"
"""The model of masks that is looked for if none is named; its licence is Apache-2.0."""

LEAST = 0.2
"""Least confidence of a box that a mask is made of; the thresholds decide among the masks."""

MOST = 64
"""Greatest number of boxes of one picture."""

_SHORT, _LONG = 800, 1333
"""Grounding DINO's sizes: the shorter side becomes the first unless the longer would exceed the second."""


class Box(NamedTuple):
    """A thing that the detector found."""

    phrase: str
    score: float
    corners: tuple[float, float, float, float]
    """Left, top, right and bottom as shares of the picture's sides."""


class GroundedSam2:
    """Finds boxes with Grounding DINO, and in each the thing with SAM 2."""

    def __init__(
        self, detector: str | None = None, masker: str | None = None, device: str | None = None
    ) -> None:
        """Load ``detector`` and ``masker``, folders or ids in the local cache."""
        names = detector or DETECTOR, masker or MASKER
        self.detector = hub.load_model("GroundingDinoForObjectDetection", names[0], "segmenter", device)
        self.tokenizer = hub.load("AutoTokenizer", names[0], "segmenter", device)
        self.masker = hub.load_model("Sam2Model", names[1], "segmenter", device)
        self.about = hub.about(*names)

    def find(self, picture: Picture, phrases: Sequence[str]) -> list[Found]:
        """Return a mask for every box that a phrase names, the most certain first."""
        boxes = self.boxes(picture, phrases) if phrases else []
        return [Found(b.phrase, m, b.score) for b, m in zip(boxes, self.masks(picture, boxes), strict=True)]

    @torch.no_grad()
    def boxes(self, picture: Picture, phrases: Sequence[str]) -> list[Box]:
        """Return the boxes that the phrases name. A box's score for a phrase is the greatest of the phrase's tokens;
        the phrase with the greatest has it."""
        names = [" ".join(p.lower().replace(".", " ").split()) for p in phrases]
        text = "".join(f"{name}. " for name in names).strip()
        words = self.tokenizer(
            [text], return_tensors="pt", return_offsets_mapping=True, truncation=True,
            max_length=int(self.detector.config.max_text_len),
        )  # fmt: skip
        offsets = words.pop("offset_mapping")[0]
        ends = torch.tensor([len(x) + 2 for x in names]).cumsum(0)
        inside = [
            (offsets[:, 1] > offsets[:, 0]) & (offsets[:, 0] >= end - len(name) - 2)
            & (offsets[:, 1] <= end - 2)
            for name, end in zip(names, ends, strict=True)
        ]  # fmt: skip
        scale = min(_SHORT / min(picture.size), _LONG / max(picture.size))
        size = [max(32, round(x * scale)) for x in picture.size]
        pixels = functional.interpolate(
            picture.pixels[None].float(), size, mode="bilinear", antialias=True
        ).clamp(0, 1)
        mean, deviation = (torch.tensor(x)[None, :, None, None] for x in hub.IMAGENET)
        device = self.detector.device
        out = self.detector(
            pixel_values=((pixels - mean) / deviation).to(device),
            **{k: v.to(device) for k, v in words.items()},
        )
        chances = out.logits[0].sigmoid().float().cpu()[:, : len(offsets)]
        each = torch.stack(
            [
                chances[:, x].amax(1) if bool(x.any()) else torch.zeros(len(chances))
                for x in inside
            ],
            1,
        )  # fmt: skip
        scores, which = each.max(1)
        middle, sides = out.pred_boxes[0].float().cpu().split(2, 1)
        corners = torch.cat([middle - sides / 2, middle + sides / 2], 1).clamp(0, 1)
        order = [i for i in scores.argsort(descending=True, stable=True).tolist() if float(scores[i]) > LEAST]
        return [
            Box(phrases[int(which[i])], float(scores[i]), tuple(corners[i].tolist())) for i in order[:MOST]
        ]

    @torch.no_grad()
    def masks(self, picture: Picture, boxes: Sequence[Box]) -> list[Tensor]:
        """Return the mask ``[H, W]`` of the thing in each box, 0 or 1."""
        if not boxes:
            return []
        side = int(self.masker.config.vision_config.backbone_config.image_size[0])
        pixels = hub.squared(picture, side, *hub.IMAGENET, self.masker.device)
        places = torch.tensor([[b.corners for b in boxes]]) * side
        out = self.masker(
            pixel_values=pixels, input_boxes=places.to(self.masker.device), multimask_output=False
        )
        logits = out.pred_masks[0, :, 0].float().cpu()
        return [(resized(x, *picture.size) > 0).float() for x in logits]
