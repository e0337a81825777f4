/**
 * Load Layer: ComfyUI keeps the value of the button that uploads a picture behind those of all fields. In workflows of before layers had LoRAs
 * it stands where the LoRAs are now.
 */

import { app } from "../../../scripts/app.js";

const NODE = "LD_LoadLayer";

app.registerExtension({
  name: "LayeredDiffusion.LoadLayer",
  loadedGraphNode(node) {
    if (node.comfyClass !== NODE) return;
    const loras = node.widgets.find(({ name }) => name === "loras");
    const { values } = loras.options;
    if (!values.includes(loras.value)) loras.value = values[0];
  },
});
