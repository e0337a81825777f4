"""Make and judge the pictures of one suite in one process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.bench.coco import CocoCases
from benchmarks.bench.coco_judging import CocoExaminer, coco_examiner
from benchmarks.bench.judging import Examiner
from benchmarks.bench.methods import METHODS
from benchmarks.bench.records import SHOWN, picture_path
from benchmarks.bench.scenes import CASES, Case
from benchmarks.bench.suite import COCO, Row, Settings, Suite, coco_settings
from layered_core.formats.pictures import write_picture
from layered_diffusers.models.loading import find_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline


class Worker:
    """Makes and judges pictures in one process, with the model, the judges and the scenes that this needs."""

    def __init__(self, suite: Suite, settings: Settings) -> None:
        self.suite, self.settings = suite, settings
        self.pipeline = LayeredDiffusionPipeline.from_pretrained(
            settings.model, device=settings.device, sampler=suite.sampler
        )
        self.examiner: Examiner | CocoExaminer
        self.cases: Sequence[Case]
        if suite.scenes == COCO:
            self.examiner = coco_examiner(settings)
            self.cases = CocoCases(coco_settings(settings), settings.count, self.pipeline.side)
        else:
            self.examiner = Examiner(find_model(settings.model), settings.clip)
            self.cases = CASES[suite.scenes](settings.count)

    def measure(self, row: Row, scenes: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Make and judge the pictures of some scenes and yield their records. The seeds are the scenes'
        numbers."""
        cases = [self.cases[i] for i in scenes]
        began = time.perf_counter()
        pictures = METHODS[row.method](
            self.pipeline,
            cases,
            seeds=list(scenes),
            steps=self.settings.steps,
            guidance=self.settings.guidance,
            **row.parameters,
        )
        seconds = (time.perf_counter() - began) / len(cases)
        yield from self.judged(row, scenes, pictures, seconds)

    def judged(
        self, row: Row, scenes: Sequence[int], pictures: torch.Tensor, seconds: float
    ) -> Iterator[dict[str, Any]]:
        """Judge finished pictures, yield their records, and write the pictures of the first scenes to
        disk."""
        for scene, picture, kept in zip(
            scenes, pictures, self.examiner.examine([self.cases[i] for i in scenes], pictures), strict=True
        ):
            if scene < SHOWN:
                path = picture_path(self.settings.out, self.suite, row, scene)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_picture(picture.permute(1, 2, 0), path)
            yield {"key": row.key, "scene": scene, "seconds": round(seconds, 5), **kept}
