/**
 * Where layers lie, in canvas pixels; y points down, angles are degrees clockwise. Pure functions: no DOM, no state.
 *
 * @typedef {{x: number, y: number}} Point
 * @typedef {{x: number, y: number, width: number, height: number, rotation: number}} Box a layer's place; x, y before rotation
 * @typedef {{left: number, top: number, right: number, bottom: number}} Bounds
 */

/** The eight handles as directions from the centre: u to the right, v down. */
export const HANDLES = [[-1, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0]];

/** Greatest side of a layer, pixels; a layer lies at most four times that far away. The server checks the same limits. */
const MAX_SIDE = 16384;

const limited = (value, low, high) => Math.min(Math.max(value, low), high);

/** @returns {Point} */
export function centre(box) {
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

/** @param {Point} vector @param {number} degrees @returns {Point} the vector turned clockwise */
export function turned(vector, degrees) {
  const angle = (degrees * Math.PI) / 180;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return { x: vector.x * cos - vector.y * sin, y: vector.x * sin + vector.y * cos };
}

/** @returns {Point} the point of a box in direction (u, v) from its centre: (1, 1) is its bottom right corner */
export function pointOf(box, u, v) {
  const middle = centre(box);
  const arm = turned({ x: (u * box.width) / 2, y: (v * box.height) / 2 }, box.rotation);
  return { x: middle.x + arm.x, y: middle.y + arm.y };
}

/** @returns {Point[]} clockwise from the box's own top left */
export function corners(box) {
  return [pointOf(box, -1, -1), pointOf(box, 1, -1), pointOf(box, 1, 1), pointOf(box, -1, 1)];
}

/** @returns {Bounds} */
export function bounds(box) {
  const points = corners(box);
  const [xs, ys] = [points.map((p) => p.x), points.map((p) => p.y)];
  return { left: Math.min(...xs), top: Math.min(...ys), right: Math.max(...xs), bottom: Math.max(...ys) };
}

/** @returns {Point} where a canvas point lies in the box, 0..1 in both directions when inside */
export function within(box, point) {
  const middle = centre(box);
  const arm = turned({ x: point.x - middle.x, y: point.y - middle.y }, -box.rotation);
  return { x: arm.x / box.width + 0.5, y: arm.y / box.height + 0.5 };
}

/** @returns {Box} the upright box that holds all of them */
export function around(boxes) {
  const all = boxes.map(bounds);
  const [left, top] = [Math.min(...all.map((b) => b.left)), Math.min(...all.map((b) => b.top))];
  const [right, bottom] = [Math.max(...all.map((b) => b.right)), Math.max(...all.map((b) => b.bottom))];
  return { x: left, y: top, width: right - left, height: bottom - top, rotation: 0 };
}

export function contains(box, point) {
  const inner = within(box, point);
  return inner.x >= 0 && inner.x <= 1 && inner.y >= 0 && inner.y <= 1;
}

/** @returns {boolean} whether a box covers the whole canvas */
export function fills(box, { width, height }) {
  return [[0, 0], [width, 0], [width, height], [0, height]].every(([x, y]) => contains(box, { x, y }));
}

/** @returns {Box} the box moved, on whole pixels */
export function moved(box, dx, dy) {
  const far = 4 * MAX_SIDE;
  return { ...box, x: limited(Math.round(box.x + dx), -far, far), y: limited(Math.round(box.y + dy), -far, far) };
}

/**
 * Pull the handle (u, v) of a box to a point; the opposite side or corner stays where it is.
 *
 * @param {Box} box as it was when the pull began
 * @param {{ratio: boolean, fromCentre: boolean}} options ratio: keep the ratio of width to height; fromCentre: the centre stays instead
 * @returns {Box} in whole pixels, at least 1 wide and high
 */
export function resized(box, u, v, point, { ratio, fromCentre }) {
  const anchor = fromCentre ? centre(box) : pointOf(box, -u, -v);
  const reach = turned({ x: point.x - anchor.x, y: point.y - anchor.y }, -box.rotation);
  const twice = fromCentre ? 2 : 1;
  let width = u ? reach.x * u * twice : box.width;
  let height = v ? reach.y * v * twice : box.height;
  if (ratio) {
    // A corner handle scales by its way along the diagonal, so that both directions count; a side handle scales the
    // other side by the same factor.
    const diagonal = box.width ** 2 + box.height ** 2;
    const scale = u && v ? (width * box.width + height * box.height) / diagonal : u ? width / box.width : height / box.height;
    [width, height] = [box.width * scale, box.height * scale];
  }
  width = limited(Math.round(width), 1, MAX_SIDE);
  height = limited(Math.round(height), 1, MAX_SIDE);
  const arm = fromCentre ? { x: 0, y: 0 } : turned({ x: (u * width) / 2, y: (v * height) / 2 }, box.rotation);
  return moved({ ...box, x: anchor.x + arm.x - width / 2, y: anchor.y + arm.y - height / 2, width, height }, 0, 0);
}

/**
 * Turn a box about its centre as a pointer goes round it.
 *
 * @param {Point} from where the pointer was when the turn began
 * @param {number} step degrees to round to: 0.1, or 15 for whole steps
 * @returns {Box} with rotation in -180..180
 */
export function rotated(box, from, to, step) {
  const middle = centre(box);
  const angle = (p) => (Math.atan2(p.y - middle.y, p.x - middle.x) * 180) / Math.PI;
  const free = box.rotation + angle(to) - angle(from);
  return { ...box, rotation: upright(Math.round(free / step) * step) };
}

/** @returns {Box} a box that was pulled along when the upright box `from` around it became `to`, of the same shape */
export function scaledWith(box, from, to) {
  const scale = to.width / from.width;
  const middle = centre(box);
  const side = (value) => limited(Math.round(value * scale), 1, MAX_SIDE);
  const [width, height] = [side(box.width), side(box.height)];
  const [x, y] = [to.x + (middle.x - from.x) * scale - width / 2, to.y + (middle.y - from.y) * scale - height / 2];
  return moved({ ...box, x, y, width, height }, 0, 0);
}

/** @param {Point} middle @returns {Box} a box turned about a point that need not be its centre */
export function turnedWith(box, middle, degrees) {
  const own = centre(box);
  const arm = turned({ x: own.x - middle.x, y: own.y - middle.y }, degrees);
  return moved({ ...box, rotation: upright(box.rotation + degrees) }, middle.x + arm.x - own.x, middle.y + arm.y - own.y);
}

/** How boxes can be aligned: the direction, and the point of both boxes that meets, as a share of their size. */
export const ALIGNMENTS = {
  left: ["x", 0], centre: ["x", 0.5], right: ["x", 1],
  top: ["y", 0], middle: ["y", 0.5], bottom: ["y", 1],
};

/** @param {Box} frame an upright box @param {keyof ALIGNMENTS} how @returns {Box} the box moved to an edge or the middle of the frame */
export function aligned(box, frame, how) {
  const [axis, share] = ALIGNMENTS[how];
  const own = around([box]);
  const size = axis === "x" ? "width" : "height";
  const shift = frame[axis] + frame[size] * share - (own[axis] + own[size] * share);
  return axis === "x" ? moved(box, shift, 0) : moved(box, 0, shift);
}

/** @returns {number} the same direction within -180..180, rounded, without floating-point noise */
export function upright(degrees) {
  const turn = ((((degrees + 180) % 360) + 360) % 360) - 180;
  return Math.round(turn * 10) / 10 + 0;
}

/** @returns {{x: number[], y: number[]}} the lines that a moving layer snaps to: edges and centres of the canvas and the other layers */
export function guideLines(canvas, others) {
  const lines = { x: [0, canvas.width / 2, canvas.width], y: [0, canvas.height / 2, canvas.height] };
  for (const box of others) {
    const b = bounds(box);
    lines.x.push(b.left, (b.left + b.right) / 2, b.right);
    lines.y.push(b.top, (b.top + b.bottom) / 2, b.bottom);
  }
  return lines;
}

/**
 * The smallest shift that brings one of `values` onto one of `lines`.
 *
 * @param {number} reach farthest shift, canvas pixels
 * @returns {{shift: number, line: number | null}} shift 0 and line null where none is near
 */
export function snapped(values, lines, reach) {
  let best = { shift: 0, line: null };
  let distance = reach;
  for (const value of values)
    for (const line of lines)
      if (Math.abs(line - value) < distance) {
        distance = Math.abs(line - value);
        best = { shift: line - value, line };
      }
  return best;
}

/**
 * Move a box and let its edges and centre snap.
 *
 * @returns {{box: Box, guides: {x: number | null, y: number | null}}} guides: the lines it lies on
 */
export function movedAndSnapped(box, dx, dy, lines, reach) {
  const free = bounds({ ...box, x: box.x + dx, y: box.y + dy });
  const x = snapped([free.left, (free.left + free.right) / 2, free.right], lines.x, reach);
  const y = snapped([free.top, (free.top + free.bottom) / 2, free.bottom], lines.y, reach);
  return { box: moved(box, dx + x.shift, dy + y.shift), guides: { x: x.line, y: y.line } };
}

/** @returns {{point: Point, guides: {x: number | null, y: number | null}}} the point of a pulled handle, snapped to the lines near it */
export function snappedPoint(point, u, v, lines, reach) {
  const x = u ? snapped([point.x], lines.x, reach) : { shift: 0, line: null };
  const y = v ? snapped([point.y], lines.y, reach) : { shift: 0, line: null };
  return { point: { x: point.x + x.shift, y: point.y + y.shift }, guides: { x: x.line, y: y.line } };
}
