/** Draws the stage: background, layers, boxes, guides, selection. */

import { bounds, corners, pointOf } from "./geometry.js";
import { sizeOf } from "./picture.js";

/** Blend modes that a browser's canvas has, or approximates well; the others are drawn as normal. */
export const OPERATIONS = {
  normal: "source-over",
  "linear-dodge": "lighter",
  ...Object.fromEntries(
    [
      "multiply", "screen", "overlay", "darken", "lighten", "color-dodge", "color-burn", "hard-light", "soft-light", "difference", "exclusion",
      "hue", "saturation", "color", "luminosity",
    ].map((mode) => [mode, mode]),
  ),
};

const CHECK = 8; // side of the checkerboard's squares, CSS pixels

export class Painter {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
  }

  /** Whether a blend mode is drawn as it really looks. */
  isDrawn(mode) {
    return mode in OPERATIONS;
  }

  /** Draw everything, at `stage.density` device pixels for each CSS pixel. */
  paint() {
    const { stage } = this;
    const { editor, canvas } = stage;
    const { offsetWidth, offsetHeight } = stage.element;
    if (!offsetWidth || !offsetHeight) return;
    const { density } = stage;
    const [width, height] = [Math.round(offsetWidth * density), Math.round(offsetHeight * density)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!editor.stackKnown) return;
    const style = getComputedStyle(stage.element);
    const colours = { accent: style.getPropertyValue("--ld-accent").trim(), line: style.getPropertyValue("--ld-line").trim() };
    const view = stage.view();
    const { selected } = editor;
    const area = { x: view.x, y: view.y, width: editor.canvas.width * view.scale, height: editor.canvas.height * view.scale };

    pen.setTransform(density, 0, 0, density, 0, 0);
    if (selected?.visible) this.#paintLayer(pen, selected, view, density, 0.3);
    pen.save();
    pen.beginPath();
    pen.rect(area.x, area.y, area.width, area.height);
    pen.clip();
    if (!editor.canvas.background) this.#paintChecks(pen, area);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.drawImage(this.#composite(width, height, density, view), 0, 0);
    pen.setTransform(density, 0, 0, density, 0, 0);
    for (const { image, alpha } of editor.overlays?.() ?? []) {
      pen.globalAlpha = alpha;
      pen.imageSmoothingQuality = "high";
      pen.drawImage(image, area.x, area.y, area.width, area.height);
    }
    pen.restore();

    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.lineWidth = 1;
    pen.strokeStyle = colours.line;
    pen.strokeRect(area.x - 0.5, area.y - 0.5, area.width + 1, area.height + 1);
    for (const layer of editor.layers) if (layer.visible && layer.generated) this.#paintPlace(pen, layer, editor.label?.(layer) ?? layer.name);
    const hovered = editor.layers.find((layer) => layer.name === stage.hovered);
    if (hovered && hovered.name !== selected?.name && !stage.gesture) this.#outline(pen, hovered, colours.accent, 1, 0.8);
    this.#paintGuides(pen, view, colours);
    this.#paintSelection(pen, colours);
    editor.tool?.paint(pen, view, colours);
  }

  #paintChecks(pen, area) {
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

  /** Draw background and visible layers on a separate canvas, so that blend modes do not act on the checkerboard. */
  #composite(width, height, density, view) {
    const sheet = new OffscreenCanvas(width, height);
    const pen = sheet.getContext("2d");
    const { background } = this.stage.editor.canvas;
    if (background) {
      pen.fillStyle = `rgb(${background.map((value) => Math.round(value * 255)).join(" ")})`;
      pen.fillRect(0, 0, width, height);
    }
    for (const layer of this.stage.editor.layers) {
      if (!layer.visible) continue;
      pen.globalCompositeOperation = OPERATIONS[layer.blend_mode] ?? "source-over";
      this.#paintLayer(pen, layer, view, density, layer.opacity);
    }
    return sheet;
  }

  #paintLayer(pen, layer, view, density, alpha) {
    const image = this.stage.editor.pictureOf(layer)?.image;
    if (!image) return;
    const middle = this.stage.onScreen(pointOf(layer, 0, 0));
    pen.save();
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.translate(middle.x, middle.y);
    pen.rotate((layer.rotation * Math.PI) / 180);
    pen.scale(layer.flip_h ? -1 : 1, layer.flip_v ? -1 : 1);
    pen.globalAlpha = alpha * (layer.generated ? 0.35 : 1);
    pen.imageSmoothingQuality = "high";
    const [width, height] = [layer.width * view.scale, layer.height * view.scale];
    // Strongly enlarged pixels are not smoothed, so that the true pixels are seen.
    pen.imageSmoothingEnabled = (width * density) / sizeOf(image)[0] < 6;
    pen.drawImage(image, -width / 2, -height / 2, width, height);
    pen.restore();
  }

  #path(pen, layer) {
    pen.beginPath();
    corners(layer).forEach((corner, index) => {
      const { x, y } = this.stage.onScreen(corner);
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

  /** Draw a layer that is still to be generated: its box and name. */
  #paintPlace(pen, layer, words) {
    pen.save();
    this.#path(pen, layer);
    if (layer.tint && !this.stage.editor.pictureOf(layer)) {
      pen.globalAlpha = 0.25 * (1 - (this.stage.editor.resultShare ?? 0)); // it would colour the result
      pen.fillStyle = layer.tint;
      pen.fill();
      pen.globalAlpha = 1;
    }
    pen.setLineDash([6, 4]);
    pen.lineWidth = 1.5;
    pen.strokeStyle = "rgb(0 0 0 / 60%)";
    pen.stroke();
    pen.lineDashOffset = 5;
    pen.strokeStyle = "#fff";
    pen.stroke();
    pen.restore();
    const box = bounds(layer);
    const { x, y } = this.stage.onScreen({ x: (box.left + box.right) / 2, y: box.top });
    this.#label(pen, words, x, y - 24);
  }

  #paintGuides(pen, view, colours) {
    pen.save();
    pen.strokeStyle = colours.accent;
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    const { offsetWidth, offsetHeight } = this.stage.element;
    const { guides } = this.stage;
    const [x, y] = [guides.x * view.scale + view.x, guides.y * view.scale + view.y];
    const lines = [...(guides.x === null ? [] : [[x, 0, x, offsetHeight]]), ...(guides.y === null ? [] : [[0, y, offsetWidth, y]])];
    for (const [x0, y0, x1, y1] of lines) {
      pen.beginPath();
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
      pen.stroke();
    }
    pen.restore();
  }

  #paintSelection(pen, colours) {
    const { stage } = this;
    const layers = stage.editor.selectedLayers;
    for (const layer of layers) this.#outline(pen, layer, colours.accent, layers.length > 1 ? 1 : 1.5, layer.visible ? 1 : 0.5);
    const { box } = stage;
    if (!box) return;
    if (layers.length > 1) this.#outline(pen, box, colours.accent, 1.5);
    const handles = this.stage.handles();
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
    const text = { move: () => `${box.x}, ${box.y}`, resize: () => `${box.width} × ${box.height}`, turn: () => `${box.rotation}°` };
    if (stage.gesture?.moved && text[stage.gesture.kind]) {
      const { left, right, bottom } = bounds(box);
      const low = stage.onScreen({ x: (left + right) / 2, y: bottom });
      this.#label(pen, text[stage.gesture.kind](), low.x, low.y + 8);
    }
  }

  /** Draw text on a plate, kept inside the stage. */
  #label(pen, words, x, y) {
    pen.save();
    pen.font = `12px ${getComputedStyle(this.stage.element).fontFamily}`;
    const width = pen.measureText(words).width + 12;
    const { offsetWidth, offsetHeight } = this.stage.element;
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
