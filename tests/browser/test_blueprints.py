"""Render Layers and Redo Layers are found by the page's search, and run as nodes do."""

import contextlib
import io
import json

import blueprints
import numpy as np
import pytest
import torch
from PIL import Image

from demo.world.judge import Judge

VALUES = {
    "prompt": "a red house and a purple ball by the sea",
    "steps": 20,
    "cfg": 3,
    "sampler": "euler_ancestral",
    "words' guidance": 6,
}
"""Values on the face that suit the demo model."""

ADD = """([values, pictured]) => {
    const it = app.graph.nodes[0];
    const add = (type, values) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const w of node.widgets ?? []) if (w.name in values) w.value = values[w.name];
        return node;
    };
    const to = (from, slot, node, name) => from.connect(slot, node, node.inputs.findIndex(i => i.name === name));
    const models = add('LD_LoadDemoModel', {});
    const sea = add('LD_LayerFromImage', { name: 'sea', prompt: 'by the sea', width: 128, height: 128 });
    const house = add('LD_LayerFromImage',
        { name: 'house', prompt: 'a red house', x: 4, y: 56, width: 56, height: 60 });
    const ball = add('LD_LayerFromImage',
        { name: 'ball', prompt: 'a purple ball', x: 70, y: 64, width: 52, height: 52 });
    to(sea, 0, house, 'layers');
    to(house, 0, ball, 'layers');
    to(ball, 0, it, 'layers');
    ['model', 'clip', 'vae'].forEach((name, slot) => to(models, slot, it, name));
    if (pictured) to(add('LD_StorybookPicture', { what: 'sea', size: 128 }), 0, it, 'image');
    for (const w of it.widgets) if ((w.label ?? w.name) in values) w.value = values[w.label ?? w.name];
    to(it, 0, add('PreviewImage', {}), 'images');
    to(it, 1, add('LD_LayerComposite', { backdrop: 'grey' }), 'layers');
}"""
"""Connects the blueprint, the only node, with the demo model, three layers of words and, for Redo Layers, a picture."""


def take(page, name, values):
    """Put a blueprint on an empty graph from the search of nodes, and connect it."""
    from playwright.sync_api import TimeoutError  # which is not everywhere

    inside = page.page
    inside.evaluate("() => app.loadGraphData({ nodes: [], links: [], version: 0.4 })")
    page.settle()
    inside.mouse.move(1000, 600)
    for _ in range(3):  # a busy page loses keys
        inside.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
        inside.get_by_role("dialog").locator("input").first.fill(name)
        inside.get_by_test_id("result-item").filter(has_text=name).first.wait_for()
        inside.keyboard.press("Enter")
        with contextlib.suppress(TimeoutError):
            page.wait("() => app.graph.nodes.length", timeout_ms=10_000)
            break
        inside.keyboard.press("Escape")
        inside.wait_for_timeout(1000)
    inside.mouse.click(1000, 600)  # where it is put down
    assert inside.evaluate("() => app.graph.nodes[0].title") == name
    inside.evaluate(ADD, [values, name == "Redo Layers"])


def picture(server, entry, prompt):
    """Return the picture of the only Preview Image, ``[H, W, 3]`` in 0..1."""
    (node,) = (k for k, n in prompt.items() if n["class_type"] == "PreviewImage")
    (shown,) = entry["outputs"][node]["images"]
    return np.asarray(Image.open(io.BytesIO(server.picture(shown))).convert("RGB"), dtype=np.float32) / 255


def of(prompt, kind):
    """Return the inputs of the only node of a kind."""
    (found,) = (n["inputs"] for n in prompt.values() if n["class_type"] == kind)
    return found


@pytest.mark.parametrize("blueprint", [blueprints.RENDER, blueprints.REDO], ids=lambda b: b.name)
def test_the_file_of_a_blueprint_is_what_its_table_and_the_nodes_give(server, blueprint):
    file = blueprints.PACK / f"subgraphs/{blueprint.name}.json"
    assert json.loads(file.read_text()) == blueprints.graph_of(blueprint, server.get("/object_info"))


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
def test_render_layers_paints_each_layers_words_where_the_layer_is(page, server, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    take(page, "Render Layers", VALUES)
    if vue:
        page.page.locator("[data-node-id]").get_by_text("words' guidance").wait_for()
    prompt = page.prompt()
    painted = picture(server, server.run(prompt), prompt)
    assert painted.shape == (128, 128, 3)
    (verdict,) = Judge.load().look(torch.from_numpy(painted).permute(2, 0, 1)[None])
    assert verdict.background == "sea"
    assert {("red", "house"), ("purple", "ball")} <= {f.thing for f in verdict.objects}


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
def test_redo_layers_paints_what_is_marked_and_no_other_pixel(page, server, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    take(page, "Redo Layers", {**VALUES, "marked": "ball\n"})
    prompt = page.prompt()
    assert of(prompt, "LD_RegenerateLayers")["names"] == of(prompt, "RegexMatch")["string"] == "ball\n"
    redone = picture(server, server.run(prompt), prompt)
    for kind, name in (("LD_RegenerateLayers", "names"), ("RegexMatch", "string")):
        of(prompt, kind)[name] = ""
    entry = server.run(prompt)
    before = picture(server, entry, prompt)
    told = dict(entry["status"]["messages"])
    sampler = next(k for k, n in prompt.items() if n["class_type"] == "KSampler")
    assert sampler not in told["execution_cached"]["nodes"]
    changed = np.abs(redone - before).max(-1) > 0
    assert changed[70:110, 76:116].mean() > 0.9
    y, x = np.nonzero(changed)
    # The layer is 52 pixels wide from (70, 64) on; it is widened by 4 and has a soft border of 8.
    assert (x.min(), y.min()) >= (57, 51)
    assert not changed[:, :56].any()
    assert not changed[:50].any()
