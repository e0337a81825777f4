/** Painting the mask of a layer. Pure functions on canvases; a mask is the alpha of a white canvas. */

import { sheet } from "../editor/picture.js";

/** Longer side of a painted mask, pixels. */
const SIDE = 1024;

const scaleOf = ({ width, height }) => Math.min(SIDE / Math.max(width, height), 1);

/** @returns {DOMMatrix} from canvas pixels to pixels of a sheet of `width` x `height` that lies over the layer's box as its picture does */
function ontoLayer(layer, width, height) {
  return new DOMMatrix()
    .translate(width / 2, height / 2)
    .scale(layer.flip_h ? -1 : 1, layer.flip_v ? -1 : 1)
    .scale(width / layer.width, height / layer.height)
    .rotate(-layer.rotation)
    .translate(-(layer.x + layer.width / 2), -(layer.y + layer.height / 2));
}

/**
 * Where a stroke goes. A picture's mask is painted in the frame of the picture. A place without a picture is painted on a sheet as large
 * as the canvas, because it may grow.
 *
 * @param {object} layer
 * @param {OffscreenCanvas | null} mask its mask so far; null: the whole box
 * @param {{width: number, height: number}} canvas
 * @returns {{sheet: OffscreenCanvas, matrix: DOMMatrix, scale: number, fitted: boolean}} matrix: from canvas pixels to the sheet's;
 *   fitted: the box is cut to what is painted
 */
export function strokeSheet(layer, mask, canvas) {
  const fitted = layer.generated;
  const frame = fitted ? canvas : layer;
  const scale = scaleOf(frame);
  const made = sheet(frame.width * scale, frame.height * scale);
  const pen = made.getContext("2d", { willReadFrequently: true });
  const matrix = fitted
    ? new DOMMatrix().scale(made.width / canvas.width, made.height / canvas.height)
    : ontoLayer(layer, made.width, made.height);
  if (fitted && layer.width) {
    const [width, height] = mask ? [mask.width, mask.height] : [layer.width, layer.height];
    pen.setTransform(matrix.multiply(ontoLayer(layer, width, height).inverse()));
    if (mask) pen.drawImage(mask, 0, 0);
  } else if (mask) pen.drawImage(mask, 0, 0, made.width, made.height);
  if (!mask && layer.width) {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, fitted ? layer.width : made.width, fitted ? layer.height : made.height);
  }
  return { sheet: made, matrix, scale, fitted };
}

/** Draw a stretch of a stroke, from one canvas point to the next. @param {number} size the brush's diameter, canvas pixels */
export function stroke({ sheet: made, matrix }, from, to, size, erases) {
  const pen = made.getContext("2d", { willReadFrequently: true });
  pen.setTransform(matrix);
  pen.globalCompositeOperation = erases ? "destination-out" : "source-over";
  pen.strokeStyle = "#fff";
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = size;
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x + 0.001, to.y); // a line of no length would draw nothing
  pen.stroke();
}

/** @returns {{left: number, top: number, right: number, bottom: number, full: boolean} | null} the pixels that are not clear, and whether all are opaque; null for none */
function extent(made) {
  const { width, height } = made;
  const { data } = made.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height);
  let [left, top, right, bottom, opaque] = [width, height, 0, 0, 0];
  for (let y = 0; y < height; y += 1)
    for (let x = 0; x < width; x += 1) {
      const alpha = data[4 * (y * width + x) + 3];
      if (!alpha) continue;
      opaque += alpha === 255;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
    }
  return right ? { left, top, right, bottom, full: opaque === (right - left) * (bottom - top) } : null;
}

/**
 * What a painted sheet means for its layer.
 *
 * @param {{width: number, height: number}} canvas
 * @returns {{box: object, mask: OffscreenCanvas | null} | null} box: changed fields of the layer's place; mask: null where the layer is the whole box; null if nothing is left
 */
export function painted({ sheet: made, scale, fitted }, canvas) {
  const found = extent(made);
  if (!found) return null;
  const everywhere = found.full && found.left === 0 && found.top === 0 && found.right === made.width && found.bottom === made.height;
  if (!fitted) return { box: {}, mask: everywhere ? null : made };
  const [left, top] = [Math.floor(found.left / scale), Math.floor(found.top / scale)];
  const [right, bottom] = [Math.min(Math.ceil(found.right / scale), canvas.width), Math.min(Math.ceil(found.bottom / scale), canvas.height)];
  const box = { x: left, y: top, width: right - left, height: bottom - top, rotation: 0, flip_h: false, flip_v: false };
  if (found.full) return { box, mask: null };
  const cut = sheet(box.width * scale, box.height * scale);
  cut.getContext("2d").drawImage(made, left * scale, top * scale, box.width * scale, box.height * scale, 0, 0, cut.width, cut.height);
  return { box, mask: cut };
}

/** @returns {Promise<Blob>} the mask as a grey PNG, white where the layer is */
export function asFile(mask) {
  const grey = sheet(mask.width, mask.height);
  const pen = grey.getContext("2d");
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, grey.width, grey.height);
  pen.drawImage(mask, 0, 0);
  return grey.convertToBlob({ type: "image/png" });
}

/** @returns {Promise<string>} a short name made of the file's bytes (FNV-1a): masks painted alike share a file */
export async function nameOf(blob) {
  let hash = 0x811c9dc5;
  for (const byte of new Uint8Array(await blob.arrayBuffer())) hash = Math.imul(hash ^ byte, 0x01000193);
  return `mask_${(hash >>> 0).toString(16).padStart(8, "0")}.png`;
}
