"""Serve the page: to whom, with which look, and what its server answers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gradio as gr

from layered_core.errors import LayeredError, check_whole

from .blocks import build
from .guard import Guard
from .parts import HERE

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
    page = build(pipeline, document, settings, _known(pipeline))
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
            theme=gr.themes.Soft(
                primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=SYSTEM,
                font_mono=["ui-monospace", "Consolas", "monospace"],
            ),
            css_paths=[HERE / "page.css"],
            app_kwargs={"middleware": _middleware(host)},
        )  # fmt: skip
    except OSError as error:
        raise LayeredError(
            f"the page cannot be served at {host}{'' if port is None else f':{port}'}: {error}. "
            f"Give another --port or --host"
        ) from error
    return page


def _middleware(host: str) -> list[Any]:
    from starlette.middleware import Middleware

    # Google's proxy in front of a Colab notebook has another name in every notebook.
    return [Middleware(Guard, host=None if "google.colab" in sys.modules else host)]


def _known(pipeline: LayeredDiffusionPipeline) -> str:
    """Return what the shipped model can paint, in a line; empty for other models."""
    return ""
