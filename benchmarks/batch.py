"""Compare ``layered batch`` with a plain loop: ``python -m benchmarks.batch [--json] [-n N] [--steps N]``.

Collages of three things on a landscape, 128 x 128, are rendered by the storybook, with one thread a worker: in a loop
that does nothing else, by a batch in one process, and by one and by two workers on Ray. Figures:

* ``serial_per_s``: documents a second of the loop, with the model loaded: the mean of two, before and after all else.
  ``serial_spread``: by how much of it each of the two differs from the mean.
* ``scaling_1``, ``scaling_2``: documents a second of one and of two workers on Ray over the loop's, from where each
  worker has made its first document to where one finds no other.
* ``overhead_item_s``: what a batch in one process takes an item besides rendering: checksums, renames, its recipe.
* ``kept_item_s``: the same for an item that is there already. ``ray_kept_item_s``: with the way to a worker on Ray and
  back.
* ``first_s``, ``ray_first_s``: from the start to the first document: in one process, which has imported everything
  before, the model is loaded; on Ray, processes are started too.
* ``same_bytes``: 1 if the batches in one process, with one and with two workers made the same files.

Times are by the clock: they need a quiet machine, with as many free cores as workers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys


def main() -> None:
    """Print the figures."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parse.add_argument("-n", type=int, default=40, help="number of documents (default: %(default)s)")
    parse.add_argument("--steps", type=int, default=10, help="sampling steps (default: %(default)s)")
    options = parse.parse_args()
    # The command stands above the benchmarks, which cannot import it.
    run = [sys.executable, "-m", "layered_cli.batching.timing", str(options.n), str(options.steps)]
    figures = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"| {options.n} documents, {options.steps} steps | |\n| --- | --- |")
    for name, value in figures.items():
        print(f"| {name} | {value:.4g} |")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
