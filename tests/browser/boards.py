"""Layer Board in the page, for tests."""

from editors import EditorInPage, node

WIDTH, HEIGHT = 128, 96
RED, GREEN, BLUE = (230, 20, 20), (20, 210, 40), (40, 60, 220)
SKY = {"name": "sky", "image": "board_sky.png", "x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}
GREEN_LAYER = {"name": "green", "image": "board_green.png", "x": 80, "y": 40, "width": 24, "height": 24}


def board(*layers, **more):
    return {"version": 1, "width": WIDTH, "height": HEIGHT, "layers": list(layers), **more}


class BoardInPage(EditorInPage):
    """Layer Board in the page, with a composite after it."""

    def __init__(self, page, server, vue, state=None, **inputs):
        super().__init__(page, server, vue)
        self.open(state or {}, **inputs)

    def open(self, state, before=(), **inputs):
        made = {self.EDITOR: node("LD_LayerBoard", board=state, **inputs), **dict(before)}
        made[self.COMPOSITE] = node("LD_LayerComposite", layers=[self.EDITOR, 0], backdrop="black")
        self.it.open_api(made)
        self.lay_out()

    def run(self):
        """Run the prompt and return the composite's pixels, RGB."""
        self.page.evaluate("() => { app.nodeOutputs = {}; app.queuePrompt(0, 1); }")
        self.it.wait("(id) => app.nodeOutputs?.[id]?.images?.length", self.COMPOSITE)
        return self.composite()

    @property
    def state(self):
        """Return the board that the page would send to the server."""
        return self.it.prompt()[self.EDITOR]["inputs"]["board"]

    def entry(self, name):
        return next(layer for layer in self.state["layers"] if layer["name"] == name)

    @property
    def names(self):
        return [layer["name"] for layer in self.state.get("layers", [])]

    def choose_files(self, *files):
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(".ld-button[title^='Add pictures']").click()
        chooser.value.set_files([str(file) for file in files])
        self.ask("!editor.saving.size", wait=True)

    def pick(self, *names):
        """Select layers, and give the canvas the focus."""
        self.ask(
            "[editor.select(), a.forEach(name => editor.select(name, true)), editor.stage.focus()].length",
            *names,
        )

    def paint(self, tool, size, *points):
        """Draw a stroke, and wait until the server has it."""
        self.ask("(editor.useTool(a[0]), editor.brushSize = a[1])", tool, size)
        self.drag(*points)
        self.ask("!editor.saving.size && !editor.painting.drafts.size", wait=True)

    @property
    def status(self):
        return self.page.locator(".ld-status").inner_text()
