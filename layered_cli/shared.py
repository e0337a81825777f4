"""Parts that the sub-commands share: options of the model and the sampling, checks of the output, progress
and errors."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

if TYPE_CHECKING:
    from diffusers import ControlNetModel, T2IAdapter
    from tqdm import tqdm

    from layered_core.formats.file_layers import LayerFile
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The collection of argparse to which every sub-command adds itself."""

Options: TypeAlias = "argparse._ActionsContainer"
"""A parser, or a group of a parser's options."""

INSTALL = (
    "this command needs more packages: pip install torch, then pip install 'layered-diffusion[headless]'"
)


class Many:
    """What a process keeps that runs a command for many documents: its models, each loaded once, and the lines that
    the command would have printed on standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._models: dict[str, tuple[tuple[object, ...], Any]] = {}

    def once(self, kind: str, key: tuple[object, ...], load: Callable[[], Any]) -> Any:
        """Return what ``load`` returned for this ``key``; of each ``kind`` only the last one is kept."""
        if self._models.get(kind, ((), None))[0] != key:
            self._models.pop(kind, None)  # before the next is loaded: there may be no room for both
            self._models[kind] = key, load()
        return self._models[kind][1]


_many: ContextVar[Many | None] = ContextVar("many", default=None)


@contextmanager
def one_of_many(many: Many) -> Iterator[None]:
    """Run a command for one of many documents in this block: it prints nothing, and takes its models from ``many``."""
    before = _many.set(many)
    try:
        yield
    finally:
        _many.reset(before)


def complain(text: str, code: int = 2) -> int:
    line, many = f"layered: {' '.join(text.split())}", _many.get()
    if many is None:
        sys.stderr.write(f"{line}\n")
    else:
        many.lines.append(line)
    return code


def wrote(file: Path) -> None:
    """Say on standard output which file was written."""
    if _many.get() is None:
        sys.stdout.write(f"wrote {file}\n")


def add_sampling_options(parser: Options) -> None:
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="a model in the diffusers layout: Stable Diffusion 1.x, 2.x, XL, 3, Flux, Qwen-Image or Z-Image; or "
        "demo-transformer, the storybook transformer (default: the shipped storybook)",
    )
    parser.add_argument(
        "--sampler",
        choices=("ddim", "euler", "euler_ancestral", "dpmpp_2m"),
        help="(default: the model's own)",
    )
    parser.add_argument(
        "--steps",
        type=number(1, 1000, whole=True),
        default=25,
        metavar="N",
        help="number of sampling steps (default: %(default)s)",
    )
    parser.add_argument(
        "--guidance",
        type=number(0, 50),
        metavar="G",
        help="scale of classifier-free guidance; 1 turns it off (default: 3, or 2 for transparent layers of "
        "the shipped storybook)",
    )
    parser.add_argument(
        "--seed",
        type=number(0, 2**63 - 1, whole=True),
        default=0,
        metavar="N",
        help="seed of the noise (default: %(default)s)",
    )
    parser.add_argument("--negative", default="", metavar="WORDS", help="negative prompt")
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or mps (default: the GPU if there is one)"
    )


def add_joint_options(parser: Options, when: str = "") -> None:
    """Add the options of layers that are made at once; ``when`` says which other option they need."""
    parser.add_argument(
        "--enhance",
        type=number(0, 1),
        default=1.0,
        metavar="E",
        help=f"{when}how far the layers' words are completed from the prompt, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--self-mask",
        type=number(0, 2),
        default=0.0,
        metavar="G",
        help=f"{when}amount of self-mask guidance, 0 to 2; it costs more time (default: %(default)s)",
    )


def add_groups_option(parser: Options) -> None:
    parser.add_argument(
        "--groups",
        choices=("auto", "apart", "merged"),
        default="auto",
        help="groups of the file: auto takes them apart where the picture stays the same and else merges each into "
        "one layer; apart and merged always do the one (default: %(default)s)",
    )


def add_memory_option(parser: Options) -> None:
    parser.add_argument(
        "--memory-limit",
        type=number(0.001, 1024),
        default=4,
        metavar="GIB",
        help="most memory for the pixels of the document's layers, GiB; a document that needs more is refused "
        "before it is decoded (default: %(default)s)",
    )


def read_document(options: argparse.Namespace) -> LayerFile:
    """Read ``options.document``, and print on standard error what it has that layers cannot hold."""
    from layered_core.files import read_layers
    from layered_core.formats.limits import Limits
    from layered_core.formats.merged_picture import checked

    limits = Limits.of_memory(int(options.memory_limit * 2**30), "--memory-limit")
    read = checked(read_layers(options.document, limits, options.groups))
    for warning in read.warnings:
        complain(f"{options.document.name}: {warning}")
    return read


def number(low: float, high: float, whole: bool = False) -> Callable[[str], float]:
    """Return an argparse type that accepts numbers of ``low``..``high``."""

    def parse(text: str) -> float:
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a {'whole ' if whole else ''}number {low:g}..{high:g}"
            )
        return value

    return parse


def size(text: str) -> tuple[int, int]:
    """Return width and height of a text such as ``1024x768``."""
    numbers = [int(part) for part in text.lower().split("x") if part.isdecimal() and len(part) < 6]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not a width and a height, such as 1024x768")
    return numbers[0], numbers[1]


def controlnet(pipeline: LayeredDiffusionPipeline, folder: str) -> ControlNetModel | T2IAdapter:
    from layered_diffusers.methods.masked_control import load_controlnet
    from layered_diffusers.models.loading import require_unet

    require_unet(pipeline.model, "a ControlNet")
    where = pipeline.model.device, pipeline.model.unet.dtype
    return _once("control", (folder, *where), lambda: load_controlnet(folder or None, *where))


def _once(kind: str, key: tuple[object, ...], load: Callable[[], Any]) -> Any:
    many = _many.get()
    return load() if many is None else many.once(kind, key, load)


def pipeline_of(options: argparse.Namespace) -> LayeredDiffusionPipeline:
    return _once("pipeline", (options.model, options.device, options.sampler), lambda: _load(options))


def _load(options: argparse.Namespace) -> LayeredDiffusionPipeline:
    from layered_core.errors import LayeredError
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    try:
        return LayeredDiffusionPipeline.from_pretrained(
            options.model, device=options.device, sampler=options.sampler
        )
    except (RuntimeError, AssertionError) as error:  # torch has no such device
        raise LayeredError(
            f"device {options.device!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error


def check_out(path: Path, ends: Sequence[str] = (".png",)) -> None:
    from layered_core.errors import invalid
    from layered_core.formats.pictures import check_output

    if path.suffix.lower() not in ends:
        folder = ", or a folder's name, which has no ending" if "" in ends else ""
        raise invalid(
            "output file", str(path), "a name that ends in " + " or ".join(e for e in ends if e) + folder
        )
    if not os.path.isdir(path.parent):
        raise invalid("output folder", str(path.parent), "an existing folder")
    check_output(path, folder=not path.suffix)


class Bar:
    """A progress bar on standard error that appears with the first step; one of many documents has none of its
    own."""

    def __init__(self, title: str, unit: str = "step") -> None:
        self.title, self.unit = title, unit
        self.bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Bar:
        return self

    def step(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` steps."""
        if _many.get() is not None:
            return
        from tqdm import tqdm

        if self.bar is None:
            self.bar = tqdm(total=total, desc=self.title, unit=self.unit, file=sys.stderr)
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def say(self, line: str) -> None:
        """Write a line on standard error, above the bar."""
        if self.bar is None:
            sys.stderr.write(f"{line}\n")
        else:
            self.bar.write(line, file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
