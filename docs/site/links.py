"""Links of pages, which are written for the repository, lead to the right page of the site.

A link to a file that is not part of the site leads to it in the repository on the web. One to a file that does not
exist is a warning, which makes ``mkdocs build --strict`` fail.
"""

from __future__ import annotations

import importlib.util
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

LOG = logging.getLogger("mkdocs.hooks.links")
ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s]+)(?=\))")
FENCE = re.compile(r"^ *(```|~~~)")


def _pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("layered_site_pages", ROOT / "docs" / "site" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.PAGES
    return pages


PAGES = _pages()
FOLDERS = {
    "docs/decisions": "decisions/index.md",
    "web/docs": "nodes/index.md",
    "layered_core": "api/index.md",
}
"""Folders of the repository that have a page of their own on the site."""


def place_on_site(path: str) -> str | None:
    """Return where a file of the repository is on the site, or None."""
    if path in PAGES:
        return PAGES[path]
    if path in FOLDERS:
        return FOLDERS[path]
    if found := re.fullmatch(r"web/docs/(\w+)/(en|zh)\.md", path):
        return f"{'nodes' if found[2] == 'en' else 'zh'}/{found[1]}.md"
    if path.startswith("web/docs/"):
        return f"nodes/{path.removeprefix('web/docs/')}"
    if path.startswith("workflows/") and "." in path:
        return path
    if path.startswith("docs/") and (ROOT / path).is_file():
        return path.removeprefix("docs/")
    return None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return a page with its links turned, and with the lists and comments as this Markdown reads them."""
    here = page.file.src_uri
    source = config.extra["sources"].get(here, f"docs/{here}")
    fenced, lines = False, []
    for line in markdown.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            if source:
                line = LINK.sub(lambda link: _turned(link[1], source, here, config), line)
            # In code, GitHub takes a pipe of a table's cell with a backslash before it, Python-Markdown without.
            line = re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), line)
            # GitHub takes two spaces for a paragraph of a list's item, Python-Markdown four.
            line = re.sub(r"^  (?=\S)", "    ", line)
        lines.append(line)
    return "\n".join(lines)


def _turned(link: str, source: str, here: str, config: Any) -> str:
    target, hash_, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        LOG.warning("%s: the link %s leads nowhere", source, link)
    place = place_on_site(path)
    if place is None:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{config.extra['repository']}/{kind}/main/{path}{hash_}{anchor}"
    return posixpath.relpath(place, posixpath.dirname(here) or ".") + hash_ + anchor
