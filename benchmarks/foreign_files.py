"""Read layered files of other programs and compare each with the picture that its program stored in it:
``python -m benchmarks.foreign_files FOLDER ... [--json]``.

* ``files``: PSD, PSB and OpenRaster files in the folders and those below.
* ``refused``: those that are refused, by name.
* ``compared``: those with a merged picture to compare with, that is, of the canvas' size and no stand-in of one colour.
* ``same``: those of these that differ by a mean of at most 2/255. The others are told of by Load Layers.
* ``silent``: those that differ by more although no other warning says that something was left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from layered_core.errors import LayeredError
from layered_core.files import read_layers
from layered_core.formats.merged_picture import SAME, difference

_ENDS = (".psd", ".psb", ".ora")


def measure(folders: Iterable[Path]) -> dict[str, Any]:
    """Return the figures for all layered files below ``folders``; ``different`` has the mean of each file, /255."""
    paths = sorted(
        p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in _ENDS and p.is_file()
    )
    refused: dict[str, str] = {}
    different: dict[str, float] = {}
    compared, silent = 0, []
    for path in paths:
        try:
            file = read_layers(path)
            apart = difference(file)
        except LayeredError as error:
            refused[str(path)] = str(error)
            continue
        if apart is None:
            continue
        compared += 1
        mean = float(apart.mean())
        if mean > SAME:
            different[str(path)] = round(mean * 255, 2)
            if not file.warnings:
                silent.append(str(path))
    return {
        "files": len(paths),
        "refused": refused,
        "compared": compared,
        "same": compared - len(different),
        "different": different,
        "silent": silent,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign_files", description="See the module.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    figures = measure(options.folders)
    if options.json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    for name in ("files", "compared", "same"):
        print(f"{name:<12}{figures[name]}")
    for name, why in figures["refused"].items():
        print(f"refused     {name}: {why}")
    for name, mean in figures["different"].items():
        print(f"different   {name}: {mean}/255{' (silent)' if name in figures['silent'] else ''}")


if __name__ == "__main__":
    main()
