"""The layer editors in the page compute what the server computes."""

import json
import random
from pathlib import Path

import numpy as np

from layered_core.canvas.placement import corners
from layered_core.document import Layer, LayerDocument
from layered_core.editing.arrangement import arrange, read_arrangement
from layered_core.editing.board import laid, read_board
from layered_core.formats.limits import Budget, Limits


def module(page, name, code, *arguments):
    """Evaluate ``code``, in which ``it`` is a module of the editor and ``a`` are the arguments."""
    script = (
        f"async (a) => {{ const it = await import('/extensions/layered-diffusion/js/{name}.js');"
        f" return {code}; }}"
    )
    return page.page.evaluate(script, list(arguments))


def test_the_page_arranges_as_the_server_does(page):
    """Random stacks and states give the same order, fields and missing names."""
    rng = random.Random(0)
    cases = []
    for _ in range(300):
        names = rng.sample("abcdefgh", rng.randint(0, 6))
        layers = [
            Layer(n, x=rng.randint(-9, 9), width=rng.randint(1, 9), height=5, opacity=rng.choice([0, 0.5, 1]))
            for n in names
        ]
        changes = {
            n: {"x": rng.randint(-9, 9), "visible": rng.random() < 0.5}
            for n in rng.sample("abcdefghij", rng.randint(0, 4))
        }
        state = {"version": 1, "layers": changes}
        if order := rng.sample("abcdefghij", rng.choice([0, rng.randint(1, 8)])):
            state["order"] = order
        cases.append((layers, state))
    fields = (
        "name",
        "x",
        "y",
        "width",
        "height",
        "rotation",
        "flip_h",
        "flip_v",
        "opacity",
        "blend_mode",
        "visible",
    )
    as_dicts = [[[{f: getattr(x, f) for f in fields} for x in layers], state] for layers, state in cases]
    got = module(
        page,
        "arrange/state",
        "a[0].map(([stack, state]) => [it.arranged(stack, it.read(state)), it.absent(stack, it.read(state))])",
        as_dicts,
    )
    for (layers, state), (page_layers, page_absent) in zip(cases, got, strict=True):
        document, absent = arrange(LayerDocument(64, 64, layers), read_arrangement(state))
        assert page_layers == [{f: getattr(x, f) for f in fields} for x in document]
        assert set(page_absent) == set(absent)


def test_reordering_gives_that_order_and_keeps_the_names_of_other_stacks(page):
    rng = random.Random(1)
    for _ in range(100):
        stack = [{"name": n} for n in rng.sample("abcdef", rng.randint(1, 6))]
        state = {"version": 1, "layers": {}}
        if order := rng.sample("abcdefghij", rng.randint(0, 8)):
            state["order"] = order
        names = rng.sample([x["name"] for x in stack], len(stack))
        after, arranged = module(
            page,
            "arrange/state",
            "(() => { const s = it.reordered(a[1], a[0], a[2]); return [s, it.arranged(a[0], s).map(x => "
            "x.name)]; })()",
            stack,
            state,
            names,
        )
        assert arranged == names
        assert set(order) - set(names) <= set(after.get("order", []))


def test_the_page_sees_corners_where_the_server_does(page):
    rng = random.Random(2)
    boxes = [
        {
            "x": rng.randint(-99, 99),
            "y": rng.randint(-99, 99),
            "width": rng.randint(1, 99),
            "height": rng.randint(1, 99),
            "rotation": rng.uniform(-360, 360),
        }
        for _ in range(200)
    ]
    got = module(page, "editor/geometry", "a[0].map(box => it.corners(box).map(p => [p.x, p.y]))", boxes)
    for box, points in zip(boxes, got, strict=True):
        assert np.allclose(points, corners(Layer("a", **box)))


def test_a_pulled_handle_leaves_the_opposite_one_where_it_was(page):
    """To within a pixel, because places and sizes are whole numbers."""
    rng = random.Random(3)
    cases = []
    for _ in range(500):
        box = {
            "x": rng.randint(-50, 50),
            "y": rng.randint(-50, 50),
            "width": rng.randint(2, 90),
            "height": rng.randint(2, 90),
        }
        box["rotation"] = rng.choice([0, 90, rng.uniform(-180, 180)])
        u, v = rng.choice([(-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0)])
        cases.append(
            [box, u, v, {"x": rng.uniform(-150, 150), "y": rng.uniform(-150, 150)}, rng.random() < 0.5]
        )
    code = """a[0].map(([box, u, v, p, ratio]) => {
        const after = it.resized(box, u, v, p, { ratio, fromCentre: false });
        const [q, r] = [it.pointOf(box, -u, -v), it.pointOf(after, -u, -v)];
        return [after.width, after.height, Math.hypot(q.x - r.x, q.y - r.y)];
    })"""
    for (box, _, _, _, ratio), (width, height, slip) in zip(
        cases, module(page, "editor/geometry", code, cases), strict=True
    ):
        assert min(width, height) >= 1
        assert slip <= 0.75
        if ratio and min(width, height) > 10:
            assert abs(width / height / (box["width"] / box["height"]) - 1) < 0.12


