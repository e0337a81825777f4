/** Arrange Layers: puts the layer editor into the node. */

import { app } from "../../../scripts/app.js";
import { Arrange } from "./arrange/arrange.js";
import { addEditor, address, growTo, language, outputKey, prepare, remember } from "./editor/host.js";
import { wordsOf } from "./editor/words.js";

const NODE = "LD_ArrangeLayers";

/** Give the editor what the node's last run showed. */
function show(node, output) {
  const shown = output?.arrange_layers?.[0];
  if (!shown || !node.layerEditor) return;
  const layers = shown.layers.map(({ picture, ...layer }) => ({ ...layer, url: picture && address(picture) }));
  node.layerEditor.show({ ...shown, layers });
}

app.registerExtension({
  name: "LayeredDiffusion.ArrangeLayers",
  init: prepare,
  getCustomWidgets() {
    return {
      LD_ARRANGEMENT(node, name) {
        const editor = new Arrange({ words: wordsOf(language()), onChange: () => remember(node) });
        return addEditor(node, name, editor, { type: "LD_ARRANGEMENT", height: 340, onExecuted: (output) => show(node, output) });
      },
    };
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) growTo(node, [540, 640]);
  },
  loadedGraphNode(node) {
    if (node.comfyClass === NODE) show(node, app.nodeOutputs?.[outputKey(node)]);
  },
});
