"""The ``layered`` command: makes pictures and layered files from prompts and documents, without ComfyUI.

Exit codes: 0 done; 1 stopped by the user, or some of a batch failed; 2 bad input or a missing file or package,
reported in one line.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from layered_cli import (
    app,
    batch,
    bench,
    dataset,
    decompose,
    edit,
    gallery,
    generate,
    layout,
    learn,
    render,
    stage,
)
from layered_cli.shared import INSTALL, complain
from layered_core import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        from layered_core.errors import LayeredError
    except ModuleNotFoundError:
        return complain(INSTALL)
    try:
        code = options.run(options)
    except LayeredError as error:
        return complain(str(error))
    except ModuleNotFoundError as error:
        return complain(f"{error}; {INSTALL}")
    except OSError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        return complain("stopped", 1)
    return code or 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command with all its sub-commands."""
    whole = argparse.ArgumentParser(
        prog="layered", description="Make and edit pictures layer by layer with a diffusion model."
    )
    whole.add_argument("--version", action="version", version=f"layered {__version__}")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for part in (
        render,
        stage,
        layout,
        learn,
        generate,
        edit,
        decompose,
        dataset,
        batch,
        gallery,
        bench,
        app,
    ):
        part.add(commands)
    return whole
