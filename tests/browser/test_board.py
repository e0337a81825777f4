"""Layer Board as users see it: a stack made from nothing, in both of ComfyUI's ways to draw nodes."""

import json
from pathlib import Path

import numpy as np
import pytest
from boards import BLUE, GREEN, GREEN_LAYER, HEIGHT, RED, SKY, WIDTH, BoardInPage, board
from editors import Fingers, box_of, near, node
from PIL import Image

PACK = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    for name, size, colour in (
        ("sky", (WIDTH, HEIGHT), (90, 100, 110)),
        ("red", (40, 30), RED),
        ("green", (24, 24), GREEN),
    ):
        Image.new("RGBA", size, (*colour, 255)).save(server.base / "input" / f"board_{name}.png")


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def empty(request, page, server):
    return BoardInPage(page, server, request.param)


@pytest.fixture
def made(page, server):
    """A board with a sky and a green picture, in the classic way to draw nodes."""
    return BoardInPage(page, server, False, board(SKY, GREEN_LAYER))


def test_a_stack_is_made_from_nothing_by_mouse_and_keys(empty, tmp_path):
    """A backdrop, a box with words, a picture: chosen, drawn, described, named, put in order, marked, and run."""
    Image.new("RGB", (WIDTH, HEIGHT), (90, 100, 110)).save(tmp_path / "park.png")
    Image.new("RGB", (40, 30), RED).save(tmp_path / "kite.png")
    assert "Press B and drag a box" in empty.page.locator(".ld-empty").inner_text()
    empty.choose_files(tmp_path / "park.png")
    assert (empty.state["width"], empty.state["height"]) == (WIDTH, HEIGHT)
    assert empty.ask("editor.freedomOf(editor.layer('park'))") == 0.8
    empty.choose_files(tmp_path / "kite.png")
    assert empty.names == ["park", "kite"]
    assert empty.ask("editor.freedomOf(editor.layer('park'))") == 0  # behind others it is a backdrop

    empty.click(4, 4)
    empty.press("b")
    empty.drag((70, 40), (110, 80))
    empty.page.keyboard.type("a blue house")
    empty.press("Enter")
    box = empty.entry("a blue house")
    assert near([box[k] for k in ("x", "y", "width", "height")], (70, 40, 40, 40))
    assert box["prompt"] == "a blue house"
    assert box["recipe"] == {"noise": 1}  # it is made from nothing

    empty.press("r")
    assert empty.state["marked"] == ["a blue house"]
    empty.press("[")
    assert empty.names == ["park", "a blue house", "kite"]
    empty.row("kite").locator(".ld-name").dblclick()
    empty.page.keyboard.type("big kite")
    empty.press("Enter")
    assert empty.names[-1] == "big kite"
    left, top, right, bottom = box_of(empty.run(), RED)
    kite = empty.entry("big kite")
    assert (left, top) == (kite["x"], kite["y"])
    assert (right - left, bottom - top) == (40, 30)


def test_all_that_was_made_can_be_undone_and_redone(made):
    before = made.state
    made.click(90, 50)
    made.press("ArrowRight", "ArrowRight", "Control+d", "Delete")
    moved = made.state
    assert moved["layers"][1]["x"] == 82
    made.press("Control+z", "Control+z", "Control+z")
    assert made.state == before
    made.press("Control+Shift+z", "Control+Shift+z", "Control+Shift+z")
    assert made.state == moved
    made.press("Control+z")
    assert made.names == ["sky", "green", "green 2"]


def test_a_copy_of_a_box_is_an_entry_that_the_server_reads(page, server):
    it = BoardInPage(
        page, server, False, board(SKY, {"name": "box", "x": 8, "y": 8, "width": 32, "height": 32})
    )
    it.pick("box")
    it.press("Control+d")
    assert set(it.entry("box 2")) == {"name", "x", "y", "width", "height"}
    it.run()


def test_layers_that_a_program_posted_without_a_size_are_shown_in_the_size_that_they_have(page, server):
    sizeless = board({"name": "all", "prompt": "a park"}, {"name": "green", "image": "board_green.png"})
    it = BoardInPage(page, server, False, sizeless)
    it.ask("editor.layer('green').width === 24", wait=True)
    assert it.ask("[editor.layer('all').width, editor.layer('all').height]") == [WIDTH, HEIGHT]
    assert box_of(it.run(), GREEN) == (0, 0, 24, 24)
    assert it.state == sizeless


