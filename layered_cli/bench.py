"""``layered bench``: measures the methods on the storybook."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Commands, number


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "bench",
        help="measure the methods on the storybook, with baselines in the same run",
        description="Make the pictures of suites of scenes, judge them, and write tables, plots and JSON. An "
        "interrupted run continues where it stopped.",
    )
    parser.add_argument(
        "suites",
        nargs="+",
        metavar="SUITE",
        help="name of a file in benchmarks/suites without its ending, e.g. layout; or all",
    )
    parser.add_argument(
        "-n", type=int, default=32, metavar="N", help="number of scenes (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for the results (default: results/<date>-<commit>)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print all figures as one JSON object on a last line"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="rename the old results and measure everything again"
    )
    parser.add_argument(
        "--processes",
        type=number(1, 64, whole=True),
        default=2,
        metavar="N",
        help="number of processes, of one thread each (default: %(default)s)",
    )
    parser.add_argument(
        "--model", metavar="FOLDER", help="a model of the storybook world (default: the shipped one)"
    )
    parser.add_argument(
        "--steps",
        type=number(1, 1000, whole=True),
        default=25,
        metavar="N",
        help="sampling steps (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance",
        type=number(0, 50),
        default=3.0,
        metavar="G",
        help="classifier-free guidance (default: %(default)s)",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="FOLDER",
        help="any CLIP model in the transformers layout, to measure CLIP scores too",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or mps (default: the GPU if there is one)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from benchmarks.bench.command import bench
    from benchmarks.bench.records import default_out
    from benchmarks.bench.suite import Settings
    from layered_diffusers.models.loading import find_model

    settings = Settings(
        options.n, find_model(options.model), options.out or default_out(), options.steps, options.guidance,
        options.device, options.clip,
        options.processes, options.fresh,
    )  # fmt: skip
    bench(options.suites, settings, options.json)
