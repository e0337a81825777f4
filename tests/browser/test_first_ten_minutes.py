"""A newcomer makes three layers of words, has them painted, and redoes one: by mouse and keys, and with a finger."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from editors import EditorInPage, Fingers
from PIL import Image

from demo.world.judge import Judge

TEMPLATE = Path(__file__).resolve().parents[2] / "workflows" / "21_make_then_redo.json"
SAVE = "14"
LAYERS = (
    ("by the sea", (0, 0), (128, 128)),
    ("a red house", (6, 54), (64, 116)),
    ("a purple ball", (72, 66), (120, 114)),
)
"""Words, and the corners of their boxes."""


class Newcomer(EditorInPage):
    """Someone at the template *Make, then redo*."""

    EDITOR = "11"

    def __init__(self, page, server, vue, touches):
        super().__init__(page, server, vue)
        self.fingers = Fingers(self.page) if touches else None
        page.open(TEMPLATE)
        self.lay_out()

    def way(self, start, end):
        """Go from one point of the canvas to another."""
        if self.fingers:
            self.fingers.drag((self.at(*start), self.at(*end)))
        else:
            self.drag(start, end, "Control")

    def push(self, locator):
        self.fingers.tap(locator) if self.fingers else locator.click()
        self.page.wait_for_timeout(200)

    def button(self, title):
        return self.page.locator(f".ld-button[title^='{title}']")

    def draw(self, words, start, end):
        self.push(self.button("Draw a box"))
        self.way(start, end)
        self.page.keyboard.type(words)
        self.press("Enter")

    def run(self):
        """Press Run; return the saved picture, ``[H, W, 3]`` in 0..255."""
        self.page.evaluate(
            """() => {
                window.ended = null;
                app.nodeOutputs = {};
                for (const kind of ['execution_success', 'execution_error'])
                    app.api.addEventListener(kind, () => (window.ended = kind), { once: true });
                app.queuePrompt(0, 1);
            }"""
        )
        self.it.wait("() => window.ended", timeout_ms=300_000)
        assert self.page.evaluate("() => window.ended") == "execution_success"
        self.it.wait("(id) => app.nodeOutputs?.[id]?.images?.length", SAVE)
        image = self.page.evaluate("(id) => app.nodeOutputs[id].images[0]", SAVE)
        return np.asarray(Image.open(io.BytesIO(self.server.picture(image))).convert("RGB"), dtype=np.int64)

    @property
    def board(self):
        return self.it.prompt()[self.EDITOR]["inputs"]["board"]


def seen(picture):
    """Return the landscape, and the middle of every thing, shares of the picture, by its words."""
    (verdict,) = Judge.load().look(torch.tensor(picture / 255.0).permute(2, 0, 1).float()[None])
    return verdict.background, {" ".join(found.thing): found for found in verdict.objects}


@pytest.mark.parametrize(
    ("vue", "touches"), [(False, False), (True, False), (False, True)], ids=["classic", "nodes_2", "touch"]
)
def test_three_layers_are_made_painted_where_they_were_drawn_and_one_is_redone_alone(
    page, server, vue, touches
):
    it = Newcomer(page, server, vue, touches)
    it.ask("editor.stage.focus()")
    it.press("Control+a", "Delete")
    assert it.board["layers"] == []
    for words, start, end in LAYERS:
        it.draw(words, start, end)
    assert [layer["prompt"] for layer in it.board["layers"]] == [words for words, _, _ in LAYERS]

    made = it.run()
    background, things = seen(made)
    assert background == "sea"
    assert {"red house", "purple ball"} <= set(things)

    it.ask("Boolean(editor.result)", wait=True)
    it.push(it.button("Keep the result"))
    it.ask("editor.layers.length === 4", wait=True)
    assert it.board["layers"][0]["image"].startswith("board_result")
    ball = it.page.locator(".ld-words[aria-label^='what is here? a purple ball']")
    it.push(ball)
    ball.fill("a yellow star")
    it.press("Enter")
    it.push(it.page.locator(".ld-row.ld-selected .ld-button[title^='Mark']"))
    assert it.board["marked"] == ["a purple ball"]
    redone = it.run()
    background, things = seen(redone)
    assert background == "sea"
    assert set(things) == {"red house", "yellow star"}
    box = it.board["layers"][-1]
    soft = 4 + 8 + 1  # the layer is widened, and has a soft border
    outside = np.ones(made.shape[:2], bool)
    outside[
        box["y"] - soft : box["y"] + box["height"] + soft, box["x"] - soft : box["x"] + box["width"] + soft
    ] = False
    assert (redone != made)[~outside].any()
    assert np.array_equal(redone[outside], made[outside])

    graph = it.page.evaluate("() => JSON.stringify(app.graph.serialize())")
    it.page.evaluate("async (graph) => { await app.loadGraphData(JSON.parse(graph)); }", graph)
    it.lay_out()
    assert it.board["marked"] == ["a purple ball"]
    assert np.array_equal(it.run(), redone)
