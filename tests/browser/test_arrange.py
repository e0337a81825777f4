"""Arrange Layers as users see it: the layer editor in the node, in both of ComfyUI's ways to draw nodes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from editors import EditorInPage, box_of, near, node
from PIL import Image

from layered_core.document import BLEND_MODES

PACK = Path(__file__).resolve().parents[2]
ARRANGE, COMPOSITE, CORE, TOP = "10", "11", "12", "3"
WIDTH, HEIGHT = 128, 96
RED, GREEN = (230, 20, 20), (20, 210, 40)
"""The red layer is 40x30 at (10, 12), the green one 24x24 at (80, 40)."""


def load(image, **inputs):
    defaults = json.loads((PACK / "workflows/api/01_storybook_collage.json").read_text())["4"]["inputs"]
    plain = {k: v for k, v in defaults.items() if not isinstance(v, list)} | {
        "prompt": "",
        "name": "",
        "canvas_width": 0,
        "canvas_height": 0,
    }
    plain |= {"x": 0, "y": 0, "width": 0, "height": 0, "rotation": 0.0}
    return node("LD_LoadLayer", image=image, **{**plain, **inputs})


@pytest.fixture(scope="module")
def stack(server):
    """Return a prompt without an output node: a grey sky with a red and a green layer on it."""
    for name, size, colour in (
        ("sky", (WIDTH, HEIGHT), (90, 100, 110)),
        ("red", (40, 30), RED),
        ("green", (24, 24), GREEN),
    ):
        Image.new("RGBA", size, (*colour, 255)).save(server.base / "input" / f"{name}.png")
    return {
        "1": load("sky.png", name="sky", canvas_width=WIDTH, canvas_height=HEIGHT),
        "2": load("red.png", name="red", x=10, y=12, layers=["1", 0]),
        "3": load("green.png", name="green", x=80, y=40, layers=["2", 0]),
    }


class Arranger(EditorInPage):
    """Arrange Layers in the page."""

    def __init__(self, page, server, stack, vue):
        super().__init__(page, server, vue)
        self.open(stack, {})

    def open(self, stack, state, **more):
        end = {ARRANGE: node("LD_ArrangeLayers", layers=[TOP, 0], arrangement=state), COMPOSITE: None}
        prompt = {**stack, **end, **more}
        prompt[COMPOSITE] = node("LD_LayerComposite", layers=[ARRANGE, 0], backdrop="transparent")
        self.it.open_api(prompt)
        self.lay_out()

    def run(self):
        """Run the prompt and return the composite's pixels, RGB."""
        self.page.evaluate("() => { app.nodeOutputs = {}; app.queuePrompt(0, 1); }")
        self.it.wait(
            "([a, c]) => app.nodeOutputs?.[a]?.arrange_layers && app.nodeOutputs?.[c]?.images?.length",
            [ARRANGE, COMPOSITE],
        )
        self.ask(
            "editor.stackKnown && [...editor.images.values()].every(picture => picture.image)", wait=True
        )
        return self.composite()

    @property
    def state(self):
        """Return the node's state that the page would send to the server."""
        return self.it.prompt()[ARRANGE]["inputs"]["arrangement"]

    def changes(self, name):
        return self.state.get("layers", {}).get(name, {})


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def arranger(request, page, server, stack):
    made = Arranger(page, server, stack, request.param)
    made.run()
    return made


@pytest.fixture
def plain(page, server, stack):
    """Arrange Layers in the classic way to draw nodes only, for tests that do not depend on it."""
    made = Arranger(page, server, stack, False)
    made.run()
    return made


def test_drag_a_layer_run_and_the_composite_moved(arranger):
    assert box_of(arranger.run(), RED) == (10, 12, 50, 42)
    arranger.drag((30, 27), (53, 44), "Control")
    moved = arranger.changes("red")
    assert near((moved["x"], moved["y"]), (33, 29))
    assert set(arranger.state["layers"]) == {"red"}
    pixels = arranger.run()
    assert box_of(pixels, RED) == (moved["x"], moved["y"], moved["x"] + 40, moved["y"] + 30)
    assert box_of(pixels, GREEN) == (80, 40, 104, 64)


