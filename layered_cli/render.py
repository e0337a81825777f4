"""``layered render``: turns a layer document into one coherent picture."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layered_cli.shared import (
    Bar,
    Commands,
    Options,
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
    from layered_core.rendering.rendering_plan import Rendering
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
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: Options) -> None:
    """Add the options that say how a document is rendered."""
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
        "--render-share",
        type=number(0, 1),
        default=0.0,
        metavar="0..1",
        help="layered rendering: share of the sampling, from its start, in which every layer is painted by itself and "
        "led to its place; --words says what acts in the rest. .3 is a good share, 0 is off (default: 0)",
    )
    parser.add_argument(
        "--vision-strength",
        type=number(0, 1),
        default=0.2,
        metavar="0..1",
        help="with --render-share: how strongly a layer's colour is planted in its place while it is painted "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--vision-colour",
        type=_colour,
        default="words",
        metavar="COLOUR",
        help="with --render-share: where that colour comes from: words (the model's own idea of the layer's words), "
        "picture (the layer's picture), noise, or one colour for all layers, #RRGGBB (default: %(default)s)",
    )
    parser.add_argument(
        "--render-preset",
        choices=("faithful", "fast"),
        default="faithful",
        help="with --render-share: fast lets all layers share one pass for the negative prompt, in about half the "
        "time (default: %(default)s)",
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        metavar="FOLDER",
        help="folder of the LoRAs and embeddings that recipes name. A layer's LoRAs act where the layer is seen; not "
        "with --words everywhere",
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


def run(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from layered_core.canvas.compositing import composite
    from layered_core.document import MAX_LAYERS, Layer, unique_names
    from layered_core.errors import invalid
    from layered_core.files import shown_otherwise, write_layers
    from layered_core.formats.pictures import from_image, save_png, write_picture, write_whole
    from layered_core.rendering.rendering_plan import plan_rendering

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
    rendering = _rendering(options)
    if rendering.share > 0:
        plan_rendering(
            document, rendering, negative=options.negative
        )  # raises its errors before a model is loaded
    with Bar("render") as bar:
        how: dict[str, Any] = {
            "seed": options.seed,
            "negative": options.negative or document.negative,
            "steps": options.steps,
        }
        how |= {"guidance": options.guidance, "progress": bar.step}
        how |= {"adapters": options.adapters, "attention": _attention(options.words)}
        how |= {"rendering": rendering if rendering.share > 0 else None}
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


def _rendering(options: argparse.Namespace) -> Rendering:
    """Return the settings of layered rendering."""
    from layered_core.rendering.rendering_plan import Rendering

    colour, constant = options.vision_colour
    return Rendering(
        share=options.render_share,
        strength=options.vision_strength,
        colour=colour,
        constant=constant,
        preset=options.render_preset,
    )


def _colour(text: str) -> tuple[str, tuple[float, float, float]]:
    """Return where a colour comes from, and red, green and blue 0..1 of a text such as ``#FF8000``; white if the
    text is a name."""
    if text in ("words", "picture", "noise"):
        return text, (1.0, 1.0, 1.0)
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not words, picture, noise, or a colour such as #FF8000"
        )
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "constant", (red, green, blue)


def _control(pipeline: LayeredDiffusionPipeline, document: LayerDocument, folder: str) -> MaskedControl:
    from layered_diffusers.methods.masked_control import document_control

    return document_control(document, controlnet(pipeline, folder), outline=True)
