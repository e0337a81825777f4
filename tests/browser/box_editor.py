"""ComfyUI's Create Bounding Boxes in the page, used with mouse and keys as a user does. It draws in Nodes 2.0 only."""

SIDE = 512
"""Width and height of its canvas, pixels."""


def open_editor(page):
    """Open a graph of Create Bounding Boxes (node 1), Layers from Boxes (2) and Layer Preview (3)."""
    page.setting("Comfy.VueNodes.Enabled", True)
    page.settle()
    page.page.evaluate(
        """async (side) => {
            await app.loadGraphData({ nodes: [], links: [], version: 0.4 });
            const add = (type, pos, size, values) => {
                const node = LiteGraph.createNode(type);
                app.graph.add(node);
                node.pos = pos;
                node.setSize(size);
                for (const w of node.widgets ?? []) if (w.name in values) w.value = values[w.name];
                return node;
            };
            const canvas = { width: side, height: side };
            const editor = add("CreateBoundingBoxes", [0, 0], [420, 720], canvas);
            const boxes = add("LD_LayersFromBoxes", [470, 0], [340, 300], canvas);
            const preview = add("LD_LayerPreview", [860, 0], [400, 460], {});
            editor.connect(2, boxes, 0);
            boxes.connect(0, preview, 0);
        }""",
        SIDE,
    )
    page.look(1.0, (90, 110))
    page.page.locator('[data-node-id="1"] canvas').wait_for()
    page.settle()


def draw(page, left, top, right, bottom, words="", text=None):
    """Draw a box, canvas pixels, and say what is in it; with ``text`` it becomes a box of text."""
    editor = page.page.locator('[data-node-id="1"]')
    frame = editor.locator("canvas").bounding_box()
    scale = frame["width"] / SIDE
    points = [(left, top), ((left + right) / 2, (top + bottom) / 2), (right, bottom)]
    for step, (x, y) in enumerate(points):
        page.page.mouse.move(frame["x"] + x * scale, frame["y"] + y * scale)
        page.page.wait_for_timeout(150)  # a hand is no faster either
        if step == 0:
            page.page.mouse.down()
    page.page.mouse.up()
    page.page.wait_for_timeout(300)
    if text is not None:
        editor.get_by_role("button", name="text", exact=True).click()
        editor.locator("textarea").first.fill(text)
    if words:
        editor.locator("textarea").last.fill(words)
    page.page.wait_for_timeout(300)
