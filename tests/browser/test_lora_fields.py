"""The fields for a layer's LoRAs, in nodes and on the board: they appear as they are wanted, and a saved workflow keeps
what was chosen."""

import pytest
from boards import BoardInPage, board

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


@pytest.fixture
def made(page, server):
    """A board with a box, in the classic way to draw nodes."""
    return BoardInPage(
        page, server, False, board({"name": "green", "x": 8, "y": 8, "width": 32, "height": 32})
    )


def test_loras_of_a_layer_are_added_by_name_weighed_and_removed(made):
    folder = made.server.base / "models" / "loras" / "people"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "anna.safetensors").touch()
    made.pick("green")
    made.page.locator(".ld-row.ld-selected .ld-words").first.fill("a green square")
    made.page.locator(".ld-row.ld-selected summary").click()
    row = made.page.locator(".ld-row.ld-selected .ld-loras")
    adder = row.get_by_label("LoRA", exact=True)
    adder.click()
    offered = "document.getElementById(document.activeElement.getAttribute('list'))?.options ?? []"
    made.ask(f"[...{offered}].some(({{ value }}) => value === 'people/anna.safetensors')", wait=True)
    for text in ("people/anna.safetensors", "nowhere:0.5"):
        adder.fill(text)
        adder.press("Enter")
    assert adder.input_value() == ""
    assert made.entry("green")["recipe"]["loras"] == [
        {"name": "people/anna.safetensors", "strength": 1},
        {"name": "nowhere", "strength": 0.5},
    ]
    assert row.locator(".ld-chip").all_inner_texts() == ["anna", "nowhere"]
    assert row.locator(".ld-missing").all_inner_texts() == ["nowhere"]
    number = row.get_by_label("Strength of people/anna.safetensors")
    number.fill("-9")
    assert made.entry("green")["recipe"]["loras"][0]["strength"] == -4
    number.fill("0.75")
    row.get_by_label("Remove nowhere").click()
    assert made.entry("green")["recipe"]["loras"] == [{"name": "people/anna.safetensors", "strength": 0.75}]
    made.press("Control+z")
    assert row.locator(".ld-chip").all_inner_texts() == ["anna", "nowhere"]
