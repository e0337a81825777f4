/** Layer Board: an editor in which a stack of layers is made. Independent of ComfyUI. */

import { element, textButton } from "../editor/dom.js";
import { Editor } from "../editor/editor.js";
import { moved } from "../editor/geometry.js";
import { Picture, sizeOf } from "../editor/picture.js";
import { Values } from "../editor/values.js";
import { CanvasPanel } from "./canvas_panel.js";
import { FileNames } from "./file_names.js";
import { ACCEPT, FileError, checkPicture, placeOf } from "./files.js";
import { Painting } from "./painting.js";
import { Rows } from "./rows.js";
import * as states from "./state.js";
import { Toolbar } from "./toolbar.js";
import { BoxTool, Brush } from "./tools.js";

const MAX_SIDE = 16384;

/** @type {import("../editor/editor.js").Model} */
const MODEL = {
  EMPTY: states.EMPTY,
  read: states.read,
  written: states.written,
  layers: states.layersOf,
  changed: states.changed,
  reordered: states.reordered,
};

/** The colour of a place without a picture, another one for each in turn. */
const tintOf = (index) => `hsl(${(index * 137 + 205) % 360} 75% 60%)`;

export class Board extends Editor {
  /**
   * @param {object} host
   * @param {(key: string, values?: object) => string} host.words
   * @param {() => void} host.onChange
   * @param {(file: Blob, name: string) => Promise<string>} host.upload puts a file into the input folder; returns its name there, or throws a FileError
   * @param {(url: string) => Promise<string>} host.keep puts a result into the input folder; as `upload`
   * @param {(name: string) => string} host.address where the page finds a file of the input folder
   * @param {() => number} host.mostBytes the greatest file that the server takes
   * @param {() => Promise<string[]>} host.loras the names of the server's LoRA files
   * @param {() => Promise<string[]>} host.embeddings the names of its embeddings
   */
  constructor({ words, onChange, ...host }) {
    super({ words, onChange, model: MODEL });
    this.host = host;
    this.stackKnown = true;
    this.incoming = null; // canvas of the layers that come in
    this.pictures = new Map(); // by their addresses
    this.painting = new Painting(this);
    this.loras = new FileNames(host.loras);
    this.embeddings = new FileNames(host.embeddings);
    this.saving = new Set(); // work on files that is not done yet
    this.complaint = null; // what went wrong last: {words, retry}
    this.result = null;
    this.attention = new Map();
    this.resultShare = 0;
    this.brushShare = 0.3; // of the canvas's longer side, squared
    this.tools = { select: null, box: new BoxTool(this), brush: new Brush(this, false), eraser: new Brush(this, true) };
    this.values = new Values(this);
    this.canvasPanel = new CanvasPanel(this);
    this.toolbar = new Toolbar(this);
    this.assemble({ tools: this.toolbar.element, list: new Rows(this), panels: [this.values, this.canvasPanel] });
    this.element.append(this.loras.element, this.embeddings.element);
    this.#takeFiles();
  }

  get canvas() {
    return states.canvasOf(this.state ?? states.EMPTY, this.incoming);
  }

  get layers() {
    let places = 0;
    const layers = super.layers;
    return [...layers, ...this.painting.fresh.map(states.whole)].map((layer) => {
      const tint = layer.own && layer.generated ? { tint: tintOf(places++) } : {};
      return { ...layer, ...tint, ...this.#sizeOf(layer), ...this.painting.drafts.get(layer.name)?.box };
    });
  }

  /** The size of a layer of which only a program said something: that of its picture, or of the canvas. */
  #sizeOf({ width, height, image }) {
    if (width && height) return {};
    const picture = image && this.#picture({ url: this.host.address(image) }).source;
    const [w, h] = picture ? sizeOf(picture) : [this.canvas.width, this.canvas.height];
    return { width: width || w, height: height || h };
  }

  isLocked(name) {
    return Boolean(this.state?.locked?.includes(name));
  }

  isMarked(name) {
    return Boolean(this.state?.marked?.includes(name));
  }

  keepsRatio(layer) {
    return this.ratio && !layer.generated;
  }

  /** What stands on a place: its words, else its name. */
  label(layer) {
    return layer.prompt || layer.name;
  }

  pictureOf(layer) {
    const draft = this.painting.drafts.get(layer.name);
    if (draft) return { image: draft.image, isSolid: () => true };
    if (!layer.own) return layer.url ? this.#picture({ url: layer.url }) : undefined;
    const mask = layer.mask && (this.painting.masks.get(layer.mask) ?? this.host.address(layer.mask));
    if (!layer.image && !mask) return undefined;
    if (!layer.image) return this.#picture({ mask, tint: layer.tint }, layer.mask);
    return this.#picture({ url: this.host.address(layer.image), mask }, layer.mask);
  }

