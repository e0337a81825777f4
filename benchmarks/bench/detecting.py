"""What finds objects in a picture: the storybook's judge, or a detector that transformers has on the user's disk."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors import SafetensorError
from torch import Tensor

from benchmarks.bench.judging import Examiner
from demo.world.vocabulary import COLOURS, KINDS
from layered_core.canvas.resizing import resized
from layered_core.errors import LayeredError, invalid
from layered_core.metrics.layout_metrics import mask_boxes

FLOOR = 0.05
"""Least score of a detection that is kept at all, for average precision."""

_SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}
"""Names of COCO's categories that some detectors take from Pascal VOC."""

_ALLOWED = "the folder of a model of AutoModelForObjectDetection or AutoModelForZeroShotObjectDetection"


class Detections(NamedTuple):
    """What was found in one picture."""

    labels: list[str]
    """Names of what was found, D of them."""
    scores: Tensor
    """Confidence in each, ``[D]`` in 0..1."""
    boxes: Tensor
    """Left, top, right and bottom as shares of the picture's sides, ``[D, 4]``."""
    masks: Tensor | None = None
    """The objects' pixels, bool ``[D, h, w]`` over the whole picture; None from a detector that gives boxes alone."""


class Detector(Protocol):
    """Finds objects in pictures."""

    name: str
    """Its name for errors."""
    least_score: float
    """Least score of a detection that counts as found, 0..1. Average precision counts all, by their scores."""

    def check(self, labels: Sequence[str]) -> None:
        """Raise :class:`LayeredError` if it cannot find objects of one of these names."""

    def find(self, pictures: Tensor, labels: Sequence[str]) -> list[Detections]:
        """Return the objects of these names in ``pictures`` ``[B, 3, H, W]`` in 0..1; none of names that it does not
        know."""


class JudgeDetector:
    """The storybook's judge. It knows the 36 coloured objects of the storybook."""

    name = "the storybook's judge"
    least_score = 0.0
    known = frozenset(f"{colour} {kind}" for colour in COLOURS for kind in KINDS)

    def __init__(self, model: Path) -> None:
        """Take the folder of the storybook model that the judge belongs to."""
        self.examiner = Examiner(model)

    def check(self, labels: Sequence[str]) -> None:
        """See :class:`Detector`."""
        _check_known(self.name, labels, self.known)

    def find(self, pictures: Tensor, labels: Sequence[str]) -> list[Detections]:
        """See :class:`Detector`."""
        found = []
        for sight in self.examiner.look(pictures):
            names = [f"{x.colour} {x.kind}" for x in sight.verdict.objects]
            kept = [i for i, name in enumerate(names) if name in labels]
            masks = torch.stack([x.mask for x in sight.verdict.objects]) if names else torch.zeros(0, 64, 64)
            masks = masks[kept].bool()
            boxes = mask_boxes(masks.float()) / masks.shape[-1]
            found.append(Detections([names[i] for i in kept], sight.scores[kept], boxes, masks))
        return found


