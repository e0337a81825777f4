"""Headless Chromium opens every workflow on a real server as a user does, runs it, and finds the pictures in
the nodes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
GRAPHS = sorted((PACK / "workflows").glob("*.json"))
FOR_OWN_FILES = (
    "13_layerdiffuse_sdxl",
    "14_foreground_on_background",
    "16_regions_flux",
    "17_regions_qwen_image",
    "18_regions_z_image",
    "23_layered_rendering_flux",
    "27_layers_own_look_sdxl",
    "31_picture_to_layers",
)
"""Workflows for the user's own models and pictures, which are missing here."""

LEARNING = ("25_learn_a_layer", "26_lora_from_a_layer", "28_own_look_of_a_layer")
"""Workflows that train, which takes long: they run in one of the two ways to draw nodes."""

RUNS = [
    (file, vue)
    for file in GRAPHS
    for vue in (False, True)
    if file.stem not in FOR_OWN_FILES and (vue or file.stem not in LEARNING)
]


FEW_STEPS = """() => {
    for (const graph of [app.graph, ...(app.graph.subgraphs?.values() ?? [])])
        for (const node of graph.nodes)
            for (const widget of node.widgets ?? [])
                if (widget.name === "steps") widget.value = Math.min(widget.value, 4);
}"""
"""Samples and trains for few steps: what the pictures show is looked at in tests/comfyui/test_http.py."""


@pytest.mark.parametrize("file", GRAPHS, ids=lambda f: f.stem)
def test_a_workflow_opens_with_no_missing_node_and_says_the_same_as_its_api_form(page, file):
    """Except for titles, and for inputs at their defaults that only the page writes."""
    page.open(file)
    nodes = page.nodes()
    assert len(nodes) == len(json.loads(file.read_text())["nodes"])
    assert [n for n in nodes if not n[2]] == []
    from_page = page.prompt()
    from_file = json.loads((PACK / "workflows" / "api" / file.name).read_text())
    assert set(from_page) == set(from_file)
    for key, node in from_file.items():
        assert from_page[key]["class_type"] == node["class_type"]
        got = {k: v for k, v in from_page[key]["inputs"].items() if k in node["inputs"]}
        assert got == node["inputs"], key


@pytest.mark.parametrize(
    ("file", "vue"), RUNS, ids=lambda x: getattr(x, "stem", "nodes_2" if x else "classic")
)
def test_a_workflow_runs_from_the_page_and_its_picture_is_seen_in_the_node(page, server, file, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    page.open(file)
    page.page.evaluate(FEW_STEPS)
    kinds = {n[0]: n[1] for n in page.nodes()}
    pictured = [k for k in kinds if kinds[k] == "SaveImage"] or [
        k for k in kinds if kinds[k] == "LD_LayerComposite"
    ]
    assert pictured
    page.queue(pictured)
    assert page.overlaps() == []  # with the pictures that nodes show after a run
    for node in pictured:
        image = page.page.evaluate("(id) => app.nodeOutputs[id].images[0]", node)
        shown = np.asarray(Image.open(io.BytesIO(server.picture(image))).convert("RGB"))
        assert min(shown.shape[:2]) >= 128
        assert shown.std() > 20


def test_the_preview_picture_fills_the_node_with_what_the_layers_look_like(page):
    """Checks the pixels of the page, not of the file: the red house is on the screen."""
    page.setting("Comfy.VueNodes.Enabled", False)
    page.open(PACK / "workflows/01_storybook_collage.json")
    page.queue(["10"])
    x, y = page.page.evaluate("() => app.graph.getNodeById('10').pos")
    page.look(1.0, (300 - x, 200 - y))
    # The house fills about a seventh of the drawing, which is about 350 pixels wide. On a busy machine it appears
    # late.
    for _ in range(20):
        screen = np.asarray(Image.open(io.BytesIO(page.page.screenshot())).convert("RGB")).astype(int)
        red, green, blue = np.moveaxis(screen, -1, 0)
        seen = ((abs(red - 216) < 12) & (abs(green - 44) < 12) & (abs(blue - 52) < 12)).sum()
        if seen > 3000:
            break
        page.page.wait_for_timeout(500)
    assert seen > 3000


def test_the_blueprint_is_a_stage_of_ordinary_nodes_and_runs(page, server):
    page.setting("Comfy.VueNodes.Enabled", False)
    page.open(PACK / "subgraphs/Add Layer by Prompt.json")
    page.page.evaluate("""() => {
        const stage = app.graph.nodes[0];
        const add = (type, values) => {
            const node = LiteGraph.createNode(type);
            app.graph.add(node);
            for (const w of node.widgets ?? []) if (w.name in values) w.value = values[w.name];
            return node;
        };
        const to = (from, slot, node, name) => from.connect(slot, node, node.inputs.findIndex(i => i.name === name));
        const models = add('LD_LoadDemoModel', {});
        const first = add('LD_AddLayerByPrompt', { prompt: 'a meadow with hills', name: 'meadow',
            width: 128, height: 128, steps: 4, cfg: 3 });
        const box = add('LD_LayerFromImage', { name: 'ball', x: 24, y: 24, width: 80, height: 80 });
        ['model', 'clip', 'vae'].forEach((name, slot) => { to(models, slot, first, name);
            to(models, slot, stage, name); });
        to(first, 0, box, 'layers');
        to(box, 0, stage, 'layers');
        to(first, 1, stage, 'image');
        const values = { prompt: 'a red ball', name: 'ball', steps: 4, cfg: 3 };
        for (const w of stage.widgets) if ((w.label ?? w.name) in values) w.value = values[w.label ?? w.name];
        to(stage, 1, add('PreviewImage', {}), 'images');
    }""")
    prompt = page.prompt()
    kinds = [n["class_type"] for n in prompt.values()]
    assert {
        "LD_RegenerateLayers",
        "KSampler",
        "VAEDecode",
        "LD_PasteBack",
        "LD_StageLayer",
        "LD_StageSeed",
    } <= set(kinds)
    assert not any("-" in k for k in kinds)
    (preview,) = (k for k, n in prompt.items() if n["class_type"] == "PreviewImage")
    entry = server.run(prompt)
    shown = np.asarray(
        Image.open(io.BytesIO(server.picture(entry["outputs"][preview]["images"][0]))).convert("RGB")
    )
    assert shown.shape == (128, 128, 3)
    assert [n["inputs"]["name"] for n in prompt.values() if n["class_type"] == "LD_StageLayer"] == ["ball"]


def test_a_bad_file_is_told_at_the_node(page):
    page.setting("Comfy.VueNodes.Enabled", False)
    defaults = json.loads((PACK / "workflows/api/01_storybook_collage.json").read_text())["4"]["inputs"]
    inputs = {k: v for k, v in defaults.items() if not isinstance(v, list)}
    layer = {"class_type": "LD_LoadLayer", "inputs": {**inputs, "image": "gone.png"}, "_meta": {}}
    page.open_api(
        {
            "1": layer,
            "2": {"class_type": "LD_LayerPreview", "inputs": {"layers": ["1", 0], "size": 64}, "_meta": {}},
        }
    )
    page.complaints.clear()  # the frontend asks for the missing file's thumbnail and gets a 404
    page.page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait("() => Object.keys(app.lastNodeErrors ?? {}).includes('1')")
    errors = page.page.evaluate("() => JSON.stringify(app.lastNodeErrors)")
    assert "gone.png" in errors
    assert "upload it" in errors
    page.complaints.clear()
