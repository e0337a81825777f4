/** The canvas of the layer editor: turns pointer gestures into changes of the selected layer. */

import { element } from "./dom.js";
import { HANDLES, contains, guideLines, movedAndSnapped, pointOf, resized, rotated, snappedPoint, within } from "./geometry.js";
import { Painter } from "./painter.js";

const MARGIN = 28; // CSS pixels around the canvas, so that handles at its edges can be reached
const TURNER = 18; // CSS pixels from the upper edge to the handle that turns
const REACH = 8; // CSS pixels within which the pointer grabs a handle, and a layer snaps
const CURSORS = ["ew-resize", "nwse-resize", "ns-resize", "nesw-resize"];

export class Stage {
  /**
   * @param {object} editor what is drawn and changed:
   *   layers (as arranged, back to front), canvas ({width, height, background}), selected (a layer or undefined), images (Map name →
   *   Picture), snap, ratio, select(name), begin(), change(name, changes), end(), cancel()
   */
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
    this.zoom = 1;
    this.pan = { x: 0, y: 0 };
    this.frame = 0;
    const on = (kind, handler) => this.element.addEventListener(kind, handler);
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    on("pointerup", (event) => this.#up(event));
    on("pointercancel", () => this.cancel());
    on("pointerleave", () => this.#hover(null));
    on("dblclick", () => this.fit());
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
    this.gesture = null;
    this.guides = { x: null, y: null };
    this.editor.cancel();
    this.draw();
    return true;
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

  /** @returns {import("./geometry.js").Point} where a canvas point is, CSS pixels of the element */
  onScreen(point) {
    const view = this.view();
    return { x: point.x * view.scale + view.x, y: point.y * view.scale + view.y };
  }

  /** Handles of the selected layer on the screen: `{u, v, x, y}`, or `{turn: true, x, y}`. */
  handles() {
    const layer = this.editor.selected;
    if (!layer?.visible) return [];
    const { scale } = this.view();
    const small = { x: layer.width * scale < 36, y: layer.height * scale < 36 };
    const shown = HANDLES.filter(([u, v]) => (u || !small.x) && (v || !small.y));
    const handles = shown.map(([u, v]) => ({ u, v, ...this.onScreen(pointOf(layer, u, v)) }));
    const top = this.onScreen(pointOf(layer, 0, -1));
    const middle = this.onScreen(pointOf(layer, 0, 0));
    const away = Math.hypot(top.x - middle.x, top.y - middle.y) || 1;
    const [dx, dy] = [(top.x - middle.x) / away, (top.y - middle.y) / away];
    return [...handles, { turn: true, x: top.x + dx * TURNER, y: top.y + dy * TURNER, stem: top }];
  }

  #handleAt(place, reach) {
    const near = (handle) => Math.hypot(handle.x - place.x, handle.y - place.y);
    const best = this.handles().sort((a, b) => near(a) - near(b))[0];
    return best && near(best) <= reach ? best : null;
  }

  /** The foremost layer that shows at a canvas point. */
  #layerAt(point) {
    return this.editor.layers.findLast((layer) => layer.visible && contains(layer, point) && this.#isSolid(layer, point));
  }

  #fills(layer) {
    const { width, height } = this.editor.canvas;
    return [[0, 0], [width, 0], [width, height], [0, height]].every(([x, y]) => contains(layer, { x, y }));
  }

