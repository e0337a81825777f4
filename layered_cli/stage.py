"""``layered stage``: builds a picture layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import (
    Bar,
    Commands,
    Options,
    add_groups_option,
    add_memory_option,
    add_sampling_options,
    check_out,
    controlnet,
    number,
    pipeline_of,
    read_document,
    wrote,
)


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "stage",
        help="build a picture layer by layer from the prompts of a document's layers",
        description="Make every layer that has a prompt and a place but no picture, back to front, each on the "
        "layers behind it. The model chooses the place of a layer as large as the canvas. Outside its box a "
        "layer changes no pixel.",
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
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: Options) -> None:
    """Add the options that say how layers are made."""
    parser.add_argument(
        "--replace", metavar="NAME", help="generate this layer again, although it has a picture"
    )
    parser.add_argument("--prompt", metavar="WORDS", help="with --replace: new prompt of that layer")
    parser.add_argument(
        "--later",
        action="store_true",
        help="with --replace: generate the layers in front of it again too; otherwise they keep their pictures",
    )
    parser.add_argument(
        "--alpha",
        choices=("difference", "mask", "transparent"),
        default="difference",
        help="where a new layer is opaque: where the picture changed, or in the whole box; transparent: the "
        "layer is made alone, with alpha of its own (LayerDiffuse) (default: %(default)s)",
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="with --alpha transparent and --model: LayerDiffuse's weights, as for layered generate",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="with --alpha transparent and --model: LayerDiffuse's decoder of the alpha",
    )
    parser.add_argument(
        "--feather",
        type=number(0, 1024, whole=True),
        default=8,
        metavar="PX",
        help="width of the soft border inside a box (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=number(0, 16384, whole=True),
        default=0,
        metavar="PX",
        help="side at which a box is cut out and sampled; 0: the whole picture is sampled, or a transparent "
        "layer at the model's own size (default: %(default)s)",
    )
    parser.add_argument(
        "--inpaint-control",
        metavar="FOLDER",
        help="a ControlNet for inpainting in the diffusers layout, which gets the picture around each new "
        "layer",
    )
    parser.add_argument(
        "--adapters", type=Path, metavar="FOLDER", help="folder of the LoRAs and embeddings that recipes name"
    )
    add_groups_option(parser)
    add_memory_option(parser)
    add_sampling_options(parser)


def run(options: argparse.Namespace) -> None:
    from layered_core.canvas.compositing import composite
    from layered_core.errors import LayeredError, invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import write_picture

    check_out(options.out, ("", ".psd", ".psb", ".ora"))
    if options.picture is not None:
        check_out(options.picture)
    if not options.replace and (options.prompt or options.later):
        raise LayeredError(
            "--prompt and --later are used with --replace only. Name the layer that is to be generated again "
            "with --replace"
        )
    if options.alpha != "transparent" and (options.file or options.decoder):
        fix = "--file and --decoder are used with '--alpha transparent' only"
        raise invalid("--alpha", options.alpha, "transparent", fix)
    if not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    read = read_document(options)
    if options.replace:
        read.document.layer(options.replace)
    with Bar("stage") as bar:
        pipeline = pipeline_of(options)
        how = {
            "seed": options.seed, "alpha": options.alpha, "file": options.file, "decoder": options.decoder,
            "feather": options.feather,
            "size": options.size, "adapters": options.adapters,
            "negative": options.negative or read.document.negative,
            "steps": options.steps, "guidance": options.guidance, "progress": bar.step,
        }  # fmt: skip
        if options.inpaint_control is not None:
            how["control"] = controlnet(pipeline, options.inpaint_control)
        document = (
            pipeline.replace_layer(
                read.document, options.replace, prompt=options.prompt, later=options.later, **how
            )
            if options.replace
            else pipeline.generate_layers(read.document, **how)
        )
    wrote(write_layers(document, options.out, read.workflow, bits=8))
    if options.picture is not None:
        write_picture(composite(document), options.picture)
        wrote(options.picture)
