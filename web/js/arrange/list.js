/** The list of layers, the foremost first: select, show or hide, drag to reorder, reset. */

import { button, element } from "./dom.js";
import { reset } from "./state.js";

export class LayerList {
  constructor(editor) {
    this.editor = editor;
    this.element = element("div", { className: "ld-list", role: "list", "aria-label": editor.words("layers") });
    this.rows = new Map();
    this.drag = null;
  }

  refresh() {
    const layers = this.editor.layers.reverse();
    const rows = new Map(layers.map((layer) => [layer.name, this.rows.get(layer.name) ?? this.#row(layer.name)]));
    this.rows = rows;
    const elements = [...rows.values()].map((row) => row.element);
    if (elements.some((made, index) => made !== this.element.children[index]) || elements.length !== this.element.children.length)
      this.element.replaceChildren(...elements);
    for (const layer of layers) this.#update(rows.get(layer.name), layer);
  }

  #row(name) {
    const { editor } = this;
    const visible = () => editor.layers.find((layer) => layer.name === name).visible;
    const eye = button("shown", editor.words("show"), () => editor.change(name, { visible: !visible() }));
    const thumb = element("div", { className: "ld-thumb" }, element("div"));
    const label = `${editor.words("select")} ${name}`;
    const title = element("input", { className: "ld-name", type: "button", value: name, title: name, "aria-label": label });
    title.addEventListener("click", () => editor.select(name));
    const undo = button("reset", editor.words("resetLayer"), () => editor.edit(reset(editor.state, name)));
    const row = element("div", { className: "ld-row", role: "listitem" }, eye.label, thumb, title, undo.label);
    row.addEventListener("pointerdown", (event) => this.#down(event, name, row));
    row.addEventListener("pointermove", (event) => this.#move(event));
    row.addEventListener("pointerup", () => this.#up());
    row.addEventListener("pointercancel", () => this.#up());
    return { element: row, eye, thumb, undo };
  }

  #update({ element: row, eye, thumb, undo }, layer) {
    const { editor } = this;
    row.classList.toggle("ld-selected", layer.name === editor.chosen);
    row.classList.toggle("ld-off", !layer.visible);
    row.classList.toggle("ld-dragged", this.drag?.name === layer.name && this.drag.moving);
    eye.show(layer.visible ? "shown" : "hidden");
    eye.input.disabled = !editor.readable;
    eye.input.setAttribute("aria-pressed", layer.visible);
    undo.label.style.visibility = editor.isChanged(layer.name) ? "visible" : "hidden";
    const url = editor.images.get(layer.name)?.url;
    thumb.classList.toggle("ld-generated", Boolean(layer.generated));
    thumb.firstChild.style.backgroundImage = url ? `url("${url}")` : "";
    const flips = `scale(${layer.flip_h ? -1 : 1}, ${layer.flip_v ? -1 : 1})`;
    thumb.firstChild.style.transform = flips;
  }

  #down(event, name, row) {
    if (event.button !== 0 || event.target.closest(".ld-button")) return;
    event.stopPropagation();
    this.editor.select(name);
    this.drag = { name, y: event.clientY, moving: false, row, pointer: event.pointerId };
  }

  #move(event) {
    const { drag, editor } = this;
    if (!drag || !editor.readable) return;
    event.stopPropagation();
    if (!drag.moving) {
      if (Math.abs(event.clientY - drag.y) < 5) return;
      drag.moving = true;
      drag.row.setPointerCapture(drag.pointer);
      editor.stage.focus(); // a row that moves would lose the focus
      editor.begin();
    }
    const rows = [...this.rows.entries()];
    const over = rows.findIndex(([, row]) => event.clientY < row.element.getBoundingClientRect().bottom);
    const index = over < 0 ? rows.length - 1 : over;
    const names = rows.map(([name]) => name).filter((name) => name !== drag.name);
    names.splice(index, 0, drag.name);
    editor.order(names.reverse());
  }

  #up() {
    const { drag, editor } = this;
    this.drag = null;
    if (!drag?.moving) return;
    editor.end();
    editor.refresh();
  }
}
