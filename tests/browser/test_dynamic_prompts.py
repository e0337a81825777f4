"""The page resolves choices and comments in every prompt field; what it sends, and what pictures hold, is what was
chosen."""

import re

import pytest

from layered_core.formats.dynamic_prompts import dynamic_part

WORDS = "a {red|blue} ball /* secret */ here // no"
CHOSEN = re.compile(r"^a (red|blue) ball  here $")

MAKE = """async (words) => {
  app.graph.clear();
  for (const kind of Object.keys(LiteGraph.registered_node_types).filter((k) => k.startsWith('LD_'))) {
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    for (const name of ['prompt', 'negative'])
      if (kind === 'LD_EditLayer') node.widgets.find((w) => w.name === name).value = 'set';
    await new Promise((done) => setTimeout(done));
    for (const widget of node.widgets ?? [])
      if (/^(prompt|negative|layer_prompts|background)([.]to)?$/.test(widget.name) && widget.type !== 'combo'
          && typeof widget.value === 'string' && widget.value !== 'set')
        widget.value = words;
  }
  const { output } = await app.graphToPrompt();
  return Object.values(output).flatMap((node) => Object.entries(node.inputs)
    .filter(([, value]) => typeof value === 'string' && value.includes('ball'))
    .map(([name, value]) => [node.class_type, name, value]));
}"""

FIELDS = {
    ("LD_AddLayerByPrompt", "negative"),
    ("LD_AddLayerByPrompt", "prompt"),
    ("LD_EditLayer", "negative.to"),
    ("LD_EditLayer", "prompt.to"),
    ("LD_FillBehindLayers", "negative"),
    ("LD_FillBehindLayers", "prompt"),
    ("LD_GenerateLayers", "background"),
    ("LD_GenerateLayers", "layer_prompts"),
    ("LD_GenerateLayers", "negative"),
    ("LD_GenerateLayers", "prompt"),
    ("LD_LayerFromImage", "negative"),
    ("LD_LayerFromImage", "prompt"),
    ("LD_LayeredRendering", "negative"),
    ("LD_LayeredRendering", "prompt"),
    ("LD_LayersFromBoxes", "prompt"),
    ("LD_LayersFromMasks", "layer_prompts"),
    ("LD_LayerMaskFromAttention", "negative"),
    ("LD_LayerMaskFromAttention", "prompt"),
    ("LD_LoadLayer", "negative"),
    ("LD_LoadLayer", "prompt"),
    ("LD_RegionalPromptAttention", "negative"),
    ("LD_RegionalPromptAttention", "prompt"),
    ("LD_StageLayer", "negative"),
    ("LD_StageLayer", "prompt"),
}


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes_2"])
def test_every_prompt_field_is_sent_with_what_was_chosen(page, vue):
    page.setting("Comfy.VueNodes.Enabled", vue)
    sent = page.page.evaluate(MAKE, WORDS)
    assert {(kind, name) for kind, name, _ in sent} == FIELDS
    assert [value for _, _, value in sent if not CHOSEN.match(value)] == []


EDIT = """async (graph) => {
  if (graph) await app.loadGraphData(graph);
  else {
    app.graph.clear();
    app.graph.add(LiteGraph.createNode('LD_EditLayer'));
  }
  const [node] = app.graph.nodes;
  const how = node.widgets.find((w) => w.name === 'prompt');
  if (!graph) how.value = 'set';
  await new Promise((done) => setTimeout(done));
  const words = node.widgets.find((w) => w.name === 'prompt.to');
  if (!graph) words.value = 'a {red|red} ball';
  const { output, workflow } = await app.graphToPrompt();
  return [output[node.id].inputs, words.value, workflow];
}"""


def test_a_saved_workflow_keeps_the_choice_and_chooses_again(page):
    sent, shown, workflow = page.page.evaluate(EDIT, None)
    again = page.page.evaluate(EDIT, workflow)
    for inputs, words in ((sent, shown), again[:2]):
        assert (inputs["prompt"], inputs["prompt.to"]) == ("set", "a red ball")
        assert words == "a {red|red} ball"


def test_words_on_a_board_are_sent_with_what_was_chosen_and_stay_as_they_were_written(page):
    sent, kept = page.page.evaluate(
        """async (words) => {
            app.graph.clear();
            const node = LiteGraph.createNode('LD_LayerBoard');
            app.graph.add(node);
            const layer = { name: 'a', prompt: words, negative: words, x: 0, y: 0, width: 8, height: 8 };
            node.layerEditor.value = { version: 1, prompt: words, layers: [layer] };
            return [(await app.graphToPrompt()).output[node.id].inputs.board, node.layerEditor.value];
        }""",
        WORDS,
    )
    (layer,) = sent["layers"]
    assert all(CHOSEN.match(text) for text in (sent["prompt"], layer["prompt"], layer["negative"]))
    assert kept["layers"][0]["prompt"] == kept["prompt"] == WORDS


@pytest.mark.parametrize(
    "text",
    [
        "{red|red}",
        "{red}",
        "{red",
        "a /* b */",
        "a // b",
        "a /* b",
        r"\{red\}",
        r"\\{red\\}",
        "(red:1.2)",
        "{a|{b|c}}",
        "red}",
        "/ *",
    ],
)
def test_what_is_told_of_is_what_the_page_would_change(page, text):
    page.page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('LD_LoadLayer')); }")
    sent = page.page.evaluate(
        """async (text) => {
          const [node] = app.graph.nodes;
          node.widgets.find((w) => w.name === 'prompt').value = text;
          return (await app.graphToPrompt()).output[node.id].inputs.prompt;
        }""",
        text,
    )
    plain = text.replace(r"\{", "{").replace(r"\}", "}")
    assert (sent != plain) == bool(dynamic_part(text))
