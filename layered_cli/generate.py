"""``layered generate``: makes a picture, a transparent layer or a scene in layers from a prompt."""

from __future__ import annotations

import argparse
from pathlib import Path

from layered_cli.shared import (
    Bar,
    Commands,
    Options,
    add_joint_options,
    add_sampling_options,
    check_out,
    number,
    pipeline_of,
    wrote,
)


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "generate",
        help="make a picture, or a transparent layer, from a prompt",
        description="Make a picture, a transparent layer or a scene in layers from a prompt alone.",
    )
    parser.add_argument("prompt", help="describes the picture, e.g. 'a red ball by the sea'")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .png; with --layers .psd, .psb, .ora or a new folder",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: Options) -> None:
    """Add the options that say how a prompt becomes a picture."""
    parser.add_argument(
        "--width", type=number(1, 16384, whole=True), metavar="PX", help="(default: the model's own)"
    )
    parser.add_argument(
        "--height", type=number(1, 16384, whole=True), metavar="PX", help="(default: the model's own)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--transparent",
        action="store_true",
        help="make one object alone, with real alpha (LayerDiffuse); the storybook model expects the object "
        "alone in the prompt, e.g. 'a glass blue ball'",
    )
    kind.add_argument(
        "--layers",
        action="store_true",
        help="make a scene's background, its layers with real alpha, and all as one picture (a hidden layer) at "
        "once; for SD1.5 and the storybook",
    )
    parser.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="WORDS",
        help="for --layers: describes one layer alone; give it up to 4 times, back to front (default: one layer, "
        "described by the prompt)",
    )
    parser.add_argument(
        "--background",
        default="",
        metavar="WORDS",
        help="for --layers: describes the background alone (default: the prompt)",
    )
    add_joint_options(parser, "for --layers: ")
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="for --transparent or --layers with --model: LayerDiffuse's weights, e.g. "
        "layer_xl_transparent_attn.safetensors",
    )
    parser.add_argument(
        "--decoder",
        type=Path,
        metavar="FILE",
        help="for --transparent or --layers with --model: LayerDiffuse's decoder of the alpha, e.g. "
        "vae_transparent_decoder.safetensors",
    )
    parser.add_argument(
        "--augmentations",
        type=int,
        choices=(1, 2, 4, 8),
        default=8,
        help="for --transparent or --layers: passes of the decoder (default: %(default)s)",
    )
    add_sampling_options(parser)


def run(options: argparse.Namespace) -> None:
    from layered_core.errors import LayeredError, invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import save_png, write_whole

    check_out(options.out, ("", ".psd", ".psb", ".ora") if options.layers else (".png",))
    if not (options.transparent or options.layers) and (options.file or options.decoder):
        raise LayeredError(
            "--file and --decoder are used with --transparent or --layers only. Give one of these too, or leave "
            "the files out"
        )
    if (options.layer or options.background) and not options.layers:
        raise LayeredError(
            "--layer and --background are used with --layers only. Give it too, or leave them out"
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
            scene = pipeline.generate_scene(
                options.prompt,
                options.layer,
                background=options.background,
                enhance=options.enhance,
                self_mask=options.self_mask,
                **how,
                **files,
            )
            wrote(write_layers(scene, options.out, bits=8))
            return
        if options.transparent:
            picture = pipeline.generate_transparent_layer(options.prompt, **how, **files)
        else:
            picture = pipeline.generate_layer(options.prompt, **how)
    write_whole(options.out, lambda file: save_png(picture, file))
    wrote(options.out)
