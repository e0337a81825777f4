"""The site of the docs is built as it is published: every link leads somewhere, everything of the repository is there,
and in a browser nothing is wider than a phone."""

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import page as pages
import pytest
import rooms

ROOT = rooms.ROOT
BASE = "/layered-diffusion/"
"""Where the site lies on its server; only its page for missing pages has links that begin there."""

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements whose file a browser loads by itself, and the attribute that names it."""


class Links(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors, self.saved = set(), set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
            self.saved |= {given["href"]} if "download" in given else set()
        if tag in LOADED and given.get(LOADED[tag]) and given.get("rel") != "canonical":
            self.loaded.add(given[LOADED[tag]])


@pytest.fixture(scope="module")
def site(skip_suite, tmp_path_factory):
    missing = [
        name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None
    ]
    if missing:
        skip_suite("the site of the docs", f"{', '.join(missing)} missing: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def html(site):
    """Return {path of a page from the site's folder: what it links to}."""
    return {path.relative_to(site).as_posix(): Links(path) for path in site.rglob("*.html")}


def local(link):
    """Return the path and the anchor of a link inside the site, or None."""
    parts = urlsplit(link)
    return None if parts.scheme or parts.netloc else (unquote(parts.path), unquote(parts.fragment))


def test_every_link_and_picture_leads_to_something(site, html):
    lost = []
    for name, found in html.items():
        for link in found.links | found.loaded:
            if (target := local(link)) is None:
                continue
            path, anchor = target
            place = site / path.removeprefix(BASE) if path.startswith(BASE) else (site / name).parent / path
            place = (site / name if not path else place).resolve()
            place = place / "index.html" if place.is_dir() else place
            if not place.is_file() or not place.is_relative_to(site.resolve()):
                lost.append(f"{name}: {link}")
            elif anchor and place.suffix == ".html":
                there = html[place.relative_to(site.resolve()).as_posix()].anchors
                lost += [] if anchor in there or anchor == "__toc" else [f"{name}: {link}"]
    assert lost == []


def test_links_into_the_repository_name_files_that_there_are(html):
    main = "https://github.com/layered-diffusion/layered-diffusion/"
    for name, found in html.items():
        for link in found.links:
            if link.startswith((f"{main}blob/main/", f"{main}tree/main/")):
                path = unquote(urlsplit(link).path).split("/main/", 1)[1]
                assert (ROOT / path).exists(), f"{name}: {link}"


def test_no_page_asks_another_server(html):
    asked = {(name, x) for name, found in html.items() for x in found.loaded if local(x) is None}
    assert {(name, x) for name, x in asked if not x.startswith("data:")} == set()


def test_every_workflow_is_in_the_gallery_with_its_picture_and_its_file(site, html):
    gallery = html["workflows/index.html"]
    names = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert len(names) > 30
    for name in names:
        assert name in gallery.anchors
        assert {f"{name}.json", f"api/{name}.json"} <= gallery.saved
        assert f"{name}.jpg" in gallery.loaded
        for file in (f"{name}.json", f"{name}.jpg", f"api/{name}.json"):
            assert (site / "workflows" / file).read_bytes() == (ROOT / "workflows" / file).read_bytes()


def test_every_node_has_its_page_in_both_languages_and_stands_in_the_list(html):
    for folder in (ROOT / "web" / "docs").iterdir():
        if folder.is_dir():
            assert f"{folder.name}.html" in html["nodes/index.html"].links
            assert f"{folder.name}/picture.jpg" in html[f"nodes/{folder.name}.html"].loaded
            assert f"../nodes/{folder.name}/picture.jpg" in html[f"zh/{folder.name}.html"].loaded


def test_every_page_of_the_docs_and_every_room_of_the_core_is_there(html):
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert name.replace("README", "index") in html, name
    documented = set().union(*(found.anchors for name, found in html.items() if name.startswith("api/")))
    core = {module for module in rooms.files() if module.startswith("layered_core.")}
    assert core - documented == set()
    assert "layered_core.canvas.compositing.composite" in documented


def test_nothing_is_left_of_the_marks_that_python_and_github_read(site):
    assert "<code>{red|blue}</code>" in (site / "nodes/LD_AddLayerByPrompt.html").read_text(encoding="utf-8")
    for path in (site / "api").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        for mark in (":func:", ":class:", ":mod:", "<p>&gt;&gt;&gt;"):
            assert mark not in text, f"{path.name}: {mark}"


# In a browser

WIDE = """() => {
    const hidden = (e) => {
        for (let p = e.parentElement; p; p = p.parentElement)
            if (getComputedStyle(p).overflowX !== "visible") return true;
        return false;
    };
    const out = [...document.querySelectorAll("article *")]
        .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !hidden(e));
    return [document.documentElement.scrollWidth - innerWidth, out.slice(0, 3).map((e) => e.outerHTML.slice(0, 90))];
}"""
BLANK = "() => [...document.images].filter((i) => i.complete && !i.naturalWidth).map((i) => i.src)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def browser(site, skip_suite):
    """Yield (a page, the address of the site, what went wrong in it)."""
    path, missing = pages.find_browser()
    if missing:
        skip_suite("the site of the docs in a browser", missing)
    from playwright.sync_api import sync_playwright

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-gpu"]
            )
            tab, faults, own = chromium.new_page(), [], (address, "data:", "blob:")
            tab.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda e: faults.append(str(e)))
            tab.on("request", lambda r: None if r.url.startswith(own) else faults.append(r.url))
            yield tab, address, faults
            chromium.close()
        server.shutdown()


@pytest.mark.parametrize(
    "name",
    [
        "index", "ways", "first_steps", "workflows/index", "nodes/LD_AddLayerByPrompt", "zh/LD_LayerDiffuseApply",
        "files", "threats", "evaluation", "architecture", "api/canvas",
    ],
)  # fmt: skip
def test_nothing_is_wider_than_a_phone_or_a_desktop_and_nothing_comes_from_elsewhere(browser, name):
    """A page of each kind, and those with the widest tables and words."""
    tab, address, faults = browser
    for width in (390, 1280):
        tab.set_viewport_size({"width": width, "height": 900})
        if width == 390:
            tab.goto(f"{address}{name}.html")
        for _ in range(30):  # the menu moves out of sight
            if (wide := tab.evaluate(WIDE)) == [0, []]:
                break
            tab.wait_for_timeout(100)
        assert wide == [0, []], width
    assert tab.evaluate(BLANK) == []
    assert faults == []


def test_a_workflow_is_saved_with_one_click(browser):
    tab, address, _ = browser
    tab.goto(f"{address}workflows/index.html")
    with tab.expect_download() as saved:
        tab.locator("#\\30 5_regional_prompts img").click()
    assert saved.value.suggested_filename == "05_regional_prompts.json"
    wanted = (ROOT / "workflows" / "05_regional_prompts.json").read_bytes()
    assert saved.value.path().read_bytes() == wanted


def test_a_way_leads_from_the_first_page_to_its_workflow(browser):
    tab, address, _ = browser
    tab.goto(address)
    tab.locator("article .ways").get_by_text("Redo one", exact=True).click()
    tab.wait_for_url("**/ways.html#redo-one")
    tab.locator("article").get_by_role("link", name="08_redo_one_layer").click()
    tab.wait_for_url("**/workflows/index.html#08_redo_one_layer")


def test_the_search_finds_a_node_by_its_words(browser):
    tab, address, _ = browser
    tab.goto(address)
    tab.locator(".md-search__input").fill("Regenerate Layers")
    tab.locator(".md-search-result__link[href*=LD_RegenerateLayers]").first.wait_for()
