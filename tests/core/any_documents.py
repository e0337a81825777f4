"""Any document that can be made, for tests of properties.

As a script, ``python any_documents.py FOLDER COUNT`` writes some of them as PSD files, for hosts whose python has no
hypothesis.
"""

import os
import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from layered_core.document import BLEND_MODES, HINTS, MAX_SIDE, Control, Layer, LayerDocument, Lora, Recipe
from layered_core.formats.limits import Limits

shares = st.floats(0, 1)
sides = st.integers(1, 12)
extents = sides | st.sampled_from([1, 300, MAX_SIDE])
"""Sides on the canvas: mostly small, so that a case takes milliseconds, and the greatest that there is."""
positions = st.integers(-20, 20) | st.floats(-20, 20) | st.floats(-4 * MAX_SIDE, 4 * MAX_SIDE)
turns = st.sampled_from([0.0, 0.0, 90.0, 360.0, -12.5]) | st.floats(-36_000, 36_000)


def is_file_name(text):
    return not text.startswith(".") and not set("/\\") & set(text)


def noise(*shape, seed=0, top=255):
    """Return random values that ``top`` levels represent exactly; of any float if it is None."""
    values = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    return values if top is None else (values * top).round() / top


@st.composite
def recipes(draw):
    """Generate any recipe."""
    start = draw(shares)
    control = Control(draw(st.sampled_from(HINTS)), draw(st.floats(0, 2)), start, draw(st.floats(start, 1)))
    return Recipe(
        draw(shares), draw(shares), draw(st.none() | shares), control,
        draw(st.none() | st.text(max_size=5).filter(is_file_name)),
        tuple(Lora(f"people/l{i}", draw(st.floats(-4, 4))) for i in range(draw(st.integers(0, 2)))),
        draw(st.none() | st.integers(0, 2**63 - 1)),
    )  # fmt: skip


@st.composite
def layers(draw, exact):
    """Generate any layer; ``exact`` is the number of levels between 0 and 1 of its pixels, None for any
    float."""
    seed = draw(st.integers(0, 2**31))
    image = noise(draw(sides), draw(sides), 4, seed=seed, top=exact) if draw(st.booleans()) else None
    if image is not None and draw(st.booleans()):
        holes = torch.rand(image.shape[:2], generator=torch.Generator().manual_seed(seed + 1)) > 0.5
        image[..., 3] *= holes.float()
    mask = None
    if draw(st.booleans()):
        same = image is not None and draw(st.booleans())
        mask = noise(*(image.shape[:2] if same else (draw(sides), draw(sides))), seed=seed + 2, top=exact)
    resized = image is None or draw(st.booleans())
    width, height = (draw(extents), draw(extents)) if resized else (0, 0)
    return Layer(
        draw(st.text(min_size=1, max_size=12).filter(str.strip)), image, mask, draw(st.text(max_size=20)),
        draw(st.text(max_size=20)),
        draw(positions), draw(positions), width, height, draw(turns), draw(st.booleans()),
        draw(st.booleans()), draw(shares), draw(st.sampled_from(BLEND_MODES)), draw(st.booleans()), draw(recipes()),
    )  # fmt: skip


@st.composite
def documents(draw, exact=None, least=0):
    """Generate any document of at least so many layers."""
    stack = draw(st.lists(layers(exact), min_size=least, max_size=4, unique_by=lambda layer: layer.name))
    background = draw(st.none() | st.tuples(shares, shares, shares))
    canvas = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    return LayerDocument(*canvas, tuple(stack), background, draw(st.text()), draw(st.text()))


CASES = max(40, int(os.environ.get("LAYERED_FUZZ", "0")) // 20)
"""Documents a property is tried on."""

FILES = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ALL = Limits(max_pixels=MAX_SIDE**2)
"""Limits that refuse no document: the largest box has more pixels than are usually allowed."""


def write_some(folder, count):
    """Write ``count`` documents with layers into ``folder``, the same ones at every call."""
    from layered_core.files import write_layers

    made = []

    @settings(FILES, max_examples=count, derandomize=True, phases=[Phase.generate], database=None)
    @given(documents(least=1))
    def make(document):
        made.append(write_layers(document, Path(folder) / f"{len(made):03}.psd"))

    make()


if __name__ == "__main__":
    write_some(sys.argv[1], int(sys.argv[2]))