def test_what_is_dragged_is_seen_moving_before_it_is_run(arranger):
    def seen():
        screen = np.asarray(Image.open(io.BytesIO(arranger.page.screenshot())).convert("RGB"))
        left, top = (round(v) for v in arranger.at(0, 0))
        right, bottom = (round(v) for v in arranger.at(WIDTH, HEIGHT))
        return box_of(screen[top:bottom, left:right], RED), (right - left) / WIDTH

    (left, top, right, bottom), scale = seen()
    assert near((left, top, right, bottom), (10 * scale, 12 * scale, 50 * scale, 42 * scale), by=3)
    arranger.drag((30, 27), (50, 47), "Control", release=False)
    arranger.page.wait_for_timeout(300)
    moved, _ = seen()
    arranger.page.mouse.up()
    assert near(moved, (30 * scale, 32 * scale, 70 * scale, 62 * scale), by=4)


def test_a_corner_keeps_the_ratio_shift_frees_it_and_a_side_pulls_one_side(plain):
    plain.click(30, 27)
    plain.drag((50, 42), (70, 57), "Control")
    assert near([plain.changes("red")[k] for k in ("width", "height")], (60, 45))
    assert "x" not in plain.changes("red")
    plain.drag((70, 57), (56, 62), "Control", "Shift")
    assert near([plain.changes("red")[k] for k in ("width", "height")], (46, 50), by=3)
    plain.press("Control+z", "Control+z")
    assert plain.state == {}
    plain.drag((10, 27), (20, 40), "Control")
    assert near([plain.changes("red")[k] for k in ("x", "width")], (20, 30))
    assert "height" not in plain.changes("red")
    plain.press("Control+z")
    plain.drag((50, 42), (55, 45.75), "Control", "Alt")
    got = plain.changes("red")
    assert near((got["x"], got["y"], got["width"], got["height"]), (5, 8, 50, 38))


def test_the_handle_above_turns_and_shift_takes_whole_steps(plain):
    plain.click(30, 27)
    handle = plain.ask("(() => { const h = editor.stage.handles().find(h => h.turn); return [h.x, h.y]; })()")
    origin, per = plain.ask(
        "(() => { const o = editor.stage.onScreen({x: 0, y: 0}); return [[o.x, o.y], "
        "editor.stage.onScreen({x: 1, y: 0}).x - o.x]; })()"
    )
    start = [(h - o) / per for h, o in zip(handle, origin, strict=True)]
    plain.drag(start, (30 + 30, 27))
    assert abs(plain.changes("red")["rotation"] - 90) < 3
    plain.press("Control+z")
    plain.drag(start, (30 + 20, 27 - 25), "Shift")
    assert plain.changes("red") == {"rotation": 45}
    pixels = plain.run()
    left, top, right, bottom = box_of(pixels, RED)
    assert abs((right - left) - (40 + 30) / 2**0.5) < 4
    assert abs((left + right) / 2 - 30) < 2


def test_edges_and_centres_snap_and_ctrl_does_without(plain):
    plain.drag((30, 27), (30 - 9, 27 - 11))
    assert (plain.changes("red")["x"], plain.changes("red")["y"]) == (0, 0)
    plain.drag((20, 15), (20 + 41, 15 + 35))
    assert (plain.changes("red")["x"], plain.changes("red")["y"]) == (
        40,
        34,
    )  # right edge on the green layer's left, bottom on its bottom
    plain.drag((60, 50), (60 - 39, 50 - 33), "Control")
    assert near((plain.changes("red")["x"], plain.changes("red")["y"]), (1, 1), by=1)


