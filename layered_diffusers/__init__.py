"""Layered pictures without ComfyUI: the core's methods on a diffusers pipeline.

>>> from layered_core.document import Layer, LayerDocument
>>> from layered_diffusers import LayeredDiffusionPipeline
>>> pipeline = LayeredDiffusionPipeline.from_pretrained(sampler="euler_ancestral")  # the storybook model
>>> meadow = Layer("meadow", prompt="in a meadow", width=128, height=128)
>>> ball = Layer("ball", prompt="a red ball", x=40, y=60, width=48, height=48)
>>> document = pipeline.generate_layers(LayerDocument(128, 128, (meadow, ball)), seed=1)
>>> pipeline.render(document, strength=0.3).save("picture.png")
"""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

__all__ = ["LayeredDiffusionPipeline"]

_BESIDE_THE_POINT = re.compile(
    r"`(CLIP|Siglip)ImageProcessor` requires torchvision \(not installed\); falling back to .*"
    r"|`torch_dtype` is deprecated! Use `dtype` instead!",
    re.DOTALL,
)
"""Remarks of transformers about what diffusers does, not what we do: it imports image processors that nothing
here uses, and before 0.40 it passes on an argument by its old name."""


def _is_to_the_point(record: logging.LogRecord) -> bool:
    return not _BESIDE_THE_POINT.fullmatch(record.getMessage())


# In a notebook without ipywidgets, tqdm remarks so when diffusers is imported; no bar of ours needs them.
warnings.filterwarnings("ignore", message="IProgress not found")
for _name in ("utils.import_utils", "modeling_utils", "configuration_utils"):
    logging.getLogger(f"transformers.{_name}").addFilter(_is_to_the_point)


def __getattr__(name: str) -> object:
    # diffusers takes seconds to import; ``layered --help`` must not wait for it.
    if name == "LayeredDiffusionPipeline":
        from layered_diffusers.pipeline import LayeredDiffusionPipeline

        return LayeredDiffusionPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
