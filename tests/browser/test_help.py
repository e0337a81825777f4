"""Every help page, opened in ComfyUI's own panel, and every label, in both languages."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web/docs"
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
    const cut = [...help.querySelectorAll("table")].filter((t) => t.scrollWidth > help.clientWidth + 1);
    return {
        pictures: pictures.map((i) => [i.src, i.naturalWidth]),
        cut: cut.map((t) => `${t.scrollWidth} pixels: ${t.innerText.slice(0, 60)}`),
    };
}"""
LABELS = """(type) => {
    const node = LiteGraph.createNode(type);
    const widgets = (node.widgets ?? []).map((w) => [w.name, w.label ?? w.name]);
    const sockets = node.inputs.filter((i) => !i.widget).map((i) => [i.name, i.label ?? i.localized_name ?? i.name]);
    return Object.fromEntries([...widgets, ...sockets]);
}"""


def title(name, language):
    return (DOCS / name / f"{language}.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


@pytest.fixture(scope="module", params=["en", "zh"])
def language(page, request):
    """A language, and the panel with a node's help open in it. The page is built anew when the language
    changes."""
    page.setting("Comfy.VueNodes.Enabled", False)
    page.setting("Comfy.Locale", request.param)
    for _ in range(20):
        page.page.wait_for_timeout(1000)
        page.page.evaluate(SELECT, NODES[0])
        page.page.wait_for_timeout(1000)
        if page.page.evaluate(SHOWN, title(NODES[0], request.param)):
            break
        info = page.page.locator("[data-testid=info-button]")
        if not page.page.locator(".node-help-content").count() and info.count():
            info.first.dispatch_event("click")
    yield request.param
    page.setting("Comfy.Locale", "en")


def test_every_help_page_shows_its_picture_and_no_table_is_cut_off(page, language):
    cut = {}
    for name in NODES:
        page.page.evaluate(SELECT, name)
        found = page.page.wait_for_function(SHOWN, arg=title(name, language), timeout=20_000, polling=100)
        shown = found.json_value()
        assert shown["pictures"], name
        assert all(width > 0 for _, width in shown["pictures"]), shown["pictures"]
        if shown["cut"]:
            cut[name] = shown["cut"]
    assert cut == {}


def test_every_input_shows_its_label_in_the_language_of_the_page(page, language):
    words = json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    for name in NODES:
        shown = page.page.evaluate(LABELS, name)
        wanted = {key: entry["name"] for key, entry in words[name].get("inputs", {}).items()}
        assert {key: shown.get(key) for key in wanted} == wanted, name
