/** The layer editor: canvas, list and values of the layers, with undo and keys. Independent of ComfyUI. */

import { button, element, textButton } from "./dom.js";
import { moved } from "./geometry.js";
import { LayerList } from "./list.js";
import { Picture } from "./picture.js";
import { Stage } from "./stage.js";
import { EMPTY, History, absent, arranged, changed, read, reordered, reset, without, written } from "./state.js";
import { Values } from "./values.js";

export class Editor {
  /** @param {{words: (key: string, values?: object) => string, onChange: () => void}} host */
  constructor({ words, onChange }) {
    this.words = words;
    this.onChange = onChange;
    this.state = EMPTY;
    this.raw = {};
    this.stack = [];
    this.stackKnown = false;
    this.canvas = { width: 1, height: 1, background: null };
    this.remarks = [];
    this.images = new Map();
    this.history = new History();
    this.before = null;
    this.chosen = undefined;
    this.snap = true;
    this.ratio = true;
    this.stage = new Stage(this);
    this.list = new LayerList(this);
    this.values = new Values(this);
    this.status = element("div", { className: "ld-status", role: "status" });
    this.main = element("div", { className: "ld-main" }, this.stage.element, this.list.element);
    this.resizes = new ResizeObserver(() => this.#layOut());
    this.resizes.observe(this.main);
    this.element = element(
      "div",
      { className: "ld-arrange" },
      this.#tools(),
      this.main,
      this.values.element,
      this.status,
    );
    this.element.dataset.captureWheel = "true"; // tells ComfyUI to leave us the wheel while the focus is here
    this.element.addEventListener("keydown", (event) => this.#key(event));
    // A button pressed with the pointer leaves the focus on the canvas.
    this.element.addEventListener("click", (event) => {
      if (event.detail > 0 && event.target.closest(".ld-button, .ld-row, .ld-text-button")) this.stage.focus();
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
    this.state = read(value);
    this.history = new History();
    this.refresh();
  }

  /** Whether the value in the workflow can be read, and therefore changed. */
  get readable() {
    return this.state !== null;
  }

  /** Show the stack of the last run: `{width, height, background, layers: [{name, url, generated, x, ...}], remarks}`. */
  show({ width, height, background, layers, remarks }) {
    this.canvas = { width, height, background };
    this.stack = layers;
    this.stackKnown = true;
    this.remarks = remarks ?? [];
    const images = new Map();
    for (const { name, url } of layers) {
      const old = this.images.get(name);
      if (url) images.set(name, old?.url === url ? old : new Picture(url, () => this.stage.draw()));
    }
    this.images = images;
    this.#layOut();
    this.refresh();
  }

  /** Put the list beside the canvas or below it, whichever shows the canvas larger. */
  #layOut() {
    const { offsetWidth, offsetHeight } = this.main;
    const { width, height } = this.canvas;
    const size = (w, h) => Math.min(w / width, h / height);
    const below = size(offsetWidth, offsetHeight - Math.min(32 * this.stack.length, 0.35 * offsetHeight));
    const beside = size(offsetWidth - Math.min(0.34 * offsetWidth, 180), offsetHeight);
    this.main.classList.toggle("ld-below", below > beside);
  }

  // ---- what is shown -------------------------------------------------------------------------------------------------------

  get layers() {
    return arranged(this.stack, this.state ?? EMPTY);
  }

  get selected() {
    return this.layers.find((layer) => layer.name === this.chosen);
  }

  own(name) {
    return this.stack.find((layer) => layer.name === name);
  }

  isChanged(name) {
    return Boolean(this.state?.layers[name]);
  }

  select(name) {
    if (this.chosen === name) return;
    this.chosen = name;
    this.history.pause();
    this.refresh();
  }

  refresh() {
    this.stage.draw();
    this.list.refresh();
    this.values.refresh();
    const chosen = this.readable && this.selected;
    this.undoButton.disabled = !this.history.canUndo;
    this.redoButton.disabled = !this.history.canRedo;
    this.flipHButton.disabled = this.flipVButton.disabled = !chosen;
    this.resetLayerButton.disabled = !chosen || !this.isChanged(chosen.name);
    this.resetAllButton.disabled = this.readable && Object.keys(written(this.state)).length === 0;
    const changes = Object.keys(this.state?.layers ?? {}).length;
    const kept = changes ? `\n${this.words("kept", { count: changes })}` : "";
    this.stage.empty.textContent = !this.stackKnown ? this.words("empty") + kept : this.stack.length ? "" : this.words("none");
    this.#say();
  }

  #say() {
    const gone = this.stackKnown && this.readable ? absent(this.stack, this.state) : [];
    const lines = [...this.remarks];
    if (!this.readable) lines.push(this.words("unreadable"));
    if (gone.length) lines.push(this.words("absent", { names: gone.map((name) => `“${name}”`).join(", ") }));
    const mode = this.selected?.blend_mode;
    const approximate = mode && !this.values.isDrawn(mode) ? this.words("approximate", { mode }) : "";
    this.status.classList.toggle("ld-warning", lines.length > 0);
    const words = lines.join(" ") || approximate;
    this.status.replaceChildren(...(words ? [element("span", { textContent: words })] : []));
    if (gone.length) this.status.append(textButton(this.words("forget"), this.words("forget"), () => this.edit(without(this.state, gone))));
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
    this.raw = written(state);
    this.refresh();
    this.onChange();
  }

  /** Start a gesture: everything that changes until `end` is one step of undo. */
  begin() {
    this.before = this.state;
  }

  /** Change fields of a layer. During a gesture, undo records nothing until the gesture ends. */
  change(name, changes, kind = null) {
    const own = this.own(name);
    if (!own || !this.readable) return;
    const state = changed(this.state, own, changes);
    if (!this.before) return this.edit(state, kind);
    this.state = state;
    this.refresh();
  }

  /** Put the layers into an order, back to front. */
  order(names) {
    if (!this.readable) return;
    const state = reordered(this.state, this.stack, names);
    if (!this.before) return this.edit(state);
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

  resetAll() {
    if (this.readable) return this.edit(EMPTY);
    this.value = {};
    this.onChange();
  }

  /** Move the selected layer among the others. */
  #shift(steps) {
    const names = this.layers.map((layer) => layer.name);
    const from = names.indexOf(this.chosen);
    const to = Math.min(Math.max(from + steps, 0), names.length - 1);
    names.splice(to, 0, ...names.splice(from, 1));
    this.order(names);
  }

  // ---- tools and keys ------------------------------------------------------------------------------------------------------

  #tools() {
    const press = (name, handler, type) => button(name, this.words(name), handler, type);
    const flip = (field) => () => this.selected && this.change(this.chosen, { [field]: !this.selected[field] });
    const undo = press("undo", () => this.undo());
    const redo = press("redo", () => this.redo());
    const flipH = press("flipH", flip("flip_h"));
    const flipV = press("flipV", flip("flip_v"));
    const snap = press("snap", (input) => (this.snap = input.checked), "checkbox");
    const fit = press("fit", () => this.stage.fit());
    this.resetLayerButton = textButton(this.words("layer"), this.words("resetLayer"), () => this.edit(reset(this.state, this.chosen)));
    this.resetAllButton = textButton(this.words("all"), this.words("resetAll"), () => this.resetAll());
    snap.input.checked = this.snap;
    this.undoButton = undo.input;
    this.redoButton = redo.input;
    this.flipHButton = flipH.input;
    this.flipVButton = flipV.input;
    const bar = () => element("span", { className: "ld-bar" });
    return element(
      "div",
      { className: "ld-tools", role: "toolbar" },
      undo.label, redo.label, bar(), flipH.label, flipV.label, bar(), snap.label, fit.label,
      element("span", { className: "ld-gap" }),
      this.resetLayerButton, this.resetAllButton,
    );
  }

  #key(event) {
    if (!this.readable || event.target.matches(".ld-field")) return;
    const choosing = event.target.matches("select, .ld-slider"); // these handle keys themselves
    if (!this.#command(event) && (choosing || !this.#layerKey(event))) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Handle keys that work wherever the focus is in the editor. @returns {boolean} whether the key is one of them */
  #command(event) {
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && !event.altKey && (key === "z" || key === "y")) {
      if (this.before) return true; // ignored during a gesture
      if (key === "y" || event.shiftKey) this.redo();
      else this.undo();
      return true;
    }
    if (key === "escape") {
      if (!this.stage.cancel()) this.select(undefined);
      return true;
    }
    return false;
  }

  /** Handle keys that change the selected layer. @returns {boolean} whether the key is one of them */
  #layerKey(event) {
    const layer = this.selected;
    if (event.key === "0") {
      this.stage.fit();
      return true;
    }
    if (!layer || this.before) return false;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const step = event.shiftKey ? 10 : 1;
      const { x, y } = moved(layer, arrow[0] * step, arrow[1] * step);
      this.change(layer.name, { x, y }, `nudge ${layer.name}`);
      return true;
    }
    const steps = { "[": -1, "]": 1, PageDown: -1, PageUp: 1 }[event.key];
    if (steps) {
      this.#shift(steps);
      return true;
    }
    if (event.key === "Delete" || event.key === "Backspace") {
      this.change(layer.name, { visible: false });
      return true;
    }
    return false;
  }
}
