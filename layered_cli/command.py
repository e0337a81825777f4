"""The ``layered`` command: render documents and show the demo, without ComfyUI.

Exit codes: 0 done, 1 stopped by the user, 2 bad input or a missing piece, said in one line.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from diffusers import ControlNetModel, T2IAdapter
    from tqdm import tqdm

    from layered_core.document import LayerDocument
    from layered_diffusers.methods.masked_control import MaskedControl
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

_INSTALL = "this command needs more packages: pip install torch, then pip install 'layered-diffusion[headless]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        from layered_core.errors import LayeredError
    except ModuleNotFoundError:
        return _complain(_INSTALL)
    try:
        options.run(options)
    except LayeredError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        return _complain(f"{error}; {_INSTALL}")
    except OSError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return _complain("stopped", 1)
    return 0


def _complain(text: str, code: int = 2) -> int:
    sys.stderr.write(f"layered: {' '.join(text.split())}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="layered", description="Make and edit pictures layer by layer with a diffusion model.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    render = commands.add_parser(
        "render",
        help="turn a layer document into one coherent picture",
        description="Composite the layers of a document, then let the model redraw the whole so that they belong together.",
    )
    render.add_argument("document", type=Path, help="layered file: .psd, .psb, .ora, or .json with pictures beside it")
    render.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="picture (.png), or the document with the picture on top (.psd, .psb, .ora)"
    )
    render.add_argument(
        "--strength", type=_range(0, 1), default=0.6, metavar="0..1", help="0 keeps the composite, 1 keeps only the words (default: %(default)s)"
    )
    render.add_argument(
        "--per-layer", action="store_true", help="every layer changes as far as its recipe's noise says, one at 0 not at all; --strength is not used"
    )
    render.add_argument(
        "--control",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="let a ControlNet act where recipes ask for it: the storybook's (canny), or a ControlNet or T2I-Adapter in the diffusers layout",
    )
    render.add_argument("--composite-only", action="store_true", help="write the plain composite, or the document as it is; no model is loaded")
    _sampling_options(render)
    render.set_defaults(run=_render)

    stage = commands.add_parser(
        "stage",
        help="build a picture layer by layer from the words of a document's layers",
        description="Make every layer that has words and a place but no picture, back to front, each on what lies behind it. "
        "A layer as large as the canvas finds its own place. Outside its box a layer changes no pixel.",
    )
    stage.add_argument("document", type=Path, help="layered file: .json, .psd, .psb, .ora")
    stage.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the layers: .psd, .psb, .ora, or the name of a new folder")
    stage.add_argument("--picture", type=Path, metavar="FILE.png", help="the flat picture besides")
    stage.add_argument("--replace", metavar="NAME", help="make this layer anew, though it has a picture")
    stage.add_argument("--prompt", metavar="WORDS", help="with --replace: new words for it")
    stage.add_argument("--later", action="store_true", help="with --replace: make the layers in front of it anew too, not only lay them on again")
    stage.add_argument(
        "--alpha",
        choices=("difference", "mask", "transparent"),
        default="difference",
        help="what is opaque: what changed, or the whole box; transparent: it is painted alone, with alpha of its own (LayerDiffuse)",
    )
    stage.add_argument(
        "--file", type=Path, metavar="FILE", help="with --alpha transparent and --model: what changes the model, as for layered generate"
    )
    stage.add_argument("--decoder", type=Path, metavar="FILE", help="with --alpha transparent and --model: what reads the alpha")
    stage.add_argument("--feather", type=_range(0, 1024, whole=True), default=8, metavar="PX", help="soft border inside a box (default: %(default)s)")
    stage.add_argument(
        "--size",
        type=_range(0, 16384, whole=True),
        default=0,
        metavar="PX",
        help="side at which a box is sampled; 0: with the whole picture, or transparent at the model's own size (default)",
    )
    stage.add_argument(
        "--inpaint-control", metavar="FOLDER", help="a ControlNet for inpainting in the diffusers layout, which sees the picture round each new layer"
    )
    stage.add_argument("--adapters", type=Path, metavar="FOLDER", help="where the LoRAs and embeddings lie that recipes name")
    _sampling_options(stage)
    stage.set_defaults(run=_stage)

    generate = commands.add_parser(
        "generate", help="make a picture, or a transparent layer, from words", description="Make a picture or a transparent layer from words alone."
    )
    generate.add_argument("prompt", help="what it shows, e.g. 'a red ball by the sea'")
    generate.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="where the picture goes, .png; with --layers .psd, .psb, .ora or a new folder"
    )
    generate.add_argument("--width", type=_range(1, 16384, whole=True), metavar="PX", help="default: the model's own")
    generate.add_argument("--height", type=_range(1, 16384, whole=True), metavar="PX", help="default: the model's own")
    kind = generate.add_mutually_exclusive_group()
    kind.add_argument(
        "--transparent",
        action="store_true",
        help="paint the thing alone, with real alpha (LayerDiffuse); the storybook model wants the bare thing, e.g. 'a glass blue ball'",
    )
    kind.add_argument(
        "--layers",
        action="store_true",
        help="paint a scene's background, its foreground with real alpha, and both as one picture (a hidden layer) at once; SD1.5 and the storybook",
    )
    generate.add_argument(
        "--file", type=Path, metavar="FILE", help="for transparency with --model: what changes the model, e.g. layer_xl_transparent_attn.safetensors"
    )
    generate.add_argument(
        "--decoder", type=Path, metavar="FILE", help="for transparency with --model: what reads the alpha, e.g. vae_transparent_decoder.safetensors"
    )
    generate.add_argument(
        "--augmentations", type=int, choices=(1, 2, 4, 8), default=8, help="for transparency: passes that read the alpha (default: %(default)s)"
    )
    _sampling_options(generate)
    generate.set_defaults(run=_generate)

    demo = commands.add_parser(
        "demo",
        help="make a gallery of layered pictures with the shipped model",
        description="Make a gallery with the shipped storybook model; open index.html in it.",
    )
    demo.add_argument("--out", type=Path, default=Path("output/demo"), metavar="FOLDER", help="default: %(default)s")
    demo.add_argument(
        "--seed", type=_range(0, 2**31, whole=True), default=0, metavar="N", help="another seed makes other scenes (default: %(default)s)"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench",
        help="measure the methods on the storybook, with baselines in the same run",
        description="Make and judge the scenes of suites; an interrupted run goes on where it was. Writes tables, plots and JSON.",
    )
    bench.add_argument("suites", nargs="+", metavar="SUITE", help="a file name in benchmarks/suites, e.g. layout; or all")
    bench.add_argument("-n", type=int, default=32, metavar="N", help="scenes (default: %(default)s)")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="default: results/<date>-<commit>")
    bench.add_argument("--json", action="store_true", help="print a last line with all figures as one JSON object")
    bench.add_argument("--fresh", action="store_true", help="put old results aside and measure all anew")
    bench.add_argument("--processes", type=_range(1, 64, whole=True), default=2, metavar="N", help="of one thread each (default: %(default)s)")
    bench.add_argument("--model", metavar="FOLDER", help="a model of the storybook world (default: the shipped one)")
    bench.add_argument("--steps", type=_range(1, 1000, whole=True), default=25, metavar="N", help="sampling steps (default: %(default)s)")
    bench.add_argument("--guidance", type=_range(0, 50), default=3.0, metavar="G", help="classifier-free guidance (default: %(default)s)")
    bench.add_argument("--clip", type=Path, metavar="FOLDER", help="any CLIP in the transformers layout, for CLIP scores besides")
    bench.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (default: the GPU when there is one)")
    bench.set_defaults(run=_bench)
    return parser


def _sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="FOLDER", help="any Stable Diffusion 1.x, 2.x or XL folder in the diffusers layout (default: the shipped storybook)"
    )
    parser.add_argument("--sampler", choices=("ddim", "euler", "euler_ancestral", "dpmpp_2m"), help="default: the model's own")
    parser.add_argument("--steps", type=_range(1, 1000, whole=True), default=25, metavar="N", help="sampling steps (default: %(default)s)")
    parser.add_argument("--guidance", type=_range(0, 50), default=3.0, metavar="G", help="classifier-free guidance, 1 is none (default: %(default)s)")
    parser.add_argument("--seed", type=_range(0, 2**63 - 1, whole=True), default=0, metavar="N", help="of the noise (default: %(default)s)")
    parser.add_argument("--negative", default="", metavar="WORDS", help="what the picture must not show")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (default: the GPU when there is one)")


def _range(low: float, high: float, whole: bool = False) -> Callable[[str], float]:
    """An argparse type: a number within bounds."""

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if whole else ''}number {low:g}..{high:g}")
        return value

    return parse


def _render(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from layered_core.canvas.compositing import composite
    from layered_core.document import MAX_LAYERS, Layer
    from layered_core.errors import invalid
    from layered_core.files import read_layers, write_layers
    from layered_core.formats.file_layers import unique_names
    from layered_core.formats.pictures import from_image, write_picture, write_whole

    _check_out(options.out, (".png", ".psd", ".psb", ".ora"))
    read = read_layers(options.document)
    for warning in read.warnings:
        _complain(f"{options.document.name}: {warning}")
    document, layered = read.document, options.out.suffix.lower() != ".png"
    if options.composite_only:
        if layered:
            write_layers(document, options.out, read.workflow)
        else:
            write_picture(composite(document), options.out)
        return
    if layered and len(document) >= MAX_LAYERS:
        fix = "Merge some of them, or write a .png"
        raise invalid(f"{options.document.name}: number of layers", len(document), f"at most {MAX_LAYERS - 1} beside the picture", fix)
    with _Bar("render") as bar:
        how: dict[str, Any] = {"seed": options.seed, "negative": options.negative or document.negative, "steps": options.steps}
        how |= {"guidance": options.guidance, "progress": bar.step}
        pipeline = _pipeline(options)
        if options.control is not None:
            how["methods"] = [_control(pipeline, document, options.control)]
        picture = pipeline.harmonize(document, **how) if options.per_layer else pipeline.render(document, strength=options.strength, **how)
    if layered:
        layers = unique_names([*document.layers, Layer("render", from_image(picture))])
        write_layers(replace(document, layers=layers), options.out, read.workflow, bits=8)
    else:
        write_whole(options.out, lambda file: picture.save(file, "PNG"))


def _stage(options: argparse.Namespace) -> None:
    from layered_core.canvas.compositing import composite
    from layered_core.errors import invalid
    from layered_core.files import read_layers, write_layers
    from layered_core.formats.pictures import write_picture

    _check_out(options.out, ("", ".psd", ".psb", ".ora"))
    if options.picture is not None:
        _check_out(options.picture)
    if not options.replace and (options.prompt or options.later):
        raise invalid("--replace", None, "the name of a layer", "--prompt and --later say how that layer is made anew")
    if options.alpha != "transparent" and (options.file or options.decoder):
        raise invalid("--alpha", options.alpha, "transparent", "--file and --decoder are what it paints with")
    if not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    read = read_layers(options.document)
    if options.replace:
        read.document.layer(options.replace)
    with _Bar("stage") as bar:
        pipeline = _pipeline(options)
        how = {
            "seed": options.seed, "alpha": options.alpha, "file": options.file, "decoder": options.decoder, "feather": options.feather,
            "size": options.size, "adapters": options.adapters, "negative": options.negative or read.document.negative,
            "steps": options.steps, "guidance": options.guidance, "progress": bar.step,
        }  # fmt: skip
        if options.inpaint_control is not None:
            how["control"] = _controlnet(pipeline, options.inpaint_control)
        document = (
            pipeline.replace_layer(read.document, options.replace, prompt=options.prompt, later=options.later, **how)
            if options.replace
            else pipeline.generate_layers(read.document, **how)
        )
    write_layers(document, options.out, read.workflow, bits=8)
    if options.picture is not None:
        write_picture(composite(document), options.picture)


def _generate(options: argparse.Namespace) -> None:
    from layered_core.errors import invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import write_whole

    _check_out(options.out, ("", ".psd", ".psb", ".ora") if options.layers else (".png",))
    if not (options.transparent or options.layers) and (options.file or options.decoder):
        raise invalid("--transparent", None, "to be given, or --layers", "--file and --decoder are what they paint with")
    if options.layers and not options.out.suffix and options.out.exists():
        raise invalid("output folder", str(options.out), "a name that is not taken")
    with _Bar("generate") as bar:
        how = {
            "seed": options.seed, "negative": options.negative, "width": options.width, "height": options.height, "steps": options.steps,
            "guidance": options.guidance, "progress": bar.step,
        }  # fmt: skip
        pipeline = _pipeline(options)
        files = {"file": options.file, "decoder": options.decoder, "augmentations": options.augmentations}
        if options.layers:
            write_layers(pipeline.generate_scene(options.prompt, **how, **files), options.out, bits=8)
            return
        if options.transparent:
            picture = pipeline.generate_transparent_layer(options.prompt, **how, **files)
        else:
            picture = pipeline.generate_layer(options.prompt, **how)
    write_whole(options.out, lambda file: picture.save(file, "PNG"))


def _demo(options: argparse.Namespace) -> None:
    from demo.gallery import make_gallery

    with _Bar("demo") as bar:
        page = make_gallery(options.out, seed=options.seed, progress=bar.step)
    sys.stdout.write(f"{page}\n")


def _bench(options: argparse.Namespace) -> None:
    from benchmarks.bench.command import bench
    from benchmarks.bench.running import Settings, default_out
    from layered_diffusers.models.loading import find_model

    settings = Settings(
        options.n, find_model(options.model), options.out or default_out(), options.steps, options.guidance, options.device, options.clip,
        options.processes, options.fresh,
    )  # fmt: skip
    bench(options.suites, settings, options.json)


def _control(pipeline: LayeredDiffusionPipeline, document: LayerDocument, folder: str) -> MaskedControl:
    from layered_diffusers.methods.masked_control import document_control

    return document_control(document, _controlnet(pipeline, folder), outline=True)


def _controlnet(pipeline: LayeredDiffusionPipeline, folder: str) -> ControlNetModel | T2IAdapter:
    from layered_diffusers.methods.masked_control import load_controlnet

    return load_controlnet(folder or None, pipeline.model.device, pipeline.model.unet.dtype)


def _pipeline(options: argparse.Namespace) -> LayeredDiffusionPipeline:
    from layered_core.errors import LayeredError
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    try:
        return LayeredDiffusionPipeline.from_pretrained(options.model, device=options.device, sampler=options.sampler)
    except (RuntimeError, AssertionError) as error:  # torch has no such device
        raise LayeredError(f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}") from error


def _check_out(path: Path, ends: Sequence[str] = (".png",)) -> None:
    from layered_core.errors import invalid

    if path.suffix.lower() not in ends:
        raise invalid("output file", str(path), "a name that ends in " + " or ".join(e or "nothing, for a folder" for e in ends))
    if not path.parent.is_dir():
        raise invalid("output folder", str(path.parent), "an existing folder")


class _Bar:
    """A progress bar on standard error that appears with the first step."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> _Bar:
        return self

    def step(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` steps."""
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, desc=self.title, unit="step", file=sys.stderr)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