class LabelDetector:
    """A detector that was trained on fixed names, such as RT-DETR."""

    least_score = 0.5

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Take a model of ``AutoModelForObjectDetection`` and its image processor."""
        self.model, self.processor, self.name = model, processor, name
        self.known = {_plain(label): int(i) for i, label in model.config.id2label.items()}

    def check(self, labels: Sequence[str]) -> None:
        """See :class:`Detector`."""
        _check_known(self.name, labels, self.known)

    @torch.no_grad()
    def find(self, pictures: Tensor, labels: Sequence[str]) -> list[Detections]:
        """See :class:`Detector`."""
        names = {self.known[plain]: label for label in labels if (plain := _plain(label)) in self.known}
        inputs = self.processor(images=_bytes(pictures), return_tensors="pt").to(self.model.device)
        results = self.processor.post_process_object_detection(
            self.model(**inputs), threshold=FLOOR, target_sizes=[(1, 1)] * len(pictures)
        )
        return [_kept(result, names) for result in results]


class WordDetector:
    """A detector that finds what it is told in words, such as OWLv2."""

    least_score = 0.2

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Take a model of ``AutoModelForZeroShotObjectDetection`` and its processor."""
        self.model, self.processor, self.name = model, processor, name

    def check(self, labels: Sequence[str]) -> None:
        """See :class:`Detector`. It takes any words."""

    @torch.no_grad()
    def find(self, pictures: Tensor, labels: Sequence[str]) -> list[Detections]:
        """See :class:`Detector`."""
        texts = [f"a photo of a {label}" for label in labels]
        tokens = self.processor.tokenizer(
            texts * len(pictures), padding="max_length", truncation=True, return_tensors="pt"
        )
        inputs = {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "pixel_values": self._pixels(pictures),
        }
        results = self.processor.post_process_grounded_object_detection(
            self.model(**{name: tensor.to(self.model.device) for name, tensor in inputs.items()}),
            threshold=FLOOR,
            target_sizes=[(1, 1)] * len(pictures),
        )
        return [_kept(result, dict(enumerate(labels))) for result in results]

    def _pixels(self, pictures: Tensor) -> Tensor:
        """Return square pictures as the model takes them, ``[B, 3, h, w]``. The processor itself needs torchvision or
        scipy for this."""
        own = self.processor.image_processor
        mean, deviation = (torch.tensor(x)[:, None, None] for x in (own.image_mean, own.image_std))
        return (resized(pictures.float().cpu(), own.size["height"], own.size["width"]) - mean) / deviation


def load_detector(folder: Path, device: str | None = None) -> Detector:
    """Load a detector from a folder in the transformers layout. Nothing is downloaded.

    Raises:
        LayeredError: the folder is missing, or is no such model, or lacks weights.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForObjectDetection,
        AutoModelForZeroShotObjectDetection,
        AutoProcessor,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name = f"--detector {str(folder)!r}"
    if not folder.is_dir():
        raise invalid(
            "--detector", str(folder), _ALLOWED, "Nothing is downloaded: fetch it first with 'hf download'"
        )
    offline = {"local_files_only": True, "use_safetensors": True}
    kind: type[WordDetector] | type[LabelDetector]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type in ("owlv2", "owlvit"):
            kind, loader, processors = WordDetector, AutoModelForZeroShotObjectDetection, AutoProcessor
        else:
            kind, loader, processors = LabelDetector, AutoModelForObjectDetection, AutoImageProcessor
        model, report = loader.from_pretrained(folder, output_loading_info=True, **offline)
        processor = processors.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise LayeredError(
            f"{name} cannot be loaded: {str(error).strip().splitlines()[0]}. Give {_ALLOWED}"
        ) from None
    if report["missing_keys"]:
        raise LayeredError(
            f"{name} lacks weights, e.g. {min(report['missing_keys'])!r}: it is not the whole detector. Give {_ALLOWED}"
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return kind(model.eval().to(device), processor, name)


def _check_known(name: str, labels: Sequence[str], known: Container[str]) -> None:
    missing = [label for label in labels if _plain(label) not in known]
    if missing:
        raise LayeredError(
            f"{name} knows no {', '.join(repr(x) for x in missing[:3])}"
            + (f" and {len(missing) - 3} more of the categories" if len(missing) > 3 else "")
            + ". Give another detector with --detector FOLDER: one that was trained on COCO, or one that finds "
            "words, such as OWLv2"
        )


def _plain(label: str) -> str:
    """Return a label as detectors' labels are compared: lower case, without spaces, and with COCO's name."""
    plain = label.lower().replace("_", " ").replace("-", " ").strip()
    return _SYNONYMS.get(plain.replace(" ", ""), plain)


def _bytes(pictures: Tensor) -> list[Any]:
    """Return pictures as arrays of bytes ``[H, W, 3]``."""
    return list((pictures.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy())


def _kept(result: dict[str, Tensor], names: dict[int, str]) -> Detections:
    """Return a result of transformers with those labels alone that have a name."""
    labels = result["labels"].tolist()
    kept = [i for i, label in enumerate(labels) if label in names]
    return Detections(
        [names[labels[i]] for i in kept],
        result["scores"].float().cpu()[kept],
        result["boxes"].float().cpu()[kept].view(-1, 4).clamp(0, 1),
    )
