/** How a layer editor lives in a node of ComfyUI. */

import { app } from "../../../../scripts/app.js";
import { api } from "../../../../scripts/api.js";

/** The language that the user chose, such as "en" or "zh". */
export const language = () => app.extensionManager?.setting?.get("Comfy.Locale");

/** @returns {string} a prompt as ComfyUI sends it: of {a|b} one is chosen, and comments are left out */
export function resolved(text) {
  const field = { dynamicPrompts: true, value: text };
  app.extensions.find(({ name }) => name === "Comfy.DynamicPrompts")?.nodeCreated({ widgets: [field] });
  return field.serializeValue?.(undefined, 0) ?? text;
}

/** The address of a picture that the server has. */
export function address({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "temp" })}`);
}

/** Report a change of the graph to ComfyUI, which looks for changes only when the mouse is released, not after a key. */
export function remember(node) {
  node.graph?.setDirtyCanvas(true, false);
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

/** The key under which ComfyUI keeps the outputs of a node, also of one in a subgraph. */
export const outputKey = (node) => (node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id);

/** In the classic canvas, pass the wheel and the middle button over the editor on to the graph. */
function forward(element) {
  const classic = () => !globalThis.LiteGraph?.vueNodesMode;
  element.addEventListener("wheel", (event) => {
    if (classic() && !event.target.closest(".ld-list, textarea")) app.canvas.processMouseWheel(event);
  });
  for (const [kind, handler] of [["pointerdown", "processMouseDown"], ["pointermove", "processMouseMove"], ["pointerup", "processMouseUp"]])
    element.addEventListener(kind, (event) => {
      const middle = kind === "pointermove" ? event.buttons & 4 : event.button === 1;
      if (classic() && middle) app.canvas[handler](event);
    });
}

/**
 * Make an editor a widget of its node.
 *
 * @param {{type: string, height: number, onExecuted: (output: object) => void, send?: () => Promise<object>}} options `send`: gives the
 *   value that the server gets, if it is not the value that the workflow keeps
 */
export function addEditor(node, name, editor, { type, height, onExecuted, send }) {
  node.layerEditor = editor;
  const widget = node.addDOMWidget(name, type, editor.element, {
    getValue: () => editor.value,
    setValue: (value) => (editor.value = value),
    getMinHeight: () => height,
    serialize: true,
  });
  if (send) widget.serializeValue = send;
  forward(editor.element);
  const { onRemoved, onExecuted: executed } = node;
  node.onRemoved = function (...all) {
    editor.destroy();
    return onRemoved?.apply(this, all);
  };
  node.onExecuted = function (output, ...others) {
    executed?.call(this, output, ...others);
    onExecuted(output);
  };
  return { widget };
}

/** Two fingers on an editor's canvas zoom there: the graph, which would zoom as well, does not hear of them. */
function keepPinches(event) {
  if (event.touches.length > 1 && event.target.closest?.(".ld-stage")) event.stopPropagation();
}

/** Do once what all editors need from the page. */
export function prepare() {
  const href = new URL("./editor.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href }));
  window.addEventListener("touchmove", keepPinches, { capture: true, passive: true });
}

/** Make a new node at least this large. */
export function growTo(node, [width, height]) {
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
}
