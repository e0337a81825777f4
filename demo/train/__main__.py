"""``python -m demo.train <part>``: train one part of the storybook model."""

from __future__ import annotations

import argparse
import importlib

import torch

from demo.train.loop import launch
from demo.world.looks import LOOKS

PARTS = (
    "vae", "judge", "text", "unet", "transformer", "control", "transparent", "transparent_lora", "joint",
    "joint_layers", "look",
)  # fmt: skip


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.train",
        description="Train one part of the storybook model. Resumes when interrupted.",
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--folder",
        default="output/train",
        help="checkpoints, logs and exported weights (default: %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=20,
        help="length of the whole run, including the time before interruptions (default: %(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1 if torch.cuda.is_available() else 2,
        help="number of processes, of one thread each (default: 2, with a GPU 1)",
    )
    parser.add_argument(
        "--scale",
        type=int,
        default=8 if torch.cuda.is_available() else 1,
        help="factor of the batch size (default: 1, with a GPU 8)",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start from random weights where there is no checkpoint (default: from the shipped weights)",
    )
    parser.add_argument(
        "--look", choices=LOOKS, default="pink", help="what the part look teaches (default: %(default)s)"
    )
    parser.add_argument("--rate", type=float, help="greatest learning rate (default: the part's own)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options = parser.parse_args()
    launch(importlib.import_module(f"demo.train.{options.part}").train, options.processes, options)


if __name__ == "__main__":
    main()
