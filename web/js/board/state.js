/**
 * What a board keeps in the workflow: a layer document whose pictures lie in ComfyUI's input folder, and what was changed of the layers
 * that come in. The same rules as layered_core/editing/board.py. Pure functions; states are never changed in place.
 *
 * @typedef {{name: string, image?: string, mask?: string, prompt?: string, negative?: string, x: number, y: number, width: number,
 *   height: number, recipe?: object}} Entry a layer of the board's own, without fields that have their neutral value
 * @typedef {{version: number, width?: number, height?: number, background?: number[], prompt?: string, negative?: string,
 *   layers: Entry[], marked?: string[], locked?: string[], arrangement?: import("../arrange/state.js").State}} State
 */

import * as arrangement from "../arrange/state.js";
import { fills } from "../editor/geometry.js";

export const VERSION = 1;
export const MAX_LAYERS = 50;

/** Width and height of an empty board, pixels. */
export const SIDE = 1024;

export const EMPTY = Object.freeze({ version: VERSION, layers: Object.freeze([]) });

/** Fields of a layer with their neutral values, which the state leaves out. */
const NEUTRAL = {
  prompt: "", negative: "", rotation: 0, flip_h: false, flip_v: false, opacity: 1, blend_mode: "normal", visible: true, image: null, mask: null,
};

/** All that an entry may hold; what else a layer has is the page's own. */
const FIELDS = ["name", "x", "y", "width", "height", ...Object.keys(NEUTRAL)];

/** A recipe's values when nothing was set; the same as layered_core.document.Recipe. `noise` null: see `freedomOf`. */
const RECIPE = { inside: 1, outside: 1, noise: null, seed: null, loras: [], embedding: null, control: { hint: "none", strength: 1, start: 0, end: 1 } };

const { isObject } = arrangement;
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

/** @returns {State | null} null if this version cannot read the value, which is then kept as it is */
export function read(value) {
  value = arrangement.parsed(value);
  if (!isObject(value)) return null;
  if (Object.keys(value).length === 0) return EMPTY;
  const { version, layers = [], marked = [], locked = [] } = value;
  const isEntry = (entry) => isObject(entry) && typeof entry.name === "string";
  if (version !== VERSION || !Array.isArray(layers) || !layers.every(isEntry) || !Array.isArray(marked) || !Array.isArray(locked)) return null;
  if (value.arrangement && arrangement.read(value.arrangement) === null) return null;
  return { ...value, layers };
}

/** @returns {State | {}} the value for the workflow: an empty object if nothing was done */
export function written(state) {
  return same(state, EMPTY) ? {} : state;
}

/** @returns {{width: number, height: number, background: number[] | null}} */
export function canvasOf(state, incoming = null) {
  const size = state.width ? state : (incoming ?? { width: SIDE, height: SIDE });
  return { width: size.width, height: size.height, background: state.background ?? incoming?.background ?? null };
}

/** @returns {object} the layer that an entry describes, with all its fields */
export function whole(entry) {
  const recipe = { ...RECIPE, ...entry.recipe, control: { ...RECIPE.control, ...entry.recipe?.control } };
  return { x: 0, y: 0, ...NEUTRAL, ...entry, recipe, own: true, generated: !entry.image };
}

/** @returns {Entry} without the fields that have their neutral value */
function short(layer) {
  const told = (key) => layer[key] !== undefined && !(key in NEUTRAL && layer[key] === NEUTRAL[key]);
  const entry = Object.fromEntries(FIELDS.filter(told).map((key) => [key, layer[key]]));
  const recipe = Object.fromEntries(Object.entries(layer.recipe ?? {}).filter(([key, value]) => !same(value, RECIPE[key])));
  return Object.keys(recipe).length ? { ...entry, recipe } : entry;
}

const arranged = (state) => arrangement.read(state.arrangement);

/** @returns {object[]} all layers with all their fields, back to front; the board's own have `own: true` */
export function layersOf(state, incoming) {
  const own = state.layers.map(whole);
  return arrangement.arranged([...incoming, ...own], arranged(state));
}

/**
 * How far a layer may change if nobody said it: 0 for a backdrop, which is the hindmost layer that shows, a picture without words that fills
 * the canvas behind others; 0.8 for any other. The same rule as layered_core/canvas/backdrop.py, which also looks at the pixels.
 *
 * @param {object[]} layers all of them, back to front
 */
