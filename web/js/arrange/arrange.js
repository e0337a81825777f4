/** Arrange Layers: an editor that keeps only what was changed of the layers that come in. */

import { element, textButton } from "../editor/dom.js";
import { Editor } from "../editor/editor.js";
import { LayerList } from "../editor/list.js";
import { Picture } from "../editor/picture.js";
import { Values } from "../editor/values.js";
import { EMPTY, absent, arranged, changed, read, reordered, reset, without, written } from "./state.js";

const own = (stack, name) => stack.find((layer) => layer.name === name);

/** @type {import("../editor/editor.js").Model} */
const MODEL = {
  EMPTY,
  read,
  written,
  layers: (state, stack) => arranged(stack, state),
  changed: (state, stack, name, changes) => (own(stack, name) ? changed(state, own(stack, name), changes) : state),
  reordered,
};

export class Arrange extends Editor {
  /** @param {{words: (key: string, values?: object) => string, onChange: () => void}} host */
  constructor(host) {
    super({ ...host, model: MODEL });
    this.canvas = { width: 1, height: 1, background: null };
    this.images = new Map();
    this.values = new Values(this);
    this.assemble({ tools: this.#tools(), list: new LayerList(this), panels: [this.values] });
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
      if (url) images.set(name, old?.url === url ? old : new Picture({ url }, () => this.stage.draw()));
    }
    this.images = images;
    this.layOut();
    this.refresh();
  }

  pictureOf(layer) {
    return this.images.get(layer.name);
  }

  isChanged(name) {
    return Boolean(this.state?.layers[name]);
  }

  /** Undo all changes to a layer but its place among the others. */
  reset(name) {
    this.edit(reset(this.state, name));
  }

  resetAll() {
    if (this.readable) return this.edit(EMPTY);
    this.value = {};
    this.onChange();
  }

  refresh() {
    super.refresh();
    this.resetLayerButton.disabled = !this.readable || !this.selected || !this.isChanged(this.chosen);
    this.resetAllButton.disabled = this.readable && Object.keys(written(this.state)).length === 0;
  }

  emptyText() {
    const count = Object.keys(this.state?.layers ?? {}).length;
    const kept = count ? `\n${this.words(count === 1 ? "keptOne" : "kept", { count })}` : "";
    return !this.stackKnown ? this.words("empty") + kept : this.stack.length ? "" : this.words("none");
  }

  notes() {
    const { warnings, actions } = super.notes();
    const gone = this.stackKnown && this.readable ? absent(this.stack, this.state) : [];
    if (!gone.length) return { warnings, actions };
    const forget = textButton(this.words("forget"), this.words("forget"), () => this.edit(without(this.state, gone)));
    return { warnings: [...warnings, this.words("absent", { names: gone.map((name) => `“${name}”`).join(", ") })], actions: [forget] };
  }

  #tools() {
    const { undo, redo, flipH, flipV, snap, fit } = this.commonTools();
    this.resetLayerButton = textButton(this.words("layer"), this.words("resetLayer"), () => this.reset(this.chosen));
    this.resetAllButton = textButton(this.words("all"), this.words("resetAll"), () => this.resetAll());
    const bar = () => element("span", { className: "ld-bar" });
    return element(
      "div",
      { className: "ld-tools", role: "toolbar", "aria-label": this.words("tools") },
      undo.label, redo.label, bar(), flipH.label, flipV.label, bar(), snap.label, fit.label,
      element("span", { className: "ld-gap" }),
      this.resetLayerButton, this.resetAllButton,
    );
  }
}