def test_a_turn_of_the_pointer_is_the_turn_of_the_layer(page):
    box = {"x": 0, "y": 0, "width": 20, "height": 10, "rotation": 10}
    for degrees in (0, 30, 90, 179, -45, -120):
        angle = np.deg2rad(degrees - 90)
        to = {"x": 10 + 50 * float(np.cos(angle)), "y": 5 + 50 * float(np.sin(angle))}
        got = module(
            page, "editor/geometry", "it.rotated(a[0], {x: 10, y: -45}, a[1], 0.1).rotation", box, to
        )
        assert abs((got - degrees - 10 + 180) % 360 - 180) < 0.11
        assert -180 <= got < 180


def test_the_page_lays_a_board_as_the_server_does(page):
    """Random boards and layers of the graph give the same names in the same order, with the same places."""
    rng, cases = random.Random(1), []
    for _ in range(200):
        names = rng.sample("abcdefgh", rng.randint(1, 6))
        own, others = names[: (cut := rng.randint(0, len(names)))], names[cut:]

        def box():
            return {"x": rng.randint(-9, 9), "y": 0, "width": rng.randint(1, 9), "height": 5}

        below = [{"name": name, **box()} for name in others]
        changes = {name: {"x": rng.randint(-9, 9)} for name in others if rng.random() < 0.5}
        state = {"version": 1, "width": 64, "height": 64, "layers": [{"name": name, **box()} for name in own]}
        order = rng.sample(names + ["gone"], rng.randint(1, len(names) + 1)) if rng.random() < 0.7 else []
        if changes or order:
            state["arrangement"] = {"version": 1, "layers": changes, **({"order": order} if order else {})}
        cases.append((below, state))
    code = "a[0].map(([below, state]) => it.layersOf(it.read(state), below).map(x => [x.name, x.x, x.width]))"
    for (below, state), got in zip(cases, module(page, "board/state", code, cases), strict=True):
        document = LayerDocument(64, 64, tuple(Layer(**entry) for entry in below))
        stack, _, _ = laid(read_board(state), lambda name, key: None, Budget(Limits()), document)
        assert [[x.name, x.x, x.width] for x in stack] == got


def test_what_is_renamed_deleted_or_put_in_order_stays_readable_for_the_server(page):
    """Renaming and deleting follow into marks, locks and order."""
    box = {"x": 0, "y": 0, "width": 9, "height": 9}
    state = {
        "version": 1,
        "layers": [{"name": name, **box} for name in "abc"],
        "marked": ["a", "b"],
        "locked": ["b"],
        "arrangement": {"version": 1, "layers": {}, "order": ["c", "x", "b", "a"]},
    }
    renamed = module(page, "board/state", "it.renamed(it.read(a[0]), 'b', 'ball')", state)
    assert renamed["marked"] == ["a", "ball"]
    assert renamed["locked"] == ["ball"]
    assert renamed["arrangement"]["order"] == ["c", "x", "ball", "a"]
    removed = module(page, "board/state", "it.removed(it.read(a[0]), ['b', 'c'])", state)
    assert removed["marked"] == ["a"]
    assert "locked" not in removed
    assert removed["arrangement"]["order"] == ["x", "a"]
    for data in (renamed, removed):
        read_board(data)


def test_the_page_reads_loras_as_the_server_does(page):
    """The texts are those of the core's own test."""
    file = Path(__file__).resolve().parents[1] / "data/lora_texts.json"
    cases = json.loads(file.read_text(encoding="utf-8"))
    texts = [case["text"] for case in cases]
    got = module(
        page, "board/loras", "a[0].map(text => it.lorasOf(text).map(x => [x.name, x.strength]))", texts
    )
    assert got == [case["loras"] for case in cases]
    written = module(page, "board/loras", "it.lorasAsText(it.lorasOf(a[0]))", "ink, people/anna:0.50")
    assert written == "ink:1, people/anna:0.5"
