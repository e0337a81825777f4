"""``layered demo``: makes the gallery of the shipped model."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Bar, Commands, number, wrote


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "demo",
        help="make a gallery of layered pictures with the shipped model",
        description="Make a gallery of layered pictures with the shipped storybook model. Open its index.html.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/demo"), metavar="FOLDER", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=number(0, 2**31, whole=True),
        default=0,
        metavar="N",
        help="seed of the scenes and the noise (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from demo.gallery import make_gallery

    with Bar("demo") as bar:
        page = make_gallery(options.out, seed=options.seed, progress=bar.step)
    wrote(page)
