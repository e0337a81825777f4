"""A layer editor in a node of the open page, and the mouse and keys on it."""

import io

import numpy as np
from PIL import Image


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs, "_meta": {}}


class EditorInPage:
    """The editor of the node ``EDITOR``; a composite is shown by the node ``COMPOSITE``."""

    EDITOR, COMPOSITE = "10", "11"

    def __init__(self, page, server, vue):
        self.it, self.page, self.server = page, page.page, server
        page.setting("Comfy.VueNodes.Enabled", vue)
        page.setting("Comfy.Minimap.Visible", False)

    def lay_out(self):
        """Put the editor's node where all of it is seen. ComfyUI moves the view itself after it opened a workflow,
        late on a busy machine: look until the editor stays where it was put."""
        place = """async ([id]) => {
            for (const node of app.graph.nodes) node.pos = [-2500, 0];
            app.graph.getNodeById(id).pos = [120, 120];
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [0, 0];
            app.canvas.setDirty(true, true);
            for (const _ of [1, 2]) await new Promise(requestAnimationFrame);
        }"""
        where = "(r => [r.x, r.y, r.width, r.height])(editor.stage.element.getBoundingClientRect())"
        before = None
        for _ in range(150):
            self.page.evaluate(place, [self.EDITOR])
            self.page.wait_for_timeout(50)
            now = self.ask(where)
            if now == before and 120 < now[0] < 200 and now[1] > 120 and now[3] > 100:
                return
            before = now
        raise AssertionError(f"the editor does not stay in its place: {before}")

    def ask(self, code, *arguments, wait=False):
        """Evaluate an expression on ``editor`` (and ``a``, the arguments)."""
        script = f"([id, a]) => {{ const editor = app.graph.getNodeById(id).layerEditor; return {code}; }}"
        if wait:
            return self.it.wait(script, [self.EDITOR, arguments])
        return self.page.evaluate(script, [self.EDITOR, arguments])

    def composite(self):
        """Return the composite's pixels of the last run, RGB."""
        image = self.page.evaluate("(id) => app.nodeOutputs[id].images[0]", self.COMPOSITE)
        return np.asarray(Image.open(io.BytesIO(self.server.picture(image))).convert("RGB"))

    def at(self, x, y):
        """Return the page's coordinates of a point on the canvas."""
        return self.ask(
            """(() => {
                const box = editor.stage.element.getBoundingClientRect();
                const zoom = box.width / editor.stage.element.offsetWidth;
                const p = editor.stage.onScreen({ x: a[0], y: a[1] });
                return [box.left + p.x * zoom, box.top + p.y * zoom];
            })()""",
            x,
            y,
        )

    def drag(self, start, end, *keys, release=True):
        """Press the mouse at one point of the canvas and release it at another while holding keys; layers
        snap only if no key prevents it."""
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        for key in keys:
            self.page.keyboard.down(key)
        for part in (0.3, 0.7, 1):
            self.page.mouse.move(*self.at(*(s + (e - s) * part for s, e in zip(start, end, strict=True))))
        if release:
            self.page.mouse.up()
        for key in keys:
            self.page.keyboard.up(key)

    def click(self, x, y):
        self.page.mouse.click(*self.at(x, y))

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(100)

    def row(self, name):
        return self.page.locator(f".ld-row:has(.ld-name[value='{name}'])")


def box_of(pixels, colour):
    """Return left, top, right and bottom of the pixels of a colour."""
    rows, columns = np.nonzero((np.abs(pixels.astype(int) - colour) < 8).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def near(got, wanted, by=2):
    return all(abs(g - w) <= by for g, w in zip(got, wanted, strict=True))


class Fingers:
    """Touches on the page, as a tablet sends them."""

    def __init__(self, page):
        self.session = page.context.new_cdp_session(page)

    def send(self, kind, *points):
        at = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

    def drag(self, *ways):
        """Move one finger for each of ``ways``, (from, to)."""
        self.send("touchStart", *(start for start, _ in ways))
        for part in (0.3, 0.7, 1):
            self.send(
                "touchMove",
                *(tuple(s + (e - s) * part for s, e in zip(start, end, strict=True)) for start, end in ways),
            )
        self.send("touchEnd")

    def tap(self, locator):
        box = locator.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.send("touchStart", middle)
        self.send("touchEnd")
