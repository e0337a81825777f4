"""The parts by their names: which there are, how one is loaded, and what a record says of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layered_core.errors import LayeredError, invalid
from layered_diffusers.dataset.given import AreaDepth, FileCaptions, FileDepth, FileMasks, WordsFirst
from layered_diffusers.dataset.painted import Painted
from layered_diffusers.dataset.protocols import Caption, Captioner, Depth, Inpainter, Segmenter
from layered_diffusers.dataset.storybook import JudgeCaptions, JudgeMasks

if TYPE_CHECKING:
    from layered_diffusers.pipeline import LayeredDiffusionPipeline
    from layered_diffusers.sampling import Sampling

ROLES = {"captioner": "describe", "segmenter": "find", "depth": "order", "inpainter": "fill"}
"""The four parts, each with its method."""

STORYBOOK = {"captioner": "judge", "segmenter": "judge", "depth": "area", "inpainter": "pipeline"}
"""The parts for pictures of the storybook world, which need no model but the shipped ones."""

USUAL = {
    "captioner": "florence2",
    "segmenter": "grounded-sam2",
    "depth": "depth-anything",
    "inpainter": "pipeline",
}
"""The parts for any other picture."""


@dataclass(frozen=True)
class Setting:
    """What parts are loaded with."""

    pipeline: Callable[[], LayeredDiffusionPipeline]
    """Loads the pipeline that paints."""
    folder: Path | None = None
    """Folder of the pictures, out of which no link is followed; None: each picture's own."""
    words: Mapping[Path, Caption] = field(default_factory=dict)
    """Captions that are known, by the pictures' files."""
    model: str | None = None
    """Name of the pipeline's model for records; None: the storybook."""
    seed: int = 0
    """Seed of what is painted."""
    feather: int = 8
    """Width of the soft border inside a hole that is painted, pixels."""
    sampling: Sampling | None = None
    """Options of the pipeline's sampling."""
    device: str | None = None
    """Where transformers' models run; None: the GPU if there is one."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The four parts, and what a record says of each."""

    captioner: Captioner
    segmenter: Segmenter
    depth: Depth
    inpainter: Inpainter
    about: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By role: the part's name, its model, the version of what runs it."""


def load_parts(names: Mapping[str, str], setting: Setting) -> Parts:
    """Load the four parts.

    Args:
        names: by role: one of :data:`PARTS`' names, ``NAME=MODEL`` with a folder or an id in the local Hugging Face
            cache (two with a comma between for ``grounded-sam2``), or ``module:Class`` of a class of your own, which is
            made without arguments.
        setting: what they are loaded with.

    Raises:
        LayeredError: there is no such part, or its model is not on this machine; the text says how to get it.
    """
    parts: dict[str, Any] = {}
    missing: list[str] = []
    for role in ROLES:
        try:
            parts[role] = load_part(role, names[role], setting)
        except LayeredError as error:
            missing.append(str(error))
    if missing:
        raise LayeredError("; ".join(missing))
    about = {role: {"name": names[role], **_about(part)} for role, part in parts.items()}
    if setting.words:
        parts["captioner"] = WordsFirst(setting.words, parts["captioner"])
    return Parts(**parts, about=about)


def load_part(role: str, name: str, setting: Setting) -> Any:
    """Load one part; the arguments and errors are those of :func:`load_parts`."""
    kind, _, model = name.partition("=")
    if ":" in kind:
        return _own(role, name)
    make = PARTS[role].get(kind)
    if make is None:
        allowed = f"{', '.join(PARTS[role])}; or module:Class"
        raise invalid(role, name, allowed)
    if model and kind not in _MODELS:
        raise invalid(role, name, f"{kind} without '=', since it has no model to choose")
    return make(setting, model)


def _about(part: object) -> dict[str, str]:
    return {str(k): str(v) for k, v in dict(getattr(part, "about", {})).items()}


def _own(role: str, name: str) -> Any:
    """Make a user's own part."""
    place, _, made = name.partition(":")
    fix = "Give module:Class; the module must be one that Python finds, such as a file in a folder of PYTHONPATH"
    try:
        kind = getattr(importlib.import_module(place), made, None) if made.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise invalid(role, name, "the class of a module that is installed", fix) from None
        raise
    except (ValueError, TypeError):
        kind = None
    if kind is None:
        raise invalid(role, name, f"the name of a class in {place!r}", fix)
    method = ROLES[role]
    if not callable(getattr(kind, method, None)):
        raise invalid(role, name, f"a class with a method {method!r}")
    return kind()


def _florence(setting: Setting, model: str) -> Any:
    from layered_diffusers.dataset.florence import Florence2

    return Florence2(model or None, setting.device)


def _blip(setting: Setting, model: str) -> Any:
    from layered_diffusers.dataset.blip import Blip

    return Blip(model or None, setting.device)


def _grounded_sam2(setting: Setting, model: str) -> Any:
    from layered_diffusers.dataset.grounded_sam import GroundedSam2

    detector, comma, masker = model.partition(",")
    if model and not (comma and detector and masker):
        raise LayeredError(
            f"grounded-sam2={model} names one model and needs two: grounded-sam2=GROUNDING_DINO,SAM2"
        )
    return GroundedSam2(detector or None, masker or None, setting.device)


def _sam3(setting: Setting, model: str) -> Any:
    from layered_diffusers.dataset.sam3 import Sam3

    return Sam3(model or None, setting.device)


def _depth_anything(setting: Setting, model: str) -> Any:
    from layered_diffusers.dataset.depth_anything import DepthAnything

    return DepthAnything(model or None, setting.device)


def _painted(setting: Setting, model: str) -> Painted:
    return Painted(
        setting.pipeline, seed=setting.seed, feather=setting.feather, model=setting.model or "storybook",
        sampling=setting.sampling,
    )  # fmt: skip


PARTS: dict[str, dict[str, Callable[[Setting, str], Any]]] = {
    "captioner": {
        "florence2": _florence,
        "blip": _blip,
        "judge": lambda setting, model: JudgeCaptions(),
        "file": lambda setting, model: FileCaptions(setting.folder),
    },
    "segmenter": {
        "grounded-sam2": _grounded_sam2,
        "sam3": _sam3,
        "florence2": _florence,
        "judge": lambda setting, model: JudgeMasks(),
        "file": lambda setting, model: FileMasks(setting.folder),
    },
    "depth": {
        "depth-anything": _depth_anything,
        "area": lambda setting, model: AreaDepth(),
        "file": lambda setting, model: FileDepth(setting.folder),
    },
    "inpainter": {"pipeline": _painted},
}
"""The parts by role and name."""

_MODELS = frozenset(("florence2", "blip", "grounded-sam2", "sam3", "depth-anything"))
"""Names of the parts that run a model of transformers."""
