"""The fields for a layer's LoRAs appear as they are wanted, and a saved workflow keeps what was chosen."""

import pytest

FILES = ("ink.safetensors", "soft.safetensors")

CHOOSE = """async ([kind, files]) => {
  app.graph.clear();
  const node = LiteGraph.createNode(kind);
  app.graph.add(node);
  const set = async (name, value) => {
    node.widgets.find((widget) => widget.name === name).value = value;
    await new Promise((done) => setTimeout(done));
  };
  await set('loras', 'choose');
  await set('loras.lora', files[1]);
  await set('loras.strength', 0.5);
  await set('loras.second', 'choose');
  await set('loras.second.lora', files[0]);
  await set('loras.second.strength', -1);
  await set('loras.second.third', 'choose');
  await set('loras.second.third', 'none');
  const { output, workflow } = await app.graphToPrompt();
  return [output[node.id].inputs, workflow];
}"""

REOPEN = """async (workflow) => {
  await app.loadGraphData(workflow);
  await new Promise((done) => setTimeout(done));
  const [node] = app.graph.nodes;
  return (await app.graphToPrompt()).output[node.id];
}"""


@pytest.fixture(scope="module", autouse=True)
def files(server):
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (folder / name).touch()


def of_loras(inputs):
    return {name: value for name, value in inputs.items() if name.startswith("loras")}


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
@pytest.mark.parametrize("kind", ["LD_LoadLayer", "LD_LayerFromImage", "LD_EditLayer"])
def test_another_lora_leaves_the_first_as_it_is_also_after_saving(page, kind, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    inputs, workflow = page.page.evaluate(CHOOSE, [kind, FILES])
    wanted = {
        "loras": "choose",
        "loras.lora": FILES[1],
        "loras.strength": 0.5,
        "loras.second": "choose",
        "loras.second.lora": FILES[0],
        "loras.second.strength": -1,
        "loras.second.third": "none",
    }
    assert of_loras(inputs) == wanted
    again = page.page.evaluate(REOPEN, workflow)
    assert again["class_type"] == kind
    assert of_loras(again["inputs"]) == wanted


BEFORE = """async (kind) => {
  app.graph.clear();
  app.graph.add(LiteGraph.createNode(kind));
  const { workflow } = await app.graphToPrompt();
  const [node] = workflow.nodes;
  node.id = workflow.last_node_id = 77;
  delete node.widgets_values_named;
  const place = app.graph.nodes[0].widgets.findIndex(({ name }) => name === 'loras');
  node.widgets_values.splice(place, 1);
  return workflow;
}"""


@pytest.mark.parametrize(("kind", "unset"), [("LD_LoadLayer", "none"), ("LD_EditLayer", "keep")])
def test_a_workflow_from_before_layers_had_loras_opens_without_any(page, kind, unset):
    workflow = page.page.evaluate(BEFORE, kind)
    again = page.page.evaluate(REOPEN, workflow)
    assert again["class_type"] == kind
    assert of_loras(again["inputs"]) == {"loras": unset}
