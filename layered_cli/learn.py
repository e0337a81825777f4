"""``layered learn``: learns words from the layers of a document."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layered_cli.shared import (
    Bar,
    Commands,
    add_groups_option,
    add_memory_option,
    check_out,
    number,
    pipeline_of,
    read_document,
    wrote,
)

if TYPE_CHECKING:
    from PIL.Image import Image


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "learn",
        help="learn words from layers: how a thing looks that words cannot say",
        description="Learn a word from each of some layers with a model that has a UNet (Stable Diffusion 1.x, 2.x, "
        "XL), and write it into a folder: NAME.safetensors is an ordinary embedding, NAME.values.safetensors beside it "
        "what is added to the keys and values of that word. Beside them lie a picture made with the word, and a "
        "drawing of how its error fell. 'layered render' and 'layered stage' read the folder with --adapters; in "
        "ComfyUI the files belong into models/embeddings.",
    )
    parser.add_argument("document", type=Path, help="layered file: .json, .psd, .psb, .ora")
    parser.add_argument(
        "--layer",
        action="append",
        metavar="NAME[=WORD]",
        help="a layer with a picture and words that say what it shows, and the name of the word; may be given several "
        "times (default: all layers that have both, under names made of theirs)",
    )
    parser.add_argument(
        "--adapters", type=Path, required=True, metavar="FOLDER", help="folder to write the words into"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="also write the document with the words in its layers' recipes: .psd, .psb, .ora, or the name of a new "
        "folder",
    )
    parser.add_argument(
        "--form",
        choices=("values", "word"),
        default="values",
        help="values: closest to the layer, for this project alone; word: an embedding that other programs read too "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=number(0, 10_000, whole=True),
        default=250,
        metavar="N",
        help="most steps of training, for all layers together (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=number(1, 64, whole=True),
        default=4,
        metavar="N",
        help="pictures a step (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=number(0.001, 1),
        default=0.1,
        metavar="R",
        help="size of a step (default: %(default)s)",
    )
    parser.add_argument(
        "--vectors",
        type=number(1, 4, whole=True),
        default=1,
        metavar="N",
        help="vectors of each word (default: %(default)s)",
    )
    parser.add_argument(
        "--context",
        choices=("composite", "grey"),
        default="composite",
        help="what the training shows: the layer on those behind it, or alone on grey (default: %(default)s)",
    )
    parser.add_argument(
        "--attention",
        type=number(0, 10),
        default=0.0,
        metavar="A",
        help="weight of the word's attention that falls outside its layer (default: 0)",
    )
    parser.add_argument(
        "--start", default="", metavar="WORDS", help="words to begin with (default: the layer's own)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files of the same name; otherwise that is an error"
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="a model in the diffusers layout: Stable Diffusion 1.x, 2.x, XL (default: the shipped storybook)",
    )
    parser.add_argument(
        "--seed",
        type=number(0, 2**63 - 1, whole=True),
        default=0,
        metavar="N",
        help="seed of noise and texts (default: %(default)s)",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="cpu, cuda or mps (default: the GPU if there is one)"
    )
    add_groups_option(parser)
    add_memory_option(parser)
    parser.set_defaults(run=run, sampler=None)


def run(options: argparse.Namespace) -> None:
    from layered_core.errors import LayeredError, invalid
    from layered_core.files import write_layers
    from layered_core.formats.pictures import save_png, write_whole
    from layered_core.learning.lesson import LearnSettings, find_subjects
    from layered_core.learning.word_files import check_free, word_paths

    if options.out is not None:
        check_out(options.out, ("", ".psd", ".psb", ".ora"))
        if not options.out.suffix and options.out.exists():
            raise invalid("output folder", str(options.out), "a name that is not taken")
    settings = LearnSettings(
        form=options.form, steps=options.steps, batch=options.batch, rate=options.rate, vectors=options.vectors,
        context=options.context, attention=options.attention, start=options.start, seed=options.seed,
    )  # fmt: skip
    read = read_document(options)
    layers, words = _named(options.layer, [layer.name for layer in read.document])
    subjects = find_subjects(read.document, layers, words)
    for subject in subjects:  # before a model is loaded
        check_free(f"layer {subject.layer!r}", options.adapters, subject.word, options.overwrite)
    folder: Path = options.adapters
    previews = [folder / f"{subject.word}.preview.png" for subject in subjects]
    shown: set[Path] = set()

    def write(paths: Sequence[Path], pictures: Sequence[Image]) -> None:
        for path, picture in zip(paths, pictures, strict=True):
            write_whole(path, partial(save_png, picture))
            shown.add(path)

    try:
        with Bar("learn") as bar:
            document = pipeline_of(options).learn_words(
                read.document,
                folder,
                layers=[subject.layer for subject in subjects],
                words={subject.layer: subject.word for subject in subjects},
                settings=settings,
                overwrite=options.overwrite,
                progress=bar.step,
                preview=lambda _, pictures: write(previews, pictures),
                plot=lambda drawings: write([folder / f"{x.word}.plot.png" for x in subjects], drawings),
            )
    except (LayeredError, KeyboardInterrupt):
        for path in shown:
            path.unlink(missing_ok=True)
        raise
    for subject in subjects:
        for path in word_paths(folder, subject.word, options.form):
            wrote(path)
    if options.out is not None:
        wrote(write_layers(document, options.out, read.workflow, bits=8))


def _named(given: Sequence[str] | None, known: Sequence[str]) -> tuple[list[str] | None, dict[str, str]]:
    """Return the layers of ``--layer``, None for all, and the names of their words."""
    layers, words = [], {}
    for text in given or ():
        name, _, word = text.rpartition("=")
        if text in known or not name:
            layers.append(text)
        else:
            layers.append(name)
            words[name] = word
    return layers or None, words