def test_keys_move_hide_and_reorder_and_the_graph_hears_none_of_them(arranger):
    nodes = sorted(n[0] for n in arranger.it.nodes())
    arranger.click(30, 27)
    arranger.press("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowDown")
    assert arranger.changes("red") == {"x": 12, "y": 21}
    arranger.press("]")
    assert arranger.state["order"] == ["sky", "green", "red"]
    arranger.press("PageDown", "PageDown")
    assert arranger.state["order"] == ["red", "sky", "green"]
    arranger.press("Delete")
    assert arranger.changes("red") == {"x": 12, "y": 21, "visible": False}
    assert sorted(n[0] for n in arranger.it.nodes()) == nodes
    assert not (np.abs(arranger.run().astype(int) - RED) < 8).all(-1).any()
    arranger.press("Escape")
    assert arranger.ask("editor.selected === undefined")


def test_undo_and_redo_are_of_the_editor_not_of_the_graph(arranger):
    arranger.page.evaluate(
        "(id) => { const n = app.graph.getNodeById(id); n.title = 'kept'; app.canvas.setDirty(true, true); }",
        COMPOSITE,
    )
    arranger.drag((30, 27), (60, 27), "Control")
    x = arranger.changes("red")["x"]
    arranger.press("ArrowRight", "ArrowRight", "ArrowRight")
    arranger.drag((92, 52), (92, 70), "Control")
    green = arranger.state["layers"]["green"]
    arranger.press("Control+z")
    assert arranger.state["layers"] == {"red": {"x": x + 3}}
    arranger.press("Control+z")  # all presses of an arrow key count as one step
    assert arranger.changes("red") == {"x": x}
    arranger.press("Control+z")
    assert arranger.state == {}
    arranger.press("Control+z")
    arranger.press("Control+Shift+z", "Control+y", "Control+Shift+z", "Control+y")
    assert arranger.state["layers"] == {"red": {"x": x + 3}, "green": green}
    arranger.page.wait_for_timeout(300)
    assert arranger.page.evaluate("(id) => app.graph.getNodeById(id).title", COMPOSITE) == "kept"


def test_escape_gives_up_a_drag(plain):
    plain.drag((30, 27), (60, 60), release=False)
    assert plain.ask("editor.selected.x") > 20
    plain.press("Escape")
    plain.page.mouse.up()
    assert plain.state == {}
    assert plain.ask("editor.selected.x") == 10


def test_the_list_shows_selects_hides_and_reorders(arranger):
    names = arranger.page.locator(".ld-name")
    assert [names.nth(i).input_value() for i in range(3)] == ["green", "red", "sky"]
    arranger.row("green").locator(".ld-name").click()
    assert arranger.ask("editor.chosen") == "green"
    arranger.row("green").locator("label").first.click()
    assert arranger.changes("green") == {"visible": False}
    arranger.row("green").locator("label").first.click()
    assert arranger.state == {}
    low, high = arranger.row("sky").bounding_box(), arranger.row("green").bounding_box()
    arranger.page.mouse.move(low["x"] + 60, low["y"] + 10)
    arranger.page.mouse.down()
    arranger.page.mouse.move(low["x"] + 60, high["y"] + 20, steps=4)
    arranger.page.mouse.move(low["x"] + 60, high["y"] + 4, steps=2)
    arranger.page.mouse.up()
    assert arranger.state == {"version": 1, "layers": {}, "order": ["red", "green", "sky"]}
    assert [names.nth(i).input_value() for i in range(3)] == ["sky", "green", "red"]
    arranger.press("Control+z")
    assert arranger.state == {}


def test_numbers_opacity_blend_mode_and_mirrors_arrive_in_the_state(plain):
    plain.click(30, 27)
    field = plain.page.locator(".ld-field")
    titles = {field.nth(i).get_attribute("title"): field.nth(i) for i in range(field.count())}
    titles["Left edge, canvas pixels"].fill("55")
    titles["Left edge, canvas pixels"].press("Enter")
    titles["Width, canvas pixels"].fill("80")
    titles["Width, canvas pixels"].press("Enter")
    titles["Rotation, degrees clockwise"].fill("-30.5")
    titles["Rotation, degrees clockwise"].press("Enter")
    titles["Opacity"].fill("40")
    titles["Opacity"].press("Enter")
    plain.page.locator(".ld-rows select").select_option("multiply")
    plain.page.locator(".ld-button[title='Mirror left to right']").click()
    wanted = {
        "x": 55,
        "width": 80,
        "height": 60,
        "rotation": -30.5,
        "opacity": 0.4,
        "blend_mode": "multiply",
        "flip_h": True,
    }
    assert plain.changes("red") == wanted
    plain.page.locator(".ld-text-button[value='Reset layer']").click()
    assert plain.state == {}


