"""``layered bench``: the methods measured on the storybook."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Commands, number


def add(commands: Commands) -> None:
    """Its arguments."""
    parser = commands.add_parser(
        "bench",
        help="measure the methods on the storybook, with baselines in the same run",
        description="Make and judge the scenes of suites; an interrupted run goes on where it was. Writes "
        "tables, plots and JSON.",
    )
    parser.add_argument(
        "suites", nargs="+", metavar="SUITE", help="a file name in benchmarks/suites, e.g. layout; or all"
    )
    parser.add_argument("-n", type=int, default=32, metavar="N", help="scenes (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/<date>-<commit>")
    parser.add_argument(
        "--json", action="store_true", help="print a last line with all figures as one JSON object"
    )
    parser.add_argument("--fresh", action="store_true", help="put old results aside and measure all anew")
    parser.add_argument(
        "--processes",
        type=number(1, 64, whole=True),
        default=2,
        metavar="N",
        help="of one thread each (default: %(default)s)",
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
        help="any CLIP in the transformers layout, for CLIP scores besides",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, mps (default: the GPU when there is one)"
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
