"""Serve the page: to whom, with which look, and what its server answers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from demo.world.places import MODEL
from demo.world.vocabulary import BACKGROUNDS, COLOURS, KINDS, MATERIALS
from layered_core.errors import LayeredError, check_whole
from layered_diffusers.pipeline import TransformerPipeline
from layered_diffusers.transparent import read_files

from .blocks import build
from .guard import Guard
from .parts import HERE, ModelWords

if TYPE_CHECKING:
    from layered_core.document import LayerDocument
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    from .settings import Settings

SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
"""Fonts that are on the machine: none is loaded from elsewhere."""


def launched(
    pipeline: LayeredDiffusionPipeline,
    document: LayerDocument | None,
    settings: Settings,
    *,
    host: str,
    port: int | None,
    browser: bool,
) -> gr.Blocks:
    """Serve the page and return it at once. See :func:`layered_cli.app.open_page`."""
    if port is not None:
        check_whole("port", port, 1, 65535)
    page = build(pipeline, document, settings, _words(pipeline, settings))
    page.queue(max_size=64)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            allowed_paths=[],
            blocked_paths=[],
            max_file_size=settings.limits.max_file_bytes,
            state_session_capacity=64,
            height=900,
            theme=_theme(),
            css_paths=[HERE / "page.css"],
            app_kwargs={"middleware": _middleware(host)},
        )  # fmt: skip
    except OSError as error:
        raise LayeredError(
            f"the page cannot be served at {host}{'' if port is None else f':{port}'}: {error}. "
            f"Give another --port or --host"
        ) from error
    return page


def _theme() -> gr.themes.Base:
    """Return the page's colours and fonts: Gradio's soft ones, with plain labels."""
    theme = gr.themes.Soft(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=SYSTEM,
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )  # fmt: skip
    return theme.set(
        body_background_fill="*neutral_50",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        block_label_border_width="0",
        block_label_background_fill="none",
        block_label_background_fill_dark="none",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
    )


def _middleware(host: str) -> list[Any]:
    from starlette.middleware import Middleware

    # Google's proxy in front of a Colab notebook has another name in every notebook.
    return [Middleware(Guard, host=None if "google.colab" in sys.modules else host)]


def _words(pipeline: LayeredDiffusionPipeline, settings: Settings) -> ModelWords:
    """Return what the page says of a model.

    Raises:
        LayeredError: layers are to be transparent, and the model has not the files for it.
    """
    try:
        read_files(pipeline.model, settings.file, settings.decoder)
        able = True
    except LayeredError:
        if settings.alpha == "transparent" or settings.file or settings.decoder:
            raise
        able = False
    alpha = settings.alpha
    if alpha == "auto":
        alpha = "transparent" if able else "difference"
    words = ModelWords(alpha=alpha, has_transparency=able)
    if not _is_shipped(pipeline):
        return words
    colours, materials = ", ".join(COLOURS), ", ".join(x for x in MATERIALS if x != "solid")
    return replace(
        words,
        backgrounds=f"The storybook knows: {'; '.join(x[-1] for x in BACKGROUNDS.values())}.",
        things=f"The storybook knows a {', '.join(KINDS)}, in {colours}; also {materials}.",
    )


def _is_shipped(pipeline: LayeredDiffusionPipeline) -> bool:
    """Whether the model is one of the storybook's, which knows few words."""
    found = getattr(pipeline.model, "name_or_path", None)
    return isinstance(pipeline, TransformerPipeline) is False and found is not None and Path(found) == MODEL
