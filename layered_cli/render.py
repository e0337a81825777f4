"""``layered render``: turns a layer document into one coherent picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layered_cli.shared import (
    Bar,
    Commands,
    add_groups_option,
    add_memory_option,
    add_sampling_options,
    check_out,
    complain,
    controlnet,
    number,
    pipeline_of,
    read_document,
    wrote,
)

if TYPE_CHECKING:
    from layered_core.attention.regional_plan import Settings
    from layered_core.document import LayerDocument
    from layered_diffusers.methods.masked_control import MaskedControl
    from layered_diffusers.pipeline import LayeredDiffusionPipeline


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "render",
        help="turn a layer document into one coherent picture",
        description="Composite the layers of a document, then let the model redraw the whole so that they "
        "belong together. Each layer's words act where the layer is. A layer without a picture is painted from its "
        "words.",
    )
    parser.add_argument(
        "document", type=Path, help="layered file: .psd, .psb, .ora, or .json with pictures beside it"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: the picture (.png), or the document with the picture on top (.psd, .psb, .ora)",
    )
    parser.add_argument(
        "--strength",
        type=number(0, 1),
        default=0.4,
        metavar="0..1",
        help="how far the layers' pictures may change: 0 keeps them, 1 keeps nothing of them "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--words",
        choices=("places", "everywhere"),
        default="places",
        help="where a layer's words act: in its own place, or in the whole picture (default: %(default)s)",
    )
    parser.add_argument(
        "--adapters", type=Path, metavar="FOLDER", help="folder of the embeddings that recipes name"
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="let every layer change as far as its recipe's noise says, with 0 not at all; --strength then has "
        "no effect",
    )
    parser.add_argument(
        "--control",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="let a ControlNet act where the layers' recipes ask for it: the storybook's (canny), or a "
        "ControlNet or T2I-Adapter in the diffusers layout",
    )
    parser.add_argument(
        "--composite-only",
        action="store_true",
        help="write the plain composite, or the document unchanged; no model is loaded",
    )
    add_groups_option(parser)
    add_memory_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from layered_core.canvas.compositing import composite
    from layered_core.document import MAX_LAYERS, Layer, unique_names
    from layered_core.errors import invalid
    from layered_core.files import shown_otherwise, write_layers
    from layered_core.formats.pictures import from_image, save_png, write_picture, write_whole

    check_out(options.out, (".png", ".psd", ".psb", ".ora"))
    read = read_document(options)
    document, layered = read.document, options.out.suffix.lower() != ".png"
    for line in shown_otherwise(document, options.out):
        complain(f"{options.out.name}: {line}")
    if options.composite_only:
        if layered:
            write_layers(document, options.out, read.workflow)
        else:
            write_picture(composite(document), options.out)
        wrote(options.out)
        return
    if layered and len(document) >= MAX_LAYERS:
        fix = "Merge some of them, or write a .png"
        raise invalid(
            f"{options.document.name}: number of layers",
            len(document),
            f"at most {MAX_LAYERS - 1} beside the picture",
            fix,
        )
    with Bar("render") as bar:
        how: dict[str, Any] = {
            "seed": options.seed,
            "negative": options.negative or document.negative,
            "steps": options.steps,
        }
        how |= {"guidance": options.guidance, "progress": bar.step}
        how |= {"adapters": options.adapters, "attention": _attention(options.words)}
        pipeline = pipeline_of(options)
        if options.control is not None:
            how["methods"] = [_control(pipeline, document, options.control)]
        picture = (
            pipeline.harmonize(document, **how)
            if options.per_layer
            else pipeline.render(document, strength=options.strength, **how)
        )
    if layered:
        layers = unique_names([*document.layers, Layer("render", from_image(picture))])
        write_layers(replace(document, layers=layers), options.out, read.workflow, bits=8)
    else:
        write_whole(options.out, lambda file: save_png(picture, file))
    wrote(options.out)


def _attention(words: str) -> Settings | None:
    """Return how a layer's words act, for a choice of ``--words``."""
    from layered_diffusers.pipeline import PLACES

    return PLACES if words == "places" else None


def _control(pipeline: LayeredDiffusionPipeline, document: LayerDocument, folder: str) -> MaskedControl:
    from layered_diffusers.methods.masked_control import document_control

    return document_control(document, controlnet(pipeline, folder), outline=True)
