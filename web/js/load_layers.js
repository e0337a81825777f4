/** Load Layers: upload a layered file by a button, or by dropping it on the node. ComfyUI's own upload is for pictures, video and sound. */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "LD_LoadLayers";
const EXTENSIONS = [".psd", ".psb", ".ora"];
const LABELS = { en: "upload PSD or ORA", zh: "上传 PSD 或 ORA" };

const isLayered = (file) => EXTENSIONS.some((end) => file.name.toLowerCase().endsWith(end));

/** Send the file to ComfyUI's input folder and choose it. */
async function upload(file, widget) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) {
    app.extensionManager?.toast?.add({ severity: "error", summary: file.name, detail: `${answer.status} ${answer.statusText}`, life: 8000 });
    return;
  }
  const { name, subfolder } = await answer.json();
  const path = subfolder ? `${subfolder}/${name}` : name;
  if (!widget.options.values.includes(path)) widget.options.values.push(path);
  widget.value = path;
  widget.callback?.(path);
}

app.registerExtension({
  name: "layered-diffusion.LoadLayers",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widget = node.widgets.find((w) => w.name === "file");
    const language = app.extensionManager?.setting?.get("Comfy.Locale")?.slice(0, 2);
    const button = node.addWidget("button", LABELS[language] ?? LABELS.en, null, () => {
      const input = Object.assign(document.createElement("input"), { type: "file", accept: EXTENSIONS.join(",") });
      input.onchange = () => input.files.length && upload(input.files[0], widget);
      input.click();
    });
    button.serialize = false;
    button.options.serialize = false;
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = async (event) => {
      const file = [...event.dataTransfer.files].find(isLayered);
      if (file) await upload(file, widget);
      return Boolean(file);
    };
  },
});
