"""``layered app``: a page in the browser on which pictures are made layer by layer."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from layered_cli.shared import (
    Commands,
    add_groups_option,
    add_memory_option,
    add_sampling_options,
    number,
    pipeline_of,
    read_document,
)

if TYPE_CHECKING:
    from gradio import Blocks

    from layered_core.document import LayerDocument
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

HOST = "127.0.0.1"
"""Address at which only this machine reaches the page."""


def add(commands: Commands) -> None:
    """Add this sub-command to ``commands``."""
    parser = commands.add_parser(
        "app",
        help="make pictures layer by layer on a page in the browser",
        description="Show a page in the browser: a background from words, things added in boxes drawn on the picture, "
        "cut-outs, one layer made anew, undo, and files to take home. Only this machine reaches the page, unless "
        "--host says otherwise.",
    )
    parser.add_argument(
        "document",
        nargs="?",
        type=Path,
        help="layered file with which every new page begins: .psd, .psb, .ora, .json (default: an empty page)",
    )
    parser.add_argument(
        "--host",
        default=HOST,
        metavar="ADDRESS",
        help="address to listen at; 0.0.0.0 lets every machine of your network use the page and your files that "
        "are opened on it (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=number(1, 65535, whole=True),
        metavar="N",
        help="port to listen at (default: the first free one from 7860 on)",
    )
    parser.add_argument("--browser", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--alpha",
        choices=("auto", "difference", "mask", "transparent"),
        default="auto",
        help="how new layers are made at first: painted into the picture, and opaque where it changed or in the whole "
        "box; or transparent: alone, with alpha of their own (LayerDiffuse). auto: transparent where the model has "
        "the files for it (default: %(default)s)",
    )
    parser.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="LayerDiffuse's weights for --model, as for layered generate",
    )
    parser.add_argument("--decoder", type=Path, metavar="FILE", help="LayerDiffuse's decoder of the alpha")
    add_groups_option(parser)
    add_memory_option(parser)
    add_sampling_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Show the page until the command is stopped."""
    require_gradio()
    page = open_page(
        pipeline_of(options),
        None if options.document is None else read_document(options).document,
        host=options.host,
        port=options.port,
        memory_limit=options.memory_limit,
        negative=options.negative,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
        alpha=options.alpha,
        file=options.file,
        decoder=options.decoder,
        groups=options.groups,
        browser=options.browser,
    )
    sys.stdout.write(f"the page is at {page.local_url}; Ctrl-C ends it\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def open_page(
    pipeline: LayeredDiffusionPipeline | None = None,
    document: LayerDocument | None = None,
    *,
    host: str = HOST,
    port: int | None = None,
    memory_limit: float = 4.0,
    negative: str = "",
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    alpha: str = "auto",
    file: Path | None = None,
    decoder: Path | None = None,
    groups: str = "auto",
    browser: bool = False,
) -> Blocks:
    """Serve the page and return at once; in a notebook it is shown below the cell.

    >>> from layered_cli.app import open_page
    >>> page = open_page()
    >>> page.local_url
    'http://127.0.0.1:7860/'
    >>> page.close()

    Args:
        pipeline: makes the pictures; None: the storybook is loaded.
        document: layers with which every new page begins; None: it is empty.
        host: address to listen at; the neutral one is reached by this machine alone.
        port: port to listen at, 1..65535; None: the first free one from 7860 on.
        memory_limit: most memory for the pixels of a file that is opened, GiB.
        negative, seed, steps, guidance: what the page's fields of these names hold at first, as in
            :meth:`layered_diffusers.pipeline.LayeredDiffusionPipeline.generate`.
        alpha: how new layers are made at first, as in :class:`layered_diffusers.stages.Staging`; ``auto``:
            ``transparent`` if the model has the files for it, else ``difference``.
        file, decoder: LayerDiffuse's weights and decoder for the model; None for both: the storybook's.
        groups: what becomes of groups in files, see :func:`layered_core.files.read_layers`.
        browser: open the page in the browser, too.

    Returns:
        The page, which runs: ``local_url`` is its address, and ``close()`` ends it.

    Raises:
        LayeredError: Gradio is not installed, or the port or address cannot be used.
    """
    require_gradio()
    from layered_cli.page.launch import launched
    from layered_cli.page.settings import Settings
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    settings = Settings(negative, seed, steps, guidance, alpha, file, decoder, groups, memory_limit)
    made = pipeline or LayeredDiffusionPipeline.from_pretrained()
    return launched(made, document, settings, host=host, port=port, browser=browser)


def require_gradio() -> None:
    """Load Gradio, which sends nothing anywhere.

    Raises:
        LayeredError: it is not installed.
    """
    from layered_core.errors import LayeredError

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401  (asked for here, so that nothing else is loaded in vain)
    except ModuleNotFoundError:
        raise LayeredError(
            "the page needs the package gradio: pip install 'layered-diffusion[app]'"
        ) from None