def test_the_drawer_keeps_the_focus_and_sets_what_acts_for_the_layer(made):
    made.pick("green")
    made.page.locator(".ld-row.ld-selected summary").click()
    fields = made.page.locator(".ld-row.ld-selected .ld-drawer-row:visible span")
    assert fields.all_inner_texts() == ["freedom", "control"]
    hint = made.page.locator(".ld-row.ld-selected .ld-drawer-row select")
    hint.click()
    assert made.ask("document.activeElement.tagName") == "SELECT"
    hint.select_option("canny")
    made.page.locator(".ld-row.ld-selected .ld-words").first.fill("a green square")
    made.page.wait_for_timeout(200)
    assert fields.all_inner_texts() == [
        "freedom",
        "words' strength",
        "control",
        "control strength",
        "seed",
        "embedding",
        "LoRA",
    ]
    embedding = made.page.locator(".ld-row.ld-selected .ld-drawer-row input[aria-label='embedding']")
    embedding.fill("my_ball")
    embedding.press("Tab")
    lora = made.page.locator(".ld-row.ld-selected .ld-drawer-row input[aria-label='LoRA']")
    lora.fill("ink.safetensors:0.5, soft")
    lora.press("Tab")
    recipe = made.entry("green")["recipe"]
    assert (recipe["control"]["hint"], recipe["embedding"]) == ("canny", "my_ball")
    assert recipe["loras"] == [{"name": "ink.safetensors", "strength": 0.5}, {"name": "soft", "strength": 1}]
    made.run()


def test_the_brush_makes_a_place_and_the_server_has_it_where_it_was_painted(made):
    made.pick()
    made.press("p")
    made.paint("brush", 12, (20, 20), (50, 60))
    (name,) = set(made.names) - {"sky", "green"}
    place = made.entry(name)
    assert near([place[k] for k in ("x", "y", "width", "height")], (14, 14, 42, 52), by=2)
    with Image.open(made.server.base / "input" / place["mask"]) as file:
        mask = np.asarray(file.convert("L")) / 255
    assert mask.shape == (place["height"], place["width"])
    on = [mask[round(y - place["y"]), round(x - place["x"])] for x, y in ((20, 20), (35, 40), (50, 60))]
    assert min(on) > 0.9
    assert mask[5, -5] == mask[-5, 5] == 0
    made.press("Control+z")
    assert made.names == ["sky", "green"]


@pytest.mark.parametrize("place", [{}, {"rotation": 90}, {"flip_h": True}, {"width": 48, "height": 24}])
def test_what_is_erased_on_the_canvas_is_what_the_composite_loses(page, server, place):
    """However the picture is turned, mirrored or scaled."""
    it = BoardInPage(page, server, False, board(SKY, {**GREEN_LAYER, "x": 40, **place}))
    before = it.run()
    left, top, right, bottom = box_of(before, GREEN)
    it.pick("green")
    middle = (left + 4, top + 4)
    it.paint("eraser", 8, middle, (middle[0] + 0.5, middle[1]))
    assert it.entry("green")["mask"].startswith("layered_diffusion/mask_")
    after = it.run()
    changed = np.nonzero(np.abs(after.astype(int) - before).max(-1) > 60)
    assert abs(changed[1].mean() + 0.5 - middle[0]) < 1
    assert abs(changed[0].mean() + 0.5 - middle[1]) < 1
    assert near(after[bottom - 3, right - 3].tolist(), GREEN, by=1)


def test_an_erased_box_shrinks_to_what_is_left_and_one_erased_wholly_stays(page, server):
    it = BoardInPage(page, server, False, board({"name": "box", "x": 20, "y": 20, "width": 40, "height": 40}))
    it.pick("box")
    it.paint("eraser", 60, (70, 10), (70, 90))
    box = it.entry("box")
    assert near((box["x"], box["y"], box["width"], box["height"]), (20, 20, 20, 40), by=1)
    it.paint("eraser", 90, (30, 10), (30, 90))
    assert it.entry("box") == box
    assert "Nothing would be left of box" in it.status


