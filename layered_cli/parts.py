"""Options of the parts that take pictures apart, which ``layered dataset`` and ``layered decompose`` share."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from layered_cli.shared import number, pipeline_of

if TYPE_CHECKING:
    from layered_diffusers.dataset.filtering import Thresholds
    from layered_diffusers.dataset.protocols import Caption
    from layered_diffusers.dataset.providers import Parts

ROLES = {
    "captioner": "describes the picture and names the things: florence2, blip, judge (the storybook's), file (NAME.txt "
    "beside NAME.png)",
    "segmenter": "finds the things: grounded-sam2, sam3, florence2, judge, file (the folder NAME.masks)",
    "depth": "tells which thing is in front: depth-anything, area (the larger is farther), file (NAME.depth.png)",
    "inpainter": "paints what is behind: pipeline (--model)",
}
"""The parts, each with what it does."""

THRESHOLDS: dict[str, tuple[float, float, bool, float, str]] = {
    "layers": (1, 49, True, 3, "greatest number of layers in front of the background"),
    "phrases": (1, 100, True, 6, "greatest number of things that are looked for"),
    "score": (0, 1, False, 0.35, "least confidence of a mask"),
    "least-area": (0, 1, False, 0.02, "least area of a thing as a share of the picture"),
    "most-area": (0, 1, False, 0.7, "greatest area of a thing as a share of the picture"),
    "border": (0, 1, False, 0.6, "greatest share of the picture's border that a thing may touch"),
    "duplicate": (0, 1, False, 0.8, "IoU above which the less certain of two masks is left out"),
    "part": (0, 1, False, 0.9, "share of a mask inside a larger one above which it is left out"),
    "dilation": (0, 64, True, 8, "by how much holes are widened before they are painted, pixels"),
    "band": (0, 32, True, 3, "by how far a mask's edge may be moved to where the thing is seen to end, pixels"),
    "matte": (0, 32, True, 1, "width of the edge in which a layer's alpha is estimated, pixels"),
    "covered": (0, 1, False, 0.4, "greatest share of a layer that others cover up to which its hidden part is painted"),
    "hidden": (0, 1, False, 0.01, "least share from which it is painted"),
    "still-there": (0, 1, False, 0.3, "IoU from which a thing found in the painted background counts as left there"),
    "psnr": (0, 100, False, 32, "least likeness of the layers' composite to the picture, dB"),
}  # fmt: skip
"""The thresholds: least and greatest value, whether it is a whole number, the usual value, and what it is."""


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the four parts and the thresholds."""
    for role, does in ROLES.items():
        parser.add_argument(
            f"--{role}",
            metavar="NAME",
            help=f"{does}; NAME=MODEL for a folder or an id in the local Hugging Face cache; or module:Class of your "
            f"own (default: the storybook's without --model)",
        )
    for name, (low, high, whole, usual, does) in THRESHOLDS.items():
        parser.add_argument(
            f"--{name}",
            type=number(low, high, whole),
            metavar="N" if whole else "X",
            help=f"{does} (default: {usual})",
        )


def thresholds_of(options: argparse.Namespace) -> Thresholds:
    """Return the thresholds that the options give."""
    from layered_diffusers.dataset.filtering import Thresholds

    given = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in THRESHOLDS}
    return replace(Thresholds(), **{k: v for k, v in given.items() if v is not None})


def parts_of(
    options: argparse.Namespace,
    limits: Thresholds,
    folder: Path | None = None,
    words: Mapping[Path, Caption] | None = None,
) -> Parts:
    """Load the four parts that the options name. Without ``--model`` they are the storybook's, unless something else
    paints.

    Args:
        options: of the command.
        limits: the thresholds.
        folder: folder of the pictures.
        words: captions that are known, by the pictures' files; the captioner is then ``file`` unless one is named.
    """
    from layered_diffusers.dataset.providers import STORYBOOK, USUAL, Setting, load_parts

    own = options.model is not None or options.inpainter not in (None, "pipeline")
    names = dict(USUAL if own else STORYBOOK)
    if words:
        names["captioner"] = "file"
    names |= {role: getattr(options, role) for role in ROLES if getattr(options, role) is not None}
    setting = Setting(
        functools.cache(lambda: pipeline_of(options)), folder=folder, words=words or {}, model=options.model,
        seed=options.seed, feather=limits.dilation, device=options.device,
        sampling={
            "steps": options.steps, "guidance": options.guidance, "negative": options.negative,
        },
    )  # fmt: skip
    return load_parts(names, setting)
