/** The canvas of the layer editor: draws the stack and turns pointer gestures into changes of the selected layer. */

import { HANDLES, bounds, contains, corners, guideLines, moved, movedAndSnapped, pointOf, resized, rotated, snappedPoint, within } from "./geometry.js";
import { element } from "./dom.js";

/** Blend modes that a browser's canvas has, or has near enough; the others are drawn as normal. */
export const OPERATIONS = {
  normal: "source-over", "linear-dodge": "lighter",
  ...Object.fromEntries(
    ["multiply", "screen", "overlay", "darken", "lighten", "color-dodge", "color-burn", "hard-light", "soft-light", "difference",
      "exclusion", "hue", "saturation", "color", "luminosity"].map((mode) => [mode, mode])),
};

const MARGIN = 28; // around the canvas, so that handles at its edges can be reached
const TURNER = 18; // from the upper edge to the handle that turns
const REACH = 8; // of pointer and snapping
const CHECK = 8; // of the checkerboard
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
    this.element.dataset.captureWheel = "true"; // ComfyUI: the wheel is ours while the focus is here
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
    // The graph's zoom changes how many pixels a CSS pixel has, and tells nobody.
    this.onZoom = () => {
      clearTimeout(this.zoomed);
      this.zoomed = setTimeout(() => this.element.isConnected && this.#density() !== this.density && this.draw(), 150);
    };
    window.addEventListener("wheel", this.onZoom, { capture: true, passive: true });
  }

  destroy() {
    this.resizes.disconnect();
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

  /** Give up the gesture, if there is one. @returns {boolean} whether there was */
  cancel() {
    if (!this.gesture) return false;
    this.gesture = null;
    this.guides = { x: null, y: null };
    this.editor.cancel();
    this.draw();
    return true;
  }

  /** Draw before the next frame. */
  draw() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.#paint();
    });
  }

  // ---- where things are on the screen ------------------------------------------------------------------------------------

  /** CSS pixels a canvas pixel, and the CSS place of the canvas' top left. */
  #view() {
    const { clientWidth, clientHeight } = this.element;
    const { width, height } = this.editor.canvas;
    const fit = Math.max(0.001, Math.min((clientWidth - 2 * MARGIN) / width, (clientHeight - 2 * MARGIN) / height));
    const scale = fit * this.zoom;
    return { scale, x: (clientWidth - width * scale) / 2 + this.pan.x, y: (clientHeight - height * scale) / 2 + this.pan.y };
  }

  /** An event's place in CSS pixels of the element, whatever the graph's zoom. */
  #place(event) {
    const box = this.element.getBoundingClientRect();
    const zoom = box.width / this.element.offsetWidth || 1;
    return { x: (event.clientX - box.left) / zoom, y: (event.clientY - box.top) / zoom };
  }

  #onCanvas(place) {
    const view = this.#view();
    return { x: (place.x - view.x) / view.scale, y: (place.y - view.y) / view.scale };
  }

  /** @returns {import("./geometry.js").Point} where a canvas point is, CSS pixels of the element */
  onScreen(point) {
    const view = this.#view();
    return { x: point.x * view.scale + view.x, y: point.y * view.scale + view.y };
  }

  /** Handles of the selected layer on the screen: `{u, v, x, y}`, or `{turn: true, x, y}`. */
  handles() {
    const layer = this.editor.selected;
    if (!layer?.visible) return [];
    const { scale } = this.#view();
    const small = { x: layer.width * scale < 36, y: layer.height * scale < 36 };
    const handles = HANDLES.filter(([u, v]) => (u || !small.x) && (v || !small.y)).map(([u, v]) => ({ u, v, ...this.onScreen(pointOf(layer, u, v)) }));
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
    this.gesture = { kind, handle, from, place, start: layer, pan: this.pan, lines: this.#lines(layer) };
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
    const { kind, handle, from, start, lines } = this.gesture;
    if (kind === "pan") {
      this.pan = { x: this.gesture.pan.x + place.x - this.gesture.place.x, y: this.gesture.pan.y + place.y - this.gesture.place.y };
      return this.draw();
    }
    if (!this.gesture.moved && Math.hypot(place.x - this.gesture.place.x, place.y - this.gesture.place.y) < 2) return undefined;
    this.gesture.moved = true;
    const to = this.#onCanvas(place);
    const reach = this.editor.snap && !event.ctrlKey && !event.metaKey ? REACH / this.#view().scale : 0;
    this.guides = { x: null, y: null };
    let box;
    if (kind === "turn") {
      box = rotated(start, from, to, event.shiftKey ? 15 : 0.1);
    } else if (kind === "resize") {
      const { point, guides } = start.rotation % 90 ? { point: to, guides: this.guides } : snappedPoint(to, ...this.#sides(start, handle), lines, reach);
      const corner = handle.u && handle.v;
      const ratio = Boolean(corner) && this.editor.ratio !== event.shiftKey;
      this.guides = ratio ? this.guides : guides;
      box = resized(start, handle.u, handle.v, ratio ? to : point, { ratio, fromCentre: event.altKey });
    } else {
      // Shift holds the move to one direction.
      const [dx, dy] = [to.x - from.x, to.y - from.y];
      const across = Math.abs(dx) >= Math.abs(dy);
      const held = event.shiftKey;
      ({ box, guides: this.guides } = movedAndSnapped(start, held && !across ? 0 : dx, held && across ? 0 : dy, lines, reach));
      if (held) box = moved({ ...box, [across ? "y" : "x"]: start[across ? "y" : "x"] }, 0, 0);
    }
    const { x, y, width, height, rotation } = box;
    this.editor.change(start.name, { x, y, width, height, rotation });
  }

  /** Which of the canvas' directions a handle pulls, for a layer turned by quarters. */
  #sides(layer, handle) {
    return layer.rotation % 180 ? [handle.v, handle.u] : [handle.u, handle.v];
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
    if (!this.element.contains(document.activeElement)) return; // the graph's
    event.preventDefault();
    event.stopPropagation();
    const place = this.#place(event);
    const before = this.#onCanvas(place);
    this.zoom = Math.min(Math.max(this.zoom * 1.0015 ** -event.deltaY, 0.1), 40);
    const after = this.onScreen(before);
    this.pan = { x: this.pan.x + place.x - after.x, y: this.pan.y + place.y - after.y };
    this.draw();
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------------

  /** Device pixels a CSS pixel of the element. */
  #density() {
    const graphZoom = this.element.getBoundingClientRect().width / this.element.offsetWidth || 1;
    return Math.min(Math.max(window.devicePixelRatio * graphZoom, 1), 4);
  }

  #paint() {
    const { offsetWidth, offsetHeight } = this.element;
    if (!offsetWidth || !offsetHeight) return;
    const density = (this.density = this.#density());
    const [width, height] = [Math.round(offsetWidth * density), Math.round(offsetHeight * density)];
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.editor.stackKnown) return;
    const style = getComputedStyle(this.element);
    const colours = { accent: style.getPropertyValue("--ld-accent").trim(), line: style.getPropertyValue("--ld-line").trim() };
    const view = this.#view();
    const selected = this.editor.selected;
    const area = { x: view.x, y: view.y, width: this.editor.canvas.width * view.scale, height: this.editor.canvas.height * view.scale };

    pen.setTransform(density, 0, 0, density, 0, 0);
    if (selected?.visible) this.#paintLayer(pen, selected, view, density, 0.3);
    pen.save();
    pen.beginPath();
    pen.rect(area.x, area.y, area.width, area.height);
    pen.clip();
    this.#paintBackground(pen, area);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.#composite(width, height, density, view), 0, 0);
    pen.restore();

    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.lineWidth = 1;
    pen.strokeStyle = colours.line;
    pen.strokeRect(area.x - 0.5, area.y - 0.5, area.width + 1, area.height + 1);
    for (const layer of this.editor.layers) if (layer.visible && layer.generated) this.#paintPlace(pen, layer);
    const hovered = this.editor.layers.find((layer) => layer.name === this.hovered);
    if (hovered && hovered.name !== selected?.name && !this.gesture) this.#outline(pen, hovered, colours.accent, 1, 0.8);
    this.#paintGuides(pen, view, colours);
    if (selected) this.#paintSelection(pen, selected, colours);
  }

  #paintBackground(pen, area) {
    const { background } = this.editor.canvas;
    if (background) {
      pen.fillStyle = `rgb(${background.map((value) => Math.round(value * 255)).join(" ")})`;
      pen.fillRect(area.x, area.y, area.width, area.height);
      return;
    }
    const tile = new OffscreenCanvas(2 * CHECK, 2 * CHECK);
    const brush = tile.getContext("2d");
    brush.fillStyle = "#b8b8b8";
    brush.fillRect(0, 0, 2 * CHECK, 2 * CHECK);
    brush.fillStyle = "#999";
    brush.fillRect(0, 0, CHECK, CHECK);
    brush.fillRect(CHECK, CHECK, CHECK, CHECK);
    const pattern = pen.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix().translate(area.x, area.y));
    pen.fillStyle = pattern;
    pen.fillRect(area.x, area.y, area.width, area.height);
  }

  /** All visible layers on a canvas of their own, so that blend modes do not meet the checkerboard. */
  #composite(width, height, density, view) {
    const sheet = new OffscreenCanvas(width, height);
    const pen = sheet.getContext("2d");
    for (const layer of this.editor.layers) {
      if (!layer.visible) continue;
      pen.globalCompositeOperation = OPERATIONS[layer.blend_mode] ?? "source-over";
      this.#paintLayer(pen, layer, view, density, layer.opacity);
    }
    return sheet;
  }

  #paintLayer(pen, layer, view, density, alpha) {
    const image = this.editor.images.get(layer.name)?.image;
    if (!image) return;
    const middle = this.onScreen(pointOf(layer, 0, 0));
    pen.save();
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.translate(middle.x, middle.y);
    pen.rotate((layer.rotation * Math.PI) / 180);
    pen.scale(layer.flip_h ? -1 : 1, layer.flip_v ? -1 : 1);
    pen.globalAlpha = alpha * (layer.generated ? 0.35 : 1);
    pen.imageSmoothingQuality = "high";
    const [width, height] = [layer.width * view.scale, layer.height * view.scale];
    // Enlarged pixels stay pixels: what is seen is what there is.
    pen.imageSmoothingEnabled = (width * density) / image.naturalWidth < 6;
    pen.drawImage(image, -width / 2, -height / 2, width, height);
    pen.restore();
  }

  #path(pen, layer) {
    pen.beginPath();
    corners(layer).forEach((corner, index) => {
      const { x, y } = this.onScreen(corner);
      if (index) pen.lineTo(x, y);
      else pen.moveTo(x, y);
    });
    pen.closePath();
  }

  #outline(pen, layer, colour, width, alpha = 1) {
    pen.save();
    this.#path(pen, layer);
    pen.globalAlpha = alpha;
    pen.lineWidth = width + 2;
    pen.strokeStyle = "rgb(0 0 0 / 45%)";
    pen.stroke();
    pen.lineWidth = width;
    pen.strokeStyle = colour;
    pen.stroke();
    pen.restore();
  }

  /** A layer still to be generated: its box and name. */
  #paintPlace(pen, layer) {
    pen.save();
    this.#path(pen, layer);
    pen.setLineDash([6, 4]);
    pen.lineWidth = 1.5;
    pen.strokeStyle = "rgb(0 0 0 / 60%)";
    pen.stroke();
    pen.lineDashOffset = 5;
    pen.strokeStyle = "#fff";
    pen.stroke();
    pen.restore();
    const box = bounds(layer);
    const { x, y } = this.onScreen({ x: (box.left + box.right) / 2, y: box.top });
    this.#label(pen, layer.name, x, y - 24);
  }

  #paintGuides(pen, view, colours) {
    pen.save();
    pen.strokeStyle = colours.accent;
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    const { offsetWidth, offsetHeight } = this.element;
    const lines = [];
    if (this.guides.x !== null) lines.push([this.guides.x * view.scale + view.x, 0, this.guides.x * view.scale + view.x, offsetHeight]);
    if (this.guides.y !== null) lines.push([0, this.guides.y * view.scale + view.y, offsetWidth, this.guides.y * view.scale + view.y]);
    for (const [x0, y0, x1, y1] of lines) {
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
      pen.stroke();
    }
    pen.restore();
  }

  #paintSelection(pen, layer, colours) {
    this.#outline(pen, layer, colours.accent, 1.5, layer.visible ? 1 : 0.5);
    const handles = this.handles();
    for (const handle of handles) {
      if (handle.turn) {
        pen.beginPath();
        pen.moveTo(handle.stem.x, handle.stem.y);
        pen.lineTo(handle.x, handle.y);
        pen.strokeStyle = colours.accent;
        pen.lineWidth = 1.5;
        pen.stroke();
      }
      pen.beginPath();
      if (handle.turn) pen.arc(handle.x, handle.y, 5, 0, 2 * Math.PI);
      else pen.roundRect(handle.x - 4, handle.y - 4, 8, 8, 2);
      pen.fillStyle = "#fff";
      pen.fill();
      pen.lineWidth = 1.5;
      pen.strokeStyle = colours.accent;
      pen.stroke();
    }
    const text = { move: () => `${layer.x}, ${layer.y}`, resize: () => `${layer.width} × ${layer.height}`, turn: () => `${layer.rotation}°` };
    if (this.gesture?.moved && text[this.gesture.kind]) {
      const box = bounds(layer);
      const low = this.onScreen({ x: (box.left + box.right) / 2, y: box.bottom });
      this.#label(pen, text[this.gesture.kind](), low.x, low.y + 8);
    }
  }

  /** Words on a plate, kept on the stage. */
  #label(pen, words, x, y) {
    pen.save();
    pen.font = `12px ${getComputedStyle(this.element).fontFamily}`;
    const width = pen.measureText(words).width + 12;
    const { offsetWidth, offsetHeight } = this.element;
    const left = Math.min(Math.max(x - width / 2, 2), offsetWidth - width - 2);
    const top = Math.min(Math.max(y, 2), offsetHeight - 22);
    pen.beginPath();
    pen.roundRect(left, top, width, 20, 5);
    pen.fillStyle = "rgb(0 0 0 / 78%)";
    pen.fill();
    pen.fillStyle = "#fff";
    pen.textBaseline = "middle";
    pen.fillText(words, left + 6, top + 10.5);
    pen.restore();
  }
}

/** A layer's picture of the last run. */
export class Picture {
  /** @param {string} url @param {() => void} onLoad */
  constructor(url, onLoad) {
    this.url = url;
    this.image = null;
    this.alpha = null;
    const image = new Image();
    image.onload = () => {
      this.image = image;
      onLoad();
    };
    image.src = url;
  }

  /** Whether there is something at a place of the picture, 0..1 in both directions. */
  isSolid(x, y) {
    if (!this.image) return true;
    const side = 64;
    if (!this.alpha) {
      const pen = new OffscreenCanvas(side, side).getContext("2d");
      pen.drawImage(this.image, 0, 0, side, side);
      this.alpha = pen.getImageData(0, 0, side, side).data.filter((_, index) => index % 4 === 3);
    }
    const at = (value) => Math.min(Math.floor(value * side), side - 1);
    return this.alpha[at(y) * side + at(x)] > 12;
  }
}
