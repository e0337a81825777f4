"""``layered stage``: a picture built layer by layer."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Bar, Commands, add_sampling_options, check_out, controlnet, number, pipeline_of


def add(commands: Commands) -> None:
    """Its arguments."""
    parser = commands.add_parser(
        "stage",
        help="build a picture layer by layer from the words of a document's layers",
        description="Make every layer that has words and a place but no picture, back to front, each on what "
        "lies behind it. "
        "A layer as large as the canvas finds its own place. Outside its box a layer changes no pixel.",
    )
    parser.add_argument("document", type=Path, help="layered file: .json, .psd, .psb, .ora")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the layers: .psd, .psb, .ora, or the name of a new folder",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="the flat picture besides")
    parser.add_argument("--replace", metavar="NAME", help="make this layer anew, though it has a picture")
    parser.add_argument("--prompt", metavar="WORDS", help="with --replace: new words for it")
    parser.add_argument(
        "--later",
        action="store_true",
        help="with --replace: make the layers in front of it anew too, not only lay them on again",
    )
    parser.add_argument(
        "--alpha",
        choices=("difference", "mask", "transparent"),
        default="difference",
        help="what is opaque: what changed, or the whole box; transparent: it is painted alone, with alpha "
        "of its own (LayerDiffuse)",
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="with --alpha transparent and --model: what changes the model, as for layered generate",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="with --alpha transparent and --model: what reads the alpha",
    )
    parser.add_argument(
        "--feather",
        type=number(0, 1024, whole=True),
        default=8,
        metavar="PX",
        help="soft border inside a box (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=number(0, 16384, whole=True),
        default=0,
        metavar="PX",
        help="side at which a box is sampled; 0: with the whole picture, or transparent at the model's own "
        "size (default)",
    )
    parser.add_argument(
        "--inpaint-control",
        metavar="FOLDER",
        help="a ControlNet for inpainting in the diffusers layout, which sees the picture round each new "
        "layer",
    )
    parser.add_argument(
        "--adapters", type=Path, metavar="FOLDER", help="where the LoRAs and embeddings lie that recipes name"
    )
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from layered_core.canvas.compositing import composite
    from layered_core.errors import invalid
    from layered_core.files import read_layers, write_layers
    from layered_core.formats.pictures import write_picture

    check_out(options.out, ("", ".psd", ".psb", ".ora"))
    if options.picture is not None:
        check_out(options.picture)
    if not options.replace and (options.prompt or options.later):
        raise invalid(
            "--replace", None, "the name of a layer", "--prompt and --later say how that layer is made anew"
        )
    if options.alpha != "transparent" and (options.file or options.decoder):
        raise invalid("--alpha", options.alpha, "transparent", "--file and --decoder are what it paints with")
    if not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    read = read_layers(options.document)
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
    write_layers(document, options.out, read.workflow, bits=8)
    if options.picture is not None:
        write_picture(composite(document), options.picture)