export function freedomOf(layer, layers, canvas) {
  if (layer.recipe.noise !== null) return layer.recipe.noise;
  const shown = layers.filter((one) => one.visible && one.opacity > 0);
  return shown.length > 1 && shown[0].name === layer.name && isBackdrop(layer, canvas) ? 0 : 0.8;
}

/** @returns {boolean} whether a layer is a picture without words that fills the canvas */
export function isBackdrop(layer, canvas) {
  return !layer.generated && !layer.prompt.trim() && layer.blend_mode === "normal" && fills(layer, canvas);
}

const isOwn = (state, name) => state.layers.some((entry) => entry.name === name);

function withArrangement(state, made) {
  const { arrangement: _, ...rest } = state;
  return Object.keys(arrangement.written(made)).length ? { ...rest, arrangement: made } : rest;
}

/** @returns {State} the state with fields of a layer changed; changes of `recipe` are merged */
export function changed(state, incoming, name, changes) {
  if (!isOwn(state, name)) {
    const layer = incoming.find((one) => one.name === name);
    return layer ? withArrangement(state, arrangement.changed(arranged(state), layer, changes)) : state;
  }
  const merged = (entry) => {
    const layer = whole(entry);
    return short({ ...layer, ...changes, recipe: { ...layer.recipe, ...changes.recipe } });
  };
  return { ...state, layers: state.layers.map((entry) => (entry.name === name ? merged(entry) : entry)) };
}

/** @returns {State} the state with the layers in an order, back to front */
export function reordered(state, incoming, names) {
  const place = new Map(names.map((name, index) => [name, index]));
  const layers = [...state.layers].sort((a, b) => place.get(a.name) - place.get(b.name));
  const after = { ...state, layers };
  if (!incoming.length && !arranged(state).order) return after;
  return withArrangement(after, arrangement.reordered(arranged(state), [...incoming, ...layers], names));
}

/** @returns {string} the name, with a number if others have it */
export function freeName(name, taken) {
  const stem = name.trim().slice(0, 200) || "layer";
  let free = stem;
  for (let number = 2; taken.includes(free); number += 1) free = `${stem} ${number}`;
  return free;
}

/** @returns {State} the state with layers of the board's own in front */
export function added(state, layers) {
  return { ...state, layers: [...state.layers, ...layers.map(short)] };
}

/** @returns {State} the state without layers of the board's own */
export function removed(state, names) {
  const left = (list) => list?.filter((name) => !names.includes(name));
  const rest = { ...state, layers: state.layers.filter((entry) => !names.includes(entry.name)) };
  return listed(listed(withOrder(rest, left), "marked", left(state.marked)), "locked", left(state.locked));
}

/** @returns {State} the state in which a layer of the board's own has another name */
export function renamed(state, from, to) {
  const other = (list) => list?.map((name) => (name === from ? to : name));
  const rest = { ...state, layers: state.layers.map((entry) => (entry.name === from ? { ...entry, name: to } : entry)) };
  return listed(listed(withOrder(rest, other), "marked", other(state.marked)), "locked", other(state.locked));
}

function withOrder(state, change) {
  const { order, ...rest } = arranged(state);
  return withArrangement(state, order ? { ...rest, order: change(order) } : rest);
}

function listed(state, key, names = []) {
  const { [key]: _, ...rest } = state;
  return names.length ? { ...rest, [key]: names } : rest;
}

/** @param {"marked" | "locked"} key @returns {State} the state in which those names are on the list, or are not */
export function put(state, key, names, on) {
  const others = (state[key] ?? []).filter((name) => !names.includes(name));
  return listed(state, key, on ? [...others, ...names] : others);
}

/** @param {{width?: number, height?: number, background?: number[] | null, prompt?: string, negative?: string}} changes @returns {State} */
export function canvasChanged(state, changes) {
  const all = { ...state, ...changes };
  const { background, prompt, negative, ...rest } = all;
  return { ...rest, ...(background ? { background } : {}), ...(prompt ? { prompt } : {}), ...(negative ? { negative } : {}) };
}

/** @param {(words: string) => string} change @returns {State | {}} a value for the workflow in which all words were changed */
export function withWords(value, change) {
  const words = ({ prompt, negative, ...rest }) => ({
    ...rest,
    ...(prompt ? { prompt: change(prompt) } : {}),
    ...(negative ? { negative: change(negative) } : {}),
  });
  return value.layers ? { ...words(value), layers: value.layers.map(words) } : value;
}
