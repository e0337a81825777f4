"""``layered dataset``: makes a folder of pictures a data set of layered ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.parts import add_part_options, parts_of, thresholds_of
from layered_cli.shared import Bar, Commands, add_memory_option, add_sampling_options, complain, wrote


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "dataset",
        help="make a folder of pictures a data set of layered ones",
        description="Take every picture of FOLDER and its sub-folders apart into a background and a layer for each "
        "thing. OUT gets a folder of PNG files and JSON for each, index.jsonl with a record of each, rejected.jsonl "
        "with the others and the reasons, and report.html. Nothing is downloaded.",
    )
    parser.add_argument("folder", type=Path, help="the pictures")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="OUT",
        help="folder to write: a new one, or with --resume",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with a folder that was begun with the same options"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing: read OUT again and compare it with the pictures"
    )
    parser.add_argument(
        "--words",
        type=Path,
        metavar="FILE.jsonl",
        help='captions of pictures, a line each: {"file": "a/cat.png", "text": "...", "phrases": ["a cat"], '
        '"background": "a garden"}',
    )
    parser.add_argument(
        "--licence", default="", metavar="TEXT", help="licence of the pictures, for the records"
    )
    add_part_options(parser)
    add_memory_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    import os

    from layered_core.errors import LayeredError, invalid
    from layered_core.formats.limits import Limits
    from layered_diffusers.dataset.given import read_words
    from layered_diffusers.dataset.making import check_dataset, make_dataset

    if not os.path.isdir(options.folder):
        raise invalid("folder", str(options.folder), "an existing folder")
    limits = thresholds_of(options)
    reading = Limits.of_memory(int(options.memory_limit * 2**30), "--memory-limit")
    if options.check:
        with Bar("check") as bar:
            wrong = check_dataset(options.out, options.folder, reading, bar.step)
        for name, reason in wrong:
            complain(f"{name}: {reason}")
        if wrong:
            raise LayeredError(f"{len(wrong)} pictures of {str(options.out)!r} are not as they were made")
        return
    words = None if options.words is None else read_words(options.words, options.folder)
    parts = parts_of(options, limits, options.folder, words)
    with Bar("dataset") as bar:
        made = make_dataset(
            options.folder, options.out, parts, limits, seed=options.seed, licence=options.licence,
            resume=options.resume, reading=reading, progress=bar.step,
        )  # fmt: skip
    for entry in made.rejected:
        complain(f"{entry['source']}: left out: {entry['reason']}")
    complain(f"{len(made.kept)} pictures kept, {len(made.rejected)} left out")
    wrote(options.out)
