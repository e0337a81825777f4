/** What all layer editors share: canvas, list and panels of a stack of layers, selection, undo, keys. Independent of ComfyUI. */

import { button, element } from "./dom.js";
import { aligned, around, moved } from "./geometry.js";
import { History } from "./history.js";
import { Stage } from "./stage.js";

/**
 * @typedef {object} Model what the editor's state means; pure functions
 * @property {object} EMPTY the state of an editor in which nothing was done
 * @property {(value: unknown) => object | null} read null if this version cannot read the value, which is then kept as it is
 * @property {(state: object) => object} written the value for the workflow
 * @property {(state: object, stack: object[]) => object[]} layers the layers as they are shown, back to front
 * @property {(state: object, stack: object[], name: string, changes: object) => object} changed
 * @property {(state: object, stack: object[], names: string[]) => object} reordered
 */

export class Editor {
  /** @param {{words: (key: string, values?: object) => string, onChange: () => void, model: Model}} host */
  constructor({ words, onChange, model }) {
    this.words = words;
    this.onChange = onChange;
    this.model = model;
    this.state = model.EMPTY;
    this.raw = {};
    this.stack = []; // the layers that come in
    this.stackKnown = false;
    this.remarks = [];
    this.history = new History();
    this.before = null;
    this.selection = [];
    this.tool = null; // what the pointer does on the canvas instead of selecting
    this.snap = true;
    this.ratio = true;
    this.stage = new Stage(this);
  }

  /** Put the parts together, once. @param {{tools: HTMLElement, list: object, panels: object[]}} parts with `element` and `refresh()` each */
  assemble({ tools, list, panels }) {
    this.list = list;
    this.panels = panels;
    this.status = element("div", { className: "ld-status", role: "status" });
    this.main = element("div", { className: "ld-main" }, this.stage.element, this.list.element);
    this.resizes = new ResizeObserver(() => this.layOut());
    this.resizes.observe(this.main);
    this.element = element(
      "div",
      { className: "ld-editor" },
      tools,
      this.main,
      ...panels.map((panel) => panel.element),
      this.status,
    );
    this.element.dataset.captureWheel = "true"; // tells ComfyUI to leave us the wheel while the focus is here
    this.element.addEventListener("keydown", (event) => this.#key(event));
    // A button pressed with the pointer leaves the focus on the canvas.
    this.element.addEventListener("click", (event) => {
      const pressed = event.target.closest(".ld-button, .ld-row, .ld-text-button") && !event.target.closest(".ld-text, .ld-more");
      if (event.detail > 0 && pressed) this.stage.focus();
    });
    this.refresh();
  }

  get hasFocus() {
    return this.element.contains(document.activeElement);
  }

  destroy() {
    this.resizes.disconnect();
    this.stage.destroy();
  }

  // ---- what the workflow keeps ---------------------------------------------------------------------------------------------

  get value() {
    return this.raw;
  }

  /** Take over a value from a workflow; it may be `undefined`. */
  set value(value) {
    this.raw = value ?? {};
    this.state = this.model.read(value);
    this.history = new History();
    this.refresh();
  }

  /** Whether the value in the workflow can be read, and therefore changed. */
  get readable() {
    return this.state !== null;
  }

  // ---- what is shown -------------------------------------------------------------------------------------------------------

  /** The layers as they are shown, back to front. */
  get layers() {
    return this.model.layers(this.state ?? this.model.EMPTY, this.stack);
  }

  layer(name) {
    return this.layers.find((layer) => layer.name === name);
  }

  /** The name of the layer that was selected last. */
  get chosen() {
    return this.selection.at(-1);
  }

  get selected() {
    return this.layer(this.chosen);
  }

  /** All selected layers, back to front. */
  get selectedLayers() {
    return this.layers.filter((layer) => this.selection.includes(layer.name));
  }

  /** Whether a corner handle keeps a layer's ratio of width to height, without Shift. */
  keepsRatio() {
    return this.ratio;
  }

  /** Whether a layer must stay where it is. */
  isLocked() {
    return false;
  }

  /** Select one layer, or none. @param {boolean} adds keep the others, and let go of the layer if it is selected */
  select(name, adds = false) {
    const others = adds ? this.selection.filter((other) => other !== name) : [];
    const lets = name === undefined || (adds && this.selection.includes(name));
    const selection = lets ? others : [...others, name];
    if (selection.join("\n") === this.selection.join("\n")) return;
    this.selection = selection;
    this.history.pause();
    this.refresh();
  }

  /** Put the list beside the canvas or below it, whichever shows the canvas larger. */
  layOut() {
    const { offsetWidth, offsetHeight } = this.main;
    const { width, height } = this.canvas;
    const size = (w, h) => Math.min(w / width, h / height);
    const below = size(offsetWidth, offsetHeight - this.list.heightBelow(offsetHeight));
    const beside = size(offsetWidth - this.list.widthBeside(offsetWidth), offsetHeight);
    this.main.classList.toggle("ld-below", below > beside);
  }

  refresh() {
    this.selection = this.selection.filter((name) => this.layer(name));
    this.stage.draw();
    this.list.refresh();
    for (const panel of this.panels) panel.refresh();
    if (this.undoButton) {
      this.undoButton.disabled = !this.history.canUndo;
      this.redoButton.disabled = !this.history.canRedo;
      this.flipHButton.disabled = this.flipVButton.disabled = !this.readable || !this.selection.length;
    }
    this.stage.empty.textContent = this.emptyText();
    const mode = this.selected?.blend_mode;
    const approximate = mode && !this.stage.painter.isDrawn(mode) ? this.words("approximate", { mode }) : "";
    const { warnings, actions } = this.notes();
    this.status.classList.toggle("ld-warning", warnings.length > 0);
    const words = warnings.join(" ") || approximate;
    this.status.replaceChildren(...(words ? [element("span", { textContent: words })] : []), ...actions);
  }

  /** @returns {string} what stands on an empty canvas */
  emptyText() {
    return "";
  }

  /** @returns {{warnings: string[], actions: HTMLElement[]}} what the user should know, and buttons that mend it */
  notes() {
    return { warnings: this.readable ? this.remarks : [...this.remarks, this.words("unreadable")], actions: [] };
  }

  // ---- changes -------------------------------------------------------------------------------------------------------------

  /** Make `state` the present state. @param {string | null} kind successive changes of one kind are one step of undo */
  edit(state, kind = null) {
    if (!this.readable || JSON.stringify(state) === JSON.stringify(this.state)) return;
    this.history.push(this.state, kind);
    this.#become(state);
  }

  #become(state) {
    this.state = state;
    this.raw = this.model.written(state);
    this.refresh();
    this.onChange();
  }