def test_several_layers_are_moved_scaled_and_aligned_together(page, server):
    boxes = [
        {"name": n, "x": x, "y": y, "width": 16, "height": 12} for n, x, y in (("a", 10, 10), ("b", 40, 30))
    ]
    it = BoardInPage(page, server, False, board(*boxes))
    it.click(18, 16)
    it.page.keyboard.down("Shift")
    it.click(48, 36)
    it.page.keyboard.up("Shift")
    assert it.ask("editor.selection") == ["a", "b"]
    it.drag((48, 36), (58, 46), "Control")
    assert near([it.entry(n)[k] for n in "ab" for k in "xy"], (20, 20, 50, 40), by=1)
    it.press("Control+z")
    it.drag((56, 42), (102, 74), "Control")  # the lower right corner of both; they keep their shape
    a, b = it.entry("a"), it.entry("b")
    assert near((a["x"], a["y"], a["width"], a["height"]), (10, 10, 32, 24), by=1)
    assert near((b["x"], b["y"], b["width"], b["height"]), (70, 50, 32, 24), by=1)
    it.page.locator(".ld-align").select_option("left")
    assert it.entry("b")["x"] == it.entry("a")["x"]
    it.press("Delete")
    assert it.names == []


def test_a_locked_layer_stays_and_is_not_in_the_way(made):
    made.row("green").locator(".ld-button[title^='Lock']").click()
    assert made.state["locked"] == ["green"]
    before = made.entry("green")
    made.drag((90, 50), (60, 20), "Control")
    made.pick("green")
    made.press("ArrowLeft", "Delete")
    assert made.entry("green") == before
    made.row("green").locator(".ld-button[title^='Lock']").click()
    assert "locked" not in made.state


def test_layers_of_the_graph_lie_among_the_boards_own(page, server):
    """They are seen after a run, are changed and put in order as the board's own, and keep that when they run again."""
    load = json.loads(json.dumps(LOAD))
    it = BoardInPage(page, server, False, board(SKY, GREEN_LAYER), before={"1": load}, layers=["1", 0])
    assert box_of(it.run(), GREEN) == (80, 40, 104, 64)
    it.ask("editor.layers.length === 3 && Boolean(editor.pictureOf(editor.layers[0]).image)", wait=True)
    assert it.ask("editor.layers.map(layer => layer.name)") == ["red", "sky", "green"]
    it.pick("red")
    it.press("PageUp", "Shift+ArrowRight")
    state = it.state["arrangement"]
    assert state["order"] == ["sky", "red", "green"]
    assert state["layers"] == {"red": {"x": 20}}
    assert box_of(it.run(), RED) == (20, 12, 60, 42)
    it.press("Delete")  # the graph's: it is hidden
    assert it.state["arrangement"]["layers"]["red"]["visible"] is False


def test_boxes_are_seen_before_the_first_run_and_after_a_reload(page, server):
    state = board(SKY, {"name": "box", "prompt": "a red ball", "x": 8, "y": 8, "width": 32, "height": 32})
    it = BoardInPage(page, server, False, state)
    assert it.ask("editor.layers.map(layer => layer.name)") == ["sky", "box"]
    graph = page.page.evaluate("() => app.graph.serialize()")
    page.page.evaluate("async (graph) => { await app.loadGraphData(graph); }", graph)
    it.lay_out()
    assert it.state == state
    assert it.ask("editor.layers.map(layer => layer.prompt)") == ["", "a red ball"]


def test_the_result_is_shown_over_the_layers_and_is_called_old_after_a_change(page, server):
    it = BoardInPage(page, server, False, board(SKY, GREEN_LAYER))
    save = {"12": node("PreviewImage", images=["11", 0])}
    it.open(board(SKY, GREEN_LAYER), before=save)
    assert not it.page.locator(".ld-result").is_visible()
    it.run()
    it.ask("Boolean(editor.result)", wait=True)
    slider = it.page.locator(".ld-result .ld-slider")
    assert slider.input_value() == "100"
    it.pick("green")
    it.press("ArrowLeft")
    assert "the board was changed since" in it.page.locator(".ld-result").get_attribute("title")
    slider.fill("0")
    assert it.ask("editor.overlays().length") == 0


