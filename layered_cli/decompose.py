"""``layered decompose``: takes a picture apart into layers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from layered_cli.parts import add_part_options, parts_of, thresholds_of
from layered_cli.shared import (
    Bar,
    Commands,
    add_joint_options,
    add_memory_option,
    add_sampling_options,
    check_out,
    complain,
    pipeline_of,
    wrote,
)

if TYPE_CHECKING:
    from torch import Tensor

    from layered_core.document import LayerDocument
    from layered_diffusers.dataset.protocols import Caption


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "decompose",
        help="take a picture apart into a background and a layer for each thing",
        description="Find the things in a picture, make a layer of each with its edges matted, and paint what is "
        "behind them. The composite of the layers is the picture. Nothing is downloaded.",
    )
    parser.add_argument("picture", type=Path, help="a picture file")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, with all layers: .psd, .psb, .ora, or the name of a new folder",
    )
    parser.add_argument(
        "--method",
        choices=("masks", "together"),
        default="masks",
        help="masks: a segmenter finds the things, and every pixel is kept. together: the model makes all layers and "
        "the background at once; for SD1.5 and the storybook (default: %(default)s)",
    )
    parser.add_argument(
        "--words",
        action="append",
        metavar="WORDS",
        help="a thing to look for; give it once for each, for together back to front (default: what the captioner "
        "names)",
    )
    parser.add_argument("--background", default="", metavar="WORDS", help="what is behind the things")
    parser.add_argument("--prompt", default="", metavar="WORDS", help="the whole picture in words")
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="for together, with --model: the weights that make layers at once, e.g. layer_sd15_joint.safetensors",
    )
    parser.add_argument(
        "--decoder", type=Path, metavar="FILE", help="the same: LayerDiffuse's decoder of the alpha"
    )
    parser.add_argument(
        "--encoder", type=Path, metavar="FILE", help="the same: LayerDiffuse's encoder of the alpha"
    )
    add_joint_options(parser, "for together: ")
    parser.add_argument(
        "--augmentations",
        type=int,
        choices=(1, 2, 4, 8),
        default=8,
        help="for together: passes of the decoder (default: %(default)s)",
    )
    add_part_options(parser)
    add_memory_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from layered_core.errors import LayeredError, invalid
    from layered_core.files import write_layers
    from layered_core.formats.limits import Budget, Limits
    from layered_core.formats.pictures import read_picture

    check_out(options.out, ("", ".psd", ".psb", ".ora"))
    if not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    if options.method != "together" and (options.file or options.decoder or options.encoder):
        raise LayeredError("--file, --decoder and --encoder are used with '--method together' only")
    limits = Limits.of_memory(int(options.memory_limit * 2**30), "--memory-limit")
    told: list[str] = []
    pixels = read_picture(options.picture, Budget(limits), told)
    for line in told:
        complain(line)
    document = _together(pixels, options) if options.method == "together" else _by_masks(pixels, options)
    wrote(write_layers(document, options.out, bits=8))


def _said(options: argparse.Namespace) -> Caption | None:
    """Return what the options say of the picture; None if they name nothing."""
    from layered_diffusers.dataset.protocols import Caption

    if not options.words:
        return None
    text = options.prompt or ", ".join([*options.words, *filter(None, [options.background])])
    return Caption(text, tuple(options.words), options.background)


def _by_masks(pixels: Tensor, options: argparse.Namespace) -> LayerDocument:
    from layered_core.errors import LayeredError
    from layered_diffusers.dataset.protocols import Picture
    from layered_diffusers.dataset.taking_apart import opaque, take_apart

    limits, said = thresholds_of(options), _said(options)
    words = None if said is None else {options.picture: said}
    parts = parts_of(options, limits, words=words)
    apart = take_apart(pixels, parts, limits, Picture(opaque(pixels), options.picture))
    for entry in apart.record["dropped"]:
        complain(
            f"{entry['phrase']!r} was left out: {entry['reason']} (score {entry['score']}, area {entry['area']})"
        )
    if apart.document is None:
        sought = ", ".join(repr(x) for x in apart.record["phrases"]) or "nothing"
        raise LayeredError(
            f"no thing of the picture became a layer ({apart.rejected}); looked for: {sought}. Name the things with "
            f"--words, or change the thresholds"
        )
    if apart.rejected:
        complain(f"the layers may be wrong: {apart.rejected}; {apart.record['checks']}")
    return apart.document


def _together(pixels: Tensor, options: argparse.Namespace) -> LayerDocument:
    from layered_core.errors import LayeredError
    from layered_core.formats.pictures import to_image
    from layered_diffusers.dataset.protocols import Picture
    from layered_diffusers.dataset.taking_apart import opaque

    said = _said(options)
    if said is None:
        limits = thresholds_of(options)
        said = parts_of(options, limits).captioner.describe(Picture(opaque(pixels), options.picture))
        said = type(said)(said.text, said.phrases[: limits.layers], said.background)
    if not said.phrases:
        raise LayeredError("nothing in the picture is named. Name the things with --words, back to front")
    with Bar("decompose") as bar:
        return pipeline_of(options).decompose(
            to_image(pixels), said.phrases, background=options.background or said.background,
            prompt=options.prompt or said.text, file=options.file, decoder=options.decoder, encoder=options.encoder,
            enhance=options.enhance, self_mask=options.self_mask, augmentations=options.augmentations,
            seed=options.seed, negative=options.negative, steps=options.steps, guidance=options.guidance,
            progress=bar.step,
        )  # fmt: skip
