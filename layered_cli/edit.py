"""``layered edit``: makes one layer of a document anew among the others, or adds one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from layered_cli.shared import (
    Bar,
    Commands,
    add_groups_option,
    add_joint_options,
    add_memory_option,
    add_sampling_options,
    check_out,
    number,
    pipeline_of,
    read_document,
    wrote,
)

if TYPE_CHECKING:
    from layered_core.document import LayerDocument
    from layered_core.joint.editing import Edit


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "edit",
        help="make one layer of a document anew so that it fits the others",
        description="Make one layer of a document anew, or add one, with all layers in view of each other. The others "
        "keep every pixel. For SD1.5 and the storybook, and documents of 1 to 4 layers on a background.",
    )
    parser.add_argument("document", type=Path, help="layered file: .json, .psd, .psb, .ora")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write, with all layers: .psd, .psb, .ora, or the name of a new folder",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="also write the flat picture")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--layer", metavar="NAME", help="the layer to make anew")
    what.add_argument("--add", metavar="WORDS", help="put a new layer on top that shows WORDS")
    parser.add_argument("--prompt", metavar="WORDS", help="with --layer: new words for it")
    parser.add_argument(
        "--style",
        default="",
        metavar="WORDS",
        help="with --layer: words to add to its own; it keeps its form",
    )
    parser.add_argument(
        "--amount",
        type=number(0, 1),
        metavar="A",
        help="with --layer: how far it may change, from 0 to 1 (default: 1, with --style alone 0.5)",
    )
    parser.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="with --layer: a picture of the canvas's size, white where the layer may change",
    )
    add_joint_options(parser)
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="with --model: the weights that make layers at once, e.g. layer_sd15_joint.safetensors",
    )
    parser.add_argument(
        "--decoder", type=Path, metavar="FILE", help="with --model: LayerDiffuse's decoder of the alpha"
    )
    parser.add_argument(
        "--encoder", type=Path, metavar="FILE", help="with --model: LayerDiffuse's encoder of the alpha"
    )
    parser.add_argument(
        "--augmentations",
        type=int,
        choices=(1, 2, 4, 8),
        default=8,
        help="passes of the decoder (default: %(default)s)",
    )
    add_groups_option(parser)
    add_memory_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from layered_core.canvas.compositing import composite
    from layered_core.errors import LayeredError, invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import write_picture

    check_out(options.out, ("", ".psd", ".psb", ".ora"))
    if options.picture is not None:
        check_out(options.picture)
    if options.add is not None and (
        options.prompt or options.style or options.mask or options.amount is not None
    ):
        raise LayeredError(
            "--prompt, --style, --amount and --mask are used with --layer only. Leave them out"
        )
    if not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    read = read_document(options)
    document, edits = _edits(read.document, options)
    with Bar("edit") as bar:
        document = pipeline_of(options).edit_layers(
            document, edits, file=options.file, decoder=options.decoder, encoder=options.encoder,
            enhance=options.enhance, self_mask=options.self_mask, augmentations=options.augmentations,
            seed=options.seed, negative=options.negative or document.negative, steps=options.steps,
            guidance=options.guidance, progress=bar.step,
        )  # fmt: skip
    wrote(write_layers(document, options.out, read.workflow, bits=8))
    if options.picture is not None:
        write_picture(composite(document), options.picture)
        wrote(options.picture)


def _edits(document: LayerDocument, options: argparse.Namespace) -> tuple[LayerDocument, dict[str, Edit]]:
    """Return the document, with the layer to add, and the edit that the options name."""
    from dataclasses import replace

    from layered_core.document import Layer, short_name, unique_names
    from layered_core.formats.pictures import read_mask
    from layered_core.joint.editing import Edit

    if options.add is not None:
        new = Layer(short_name(options.add) or options.add, prompt=options.add)
        return replace(document, layers=unique_names((*document.layers, new))), {}
    document.layer(options.layer)
    mask = None if options.mask is None else read_mask(options.mask)
    return document, {options.layer: Edit(options.prompt, options.style, options.amount, mask)}
