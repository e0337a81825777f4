/** Arrange Layers: puts the layer editor into the node. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { Editor } from "./arrange/editor.js";
import { wordsOf } from "./arrange/words.js";

const NODE = "LD_ArrangeLayers";
const SIZE = [540, 640];

/** The address of a picture that the server wrote. */
function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "temp" })}`);
}

/** Give the editor what the node's last run showed. */
function show(node, output) {
  const shown = output?.arrange_layers?.[0];
  if (!shown || !node.layerEditor) return;
  const layers = shown.layers.map(({ picture, ...layer }) => ({ ...layer, url: picture && address(picture) }));
  node.layerEditor.show({ ...shown, layers });
}

/** Report a change of the graph to ComfyUI, which looks for changes only when the mouse is released, not after a key. */
function remember(node) {
  node.graph?.setDirtyCanvas(true, false);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

function addEditor(node, name) {
  const editor = new Editor({ words: wordsOf(app.extensionManager?.setting?.get("Comfy.Locale")), onChange: () => remember(node) });
  node.layerEditor = editor;
  const widget = node.addDOMWidget(name, "LD_ARRANGEMENT", editor.element, {
    getValue: () => editor.value,
    setValue: (value) => (editor.value = value),
    getMinHeight: () => 340,
    serialize: true,
  });
  const removed = node.onRemoved;
  node.onRemoved = function (...all) {
    editor.destroy();
    return removed?.apply(this, all);
  };
  const executed = node.onExecuted;
  node.onExecuted = function (output, ...others) {
    executed?.call(this, output, ...others);
    show(this, output);
  };
  return { widget };
}

/** In the classic canvas, pass the wheel and the middle button over the editor on to the graph. */
function forward(element) {
  const classic = () => !globalThis.LiteGraph?.vueNodesMode;
  element.addEventListener("wheel", (event) => {
    if (classic() && !event.target.closest(".ld-list")) app.canvas.processMouseWheel(event);
  });
  for (const [kind, handler] of [["pointerdown", "processMouseDown"], ["pointermove", "processMouseMove"], ["pointerup", "processMouseUp"]])
    element.addEventListener(kind, (event) => {
      const middle = kind === "pointermove" ? event.buttons & 4 : event.button === 1;
      if (classic() && middle) app.canvas[handler](event);
    });
}

app.registerExtension({
  name: "LayeredDiffusion.ArrangeLayers",
  init() {
    const href = new URL("./arrange/editor.css", import.meta.url).href;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  },
  getCustomWidgets() {
    return {
      LD_ARRANGEMENT(node, name) {
        const made = addEditor(node, name);
        forward(node.layerEditor.element);
        return made;
      },
    };
  },
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  },
  loadedGraphNode(node) {
    const key = node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id; // the key that ComfyUI gives to outputs of subgraphs
    if (node.comfyClass === NODE) show(node, app.nodeOutputs?.[key]);
  },
});
