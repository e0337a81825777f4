/** What acts for the selected layer besides its words: shown under its row, folded until it is wanted. */

import { element } from "../editor/dom.js";
import { LoraField } from "./lora_field.js";

/** The same as layered_core.document.HINTS. */
export const HINTS = ["none", "picture", "canny", "scribble", "lineart", "depth", "normal", "pose", "segmentation"];

export class Drawer {
  /** @param {{name: string}} row the layer's row */
  constructor(board, row) {
    const { words } = board;
    this.board = board;
    const set = (recipe, kind) => board.change(row.name, { recipe }, kind && `${kind} ${row.name}`);
    const control = (changes, kind) => set({ control: { ...board.layer(row.name).recipe.control, ...changes } }, kind);
    this.negative = element("input", { className: "ld-text ld-words", type: "text", placeholder: words("negative"), "aria-label": words("negative") });
    this.negative.addEventListener("input", () => board.change(row.name, { negative: this.negative.value }, `negative ${row.name}`));
    this.fields = [
      this.#slider("noise", 1, (layer) => !layer.generated, (layer) => board.freedomOf(layer), (value) => set({ noise: value }, "noise")),
      this.#slider("inside", 1, (layer) => layer.prompt, (layer) => layer.recipe.inside, (value) => set({ inside: value, outside: value }, "inside")),
      this.#choice("hint", HINTS, (layer) => !layer.generated, (layer) => layer.recipe.control.hint, (value) => control({ hint: value })),
      this.#slider(
        "hintStrength", 2, (layer) => layer.recipe.control.hint !== "none", (layer) => layer.recipe.control.strength,
        (value) => control({ strength: value }, "hint"),
      ),
      this.#text("seed", (layer) => layer.prompt, (layer) => layer.recipe.seed ?? "", (text) => set({ seed: /^\d{1,16}$/.test(text) ? Number(text) : null })),
      this.#text("embedding", (layer) => layer.prompt, (layer) => layer.recipe.embedding ?? "", (text) => set({ embedding: text || null }), board.embeddings),
      this.#loras((loras, kind) => set({ loras }, kind)),
    ];
    const rows = this.fields.map((field) => field.element);
    const fold = element("details", { className: "ld-fold" }, element("summary", { textContent: words("more") }), ...rows);
    fold.open = Boolean(board.unfolded);
    fold.addEventListener("toggle", () => (board.unfolded = fold.open));
    this.fold = fold;
    this.element = element("div", { className: "ld-more" }, this.negative, fold);
  }

  /** @param {boolean} shown whether the layer is the one that is edited */
  update(layer, shown) {
    this.element.hidden = !shown;
    if (!shown) return;
    if (this.negative !== document.activeElement) this.negative.value = layer.negative;
    this.negative.hidden = !layer.prompt && !layer.negative;
    for (const { element: row, acts, show } of this.fields) {
      row.hidden = !acts(layer);
      show(layer);
    }
    this.fold.hidden = this.fields.every(({ element: row }) => row.hidden);
    this.fold.open = Boolean(this.board.unfolded);
  }

  #row(key, ...inputs) {
    const title = this.board.words(`${key}Why`);
    return element("label", { className: "ld-label ld-drawer-row", title }, element("span", { textContent: this.board.words(key) }), ...inputs);
  }

  #slider(key, max, acts, get, set) {
    const slider = element("input", { type: "range", className: "ld-slider", min: 0, max, step: 0.05, "aria-label": this.board.words(key) });
    const number = element("output", { className: "ld-number" });
    slider.addEventListener("input", () => set(Number(slider.value)));
    slider.addEventListener("change", () => this.board.history.pause());
    const show = (layer) => {
      slider.value = get(layer);
      number.textContent = Number(get(layer)).toFixed(2);
    };
    return { element: this.#row(key, slider, number), acts, show };
  }

  #choice(key, options, acts, get, set) {
    const select = element("select", { "aria-label": this.board.words(key) });
    select.append(...options.map((value) => element("option", { value, textContent: value })));
    select.addEventListener("change", () => set(select.value));
    return { element: this.#row(key, select), acts, show: (layer) => (select.value = get(layer)) };
  }

  #text(key, acts, get, set, names) {
    const field = element("input", { type: "text", className: "ld-text", placeholder: this.board.words(`${key}None`), "aria-label": this.board.words(key) });
    field.addEventListener("change", () => set(field.value.trim()));
    names?.offer(field);
    const show = (layer) => {
      if (field !== document.activeElement) field.value = get(layer);
    };
    return { element: this.#row(key, field), acts, show };
  }

  #loras(set) {
    const field = new LoraField(this.board, set);
    return { element: field.element, acts: (layer) => layer.prompt || layer.recipe.loras.length, show: (layer) => field.show(layer) };
  }
}
