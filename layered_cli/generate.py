"""``layered generate``: a picture, a transparent layer or a scene in layers, from words."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import Bar, Commands, add_sampling_options, check_out, number, pipeline_of


def add(commands: Commands) -> None:
    """Its arguments."""
    parser = commands.add_parser(
        "generate",
        help="make a picture, or a transparent layer, from words",
        description="Make a picture or a transparent layer from words alone.",
    )
    parser.add_argument("prompt", help="what it shows, e.g. 'a red ball by the sea'")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="where the picture goes, .png; with --layers .psd, .psb, .ora or a new folder",
    )
    parser.add_argument(
        "--width", type=number(1, 16384, whole=True), metavar="PX", help="default: the model's own"
    )
    parser.add_argument(
        "--height", type=number(1, 16384, whole=True), metavar="PX", help="default: the model's own"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--transparent",
        action="store_true",
        help="paint the thing alone, with real alpha (LayerDiffuse); the storybook model wants the bare "
        "thing, e.g. 'a glass blue ball'",
    )
    kind.add_argument(
        "--layers",
        action="store_true",
        help="paint a scene's background, its foreground with real alpha, and both as one picture (a hidden "
        "layer) at once; SD1.5 and the storybook",
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="for transparency with --model: what changes the model, e.g. "
        "layer_xl_transparent_attn.safetensors",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="for transparency with --model: what reads the alpha, e.g. vae_transparent_decoder.safetensors",
    )
    parser.add_argument(
        "--augmentations",
        type=int,
        choices=(1, 2, 4, 8),
        default=8,
        help="for transparency: passes that read the alpha (default: %(default)s)",
    )
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from layered_core.errors import invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import write_whole

    check_out(options.out, ("", ".psd", ".psb", ".ora") if options.layers else (".png",))
    if not (options.transparent or options.layers) and (options.file or options.decoder):
        raise invalid(
            "--transparent", None, "to be given, or --layers", "--file and --decoder are what they paint with"
        )
    if options.layers and not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    with Bar("generate") as bar:
        how = {
            "seed": options.seed, "negative": options.negative, "width": options.width,
            "height": options.height, "steps": options.steps,
            "guidance": options.guidance, "progress": bar.step,
        }  # fmt: skip
        pipeline = pipeline_of(options)
        files = {"file": options.file, "decoder": options.decoder, "augmentations": options.augmentations}
        if options.layers:
            write_layers(pipeline.generate_scene(options.prompt, **how, **files), options.out, bits=8)
            return
        if options.transparent:
            picture = pipeline.generate_transparent_layer(options.prompt, **how, **files)
        else:
            picture = pipeline.generate_layer(options.prompt, **how)
    write_whole(options.out, lambda file: picture.save(file, "PNG"))
