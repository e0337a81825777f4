"""ComfyUI's page in a headless Chromium."""

import contextlib
import importlib.util
import json
import os
import shutil

# The page opens a workflow of its own last, over whatever was opened before.
READY = (
    "() => window.app?.graph && window.app?.extensionManager?.workflow?.activeWorkflow"
    " && Object.keys(LiteGraph.registered_node_types).length > 50"
)

DRAWN = """async () => {
    for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
    const boxes = [...document.querySelectorAll("[data-node-id]")].map((node) => node.getBoundingClientRect());
    const { scale, offset } = app.canvas.ds;
    return JSON.stringify([scale, [...offset], boxes, app.graph.nodes.map((n) => [n.id, [...n.pos], [...n.size]])]);
}"""
"""What is drawn where, two frames from now."""


def find_browser():
    """Return (path of a Chromium, None), or (None, a line that says what is missing)."""
    if importlib.util.find_spec("playwright") is None:
        return None, "playwright is not installed: pip install playwright"
    names = (
        [os.environ["CHROMIUM"]]
        if "CHROMIUM" in os.environ
        else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    )
    path = next((found for name in names if (found := shutil.which(name))), None)
    return (
        path,
        None if path else "no Chromium on this machine: install the package chromium, or set CHROMIUM",
    )


class Page:
    """An open page. ``complaints`` holds the errors in the browser's console that are not ComfyUI's own."""

    def __init__(self, page, server):
        self.page, self.server = page, server
        self.complaints = []
        page.on("console", lambda m: self._note(m.type, m.text, m.location.get("url", "")))
        page.on("pageerror", lambda e: self._note("error", str(e), ""))
        page.on("response", lambda r: r.status >= 400 and self._note("error", f"{r.status} {r.url}", r.url))
        page.goto(server.url, wait_until="domcontentloaded")
        self.wait(READY)

    def _note(self, kind, text, url):
        """Keep errors that name our files, our nodes, or missing pictures of ours. Missing input pictures are
        the user's own."""
        ours = ("layered-diffusion", "layered_diffusion", "LD_", "/view?", "/docs/")
        if kind == "error" and any(o in text or o in url for o in ours) and "/view?type=input" not in url:
            self.complaints.append(f"{text} {url}")

    def wait(self, condition, arg=None, timeout_ms=120_000):
        """Wait until a function of the page, given ``arg``, returns something true. It is asked at intervals: asking
        at every frame keeps the browser drawing, which takes a whole core without a graphics card."""
        return self.page.wait_for_function(condition, arg=arg, timeout=timeout_ms, polling=100)

    def settle(self):
        """Wait until the page has drawn the graph twice in the same way: nodes get their sizes and places when they
        are drawn, late on a busy machine."""
        before = None
        for _ in range(100):
            now = self.page.evaluate(DRAWN)
            if now == before:
                return
            before = now
            self.page.wait_for_timeout(100)
        raise AssertionError(f"the graph does not come to rest: {before}")

    def setting(self, name, value):
        self.page.evaluate("([n, v]) => app.extensionManager.setting.set(n, v)", [name, value])

    def open(self, file):
        """Open a workflow in graph format as a user does."""
        self.page.evaluate(
            "async (graph) => { await app.loadGraphData(graph); }",
            json.loads(file.read_text(encoding="utf-8")),
        )
        self.settle()

    def open_api(self, prompt, name="test"):
        self.page.evaluate(
            "async ([prompt, name]) => { await app.loadApiJson(prompt, name); }", [prompt, name]
        )
        self.settle()

    def nodes(self):
        """Return (id, type, whether the frontend knows the type) of every node."""
        return self.page.evaluate(
            "() => app.graph.nodes.map(n => [String(n.id), n.type, n.type in LiteGraph.registered_node_types])"
        )

    def prompt(self):
        """Return the prompt that the page would send to the server."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def queue(self, wait_for, timeout_ms=300_000):
        """Press Run and wait until every node of ``wait_for`` shows a picture that is loaded."""
        self.page.evaluate("() => { app.nodeOutputs = {}; app.queuePrompt(0, 1); }")
        shown = "(ids) => ids.every(id => app.nodeOutputs?.[id]?.images?.length)"
        self.wait(shown, list(wait_for), timeout_ms)
        # A node loads its picture when it is drawn, and only visible nodes are drawn.
        loaded = """(id) => {
            const node = app.graph.getNodeById(id);
            app.canvas.centerOnNode(node);
            app.canvas.setDirty(true, true);
            return node.imgs?.length && node.imgs.every(i => i.naturalWidth > 0);
        }"""
        for node in wait_for:
            self.wait(loaded, node)
        self.settle()

    def overlaps(self):
        """Return the titles of nodes that lie over one another by more than 2 pixels, as they are drawn now."""
        return self.page.evaluate(
            """() => {
                const boxes = app.graph.nodes.map((node) => {
                    const drawn = LiteGraph.vueNodesMode && document.querySelector(`[data-node-id="${node.id}"]`);
                    const { scale, offset } = app.canvas.ds;
                    const [x, y] = node.pos.map((value, axis) => (value + offset[axis]) * scale);
                    const [width, height] = node.size.map((value) => value * scale);
                    const box = drawn ? drawn.getBoundingClientRect()
                        : { left: x, top: y - 30 * scale, right: x + width, bottom: y + height };
                    return { title: node.title, box };
                });
                const apart = (a, b) => a.right - 2 < b.left || a.bottom - 2 < b.top;
                return boxes.flatMap((a, i) => boxes.slice(i + 1)
                    .filter((b) => !apart(a.box, b.box) && !apart(b.box, a.box)).map((b) => [a.title, b.title]));
            }"""
        )

    def look(self, scale, offset):
        """Move the canvas."""
        self.page.evaluate(
            "([s, o]) => { app.canvas.ds.scale = s; app.canvas.ds.offset = o; app.canvas.setDirty(true, true); }",
            [scale, list(offset)],
        )
        self.settle()

    def shoot(self, path, box=None):
        """Save the visible page, or its part ``box`` = (x, y, width, height), as JPEG."""
        clip = dict(zip(("x", "y", "width", "height"), box, strict=True)) if box else None
        self.page.screenshot(path=str(path), type="jpeg", quality=88, clip=clip)


@contextlib.contextmanager
def browser(size=(1900, 1000)):
    """Start a browser and yield a function that opens ComfyUI's page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without a graphics card, drawing the page as one would takes most of a core all the time. WebGL stays.
        flags = ["--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        chromium = playwright.chromium.launch(executable_path=find_browser()[0], args=flags)

        def new(server):
            server.post("/settings", {"Comfy.TutorialCompleted": True})
            return Page(chromium.new_page(viewport={"width": size[0], "height": size[1]}), server)

        yield new
        chromium.close()
