"""Print how much a LoRA does in its layer and outside it, as a share of what it does when it is loaded for the whole
picture: ``python -m benchmarks.look_effect results/<folder> [--json]``.

The folder has the results of ``layered bench layer_lora``. With m the mean over scenes of a figure, a share is
``(m(in its layer) - m(without)) / (m(everywhere) - m(without))``; bootstrap 95 % intervals over scenes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.bench.intervals import Interval, resamples
from benchmarks.bench.suite import read_suite
from demo.world.looks import LOOKS
from layered_core.errors import LayeredError

ROWS = {"alone": "{look}, in its layer", "both": "both, in their layers"}
"""The rows in which a LoRA acts in a layer, with or without the other LoRA in another layer."""


def shares(folder: Path) -> dict[str, Interval]:
    """Return all shares by the look, the row and where they are measured, such as ``pink alone inside``.

    Raises:
        LayeredError: the folder lacks results.
    """
    suite = read_suite("layer_lora")
    file = folder / f"{suite.name}.jsonl"
    if not file.is_file():
        raise LayeredError(f"there are no results {str(file)!r}. Run 'layered bench {suite.name}' first")
    names = {row.key: row.name for row in suite.rows}
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names.values()}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        record = json.loads(line)
        if record["key"] in names:
            found[names[record["key"]]][record["scene"]] = record["figures"]
    out = {}
    for look in LOOKS:
        for kind, row in ROWS.items():
            rows = [found[name.format(look=look)] for name in (row, "without", "{look}, everywhere")]
            scenes = sorted(set.intersection(*(set(r) for r in rows)))
            for place in ("inside", "outside"):
                values = [[r[i][f"{look}_{place}"] for i in scenes] for r in rows]
                out[f"{look} {kind} {place}"] = share(*values)
            if look == "pink":
                values = [[r[i]["colour_inside"] for i in scenes] for r in rows]
                out[f"{look} {kind} inside, by the judge's colours"] = share(*values)
    return out


def share(here: Sequence[float], without: Sequence[float], everywhere: Sequence[float]) -> Interval:
    """Return ``(mean(here) - mean(without)) / (mean(everywhere) - mean(without))`` with its interval."""
    a, b, c = (np.array(x, dtype=float) for x in (here, without, everywhere))
    drawn = resamples(len(a), 2000)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no effect at all
        ratios = (a - b)[drawn].mean(1) / (c - b)[drawn].mean(1)
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return Interval(float((a - b).mean() / (c - b).mean()), float(low), float(high), len(a))


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    try:
        found = shares(options.folder)
    except LayeredError as error:
        sys.exit(f"benchmarks.look_effect: {error}")
    print("| LoRA | share of the whole-picture LoRA's effect | 95 % | n |")
    print("| --- | --- | --- | --- |")
    for name, x in found.items():
        print(f"| {name} | {x.mean:.3f} | {x.low:.3f} – {x.high:.3f} | {x.n} |")
    if options.json:
        print(json.dumps({name: x._asdict() for name, x in found.items()}))


if __name__ == "__main__":
    main()
