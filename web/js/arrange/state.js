/**
 * What the user changed, as it is kept in the workflow: `{version, layers: {name: {field: value}}, order: [names, back to front]}`.
 * The same rules as layered_core/editing/arrangement.py. Pure functions; states are never changed in place.
 *
 * @typedef {{name: string, x: number, y: number, width: number, height: number, rotation: number, flip_h: boolean, flip_v: boolean,
 *   opacity: number, blend_mode: string, visible: boolean}} Layer
 * @typedef {{version: number, layers: Object<string, Partial<Layer>>, order?: string[]}} State
 */

export const VERSION = 1;

export const FIELDS = ["x", "y", "width", "height", "rotation", "flip_h", "flip_v", "opacity", "blend_mode", "visible"];

export const EMPTY = Object.freeze({ version: VERSION, layers: Object.freeze({}) });

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @returns {unknown} what a workflow holds, which may be text; an empty object for nothing, null for text that is no JSON */
export function parsed(value) {
  if (typeof value !== "string") return value ?? {};
  try {
    return value.trim() ? JSON.parse(value) : {};
  } catch {
    return null;
  }
}

/** @returns {State | null} null if this version cannot read the value, which is then kept as it is */
export function read(value) {
  value = parsed(value);
  if (!isObject(value)) return null;
  if (Object.keys(value).length === 0) return EMPTY;
  const { version, layers = {}, order = [] } = value;
  if (version !== VERSION || !isObject(layers) || !Object.values(layers).every(isObject) || !Array.isArray(order)) return null;
  return order.length ? { version, layers, order } : { version, layers };
}

/** @returns {State | {}} the value for the workflow: an empty object if nothing was changed */
export function written(state) {
  return Object.keys(state.layers).length || state.order ? state : {};
}

/** @returns {string[]} `names` in the order of the state; names that the state does not have keep their position */
export function ordered(names, order = []) {
  const result = order.filter((name) => names.includes(name));
  names.forEach((name, index) => {
    if (!order.includes(name)) result.splice(index, 0, name);
  });
  return result;
}

/** @param {Layer[]} stack @param {State} state @returns {Layer[]} the stack as arranged, back to front */
export function arranged(stack, state) {
  const layers = new Map(stack.map((layer) => [layer.name, layer]));
  return ordered([...layers.keys()], state.order).map((name) => ({ ...layers.get(name), ...state.layers[name] }));
}

/** @returns {string[]} names in the state that the stack does not have */
export function absent(stack, state) {
  const present = new Set(stack.map((layer) => layer.name));
  return [...new Set([...Object.keys(state.layers), ...(state.order ?? [])])].filter((name) => !present.has(name));
}

/** @param {Layer} own the layer as it comes in @returns {State} the state with fields of that layer set; a field with the value that it came in with counts as unchanged */
export function changed(state, own, changes) {
  const all = { ...state.layers[own.name], ...changes };
  const kept = FIELDS.filter((field) => field in all && all[field] !== own[field]).map((field) => [field, all[field]]);
  return withLayer(state, own.name, Object.fromEntries(kept));
}

/** @returns {State} the state without changes to the layer's place and look; the order stays */
export function reset(state, name) {
  return withLayer(state, name, {});
}

/** @returns {State} the state with the layers of the stack in the order `names`; names that are not in the stack stay above the name they were above */
export function reordered(state, stack, names) {
  const own = stack.map((layer) => layer.name);
  const result = [...names];
  (state.order ?? []).forEach((name, index, order) => {
    if (!result.includes(name)) result.splice(index ? result.indexOf(order[index - 1]) + 1 : 0, 0, name);
  });
  const { order: _, ...rest } = state;
  const plain = result.length === own.length && result.every((name, index) => name === own[index]);
  return plain ? rest : { ...rest, order: result };
}

/** @returns {State} the state without those names */
export function without(state, names) {
  const layers = Object.fromEntries(Object.entries(state.layers).filter(([name]) => !names.includes(name)));
  const order = (state.order ?? []).filter((name) => !names.includes(name));
  return order.length ? { version: VERSION, layers, order } : { version: VERSION, layers };
}

function withLayer(state, name, changes) {
  const { [name]: _, ...others } = state.layers;
  return { ...state, layers: Object.keys(changes).length ? { ...others, [name]: changes } : others };
}