def test_files_that_are_no_pictures_are_told(made, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "fake.png").write_text("hello")
    (tmp_path / "art.psd").write_bytes(b"8BPS")
    for name, told in (
        ("notes.txt", "notes.txt is no picture"),
        ("fake.png", "fake.png is no picture"),
        ("art.psd", "open it with Load Layers"),
    ):
        made.choose_files(tmp_path / name)
        assert told in made.status
    made.ask("editor.host.mostBytes = () => 1000")
    Image.effect_noise((64, 64), 90).save(tmp_path / "big.png")
    made.choose_files(tmp_path / "big.png")
    assert "big.png has 1 MB; this server takes 1 MB" in made.status
    assert made.names == ["sky", "green"]


def test_a_picture_with_a_name_that_exists_is_another_file(made, tmp_path):
    Image.new("RGB", (20, 10), BLUE).save(tmp_path / "board_green.png")
    made.choose_files(tmp_path / "board_green.png")
    new = made.entry("board_green")
    assert new["image"] == "board_green (1).png"
    assert made.entry("green")["image"] == "board_green.png"
    made.choose_files(tmp_path / "board_green.png")
    assert made.names[-1] == "board_green 2"


def test_nothing_is_kept_of_an_upload_that_fails_and_it_can_be_tried_again(made, tmp_path):
    Image.new("RGB", (20, 10), BLUE).save(tmp_path / "late.png")
    made.page.route("**/upload/image", lambda route: route.abort())
    made.choose_files(tmp_path / "late.png")
    assert "late.png could not be saved: the server does not answer" in made.status
    assert made.names == ["sky", "green"]
    made.page.unroute("**/upload/image")
    made.page.locator(".ld-text-button[value='Try again']").click()
    made.ask("!editor.saving.size", wait=True)
    assert made.names == ["sky", "green", "late"]
    made.it.complaints.clear()  # the browser's own on the failed request


def test_a_board_of_a_newer_version_is_kept_and_a_deleted_picture_is_told(page, server):
    newer = {"version": 2, "boards": []}
    it = BoardInPage(page, server, False, newer)
    assert it.state == newer
    assert "A newer version of this pack" in it.status
    it.press("b")
    assert it.state == newer
    it.page.locator(".ld-text-button[value='Start anew']").click()
    assert it.state == {}
    it.open(board(SKY, {**GREEN_LAYER, "image": "gone.png"}))
    it.page.wait_for_timeout(500)
    assert "the picture of “green”" in it.status
    page.complaints.clear()


def test_fifty_layers_fit_and_one_more_is_told(page, server):
    boxes = [{"name": f"box {i}", "x": i, "y": i, "width": 20, "height": 20} for i in range(50)]
    it = BoardInPage(page, server, False, board(*boxes))
    height = it.ask("editor.element.offsetHeight")
    assert it.ask("editor.list.element.scrollHeight > editor.list.element.clientHeight")
    it.pick("box 0")
    row = it.row("box 0").bounding_box()
    shown = it.page.locator(".ld-list").bounding_box()
    assert shown["y"] <= row["y"] <= shown["y"] + shown["height"]
    it.press("Control+d")
    assert "There is room for 50 layers" in it.status
    assert len(it.names) == 50
    assert it.ask("editor.element.offsetHeight") == height


def test_a_layer_is_made_and_changed_without_a_mouse(empty):
    empty.ask("editor.stage.focus()")
    empty.press("b", "Enter")
    empty.page.keyboard.type("a star")
    empty.press("Enter")
    box = empty.entry("a star")
    empty.press("ArrowUp", "Alt+ArrowRight", "Alt+Shift+ArrowDown")
    now = empty.entry("a star")
    assert (now["y"], now["width"], now["height"]) == (box["y"] - 1, box["width"] + 1, box["height"] + 10)
    empty.press("F2")
    empty.page.keyboard.type("north star")
    empty.press("Enter")
    assert empty.names == ["north star"]


def test_every_control_has_a_name_for_a_screen_reader(made):
    made.pick("green")
    nameless = made.ask(
        "[...editor.element.querySelectorAll('input, select, button')].filter(e => !e.hidden && "
        "!(e.getAttribute('aria-label') || e.title || e.closest('label')?.textContent.trim() || "
        "(e.type === 'button' && e.value))).map(e => e.outerHTML)"
    )
    assert nameless == []