def test_what_was_arranged_is_in_the_saved_workflow_and_in_a_copy_of_the_node(arranger):
    arranger.drag((30, 27), (60, 60), "Control")
    state = arranger.state
    saved = arranger.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    arranger.open({}, {})
    arranger.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", saved)
    arranger.page.wait_for_timeout(500)
    assert arranger.state == state
    copy = arranger.page.evaluate(
        "(id) => { const c = app.graph.getNodeById(id).clone(); app.graph.add(c); return c.widgets.find(w => "
        "w.name === 'arrangement').value; }",
        ARRANGE,
    )
    assert copy == state


def test_undo_of_the_graph_brings_back_what_was_arranged_and_the_layers_stay_in_sight(arranger):
    arranger.drag((30, 27), (60, 60), "Control")
    state = arranger.state
    arranger.drag((92, 52), (92, 70), "Control")
    assert arranger.state != state
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    arranger.page.evaluate(f"async () => {{ await {tracker}.undo(); }}")
    arranger.page.wait_for_timeout(500)
    assert arranger.state == state
    assert arranger.ask("editor.layers.map(layer => layer.name)") == ["sky", "red", "green"]


def test_changes_to_a_layer_that_is_gone_are_kept_told_and_can_be_forgotten(arranger, stack):
    state = {"version": 1, "layers": {"moon": {"x": 5}, "red": {"x": 44}}}
    arranger.open(stack, state)
    assert "Changes to 2 layers are kept" in arranger.page.locator(".ld-empty").inner_text()
    assert box_of(arranger.run(), RED) == (44, 12, 84, 42)
    assert arranger.state == state
    assert "Not in the stack: “moon”" in arranger.page.locator(".ld-status").inner_text()
    arranger.drag((92, 52), (92, 80), "Control")
    assert arranger.state["layers"]["moon"] == {"x": 5}
    arranger.page.locator(".ld-status .ld-text-button").click()
    assert set(arranger.state["layers"]) == {"red", "green"}
    assert arranger.page.locator(".ld-status").inner_text() == ""


def test_a_state_of_another_version_is_kept_as_it_is_until_it_is_reset(plain, stack):
    state = {"version": 7, "layers": {"red": {"x": 44}}, "secret": True}
    plain.open(stack, state)
    plain.page.evaluate("() => app.queuePrompt(0, 1)")
    plain.it.wait("(id) => Object.keys(app.lastNodeErrors ?? {}).includes(id)", ARRANGE, 30_000)
    assert "version is 7" in plain.page.evaluate("() => JSON.stringify(app.lastNodeErrors)")
    plain.page.keyboard.press("Escape")
    assert plain.state == state
    assert "not made by this version" in plain.page.locator(".ld-status").inner_text()
    plain.ask("editor.change('red', {x: 1})")
    assert plain.state == state
    plain.page.locator(".ld-text-button[value='Reset all']").click()
    assert plain.state == {}
    plain.run()


def test_the_wheel_is_the_graphs_until_the_editor_has_the_focus(arranger):
    arranger.page.mouse.click(1400, 700)
    arranger.page.mouse.move(*arranger.at(64, 48))
    arranger.page.mouse.wheel(0, -200)
    arranger.page.wait_for_timeout(400)
    graph = arranger.page.evaluate("() => app.canvas.ds.scale")
    assert graph > 1
    arranger.lay_out()
    arranger.click(64, 48)
    arranger.page.mouse.wheel(0, -200)
    arranger.page.wait_for_timeout(300)
    assert arranger.page.evaluate("() => app.canvas.ds.scale") == 1
    assert arranger.ask("editor.stage.zoom") > 1.1
    arranger.press("0")
    assert arranger.ask("editor.stage.zoom") == 1


