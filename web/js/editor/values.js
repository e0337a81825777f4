/** The selected layer's place and look as numbers. */

import { button, element } from "./dom.js";
import { upright } from "./geometry.js";

/** The same as layered_core.document.BLEND_MODES. */
export const BLEND_MODES = [
  "normal", "multiply", "screen", "overlay", "darken", "lighten", "color-dodge", "color-burn", "hard-light", "soft-light", "difference",
  "exclusion", "linear-dodge", "linear-burn", "vivid-light", "pin-light", "linear-light", "hard-mix", "subtract", "divide", "grain-extract",
  "grain-merge", "hue", "saturation", "color", "luminosity",
];

const LIMITS = { x: [-65536, 65536], y: [-65536, 65536], width: [1, 16384], height: [1, 16384], rotation: [-180, 180] };

export class Values {
  constructor(editor) {
    this.editor = editor;
    this.fields = {};
    this.typing = null; // the field whose text is not applied yet
    const labels = { x: "X", y: "Y", width: "W", height: "H", rotation: "∠" };
    const number = (name) => {
      this.fields[name] = this.#number(name, LIMITS[name], name === "rotation" ? 0.1 : 1, (value) => this.#set(name, value));
      return element("label", { className: "ld-label", title: editor.words(name) }, labels[name], this.fields[name]);
    };
    this.lock = button("ratio", editor.words("ratio"), (input) => (editor.ratio = input.checked), "checkbox");
    this.lock.input.checked = editor.ratio;
    const named = { title: editor.words("opacity"), "aria-label": editor.words("opacity") };
    this.slider = element("input", { type: "range", className: "ld-slider", min: 0, max: 100, step: 1, ...named });
    this.slider.addEventListener("input", () => editor.changeSelected(() => ({ opacity: this.slider.value / 100 }), "opacity"));
    this.slider.addEventListener("change", () => editor.history.pause());
    this.percent = this.#number("opacity", [0, 100], 1, (value) => editor.changeSelected(() => ({ opacity: value / 100 })));
    this.percent.classList.add("ld-short");
    this.mode = element("select", { title: editor.words("blend"), "aria-label": editor.words("blend") });
    this.mode.append(...BLEND_MODES.map((mode) => element("option", { value: mode, textContent: mode })));
    this.mode.addEventListener("change", () => editor.changeSelected(() => ({ blend_mode: this.mode.value })));
    const row = (...children) => element("div", { className: "ld-values" }, ...children);
    const opacity = element("label", { className: "ld-label ld-wide", title: editor.words("opacity") }, editor.words("opacity"), this.slider);
    this.element = element(
      "div",
      { className: "ld-rows" },
      row(number("x"), number("y"), number("width"), this.lock.label, number("height"), number("rotation")),
      row(opacity, element("label", { className: "ld-label" }, this.percent, "%"), this.mode),
    );
  }

  refresh() {
    const layer = this.editor.selected;
    const off = !layer || !this.editor.readable;
    const show = (field, value) => {
      field.disabled = off;
      if (field !== this.typing) field.value = value;
    };
    for (const [name, field] of Object.entries(this.fields)) {
      show(field, layer ? Math.round(layer[name] * 10) / 10 : "");
      field.disabled ||= this.editor.isLocked(layer.name);
    }
    this.lock.input.disabled = off;
    show(this.slider, layer ? layer.opacity * 100 : 100);
    show(this.percent, layer ? Math.round(layer.opacity * 100) : "");
    show(this.mode, layer?.blend_mode ?? "normal");
  }

  #number(name, [min, max], step, set) {
    const named = { title: this.editor.words(name), "aria-label": this.editor.words(name) };
    const field = element("input", { type: "number", className: "ld-field", min, max, step, ...named });
    field.addEventListener("change", () => {
      const value = Number.parseFloat(field.value);
      this.typing = null;
      if (Number.isFinite(value)) set(Math.min(Math.max(value, min), max));
      this.refresh();
    });
    field.addEventListener("input", () => (this.typing = field));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation(); // text typed here is not a command
      if (event.key !== "Enter" && event.key !== "Escape") return;
      if (event.key === "Escape") {
        this.typing = null;
        this.refresh();
      }
      this.editor.stage.focus();
    });
    return field;
  }

  #set(name, value) {
    const { editor } = this;
    const layer = editor.selected;
    if (!layer) return;
    if (name === "rotation") return editor.change(layer.name, { rotation: upright(value) });
    const whole = Math.round(value);
    const changes = { [name]: whole };
    const other = { width: "height", height: "width" }[name];
    if (other && editor.ratio) {
      const [least, most] = LIMITS[other];
      changes[other] = Math.min(Math.max(Math.round((layer[other] * whole) / layer[name]), least), most);
    }
    editor.change(layer.name, changes);
  }
}
