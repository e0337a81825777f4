/** Small helpers that build the editor's elements. */

/** @returns {HTMLElement} an element with properties (names with a dash become attributes) and children */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Drawings of the buttons, 16 by 16, in the colour of the text. */
const ICONS = {
  undo: "M6 3 2.5 6.5 6 10M3 6.5h6.5a3.5 3.5 0 0 1 0 7H7",
  redo: "M10 3l3.5 3.5L10 10M13 6.5H6.5a3.5 3.5 0 0 0 0 7H9",
  flipH: "M8 2v12M6 4.5v7H1.5zM10 4.5v7h4.5z",
  flipV: "M2 8h12M4.5 6h7V1.5zM4.5 10h7v4.5z",
  snap: "M3 2.5v5.5a5 5 0 0 0 10 0V2.5h-3V8a2 2 0 0 1-4 0V2.5zM3 5h3M10 5h3",
  ratio: "M6.5 9.5 9.5 6.5M7 4.5l1.5-1.5a3.2 3.2 0 0 1 4.5 4.5L11.5 9M9 11.5 7.5 13A3.2 3.2 0 0 1 3 8.5L4.5 7",
  fit: "M2 5.5V2h3.5M10.5 2H14v3.5M14 10.5V14h-3.5M5.5 14H2v-3.5",
  reset: "M3 8a5 5 0 1 0 1.5-3.5M3 2v3h3",
  select: "M4 2l8.5 7-4 .6 2.3 4-1.8 1-2.3-4L4 13z",
  box: "M2.5 3.5h11v9h-11zM8 5.5v5M5.5 8h5",
  brush: "M13.5 2.5 7 9M7 9c-2-.6-3.5.6-3.6 2.2C3.3 12.600 2.500 13 2 13.200c2.500 1.200 6 .8 6-2.200 0-.8-.3-1.500-1-2z",
  eraser: "M6 13.500 2.500 10 9.500 3l4 4-6.500 6.500zM6 6.500l4 4M7 13.500h6",
  picture: "M2 3h12v10H2zM2 11l3.500-3.500 3 3L11 8l3 3M10.500 6.500a1 1 0 1 0 0-2 1 1 0 0 0 0 2z",
  keep: "M2.5 8.5 6 12l7.500-8",
  copy: "M5.5 5.5h8v8h-8zM10.5 5.500v-3h-8v8h3",
  bin: "M3 4.500h10M6.500 4.500v-2h3v2M4.500 4.500l.5 9h6l.5-9",
  remove: "M4.500 4.500l7 7M11.500 4.500l-7 7",
  attention: "M8 8m-1.500 0a1.500 1.500 0 1 0 3 0 1.500 1.500 0 1 0-3 0M8 8m-5.500 0a5.500 5.500 0 1 0 11 0 5.500 5.500 0 1 0-11 0M8 1v2M8 13v2M1 8h2M13 8h2",
  locked: "M4 7.500h8v6H4zM5.500 7.500V5a2.500 2.500 0 0 1 5 0v2.500",
  unlocked: "M4 7.500h8v6H4zM5.500 7.500V4.500a2.500 2.500 0 0 1 4.800-1",
  redo_layer: "M13 8a5 5 0 1 1-1.500-3.500M13 2v3h-3",
  shown: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
  hidden: "M2 2l12 12M6.5 3.7A7 7 0 0 1 8 3.5c4 0 6.5 4.5 6.5 4.5a11 11 0 0 1-2 2.5M4 5a10.5 10.5 0 0 0-2.5 3S4 12.5 8 12.5a6.5 6.5 0 0 0 2.5-.5",
};

/** @returns {SVGElement} */
function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button that is focused through an `<input>`: ComfyUI ignores keys that go to an input, so Ctrl+Z there does not undo in the graph.
 *
 * @param {"button" | "checkbox" | "radio"} type
 * @returns {{label: HTMLLabelElement, input: HTMLInputElement, show: (iconName: string) => void}}
 */
export function button(iconName, title, onPress, type = "button") {
  const input = element("input", { type, "aria-label": title });
  input.addEventListener(type === "button" ? "click" : "change", () => onPress(input));
  let drawn = icon(iconName);
  const label = element("label", { className: "ld-button", title }, input, drawn);
  const show = (name) => {
    if (name === iconName) return;
    iconName = name;
    const next = icon(name);
    drawn.replaceWith(next);
    drawn = next;
  };
  return { label, input, show };
}

/** @returns {HTMLInputElement} a button with words on it */
export function textButton(value, title, onPress) {
  const input = element("input", { type: "button", className: "ld-text-button", value, title });
  input.addEventListener("click", onPress);
  return input;
}