def test_the_picture_is_as_sharp_as_the_screen_and_the_graphs_zoom(arranger):
    arranger.page.evaluate("() => { app.canvas.ds.scale = 1.5; app.canvas.setDirty(true, true); }")
    arranger.page.wait_for_timeout(500)
    arranger.page.mouse.move(*arranger.at(64, 48))
    arranger.page.mouse.wheel(0, -100)
    arranger.it.wait("() => app.canvas.ds.scale > 1.5", timeout_ms=30_000)
    arranger.ask(
        "Math.abs(editor.stage.canvas.width - editor.stage.element.getBoundingClientRect().width * "
        "devicePixelRatio) <= 2",
        wait=True,
    )
    assert arranger.ask("editor.stage.canvas.width / editor.stage.element.offsetWidth") > 1.5


def test_a_layer_that_fills_the_canvas_is_not_dragged_by_mistake(plain):
    plain.drag((5, 90), (60, 60))
    assert plain.state == {}
    assert plain.ask("editor.chosen") == "sky"
    plain.press("0")
    plain.drag((5, 90), (25, 70), "Control")
    assert near([plain.changes("sky")[k] for k in ("x", "y")], (20, -20))


def test_a_click_goes_through_the_holes_of_a_layer(plain, server, stack):
    ring = Image.new("RGBA", (60, 60), (0, 0, 0, 255))
    ring.paste((0, 0, 0, 0), (10, 10, 50, 50))
    ring.save(server.base / "input" / "ring.png")
    holed = {**stack, "4": load("ring.png", name="ring", layers=["3", 0])}
    holed["3"], holed["4"] = {**holed["4"], "inputs": {**holed["4"]["inputs"], "layers": ["2", 0]}}, None
    plain.open({k: v for k, v in holed.items() if v}, {})
    plain.run()
    plain.click(30, 27)
    assert plain.ask("editor.chosen") == "red"
    plain.press("Escape")
    plain.click(5, 27)
    assert plain.ask("editor.chosen") == "ring"


def test_the_blend_modes_offered_are_those_of_the_core(plain):
    assert plain.ask("[...editor.values.mode.options].map(option => option.value)") == list(BLEND_MODES)


def test_cores_layer_editor_opens_our_stack_and_what_is_done_there_goes_on(page, server, stack):
    """ComfyUI's editor needs Nodes 2.0 and WebGL."""
    arranger = Arranger(page, server, stack, True)
    core = {CORE: node("ImageCompositor", layers=[TOP, 0], compositor={})}
    arranger.open(stack, {}, **core)
    arranger.page.evaluate(
        "([a, c]) => { const core = app.graph.getNodeById(c); core.connect(0, app.graph.getNodeById(a), "
        "'picture'); core.pos = [750, 120]; }",
        [ARRANGE, CORE],
    )
    assert box_of(arranger.run(), RED) == (10, 12, 50, 42)
    arranger.page.locator("[data-testid=compositor-open-button]").click()
    rows = arranger.page.locator("[data-testid=layer-panel-row]")
    arranger.it.wait(
        "() => document.querySelector('[data-testid=layer-panel-row]')?.innerText.includes('green')"
    )
    assert [rows.nth(i).inner_text().split("\n")[0] for i in range(rows.count())] == ["green", "red", "sky"]
    rows.nth(1).click()
    x = arranger.page.locator("[data-testid=layer-properties-panel] input").first
    assert x.input_value() == "10"
    x.fill("61")
    x.press("Enter")
    arranger.page.get_by_role("button", name="Close").click()
    arranger.it.wait(
        "(id) => app.graph.getNodeById(id).widgets.some(w => w.value?.layers?.length === 3)", CORE
    )
    assert box_of(arranger.run(), RED) == (61, 12, 101, 42)
    assert arranger.ask("editor.layers[1].x") == 61
    assert arranger.state == {}