  #isSolid(layer, point) {
    const at = within(layer, point);
    return this.editor.images.get(layer.name)?.isSolid(layer.flip_h ? 1 - at.x : at.x, layer.flip_v ? 1 - at.y : at.y) ?? true;
  }

  // ---- gestures ----------------------------------------------------------------------------------------------------------

  #down(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    this.focus();
    if (!this.editor.layers.length) return;
    const place = this.#place(event);
    const from = this.#onCanvas(place);
    const handle = this.#handleAt(place, event.pointerType === "touch" ? 2 * REACH : REACH + 2);
    const chosen = this.editor.selected;
    const layer = handle ? chosen : (this.#layerAt(from) ?? (chosen?.visible && contains(chosen, from) ? chosen : undefined));
    this.editor.select(layer?.name);
    // A layer that fills the canvas is easily hit by mistake: it moves only once it is selected.
    const held = layer && layer.name !== chosen?.name && this.#fills(layer);
    const kind = handle?.turn ? "turn" : handle ? "resize" : layer && !held ? "move" : "pan";
    const pulled = kind === "resize" ? pointOf(layer, handle.u, handle.v) : from;
    const grip = { x: pulled.x - from.x, y: pulled.y - from.y };
    this.gesture = { kind, handle, grip, from, place, start: layer, pan: this.pan, lines: this.#lines(layer) };
    this.element.setPointerCapture(event.pointerId);
    this.editor.begin();
  }

  #lines(layer) {
    return guideLines(this.editor.canvas, this.editor.layers.filter((other) => other.visible && other.name !== layer?.name));
  }

  #move(event) {
    const place = this.#place(event);
    if (!this.gesture) return this.#hover(place);
    event.stopPropagation();
    const { kind, from, start } = this.gesture;
    if (kind === "pan") {
      this.pan = { x: this.gesture.pan.x + place.x - this.gesture.place.x, y: this.gesture.pan.y + place.y - this.gesture.place.y };
      return this.draw();
    }
    if (!this.gesture.moved && Math.hypot(place.x - this.gesture.place.x, place.y - this.gesture.place.y) < 2) return undefined;
    this.gesture.moved = true;
    const to = this.#onCanvas(place);
    const reach = this.editor.snap && !event.ctrlKey && !event.metaKey ? REACH / this.view().scale : 0;
    this.guides = { x: null, y: null };
    const shape = { turn: () => rotated(start, from, to, event.shiftKey ? 15 : 0.1), resize: this.#pulled, move: this.#shifted };
    const { x, y, width, height, rotation } = shape[kind].call(this, to, reach, event);
    this.editor.change(start.name, { x, y, width, height, rotation });
  }

  /** The layer with the pulled handle at the pointer. */
  #pulled(to, reach, event) {
    const { handle, grip, start, lines } = this.gesture;
    const { u, v } = handle;
    const at = { x: to.x + grip.x, y: to.y + grip.y };
    const ratio = Boolean(u && v) && this.editor.ratio !== event.shiftKey;
    if (ratio || start.rotation % 90) return resized(start, u, v, at, { ratio, fromCentre: event.altKey });
    const sides = start.rotation % 180 ? [v, u] : [u, v]; // which of the canvas' directions the handle pulls
    const { point, guides } = snappedPoint(at, ...sides, lines, reach);
    this.guides = guides;
    return resized(start, u, v, point, { ratio, fromCentre: event.altKey });
  }

  /** The layer moved with the pointer; Shift holds one direction. */
  #shifted(to, reach, event) {
    const { from, start, lines } = this.gesture;
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
    if (!this.gesture) return;
    event.stopPropagation();
    this.gesture = null;
    this.guides = { x: null, y: null };
    this.editor.end();
    this.#hover(this.#place(event));
    this.draw();
  }

  #hover(place) {
    const handle = place && this.#handleAt(place, REACH + 2);
    const layer = place && !handle ? this.#layerAt(this.#onCanvas(place)) : null;
    const inSelected = place && this.editor.selected?.visible && contains(this.editor.selected, this.#onCanvas(place));
    this.element.style.cursor = handle ? this.#cursor(handle) : layer || inSelected ? "move" : "default";
    if (this.hovered !== (layer?.name ?? null)) {
      this.hovered = layer?.name ?? null;
      this.draw();
    }
  }

  #cursor(handle) {
    if (handle.turn) return "grab";
    const angle = (Math.atan2(handle.v, handle.u) * 180) / Math.PI + this.editor.selected.rotation;
    return CURSORS[((Math.round(angle / 45) % 4) + 4) % 4];
  }

  #wheel(event) {
    if (!this.editor.hasFocus) return; // the wheel belongs to the graph then
    event.preventDefault();
    event.stopPropagation();
    const place = this.#place(event);
    const before = this.#onCanvas(place);
    this.zoom = Math.min(Math.max(this.zoom * 1.0015 ** -event.deltaY, 0.1), 40);
    const after = this.onScreen(before);
    this.pan = { x: this.pan.x + place.x - after.x, y: this.pan.y + place.y - after.y };
    this.draw();
  }
}