  /** Start a gesture: everything that changes until `end` is one step of undo. */
  begin() {
    this.before = this.state;
  }

  /** Change fields of a layer. During a gesture, undo records nothing until the gesture ends. */
  change(name, changes, kind = null) {
    this.changeAll([[name, changes]], kind);
  }

  /** @param {[string, object][]} changes name and changed fields of every layer */
  changeAll(changes, kind = null) {
    if (!this.readable) return;
    this.#now(changes.reduce((state, [name, fields]) => this.model.changed(state, this.stack, name, fields), this.state), kind);
  }

  /** Change every selected layer. @param {(layer: object) => object} fields the changed fields of one */
  changeSelected(fields, kind = null) {
    this.changeAll(this.selectedLayers.map((layer) => [layer.name, fields(layer)]), kind && `${kind} ${this.selection.join()}`);
  }

  /** Change the place of every selected layer that is not locked. */
  placeSelected(fields, kind = null) {
    this.changeSelected((layer) => (this.isLocked(layer.name) ? {} : fields(layer)), kind);
  }

  /** Put the layers into an order, back to front. */
  order(names) {
    if (this.readable) this.#now(this.model.reordered(this.state, this.stack, names));
  }

  #now(state, kind = null) {
    if (!this.before) return this.edit(state, kind);
    this.state = state;
    this.refresh();
  }

  end() {
    const { before, state } = this;
    this.before = null;
    if (!before) return;
    this.state = before;
    this.edit(state);
  }

  cancel() {
    if (this.before) this.state = this.before;
    this.before = null;
    this.refresh();
  }

  undo() {
    this.#travel(this.history.undo(this.state));
  }

  redo() {
    this.#travel(this.history.redo(this.state));
  }

  #travel(state) {
    if (state) this.#become(state);
  }

  /** Move the selected layers among the others, keeping their own order. */
  shift(steps) {
    const names = this.layers.map((layer) => layer.name);
    const picked = names.filter((name) => this.selection.includes(name));
    for (const name of steps > 0 ? picked.reverse() : picked) {
      const from = names.indexOf(name);
      const to = Math.min(Math.max(from + steps, 0), names.length - 1);
      if (!picked.includes(names[to])) names.splice(to, 0, ...names.splice(from, 1));
    }
    this.order(names);
  }

  /** Align the selected layers: one with the canvas, several with each other. @param {keyof import("./geometry.js").ALIGNMENTS} how */
  align(how) {
    const layers = this.selectedLayers;
    const frame = layers.length > 1 ? around(layers) : { x: 0, y: 0, ...this.canvas };
    this.placeSelected((layer) => {
      const { x, y } = aligned(layer, frame, how);
      return { x, y };
    });
  }


  /** What the Delete key does. */
  remove() {
    this.changeSelected(() => ({ visible: false }));
  }

  // ---- tools and keys ------------------------------------------------------------------------------------------------------

  /** Buttons of all editors: `{undo, redo, flipH, flipV, snap, fit}`, each as `button()` gives it. */
  commonTools() {
    const press = (name, handler, type) => button(name, this.words(name), handler, type);
    const flip = (field) => () => this.placeSelected((layer) => ({ [field]: !layer[field] }));
    const tools = {
      undo: press("undo", () => this.undo()),
      redo: press("redo", () => this.redo()),
      flipH: press("flipH", flip("flip_h")),
      flipV: press("flipV", flip("flip_v")),
      snap: press("snap", (input) => (this.snap = input.checked), "checkbox"),
      fit: press("fit", () => this.stage.fit()),
    };
    tools.snap.input.checked = this.snap;
    this.undoButton = tools.undo.input;
    this.redoButton = tools.redo.input;
    this.flipHButton = tools.flipH.input;
    this.flipVButton = tools.flipV.input;
    return tools;
  }

  #key(event) {
    if (!this.readable || event.target.matches(".ld-field, .ld-text")) return;
    const choosing = event.target.matches("select, .ld-slider, summary"); // these handle keys themselves
    if (!this.command(event) && (choosing || !this.layerKey(event))) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Handle keys that work wherever the focus is in the editor. @returns {boolean} whether the key is one of them */
  command(event) {
    const key = event.key.toLowerCase();
    const control = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (control && (key === "z" || key === "y")) {
      if (this.before) return true; // ignored during a gesture
      if (key === "y" || event.shiftKey) this.redo();
      else this.undo();
      return true;
    }
    if (control && key === "a") {
      this.selection = this.layers.filter((layer) => !this.isLocked(layer.name)).map((layer) => layer.name);
      this.refresh();
      return true;
    }
    if (key === "escape") {
      if (!this.stage.cancel()) this.select(undefined);
      return true;
    }
    return false;
  }

  /** Handle keys that change the selected layers. @returns {boolean} whether the key is one of them */
  layerKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    if (event.key === "0") {
      this.stage.fit();
      return true;
    }
    if (event.key === "+" || event.key === "-") {
      this.stage.zoomBy(event.key === "+" ? 1.25 : 0.8);
      return true;
    }
    if (!this.selection.length || this.before) return false;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow) {
      const step = event.shiftKey ? 10 : 1;
      this.placeSelected((layer) => {
        const { x, y } = moved(layer, arrow[0] * step, arrow[1] * step);
        return { x, y };
      }, "nudge");
      return true;
    }
    const steps = { "[": -1, "]": 1, PageDown: -1, PageUp: 1 }[event.key];
    if (steps) {
      this.shift(steps);
      return true;
    }
    if (event.key === "Delete" || event.key === "Backspace") {
      this.remove();
      return true;
    }
    return false;
  }
}
