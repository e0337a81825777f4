/** Edit Layer: its prompt fields resolve choices {a|b} and comments. ComfyUI sees to that for the fields that a node is made with; these appear later, when a field is set. */

import { app } from "../../../scripts/app.js";

const NODE = "LD_EditLayer";
const RESOLVER = "Comfy.DynamicPrompts";

app.registerExtension({
  name: "LayeredDiffusion.EditLayer",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const resolver = app.extensions.find(({ name }) => name === RESOLVER);
    const add = node.addCustomWidget;
    node.addCustomWidget = function (...all) {
      const widget = add.apply(this, all);
      queueMicrotask(() => resolver?.nodeCreated({ widgets: [widget] })); // ComfyUI marks the widget after it is added
      return widget;
    };
  },
});