def test_two_boards_keep_their_own_layers(page, server):
    it = BoardInPage(page, server, False, board(SKY))
    it.open(board(SKY), before={"20": node("LD_LayerBoard", board=board(GREEN_LAYER))})
    it.pick("sky")
    it.press("Delete")
    prompt = page.prompt()
    assert prompt["10"]["inputs"]["board"]["layers"] == []
    assert [layer["name"] for layer in prompt["20"]["inputs"]["board"]["layers"]] == ["green"]


LOAD = node(
    "LD_LoadLayer", image="board_red.png", prompt="", negative="", name="red", x=10, y=12, width=0, height=0,
    rotation=0.0, flip_h=False, flip_v=False, opacity=1.0, blend_mode="normal", visible=True, inside=1.0,
    outside=1.0, noise=0.8, control_strength=1.0, control_hint="none", canvas_width=WIDTH, canvas_height=HEIGHT,
)  # fmt: skip


def test_a_box_is_drawn_and_moved_with_a_finger_and_two_fingers_zoom(empty):
    fingers = Fingers(empty.page)
    empty.ask("(editor.useTool('box'), editor.snap = false)")
    fingers.drag((empty.at(200, 200), empty.at(600, 500)))
    empty.page.keyboard.type("a boat")
    empty.press("Enter")
    box = empty.entry("a boat")
    assert near([box[k] for k in ("x", "y", "width", "height")], (200, 200, 400, 300), by=4)
    fingers.drag((empty.at(400, 350), empty.at(500, 380)))
    assert near([empty.entry("a boat")[k] for k in ("x", "y")], (300, 230), by=12)
    before = empty.entry("a boat")
    graph = empty.page.evaluate("() => app.canvas.ds.scale")
    fingers.drag((empty.at(450, 500), empty.at(300, 500)), (empty.at(600, 500), empty.at(750, 500)))
    assert empty.ask("editor.stage.zoom") == pytest.approx(3, rel=0.1)
    assert empty.entry("a boat") == before
    assert empty.page.evaluate("() => app.canvas.ds.scale") == graph  # which ComfyUI would zoom as well


def test_a_picture_is_pasted_and_text_is_not(made):
    """As ComfyUI would make a node of it, the page's own paste must not hear of it."""
    made.pick()
    nodes = made.page.evaluate("() => app.graph.nodes.length")
    paste = """async ([kind, text]) => {
        const data = new DataTransfer();
        if (kind === 'text') data.setData('text/plain', text);
        else {
            const canvas = new OffscreenCanvas(20, 10);
            canvas.getContext('2d').fillRect(0, 0, 20, 10);
            data.items.add(new File([await canvas.convertToBlob()], 'image.png', { type: 'image/png' }));
        }
        document.activeElement.dispatchEvent(
            new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));
    }"""
    made.page.evaluate(paste, ["text", "hello"])
    made.page.evaluate(paste, ["picture", ""])
    made.ask("editor.layers.length === 3", wait=True)
    assert made.names == ["sky", "green", "image"]
    assert made.page.evaluate("() => app.graph.nodes.length") == nodes


def test_what_words_attended_to_is_shown_for_the_selected_layer(page, server):
    it = BoardInPage(page, server, False)
    page.open(PACK / "workflows" / "05_regional_prompts.json")
    it.EDITOR = str(
        page.page.evaluate("() => app.graph.nodes.find(n => n.comfyClass === 'LD_LayerBoard').id")
    )
    it.lay_out()
    page.page.evaluate("() => { app.nodeOutputs = {}; app.queuePrompt(0, 1); }")
    it.ask("editor.attention.size > 0 && [...editor.attention.values()].every(map => map.image)", wait=True)
    name = it.ask("[...editor.attention.keys()].at(-1)")
    it.pick(name)
    it.ask("(editor.toolbar.attention.input.checked = true)")
    ((address, alpha),) = it.ask("editor.overlays().map(({ image, alpha }) => [image.src, alpha])")
    assert address.endswith(it.ask("editor.attention.get(a[0]).url", name))
    assert alpha == 1


def test_a_board_in_a_subgraph_keeps_its_layers(made):
    made.page.evaluate(
        "(id) => app.graph.convertToSubgraph(new Set([app.graph.getNodeById(id)]))", made.EDITOR
    )
    made.page.wait_for_timeout(500)
    boards = [n["inputs"]["board"] for n in made.it.prompt().values() if n["class_type"] == "LD_LayerBoard"]
    assert [[layer["name"] for layer in board["layers"]] for board in boards] == [["sky", "green"]]
