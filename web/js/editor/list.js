/** The list of layers, the foremost first: select, show or hide, drag to reorder. */

import { button, element } from "./dom.js";

export class LayerList {
  constructor(editor) {
    this.editor = editor;
    this.element = element("div", { className: "ld-list", role: "list", "aria-label": editor.words("layers") });
    this.rows = new Map();
    this.drag = null;
  }

  /** Height and width that the list takes below and beside the canvas, pixels. */
  heightBelow(room) {
    return Math.min(32 * this.rows.size, 0.35 * room);
  }

  widthBeside(room) {
    return Math.min(0.34 * room, 180);
  }

  refresh() {
    const layers = this.editor.layers.reverse();
    const rows = new Map(layers.map((layer) => [layer.name, this.rows.get(layer.name) ?? this.#held(layer.name)]));
    this.rows = rows;
    const elements = [...rows.values()].map((row) => row.element);
    if (elements.some((made, index) => made !== this.element.children[index]) || elements.length !== this.element.children.length)
      this.element.replaceChildren(...elements);
    for (const layer of layers) this.update(rows.get(layer.name), layer);
    const { chosen } = this.editor;
    if (chosen !== this.shown && rows.has(chosen)) this.#scrollTo(rows.get(chosen).element);
    this.shown = chosen;
  }

  /** Scroll the list, and nothing around it, until the row is seen. */
  #scrollTo(row) {
    const { element: list } = this;
    const top = row.offsetTop - list.offsetTop;
    list.scrollTop = Math.min(Math.max(list.scrollTop, top + row.offsetHeight - list.clientHeight), top);
  }

  /** Keep the row of a layer that gets another name. */
  rekey(from, to) {
    const row = this.rows.get(from);
    if (row) row.name = to;
    this.rows = new Map([...this.rows].map(([name, one]) => [name === from ? to : name, one]));
  }

  #held(name) {
    const row = { name };
    Object.assign(row, this.parts(row));
    Object.assign(row, this.finish(row));
    row.element.addEventListener("pointerdown", (event) => this.#down(event, row));
    row.element.addEventListener("pointermove", (event) => this.#move(event));
    row.element.addEventListener("pointerup", () => this.#up());
    row.element.addEventListener("pointercancel", () => this.#up());
    return row;
  }

  /** The parts of a layer's row that every editor has. @param {{name: string}} row */
  parts(row) {
    const { editor } = this;
    const eye = button("shown", editor.words("show"), () => editor.change(row.name, { visible: !editor.layer(row.name).visible }));
    const thumb = element("div", { className: "ld-thumb" }, element("div"));
    const title = element("input", { className: "ld-name", type: "button" });
    title.addEventListener("click", (event) => event.detail === 0 && editor.select(row.name)); // a press selects at once
    return { eye, thumb, title };
  }

  /** The rest of a new row, with its element. */
  finish(row) {
    const undo = button("reset", this.editor.words("resetLayer"), () => this.editor.reset(row.name));
    return { undo, element: element("div", { className: "ld-row", role: "listitem" }, row.eye.label, row.thumb, row.title, undo.label) };
  }

  /** Bring a row up to date. */
  update(row, layer) {
    this.updateParts(row, layer);
    row.undo.label.style.visibility = this.editor.isChanged(layer.name) ? "visible" : "hidden";
  }

  updateParts({ element: row, eye, thumb, title }, layer) {
    const { editor } = this;
    if (title.type === "button") title.value = title.title = layer.name;
    title.setAttribute("aria-label", `${editor.words("choose")} ${layer.name}`);
    row.classList.toggle("ld-selected", editor.selection.includes(layer.name));
    row.classList.toggle("ld-off", !layer.visible);
    row.classList.toggle("ld-dragged", this.drag?.name === layer.name && this.drag.moving);
    eye.show(layer.visible ? "shown" : "hidden");
    eye.input.disabled = !editor.readable;
    eye.input.setAttribute("aria-pressed", layer.visible);
    const url = editor.pictureOf(layer)?.url;
    thumb.classList.toggle("ld-generated", Boolean(layer.generated));
    thumb.firstChild.style.backgroundImage = url ? `url("${url}")` : "";
    const flips = `scale(${layer.flip_h ? -1 : 1}, ${layer.flip_v ? -1 : 1})`;
    thumb.firstChild.style.transform = flips;
  }

  #down(event, { name, element: row }) {
    if (event.button !== 0 || event.target.closest(".ld-button, .ld-text, .ld-more")) return;
    event.stopPropagation();
    const adds = event.shiftKey || event.ctrlKey || event.metaKey;
    if (adds || this.editor.selection.length !== 1 || this.editor.chosen !== name) this.editor.select(name, adds);
    if (event.pointerType === "touch" && !event.target.closest(".ld-thumb")) return; // a finger scrolls, but for the thumbnail
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
