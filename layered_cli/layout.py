"""``layered layout``: converts layers to a list of elements with boxes, and back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from layered_cli.shared import (
    Commands,
    add_groups_option,
    add_memory_option,
    check_out,
    complain,
    read_document,
    size,
    wrote,
)


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "layout",
        help="convert layers to a list of elements with boxes, and back",
        description="Print the layers of a document as the JSON list of elements that models trained on boxes take. "
        "With --size: read such a list, also as a language model writes it, and write a document of it.",
    )
    parser.add_argument(
        "document",
        type=Path,
        help="layered file: .psd, .psb, .ora or .json; with --size: the text with the list",
    )
    parser.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="read a list; width and height of its canvas, pixels: 1024x768",
    )
    parser.add_argument(
        "--boxes",
        default="auto",
        metavar="RULE",
        help="with --size: how the numbers of a box are meant, such as '0..1000 y x y x' or 'pixels x y w h' "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write: .json for a list (default: it is printed); with --size: .psd, .psb, .ora, or the name "
        "of a new folder",
    )
    add_groups_option(parser)
    add_memory_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from layered_core.errors import LayeredError
    from layered_core.files import write_layers
    from layered_core.formats.layout.elements import layout_of, plain_elements
    from layered_core.formats.layout.reading import read_layout
    from layered_core.formats.limits import Limits, check_file

    if options.size is None:
        if options.out is not None:
            check_out(options.out, (".json",))
        layout = layout_of(read_document(options).document)
        text = json.dumps(plain_elements(layout), ensure_ascii=False, indent=1) + "\n"
        if options.out is None:
            sys.stdout.write(text)
        else:
            options.out.write_text(text, encoding="utf-8")
            wrote(options.out)
        remarks = layout.remarks
    else:
        if options.out is None:
            raise LayeredError("--out is not given. Name the file to write with -o")
        check_out(options.out, ("", ".psd", ".psb", ".ora"))
        check_file(options.document, "text", Limits(max_file_bytes=2**20))
        source = options.document.read_text(encoding="utf-8", errors="replace")
        width, height = options.size
        document, remarks = read_layout(source, width, height, options.boxes)
        wrote(write_layers(document, options.out))
    for remark in remarks:
        complain(f"{options.document.name}: {remark}")
