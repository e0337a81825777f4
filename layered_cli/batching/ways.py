"""The ways in which an item of a batch is made: sub-commands of ``layered``, with their own options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from layered_cli import generate, render, stage
from layered_core.errors import LayeredError

WAYS = {"generate": generate, "stage": stage, "render": render}
"""Sub-commands by name. ``generate`` makes prompts, the others documents."""

TITLES = {
    "generate": "options of layered generate",
    "stage": "options of layered stage",
    "render": "options of layered render; those of model and sampling are for all",
}
OWN = {"generate": {}, "stage": {"picture": None}, "render": {}}
"""Values of options that a way has, and that a batch leaves out: they name one file."""


class _Line(argparse.ArgumentParser):
    """A parser of an item's own options, whose errors are the item's."""

    def error(self, message: str) -> NoReturn:
        raise LayeredError(f"options: {message}")


def parsers() -> list[argparse.ArgumentParser]:
    """Return a parser of every way's options, each a group, to be the parents of another parser."""
    found = []
    for way, command in WAYS.items():
        parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
        command.add_options(parser.add_argument_group(TITLES[way]))
        found.append(parser)
    return found


def parser_of(way: str) -> argparse.ArgumentParser:
    """Return the parser of one way's options; it raises :class:`LayeredError` for what it does not know."""
    parser = _Line(add_help=False, allow_abbrev=False)
    WAYS[way].add_options(parser)
    return parser


def options_of(way: str, common: Mapping[str, Any], words: Sequence[str]) -> argparse.Namespace:
    """Return the options of an item: those in ``common`` that its way has, and over them its own ``words``.

    Raises:
        LayeredError: the way has no such option, or not with this value.
    """
    parser = parser_of(way)
    known = vars(parser.parse_args([]))
    options = argparse.Namespace(**{k: v for k, v in common.items() if k in known})
    return argparse.Namespace(**OWN[way], **vars(parser.parse_args(list(words), options)))


def changed(way: str, common: Mapping[str, Any]) -> list[str]:
    """Return the options that are not at their defaults and that ``way`` does not have, as they are written."""
    mine = vars(parser_of(way).parse_args([]))
    others = {k: v for x in WAYS for k, v in vars(parser_of(x).parse_args([])).items()}
    return [
        f"--{key.replace('_', '-')}"
        for key, v in others.items()
        if key not in mine and common.get(key, v) != v
    ]
