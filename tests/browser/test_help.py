"""Every help page, opened in ComfyUI's own panel, in both languages."""

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "web/docs"
NODES = sorted(folder.name for folder in DOCS.iterdir() if folder.is_dir())

SELECT = """(type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    app.canvas.centerOnNode(node);
    app.canvas.selectNode(node);
    app.canvas.setDirty(true, true);
}"""
SHOWN = """(title) => {
    const help = document.querySelector(".node-help-content");
    const pictures = [...(help?.querySelectorAll("img") ?? [])];
    if (help?.querySelector("h1")?.textContent !== title || !pictures.every((i) => i.complete)) return null;
    const tables = [...help.querySelectorAll("table")].filter((t) => t.scrollWidth > help.clientWidth + 1);
    return { pictures: pictures.map((i) => [i.src, i.naturalWidth]), cut: tables.map((t) => t.innerText) };
}"""


@pytest.fixture(params=["en"])
def language(page, request):
    """A language, and the panel with the node's help open in it."""
    page.setting("Comfy.VueNodes.Enabled", False)
    page.setting("Comfy.Locale", request.param)
    page.page.wait_for_timeout(3000)  # the page is built anew, and closes the panel
    page.page.evaluate(SELECT, NODES[0])
    page.page.locator("[data-testid=info-button]").first.dispatch_event("click")
    yield request.param
    page.setting("Comfy.Locale", "en")


def test_every_help_page_shows_its_picture(page, language):
    for name in NODES:
        page.page.evaluate(SELECT, name)
        title = (DOCS / name / f"{language}.md").read_text(encoding="utf-8").splitlines()[0]
        found = page.page.wait_for_function(SHOWN, arg=title[2:], timeout=20_000, polling=100)
        shown = found.json_value()
        assert shown["pictures"], name
        assert all(width > 0 for _, width in shown["pictures"]), shown["pictures"]
