"""Load Layers in the page takes a layered file by its button and when it is dropped on the node."""

import json

import pytest

from layered_core.document import Layer, LayerDocument
from layered_core.files import write_layers

FILE = "() => app.graph.getNodeById('1').widgets.find(w => w.name === 'file').value"
BUTTON = "() => app.graph.getNodeById('1').widgets.find(w => w.type === 'button').callback()"
DROP = """async ([name, bytes]) => {
  const node = app.graph.getNodeById('1'), dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
  return [node.onDragOver({ dataTransfer }), await node.onDragDrop({ dataTransfer })];
}"""


@pytest.fixture
def graph(page):
    load = {
        "class_type": "LD_LoadLayers",
        "inputs": {"file": "storybook.psd [example]", "memory_limit": 4},
        "_meta": {},
    }
    show = {"class_type": "LD_LayerPreview", "inputs": {"layers": ["1", 0], "size": 64}, "_meta": {}}
    page.open_api({"1": load, "2": show})
    page.wait("() => app.graph.getNodeById('1')?.widgets?.some(w => w.type === 'button')")


@pytest.fixture(params=[".psd", ".ora"])
def file(request, tmp_path):
    return write_layers(
        LayerDocument(8, 8, (Layer("box", width=4, height=4),), (1, 0, 0)),
        tmp_path / f"upload{request.param}",
    )


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
def test_a_file_chosen_with_the_button_is_uploaded_and_runs(page, graph, file, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    with page.page.expect_file_chooser() as chooser:
        page.page.evaluate(BUTTON)
    chooser.value.set_files(str(file))
    page.wait(f"() => ({FILE})().startsWith('upload')")
    page.queue(["2"])
    assert page.prompt()["1"]["inputs"] == {
        "file": page.page.evaluate(FILE),
        "memory_limit": 4,
        "merged_picture": False,
        "groups": "auto",
    }


def test_a_file_dropped_on_the_node_is_uploaded_and_other_files_are_left_to_others(page, graph, file):
    assert page.page.evaluate(DROP, [f"dropped{file.suffix}", list(file.read_bytes())]) == [True, True]
    assert page.page.evaluate(FILE) == f"dropped{file.suffix}"
    assert page.page.evaluate(DROP, ["picture.png", [1, 2, 3]]) == [True, False]
    page.queue(["2"])


def test_the_button_is_no_part_of_the_workflow(page, graph):
    saved = page.page.evaluate(
        "() => JSON.stringify(app.graph.serialize().nodes.find(n => n.id == 1).widgets_values)"
    )
    assert json.loads(saved) == ["storybook.psd [example]", 4, False, "auto"]
