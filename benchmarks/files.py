"""Compare reading and writing of layered files with psd-tools and Pillow:
``python -m benchmarks.files [--json] [--layers N] [--side N] [--rounds N]``.

The layers are like a painter's: soft shapes with a slow change of colour and a little noise, on transparency, as large
as the canvas, with 8 bits a channel. All run by turns in one process and one thread; the figures are the medians of
the processor times of all rounds, divided.

* ``psd_read_ratio``: our reading over psd-tools' opening and its float arrays of all layers, of the same file.
* ``psd_write_ratio``: our writing over psd-tools making layers of the same pixels and saving them; both write a merged
  picture. ``psd_write_bare_ratio``: over psd-tools writing the layers without a merged picture.
* ``ora_read_ratio``: our reading over Pillow's reading of the file's layers to the same float arrays.
  ``ora_read_bytes_ratio``: over Pillow's reading to arrays of bytes.
* ``ora_write_ratio``: our writing over Pillow encoding the same pictures as PNG in its own way.
  ``ora_write_same_ratio``: with the settings that we use.
* ``psd_peak_ratio``, ``ora_peak_ratio``: growth of the resident memory, at its greatest while a new process reads the
  file, over the bytes of the pixels that it returns. Linux only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from psd_tools import PSDImage

from benchmarks.transparent_decode import forget_peak, resident
from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.formats.openraster import PNG_SETTINGS

GOALS = {
    "psd_read_ratio": 1.0,
    "psd_write_ratio": 1.5,
    "ora_read_ratio": 1.2,
    "ora_write_ratio": 1.1,
    "psd_peak_ratio": 1.3,
}

_STRICT = {"psd_write": ["_bare"], "ora_write": ["_same"], "psd_read": [], "ora_read": ["_bytes"]}
"""Names of the figures beside the first one."""

Pixels = np.ndarray[Any, Any]
"""RGBA bytes, ``[H, W, 4]``."""


def painted(side: int, random: np.random.Generator) -> Pixels:
    """Return one layer, ``[side, side, 4]``: four soft discs on transparency, about half of the area."""
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    alpha = np.zeros((side, side), np.float32)
    for _ in range(4):
        across, down, radius = (*random.random(2), 0.08 + 0.25 * random.random())
        edge = 0.1 * radius + 0.02
        alpha = np.maximum(alpha, ((radius - np.hypot(x - across, y - down)) / edge + 0.5).clip(0, 1))
    alpha = (alpha * 255).round() / 255
    slope = 0.3 * random.standard_normal((2, 3), np.float32)
    noise = random.standard_normal((side, side, 1), np.float32) * 2 / 255
    colour = 0.1 + 0.8 * random.random(3, np.float32) + (x[..., None] - 0.5) * slope[0]
    colour = (colour + (y[..., None] - 0.5) * slope[1] + noise).clip(0, 1) * (alpha[..., None] > 0)
    return (np.concatenate([colour, alpha[..., None]], -1) * 255).round().astype(np.uint8)


def psd_tools_write(pictures: list[Image.Image], path: Path, preview: bool = False) -> None:
    """Write a PSD with psd-tools, with or without a merged picture of the layers."""
    psd = PSDImage.new("RGBA", pictures[0].size)
    for number, picture in enumerate(pictures):
        psd.create_pixel_layer(picture, name=f"layer {number}")
    if preview:
        psd.save(path)
        return
    with path.open("wb") as file:
        psd._record.write(file)


def psd_tools_read(path: Path) -> list[Any]:
    """Return psd-tools' arrays of all layers, float32 in 0..1."""
    return [layer.numpy() for layer in PSDImage.open(path)]


def pillow_write(pictures: list[Image.Image], **settings: int) -> None:
    """Encode pictures as PNG."""
    for picture in pictures:
        picture.save(BytesIO(), "PNG", **settings)


def pillow_read(path: Path, floats: bool) -> list[Pixels]:
    """Return the layers of an OpenRaster file as arrays of floats in 0..1, or of bytes."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith("data/")]
        arrays = (np.asarray(Image.open(BytesIO(archive.read(name)))) for name in names)
        return [array.astype(np.float32) / 255 if floats else array for array in arrays]


def pictures_in(path: Path) -> list[Image.Image]:
    """Return every PNG picture in an OpenRaster file."""
    with zipfile.ZipFile(path) as archive:
        pictures = [
            Image.open(BytesIO(archive.read(name))) for name in archive.namelist() if name.endswith(".png")
        ]
        for picture in pictures:
            picture.load()
        return pictures


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def peak_ratio(path: Path) -> float:
    """Return the growth of this process's memory while it reads a file, over the bytes of the pixels."""
    before = resident("VmRSS")
    forget_peak()
    document = read_layers(path).document
    grown = resident("VmHWM") - before
    return grown / sum(layer.image.numel() * 4 for layer in document if layer.image is not None)


def measure(count: int, side: int, rounds: int) -> dict[str, float]:
    """Measure the figures that the module's docstring describes."""
    torch.set_num_threads(1)
    random = np.random.default_rng(7)
    pictures = [Image.fromarray(painted(side, random)) for _ in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        psd, ora, theirs = folder / "ours.psd", folder / "ours.ora", folder / "theirs.psd"
        layers = tuple(
            Layer(f"layer {n}", torch.from_numpy(np.asarray(picture).astype(np.float32) / 255))
            for n, picture in enumerate(pictures)
        )
        document = LayerDocument(side, side, layers)
        write_layers(document, ora)
        encoded = pictures_in(ora)
        works: dict[str, list[Callable[[], object]]] = {
            "psd_write": [
                lambda: write_layers(document, psd),
                lambda: psd_tools_write(pictures, theirs, preview=True),
                lambda: psd_tools_write(pictures, theirs),
            ],
            "ora_write": [
                lambda: write_layers(document, ora),
                lambda: pillow_write(encoded),
                lambda: pillow_write(encoded, **PNG_SETTINGS),
            ],
            "psd_read": [lambda: read_layers(psd), lambda: psd_tools_read(psd)],
            "ora_read": [
                lambda: read_layers(ora),
                lambda: pillow_read(ora, floats=True),
                lambda: pillow_read(ora, floats=False),
            ],
        }
        figures: dict[str, float] = {}
        for what, all_of_them in works.items():
            times = [[seconds(work) for work in all_of_them] for _ in range(rounds)]
            ours, *others = (statistics.median(column) for column in zip(*times, strict=True))
            figures[f"{what}_s"] = ours
            for name, other in zip(("", *_STRICT[what]), others, strict=True):
                figures[f"{what}{name}_ratio"] = ours / other
        if resident("VmHWM"):
            for what, path in (("psd", psd), ("ora", ora)):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    figures[f"{what}_peak_ratio"] = pool.apply(peak_ratio, (path,))
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=20, help="number of layers (default: %(default)s)")
    parser.add_argument("--side", type=int, default=2000, help="side in pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    figures = measure(options.layers, options.side, options.rounds)
    if options.json:
        print(json.dumps(figures))
        return
    print("| figure | value | goal |\n| --- | --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.3g} | {f'≤ {GOALS[name]:g}' if name in GOALS else ''} |")


if __name__ == "__main__":
    main()
