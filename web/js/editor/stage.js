/** The canvas of a layer editor: turns pointer gestures into changes of the selected layers, or passes them to the editor's tool. */

import { element } from "./dom.js";
import {
  HANDLES, around, centre, contains, fills, guideLines, movedAndSnapped, pointOf, resized, rotated, scaledWith, snappedPoint, turnedWith, within,
} from "./geometry.js";
import { Painter } from "./painter.js";

const MARGIN = 28; // CSS pixels around the canvas, so that handles at its edges can be reached
const TURNER = 18; // CSS pixels from the upper edge to the handle that turns
const REACH = 8; // CSS pixels within which the pointer grabs a handle, and a layer snaps
const CURSORS = ["ew-resize", "nwse-resize", "ns-resize", "nesw-resize"];

const limit = (zoom) => Math.min(Math.max(zoom, 0.1), 40);

/** Where one of several layers goes when the box around them becomes `now`. */
function follow(kind, layer, box, now) {
  if (kind === "turn") return turnedWith(layer, centre(box), now.rotation);
  return scaledWith(layer, box, now);
}

export class Stage {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    this.canvas = element("canvas");
    this.keys = element("input", { className: "ld-keys", type: "button", "aria-label": editor.words("canvas") });
    this.empty = element("div", { className: "ld-empty" });
    this.element = element("div", { className: "ld-stage" }, this.canvas, this.keys, this.empty);
    this.painter = new Painter(this);
    this.density = 1;
    this.gesture = null;
    this.hovered = null;
    this.guides = { x: null, y: null };
    this.pointers = new Map(); // pointer id → place, of all fingers on the canvas
    this.panning = false; // whether Space is held
    this.zoom = 1;
    this.pan = { x: 0, y: 0 };
    this.frame = 0;
    const on = (kind, handler) => this.element.addEventListener(kind, handler);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", (event) => {
      this.pointers.delete(event.pointerId);
      this.cancel();
    });
    on("pointerleave", () => this.#hover(null));
    on("dblclick", () => this.editor.tool || this.fit());
    on("keydown", (event) => this.#space(event, true));
    on("keyup", (event) => this.#space(event, false));
    on("focusout", () => (this.panning = false));
    this.element.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.resizes = new ResizeObserver(() => this.draw());
    this.resizes.observe(this.element);
    // The graph's zoom changes how many pixels a CSS pixel has, and sends no event.
    this.onZoom = () => {
      clearTimeout(this.zoomed);
      this.#redrawWhenZoomed(10);
    };
    window.addEventListener("wheel", this.onZoom, { capture: true, passive: true });
  }

  destroy() {
    this.resizes.disconnect();
    clearTimeout(this.zoomed);
    window.removeEventListener("wheel", this.onZoom, { capture: true });
    cancelAnimationFrame(this.frame);
  }

  focus() {
    this.keys.focus({ preventScroll: true });
  }

  /** Show the whole canvas. */
  fit() {
    this.zoom = 1;
    this.pan = { x: 0, y: 0 };
    this.draw();
  }

  /** Give up the gesture, if there is one. @returns {boolean} whether there was one */
  cancel() {
    if (!this.gesture) return false;
    if (this.gesture.kind === "tool") this.editor.tool?.cancel();
    this.gesture = null;
    this.guides = { x: null, y: null };
    this.editor.cancel();
    this.draw();
    return true;
  }

  /** Zoom about the middle of what is shown. */
  zoomBy(factor) {
    const { clientWidth, clientHeight } = this.element;
    this.#zoomAt({ x: clientWidth / 2, y: clientHeight / 2 }, factor);
  }

  #space(event, down) {
    if (event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    this.panning = down;
  }

  /** Check a few times, because the graph may take a while to zoom. */
  #redrawWhenZoomed(times) {
    this.zoomed = setTimeout(() => {
      if (this.element.isConnected && this.#density() !== this.density) this.draw();
      if (times > 1) this.#redrawWhenZoomed(times - 1);
    }, 150);
  }

  /** Device pixels for each CSS pixel of the element. */
  #density() {
    const graphZoom = this.element.getBoundingClientRect().width / this.element.offsetWidth || 1;
    return Math.min(Math.max(window.devicePixelRatio * graphZoom, 1), 4);
  }

  /** Draw before the next frame. */
  draw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (!this.element.offsetWidth || !this.element.offsetHeight) return;
      this.density = this.#density();
      this.painter.paint();
    });
  }

  // ---- where things are on the screen ------------------------------------------------------------------------------------

  /** CSS pixels for each canvas pixel, and the place of the canvas' top left in CSS pixels. */
  view() {
    const { clientWidth, clientHeight } = this.element;
    const { width, height } = this.editor.canvas;
    const fit = Math.max(0.001, Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height));
    const scale = fit * this.zoom;
    return { scale, x: (clientWidth - width * scale) / 2 + this.pan.x, y: (clientHeight - height * scale) / 2 + this.pan.y };
  }

  /** An event's place in CSS pixels of the element, independent of the graph's zoom. */
  #place(event) {
    const box = this.element.getBoundingClientRect();
    const zoom = box.width / this.element.offsetWidth || 1;
    return { x: (event.clientX - box.left) / zoom, y: (event.clientY - box.top) / zoom };
  }

  #onCanvas(place) {
    const view = this.view();
    return { x: (place.x - view.x) / view.scale, y: (place.y - view.y) / view.scale };
  }

  /** @returns {import("./geometry.js").Point} the canvas point of an event */
  pointOf(event) {
    return this.#onCanvas(this.#place(event));
  }

  /** @returns {import("./geometry.js").Point} where a canvas point is, CSS pixels of the element */
  onScreen(point) {
    const view = this.view();
    return { x: point.x * view.scale + view.x, y: point.y * view.scale + view.y };
  }

  /** The selected layers as one box: the layer itself, or the upright box around several; undefined without one that can be changed. */
  get box() {
    const layers = this.editor.selectedLayers.filter((layer) => layer.visible && !this.editor.isLocked(layer.name));
    return layers.length > 1 ? around(layers) : layers[0];
  }

  /** Handles of the selection on the screen: `{u, v, x, y}`, or `{turn: true, x, y}`. Several layers keep their shape. */
  handles() {
    const { box } = this;
    if (!box || this.editor.tool) return [];
    const { scale } = this.view();
    const small = { x: box.width * scale < 36, y: box.height * scale < 36 };
    const several = box.name === undefined;
    const shown = HANDLES.filter(([u, v]) => (u || !small.x) && (v || !small.y) && (!several || (u && v)));
    const handles = shown.map(([u, v]) => ({ u, v, ...this.onScreen(pointOf(box, u, v)) }));
    const top = this.onScreen(pointOf(box, 0, -1));
    const middle = this.onScreen(pointOf(box, 0, 0));
    const away = Math.hypot(top.x - middle.x, top.y - middle.y) || 1;
    const [dx, dy] = [(top.x - middle.x) / away, (top.y - middle.y) / away];
    return [...handles, { turn: true, x: top.x + dx * TURNER, y: top.y + dy * TURNER, stem: top }];
  }

  #handleAt(place, reach) {
    const near = (handle) => Math.hypot(handle.x - place.x, handle.y - place.y);
    const best = this.handles().sort((a, b) => near(a) - near(b))[0];
    return best && near(best) <= reach ? best : null;
  }

  /** The foremost layer that shows at a canvas point, and is not locked. */
  #layerAt(point) {
    const { editor } = this;
    return editor.layers.findLast(
      (layer) => layer.visible && !editor.isLocked(layer.name) && contains(layer, point) && this.#isSolid(layer, point),
    );
  }

  #isSolid(layer, point) {
    const at = within(layer, point);
    return this.editor.pictureOf(layer)?.isSolid(layer.flip_h ? 1 - at.x : at.x, layer.flip_v ? 1 - at.y : at.y) ?? true;
  }

  // ---- gestures ----------------------------------------------------------------------------------------------------------

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.focus();
    const place = this.#place(event);
    this.pointers.set(event.pointerId, place);
    this.element.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) return this.#pinch();
    if (this.pointers.size > 2) return;
    const from = this.#onCanvas(place);
    if (this.editor.tool && !this.panning) {
      this.gesture = { kind: "tool", place };
      this.editor.tool.down(from, event);
      return this.draw();
    }
    const start = this.#grabbed(place, from, event);
    this.gesture = { place, from, pan: this.pan, ...start };
    if (start.kind !== "pan") this.editor.begin();
  }

  /** What a press takes hold of: `{kind, handle, grip, box, layers, lines}`. */
  #grabbed(place, from, event) {
    const { editor } = this;
    if (this.panning || !editor.layers.length) return { kind: "pan" };
    const handle = this.#handleAt(place, event.pointerType === "touch" ? 2 * REACH : REACH + 2);
    const before = editor.selection;
    const layer = handle ? null : (this.#layerAt(from) ?? editor.selectedLayers.find((one) => one.visible && contains(one, from)));
    const adds = !handle && (event.shiftKey || event.ctrlKey || event.metaKey);
    const held = before.includes(layer?.name);
    if (!handle && !held && !(adds && !layer)) editor.select(layer?.name, adds);
    const { box } = this;
    // A layer that fills the canvas is easily hit by mistake: it moves only once it is selected.
    const still = layer && !held && fills(layer, editor.canvas);
    const kind = handle?.turn ? "turn" : handle ? "resize" : layer && box && !still ? "move" : "pan";
    const pulled = kind === "resize" ? pointOf(box, handle.u, handle.v) : from;
    const grip = { x: pulled.x - from.x, y: pulled.y - from.y };
    const layers = editor.selectedLayers.filter((one) => !editor.isLocked(one.name));
    // A press on one of several layers drags all of them; if it is only a click, it selects that one, or lets it go.
    const click = held && (adds || before.length > 1) ? () => editor.select(layer.name, adds) : undefined;
    return { kind, handle, grip, box, layers, lines: this.#lines(layers), click };
  }

  #lines(layers) {
    return guideLines(this.editor.canvas, this.editor.layers.filter((other) => other.visible && !layers.some(({ name }) => name === other.name)));
  }

  #pinch() {
    this.cancel();
    const [a, b] = this.pointers.values();
    const middle = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    this.gesture = { kind: "pinch", span: Math.hypot(a.x - b.x, a.y - b.y) || 1, point: this.#onCanvas(middle), zoom: this.zoom };
  }

  /** Keep the canvas point that was between the fingers between them. */
  #pinched() {
    const [a, b] = this.pointers.values();
    const { span, point, zoom } = this.gesture;
    this.zoom = limit(zoom * (Math.hypot(a.x - b.x, a.y - b.y) / span));
    const now = this.onScreen(point);
    this.pan = { x: this.pan.x + (a.x + b.x) / 2 - now.x, y: this.pan.y + (a.y + b.y) / 2 - now.y };
    this.draw();
  }

  #move(event) {
    const place = this.#place(event);
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, place);
    if (!this.gesture) return this.#hover(place);
    event.stopPropagation();
    const { kind, from, box, layers } = this.gesture;
    if (kind === "pinch") return this.#pinched();
    if (kind === "tool") {
      this.editor.tool.move(this.#onCanvas(place), event);
      this.#hover(place);
      return this.draw();
    }
    if (!this.gesture.moved && Math.hypot(place.x - this.gesture.place.x, place.y - this.gesture.place.y) < 2) return undefined;
    this.gesture.moved = true;
    if (kind === "pan") {
      this.pan = { x: this.gesture.pan.x + place.x - this.gesture.place.x, y: this.gesture.pan.y + place.y - this.gesture.place.y };
      return this.draw();
    }
    const to = this.#onCanvas(place);
    const reach = this.editor.snap && !event.ctrlKey && !event.metaKey ? REACH / this.view().scale : 0;
    this.guides = { x: null, y: null };
    const shape = {
      turn: () => rotated(box, from, to, event.shiftKey ? 15 : 0.1),
      resize: () => this.#pulled(to, reach, event),
      move: () => this.#shifted(to, reach, event),
    };
    const now = shape[kind]();
    const placed = ({ x, y, width, height, rotation }) => ({ x, y, width, height, rotation });
    this.editor.changeAll(layers.map((layer) => [layer.name, placed(layers.length > 1 ? follow(kind, layer, box, now) : now)]));
  }

  /** The box with the pulled handle at the pointer. */
  #pulled(to, reach, event) {
    const { handle, grip, box: start, layers, lines } = this.gesture;
    const { u, v } = handle;
    const at = { x: to.x + grip.x, y: to.y + grip.y };
    const ratio = layers.length > 1 || (Boolean(u && v) && this.editor.keepsRatio(start) !== event.shiftKey);
    if (ratio || start.rotation % 90) return resized(start, u, v, at, { ratio, fromCentre: event.altKey });
    const sides = start.rotation % 180 ? [v, u] : [u, v]; // which of the canvas' directions the handle pulls
    const { point, guides } = snappedPoint(at, ...sides, lines, reach);
    this.guides = guides;
    return resized(start, u, v, point, { ratio, fromCentre: event.altKey });
  }

  /** The box moved with the pointer; Shift holds one direction. */
  #shifted(to, reach, event) {
    const { from, box: start, lines } = this.gesture;
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    if (!event.shiftKey) {
      const { box, guides } = movedAndSnapped(start, dx, dy, lines, reach);
      this.guides = guides;
      return box;
    }
    const across = Math.abs(dx) >= Math.abs(dy);
    const { box, guides } = movedAndSnapped(start, across ? dx : 0, across ? 0 : dy, lines, reach);
    this.guides = across ? { x: guides.x, y: null } : { x: null, y: guides.y };
    return across ? { ...box, y: start.y } : { ...box, x: start.x };
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (!this.gesture) return;
    event.stopPropagation();
    const { kind, click, moved } = this.gesture;
    this.gesture = null;
    this.guides = { x: null, y: null };
    if (kind === "tool") this.editor.tool?.up();
    else this.editor.end();
    if (!moved) click?.();
    this.#hover(this.#place(event));
    this.draw();
  }

  #hover(place) {
    this.pointer = place && this.#onCanvas(place);
    if (this.editor.tool) {
      this.element.style.cursor = this.panning ? "grab" : this.editor.tool.cursor;
      return this.draw();
    }
    const handle = place && this.#handleAt(place, REACH + 2);
    const layer = place && !handle ? this.#layerAt(this.pointer) : null;
    const inSelected = place && this.editor.selectedLayers.some((one) => one.visible && !this.editor.isLocked(one.name) && contains(one, this.pointer));
    this.element.style.cursor = handle ? this.#cursor(handle) : layer || inSelected ? "move" : "default";
    if (this.hovered !== (layer?.name ?? null)) {
      this.hovered = layer?.name ?? null;
      this.draw();
    }
    return undefined;
  }

  #cursor(handle) {
    if (handle.turn) return "grab";
    const angle = (Math.atan2(handle.v, handle.u) * 180) / Math.PI + (this.box?.rotation ?? 0);
    return CURSORS[((Math.round(angle / 45) % 4) + 4) % 4];
  }

  #wheel(event) {
    if (!this.editor.hasFocus) return; // the wheel belongs to the graph then
    event.preventDefault();
    event.stopPropagation();
    this.#zoomAt(this.#place(event), 1.0015 ** -event.deltaY);
  }

  #zoomAt(place, factor) {
    const before = this.#onCanvas(place);
    this.zoom = limit(this.zoom * factor);
    const after = this.onScreen(before);
    this.pan = { x: this.pan.x + place.x - after.x, y: this.pan.y + place.y - after.y };
    this.draw();
  }
}
