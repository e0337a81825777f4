/** What belongs to the whole picture: its size, background and words. Shown while no layer is selected. */

import { element } from "../editor/dom.js";
import { canvasChanged } from "./state.js";

const MAX_SIDE = 16384;
const hex = (colour) => `#${colour.map((value) => Math.round(value * 255).toString(16).padStart(2, "0")).join("")}`;
const colourOf = (text) => [1, 3, 5].map((at) => Number.parseInt(text.slice(at, at + 2), 16) / 255);

export class CanvasPanel {
  constructor(board) {
    const { words } = board;
    this.board = board;
    this.width = this.#side("width");
    this.height = this.#side("height");
    this.filled = element("input", { type: "checkbox", "aria-label": words("background") });
    this.colour = element("input", { type: "color", className: "ld-colour", "aria-label": words("background") });
    const fill = (background, kind) => board.edit(canvasChanged(board.state, { background }), kind);
    this.filled.addEventListener("change", () => fill(this.filled.checked ? colourOf(this.colour.value) : null));
    this.colour.addEventListener("input", () => fill(colourOf(this.colour.value), "background"));
    this.prompt = this.#words("prompt", "wholePrompt");
    this.negative = this.#words("negative", "wholeNegative");
    const label = (key, ...inputs) => element("label", { className: "ld-label", title: words(key) }, ...inputs);
    const background = element("span", { className: "ld-label" }, label("background", this.filled, words("background")), this.colour);
    this.element = element(
      "div",
      { className: "ld-rows" },
      element("div", { className: "ld-values" }, label("canvasWidth", words("canvasSize"), this.width), "×", label("canvasHeight", this.height), background),
      element("div", { className: "ld-values ld-whole" }, this.prompt, this.negative),
    );
  }

  #side(name) {
    const title = this.board.words(name === "width" ? "canvasWidth" : "canvasHeight");
    const field = element("input", { type: "number", className: "ld-field", min: 1, max: MAX_SIDE, step: 8, title, "aria-label": title });
    field.addEventListener("change", () => {
      const { board } = this;
      const value = Math.min(Math.max(Math.round(Number(field.value)), 1), MAX_SIDE);
      if (Number.isFinite(value)) board.edit(canvasChanged(board.state, { width: board.canvas.width, height: board.canvas.height, [name]: value }));
      this.refresh();
      board.layOut();
    });
    return field;
  }

  #words(key, name) {
    const { board } = this;
    const title = board.words(name);
    const field = element("input", { type: "text", className: "ld-text ld-words", placeholder: title, title, "aria-label": title });
    field.addEventListener("input", () => board.edit(canvasChanged(board.state, { [key]: field.value }), `whole ${key}`));
    field.addEventListener("change", () => board.history.pause());
    return field;
  }

  refresh() {
    const { board } = this;
    const state = board.state ?? board.model.EMPTY;
    this.element.hidden = board.selection.length > 0;
    const { width, height, background } = board.canvas;
    const show = (field, value) => {
      field.disabled = !board.readable;
      if (field !== document.activeElement) field.value = value;
    };
    show(this.width, width);
    show(this.height, height);
    show(this.prompt, state.prompt ?? "");
    show(this.negative, state.negative ?? "");
    this.filled.disabled = this.colour.disabled = !board.readable;
    this.filled.checked = Boolean(background);
    if (background) this.colour.value = hex(background);
    this.colour.hidden = !background;
  }
}