  #picture(source, mask = "") {
    const id = `${source.url} ${mask} ${source.tint}`;
    if (!this.pictures.has(id)) this.pictures.set(id, new Picture(source, () => this.refresh()));
    return this.pictures.get(id);
  }

  // ---- what comes from runs ------------------------------------------------------------------------------------------------

  /** Take over the layers that came in with the last run: `{width, height, background, layers, remarks}`. */
  show({ width, height, background, layers, remarks }) {
    this.incoming = layers.length ? { width, height, background } : null;
    this.stack = layers;
    this.remarks = remarks ?? [];
    this.layOut();
    this.refresh();
  }

  /** Show a picture that was made of the board. */
  showResult(url) {
    const picture = new Picture({ url }, () => {
      if (!this.#isOfBoard(picture)) return;
      if (!this.result) this.resultShare = 1;
      this.result = { picture, of: JSON.stringify(this.state) };
      this.refresh();
    });
  }

  /** Whether a picture is still there, and has the shape of the canvas. */
  #isOfBoard({ image }) {
    if (!image) return false;
    const { width, height } = this.canvas;
    return Math.abs((image.naturalWidth * height) / (image.naturalHeight * width) - 1) < 0.02;
  }

  /** Make the last result the backdrop, on which layers can be redone one at a time. */
  keepResult() {
    return this.track(this.#keepResult());
  }

  async #keepResult() {
    const { url } = this.result.picture;
    try {
      const image = await this.host.keep(url);
      const backdrop = this.layers.find((layer) => layer.own && states.isBackdrop(layer, this.canvas));
      if (backdrop) this.change(backdrop.name, { image, mask: null });
      else this.#addBehind({ name: this.words("resultName"), image, x: 0, y: 0, width: this.canvas.width, height: this.canvas.height });
      this.result = { ...this.result, of: JSON.stringify(this.state) };
      this.refresh();
    } catch (error) {
      this.fileTrouble(error, () => this.keepResult());
    }
  }

  #addBehind(layer) {
    if (!this.#hasRoom()) return;
    const name = states.freeName(layer.name, this.layers.map((one) => one.name));
    const state = states.added(this.state, [{ ...layer, name }]);
    const names = [name, ...this.layers.map((one) => one.name)];
    this.edit(states.put(states.reordered(state, this.stack, names), "locked", [name], true));
  }

  /** Show, while a layer is selected, what its words attended to. @param {{name: string, url: string}[]} maps */
  showAttention(maps) {
    this.attention = new Map(maps.map(({ name, url }) => [name, new Picture({ url }, () => this.refresh())]));
  }

  /** What lies over the layers: the last result, or what the selected layer's words attended to. */
  overlays() {
    const map = this.toolbar.attention.input.checked && this.attention.get(this.chosen);
    if (map && this.#isOfBoard(map)) return [{ image: map.image, alpha: 1 }];
    return this.result && this.resultShare ? [{ image: this.result.picture.image, alpha: this.resultShare }] : [];
  }

  // ---- making layers -------------------------------------------------------------------------------------------------------

  /** Whether there is room for more layers; if not, say so. */
  #hasRoom(more = 1) {
    const room = this.layers.length + more <= states.MAX_LAYERS;
    if (!room) this.complain("full", { most: states.MAX_LAYERS });
    return room;
  }

  /** Add layers of the board's own in front, and select them. */
  add(layers, state = this.state) {
    const taken = this.layers.map((layer) => layer.name);
    const named = layers.map((layer) => {
      const name = states.freeName(layer.name, taken);
      taken.push(name);
      return { ...layer, name };
    });
    const { width, height } = this.canvas;
    this.edit(states.added(state.width ? state : states.canvasChanged(state, { width, height }), named)); // layers fix the size
    this.selection = named.map((layer) => layer.name);
    this.refresh();
    return named;
  }

  /** How far a layer may change, as the runs see it. */
  freedomOf(layer) {
    return states.freedomOf(layer, this.layers, this.canvas);
  }

  /** A name such as "layer 3" that no layer has. */
  #freshName() {
    const taken = this.layers.map((layer) => layer.name);
    let number = 1;
    while (taken.includes(`${this.words("layerName")} ${number}`)) number += 1;
    return `${this.words("layerName")} ${number}`;
  }

  /** A layer without a place yet, which is not on the board; undefined if there is no room. */
  newPlace() {
    if (!this.#hasRoom()) return undefined;
    return { name: this.#freshName(), generated: true, x: 0, y: 0, width: 0, height: 0, recipe: { noise: 1 } };
  }

  /** Add a layer of words, and let the user write them. */
  addBox(box) {
    if (!this.readable || !this.#hasRoom()) return;
    const [{ name }] = this.add([{ name: this.#freshName(), ...box, recipe: { noise: 1 } }]);
    this.list.focusWords(name);
  }

  /** Add pictures. @param {File[]} files @param {{x: number, y: number}} [point] where they were dropped, canvas pixels */
  addFiles(files, point) {
    return this.track(this.#addFiles(files, point));
  }

  async #addFiles(files, point) {
    for (const file of files) {
      if (!this.readable || !this.#hasRoom()) return;
      this.complaint = null;
      try {
        const size = await checkPicture(file, this.host.mostBytes(), MAX_SIDE);
        const image = await this.host.upload(file, file.name);
        this.#addPicture(image, file.name.replace(/\.[^.]+$/, ""), size, point);
      } catch (error) {
        this.fileTrouble(error, () => this.addFiles([file], point));
      }
    }
  }

  #addPicture(image, name, size, point) {
    const { state } = this;
    // The first picture sets the canvas. Behind others it is a backdrop, which keeps its pixels unless the user frees it.
    if (!state.width && !this.layers.length) {
      const sized = states.canvasChanged(state, size);
      this.add([{ name, image, x: 0, y: 0, ...size }], sized);
      this.layOut();
      return;
    }
    const place = placeOf(size, this.canvas, point);
    this.add([{ name, image, ...place }]);
    if (place.width < size.width) this.complain("fitted", { name, size: `${size.width} x ${size.height}` });
  }

  /** Keep work on files in mind until it is done, so that a run waits for it. @returns {Promise<unknown>} the same */
  track(work) {
    const done = work.catch(() => {}).finally(() => this.saving.delete(done));
    this.saving.add(done);
    return work;
  }

  /** Resolves when nothing is on its way to the server. */
  async saved() {
    while (this.saving.size) await Promise.all(this.saving);
  }

  /** Say what is wrong with a file. @param {() => void} retry what helps if the server did not answer */
  fileTrouble(error, retry) {
    if (!(error instanceof FileError)) throw error;
    this.complain(error.key, error.values, error.key === "noServer" ? retry : null);
  }

  /** Say what went wrong. @param {(() => void) | null} retry what the user may try again */
  complain(key, values = {}, retry = null) {
    this.complaint = { words: this.words(key, values), retry };
    this.refresh();
  }

  duplicate() {
    const own = this.selectedLayers.filter((layer) => layer.own);
    if (!own.length || !this.#hasRoom(own.length)) return;
    const { width } = this.canvas;
    this.add(own.map((layer) => ({ ...layer, ...moved(layer, Math.round(width / 32), Math.round(width / 32)) })));
  }

  /** Delete the board's own layers among the selected ones; hide the others, which are the graph's. */
  remove() {
    const layers = this.selectedLayers.filter((layer) => !this.isLocked(layer.name));
    const own = layers.filter((layer) => layer.own).map((layer) => layer.name);
    const others = layers.filter((layer) => !layer.own);
    const hidden = others.reduce((state, { name }) => states.changed(state, this.stack, name, { visible: false }), this.state);
    this.edit(states.removed(hidden, own));
  }

  rename(name, wanted) {
    const others = this.layers.map((layer) => layer.name).filter((other) => other !== name);
    const free = states.freeName(wanted, others);
    if (!wanted.trim() || free === name || !this.readable) return;
    this.selection = this.selection.map((one) => (one === name ? free : one));
    this.painting.rename(name, free);
    this.list.rekey(name, free);
    this.edit(states.renamed(this.state, name, free));
  }

  describe(name, prompt) {
    this.change(name, { prompt }, `words ${name}`);
  }

  /** Call a layer by its words, if the user did not name it. */
  nameByWords(name) {
    this.history.pause();
    const layer = this.layer(name);
    const stem = `${this.words("layerName")} `;
    const unnamed = name.startsWith(stem) && /^\d+$/.test(name.slice(stem.length));
    if (layer?.own && unnamed && layer.prompt.trim()) this.rename(name, layer.prompt.trim().slice(0, 40));
  }

  /** @param {"marked" | "locked"} key */
  put(key, names, on) {
    this.edit(states.put(this.state, key, names, on));
  }

  // ---- tools and keys ------------------------------------------------------------------------------------------------------

  /** @param {"select" | "box" | "brush" | "eraser"} name */
  useTool(name) {
    this.stage.cancel();
    this.tool = this.tools[name];
    this.refresh();
  }

  /** The brush's diameter, canvas pixels. */
  get brushSize() {
    return Math.max(Math.round(this.#mostBrush * this.brushShare ** 2), 1);
  }

  set brushSize(pixels) {
    this.brushShare = Math.min(Math.sqrt(pixels / this.#mostBrush), 1);
  }

  get #mostBrush() {
    return Math.max(this.canvas.width, this.canvas.height);
  }

  refresh() {
    super.refresh();
    this.toolbar.refresh();
    this.values.element.hidden = !this.selection.length;
  }

  emptyText() {
    return this.readable && !this.layers.length && !this.tool ? this.words("emptyBoard") : "";
  }

  notes() {
    const { warnings, actions } = super.notes();
    const missing = [...this.layers].filter((layer) => layer.own && this.pictureOf(layer)?.missing).map((layer) => `“${layer.name}”`);
    const all = [...warnings, ...(missing.length ? [this.words("missing", { names: missing.join(", ") })] : [])];
    if (!this.readable) return { warnings: all, actions: [textButton(this.words("anew"), this.words("anew"), () => this.startAnew()), ...actions] };
    if (!this.complaint) return { warnings: all, actions };
    const { words, retry } = this.complaint;
    const close = () => {
      this.complaint = null;
      this.refresh();
    };
    const again = () => {
      close();
      retry();
    };
    const buttons = [...(retry ? [textButton(this.words("again"), this.words("again"), again)] : []), textButton(this.words("dismiss"), this.words("dismiss"), close)];
    return { warnings: [...all, words], actions: [...buttons, ...actions] };
  }

  /** Give up a board that cannot be read. */
  startAnew() {
    this.value = {};
    this.onChange();
  }

  command(event) {
    const control = (event.ctrlKey || event.metaKey) && !event.altKey;
    if (control && (event.key.toLowerCase() === "d" || event.key.toLowerCase() === "j")) {
      this.duplicate();
      return true;
    }
    if (event.key === "Escape" && this.tool) {
      if (!this.stage.cancel()) this.useTool("select");
      return true;
    }
    return super.command(event);
  }

  layerKey(event) {
    if (this.before) return super.layerKey(event);
    if (event.altKey && !event.ctrlKey && !event.metaKey) return this.#resizeKey(event);
    const tool = { v: "select", b: "box", p: "brush", e: "eraser" }[event.key.toLowerCase()];
    if (tool && !event.ctrlKey && !event.metaKey) {
      this.useTool(tool);
      return true;
    }
    if (event.key === "Enter" && event.target === this.stage.keys) {
      if (this.tool) this.tool.enter();
      else if (this.chosen) this.list.focusWords(this.chosen);
      return true;
    }
    if (event.key === "F2" && this.chosen) {
      this.list.rename(this.chosen);
      return true;
    }
    if (event.key.toLowerCase() === "r" && this.selection.length && !event.ctrlKey && !event.metaKey) {
      this.put("marked", this.selection, !this.isMarked(this.chosen));
      return true;
    }
    if (this.tool instanceof Brush && (event.key === "[" || event.key === "]")) {
      this.brushShare = Math.min(Math.max(this.brushShare + (event.key === "]" ? 0.03 : -0.03), 0), 1);
      this.refresh();
      return true;
    }
    return super.layerKey(event);
  }

  /** Alt and an arrow key: wider, narrower, higher or lower. */
  #resizeKey(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if ((!dx && !dy) || !this.selection.length) return false;
    const step = event.shiftKey ? 10 : 1;
    const side = (value) => Math.min(Math.max(value, 1), MAX_SIDE);
    this.placeSelected((layer) => ({ width: side(layer.width + dx * step), height: side(layer.height + dy * step) }), "resize");
    return true;
  }

  // ---- files ---------------------------------------------------------------------------------------------------------------

  chooseFiles() {
    const input = element("input", { type: "file", accept: ACCEPT, multiple: true });
    input.addEventListener("change", () => this.addFiles([...input.files]));
    input.click();
  }

  #takeFiles() {
    const carries = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    this.element.addEventListener("dragover", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      event.stopPropagation();
      this.element.classList.add("ld-drop");
    });
    this.element.addEventListener("dragleave", () => this.element.classList.remove("ld-drop"));
    this.element.addEventListener("drop", (event) => {
      this.element.classList.remove("ld-drop");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      event.stopPropagation();
      const point = this.stage.element.contains(event.target) ? this.stage.pointOf(event) : undefined;
      this.addFiles([...event.dataTransfer.files], point);
    });
    this.element.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (event.target.matches(".ld-text, .ld-field") && !files.length) return;
      event.stopPropagation(); // ComfyUI would make nodes of it
      if (files.length) event.preventDefault();
      this.addFiles(files);
    });
  }
}
