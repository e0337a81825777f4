"""``layered bench``: measures the methods on the storybook."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Commands, number


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "bench",
        help="measure the methods on the storybook or on COCO's captions, with baselines in the same run",
        description="Make the pictures of suites of scenes, judge them, and write tables, plots and JSON. An "
        "interrupted run continues where it stopped. The suite coco takes its scenes from COCO's captions and "
        "instances, which are not shipped: layered bench coco --annotations DIR --model FOLDER --detector FOLDER.",
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
        "--model",
        metavar="FOLDER",
        help="a model of the storybook world (default: the shipped one); for the suite coco any model that "
        "'layered generate' takes",
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
        help="any CLIP model in the transformers layout, to measure CLIP score and T2I-Sim too",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="measure these rows of the table alone, e.g. 'plain prompt' regions (default: all)",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or mps (default: the GPU if there is one)"
    )
    coco = parser.add_argument_group("suite coco")
    coco.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="folder with COCO's captions_*.json and instances_*.json",
    )
    places = coco.add_mutually_exclusive_group()
    places.add_argument(
        "--masks",
        dest="places",
        action="store_const",
        const="masks",
        help="the objects' outlines say where they are (default)",
    )
    places.add_argument(
        "--boxes",
        dest="places",
        action="store_const",
        const="boxes",
        help="the boxes around the objects say where they are",
    )
    coco.add_argument(
        "--detector",
        type=Path,
        metavar="FOLDER",
        help="a detector in the transformers layout, e.g. RT-DETR or OWLv2 (default: the storybook's judge, which "
        "knows the storybook's objects alone)",
    )
    coco.add_argument(
        "--seed",
        type=number(0, 2**32 - 1, whole=True),
        default=0,
        metavar="S",
        help="decides the order in which captions are chosen (default: %(default)s)",
    )
    parser.set_defaults(run=run, places="masks")


def run(options: argparse.Namespace) -> None:
    from benchmarks.bench.command import bench
    from benchmarks.bench.records import default_out
    from benchmarks.bench.suite import CocoSettings, Settings
    from layered_diffusers.models.loading import find_model

    coco = None
    if options.annotations is not None:
        coco = CocoSettings(options.annotations, options.places, options.detector, options.seed)
    settings = Settings(
        options.n, find_model(options.model), options.out or default_out(), options.steps, options.guidance,
        options.device, options.clip,
        options.processes, options.fresh, coco,
    )  # fmt: skip
    bench(options.suites, settings, options.json, options.methods)
