/** The board's tools: what the pointer does, what is done to the selected layers, and what is seen of the last run. */

import { button, element } from "../editor/dom.js";
import { ALIGNMENTS } from "../editor/geometry.js";
import { Brush } from "./tools.js";

const show = (part, on) => (part.style.visibility = on ? "visible" : "hidden"); // it keeps its room, so that nothing moves

export class Toolbar {
  constructor(board) {
    this.board = board;
    const { words } = board;
    const { undo, redo, flipH, flipV, snap, fit } = board.commonTools();
    this.add = button("picture", words("addPicture"), () => board.chooseFiles());
    this.copy = button("copy", words("duplicate"), () => board.duplicate());
    this.bin = button("bin", words("delete"), () => board.remove());
    this.size = this.#range("brushSize", 100, (value) => (board.brushShare = value / 100));
    this.result = this.#range("result", 100, (value) => (board.resultShare = value / 100));
    this.sizeLabel = element("label", { className: "ld-label ld-size" }, this.size);
    this.resultLabel = element("label", { className: "ld-label ld-result" }, words("resultShort"), this.result);
    this.keep = button("keep", words("keep"), () => board.keepResult());
    this.attention = button("attention", words("attention"), () => board.stage.draw(), "checkbox");
    const bar = () => element("span", { className: "ld-bar" });
    this.element = element(
      "div",
      { className: "ld-tools", role: "toolbar", "aria-label": words("tools") },
      this.#tools(), this.add.label, this.copy.label, this.bin.label, this.sizeLabel, bar(),
      undo.label, redo.label, bar(), flipH.label, flipV.label, this.#align(), bar(), snap.label, fit.label,
      element("span", { className: "ld-gap" }),
      this.resultLabel, this.keep.label, this.attention.label,
    );
  }

  #tools() {
    const { board } = this;
    const group = `ld-tools-${Math.random()}`;
    this.buttons = new Map();
    const tool = (name) => {
      const { label, input } = button(name, board.words(name), () => board.useTool(name), "radio");
      input.name = group;
      this.buttons.set(name, input);
      return label;
    };
    const named = { role: "radiogroup", "aria-label": board.words("tools") };
    return element("span", { className: "ld-group", ...named }, ...Object.keys(board.tools).map(tool));
  }

  #range(key, max, set) {
    const title = this.board.words(key);
    const range = element("input", { type: "range", className: "ld-slider", min: 0, max, step: 1, title, "aria-label": title });
    range.addEventListener("input", () => {
      set(Number(range.value));
      this.board.stage.draw();
    });
    return range;
  }

  #align() {
    const { board } = this;
    const title = board.words("align");
    this.align = element("select", { className: "ld-align", title, "aria-label": title });
    this.align.append(element("option", { value: "", textContent: title }));
    this.align.append(...Object.keys(ALIGNMENTS).map((how) => element("option", { value: how, textContent: board.words(how) })));
    this.align.addEventListener("change", () => {
      if (this.align.value) board.align(this.align.value);
      this.align.value = "";
    });
    return this.align;
  }

  refresh() {
    const { board } = this;
    const { readable, selectedLayers, tool, tools, result } = board;
    for (const [name, input] of this.buttons) input.checked = tools[name] === tool;
    show(this.sizeLabel, tool instanceof Brush);
    this.size.value = 100 * board.brushShare;
    this.copy.input.disabled = !readable || !selectedLayers.some((layer) => layer.own);
    this.bin.input.disabled = !readable || !selectedLayers.some((layer) => !board.isLocked(layer.name));
    this.align.disabled = !readable || !selectedLayers.length;
    const old = Boolean(result) && result.of !== JSON.stringify(board.state);
    this.result.value = 100 * board.resultShare;
    this.resultLabel.classList.toggle("ld-old", old);
    this.resultLabel.title = board.words(old ? "resultOld" : "result");
    show(this.resultLabel, result);
    show(this.keep.label, result);
    show(this.attention.label, board.attention.has(board.chosen));
  }
}
