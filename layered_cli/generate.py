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

WAYS = ("together", "transplant")
"""Ways to make the layers of a scene."""


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
        help="make a scene's background, its layers with alpha, and all as one picture (a hidden layer): at once, "
        "for SD1.5 and the storybook, or with --way transplant",
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
        "--way",
        choices=WAYS,
        default=WAYS[0],
        help="for --layers: together, or transplant: each layer made alone and then held in the picture of all, with "
        "any model, without training (default: %(default)s)",
    )
    parser.add_argument(
        "--until",
        type=number(0, 1),
        metavar="SHARE",
        help="for --way transplant: share of the steps up to which layers are held, 0 to 1 (default: 0.5)",
    )
    parser.add_argument(
        "--alpha",
        dest="layer_alpha",  # layered stage has an --alpha of its own, and layered batch the options of both
        choices=("transparent", "difference"),
        help="for --way transplant: LayerDiffuse makes each layer, or each is what differs in a draft on the "
        "background (default: difference for transformers, else transparent)",
    )
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
    transplants = options.layers and options.way == "transplant"
    if not transplants and (options.until is not None or options.layer_alpha is not None):
        raise LayeredError(
            "--until and --alpha are used with --layers --way transplant only. Give these too, or leave them out"
        )
    if transplants and (options.enhance != 1 or options.self_mask != 0):
        raise LayeredError(
            "--enhance and --self-mask are used with --way together only. Leave them out, or make the layers together"
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
        if transplants:
            more = {"alpha": options.layer_alpha} | (
                {} if options.until is None else {"until": options.until}
            )
            scene = pipeline.transplant_scene(
                options.prompt, options.layer, background=options.background, **more, **how, **files
            )
            wrote(write_layers(scene, options.out, bits=8))
            return
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
