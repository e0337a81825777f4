/** The board's list: a row for each layer with its words, and what else acts for it in a drawer. */

import { button, element } from "../editor/dom.js";
import { LayerList } from "../editor/list.js";
import { Drawer } from "./drawer.js";

export class Rows extends LayerList {
  constructor(editor) {
    super(editor);
    this.element.classList.add("ld-board-list");
  }

  heightBelow(room) {
    return Math.min(66 * this.rows.size + 40, 0.42 * room);
  }

  widthBeside(room) {
    return Math.min(0.42 * room, 340);
  }

  finish(row) {
    const { editor } = this;
    const { words } = editor;
    const lock = button("unlocked", words("lock"), () => editor.put("locked", [row.name], !editor.isLocked(row.name)));
    const mark = button("redo_layer", words("mark"), () => editor.put("marked", [row.name], !editor.isMarked(row.name)));
    row.title.addEventListener("dblclick", () => this.rename(row.name));
    const prompt = element("input", { className: "ld-text ld-words", type: "text", placeholder: words("prompt") });
    prompt.addEventListener("focus", () => (editor.selection.length === 1 && editor.chosen === row.name) || editor.select(row.name));
    prompt.addEventListener("input", () => editor.describe(row.name, prompt.value));
    prompt.addEventListener("change", () => editor.nameByWords(row.name));
    prompt.addEventListener("keydown", (event) => event.key === "Enter" && !event.isComposing && editor.stage.focus());
    const drawer = new Drawer(editor, row);
    const head = element("div", { className: "ld-head" }, row.thumb, row.eye.label, lock.label, row.title, mark.label);
    return { lock, mark, prompt, drawer, element: element("div", { className: "ld-row ld-board-row", role: "listitem" }, head, prompt, drawer.element) };
  }

  update(row, layer) {
    const { editor } = this;
    this.updateParts(row, layer);
    const off = !editor.readable;
    const [locked, marked] = [editor.isLocked(layer.name), editor.isMarked(layer.name)];
    row.lock.show(locked ? "locked" : "unlocked");
    row.lock.input.setAttribute("aria-pressed", locked);
    row.mark.input.setAttribute("aria-pressed", marked);
    row.mark.label.classList.toggle("ld-pressed", marked);
    row.lock.input.disabled = row.mark.input.disabled = off;
    row.prompt.disabled = off || !layer.own;
    row.prompt.setAttribute("aria-label", `${editor.words("prompt")} ${layer.name}`);
    row.element.style.setProperty("--ld-tint", layer.tint ?? "transparent");
    if (row.prompt !== document.activeElement || row.prompt.value !== layer.prompt) row.prompt.value = layer.prompt ?? "";
    row.drawer.update(layer, editor.chosen === layer.name && editor.selection.length === 1 && layer.own && !off);
  }

  /** Let the user type another name. */
  rename(name) {
    const { editor } = this;
    const { title } = this.rows.get(name) ?? {};
    if (!title || !editor.layer(name)?.own || title.type === "text") return;
    title.type = "text";
    title.classList.add("ld-text");
    title.select();
    const end = (keep) => {
      title.removeEventListener("blur", done);
      title.removeEventListener("keydown", key);
      title.type = "button";
      title.classList.remove("ld-text");
      const wanted = title.value;
      title.value = name;
      if (keep) editor.rename(name, wanted);
    };
    const done = () => end(true);
    const key = (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" && event.key !== "Escape") return;
      end(event.key === "Enter");
      editor.stage.focus();
    };
    title.addEventListener("blur", done);
    title.addEventListener("keydown", key);
  }

  /** Put the cursor into a layer's words. */
  focusWords(name) {
    this.rows.get(name)?.prompt.focus({ preventScroll: true });
  }
}
