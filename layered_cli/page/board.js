// The picture with boxes over it. In mode "draw" a drag draws the box of a new thing; in mode "move" it moves the
// selected layer, or scales it by a corner; a tap selects a layer. Works with mouse, pen and touch alike.
// Numbers are hundredths of the picture; only the box of a new thing, the board's value, is in whole pixels of it, or
// empty. Text comes into the page as text, never as HTML.
const LEAST = 2; // a shorter drag is a tap
const CORNERS = ["nw", "ne", "sw", "se"];
const START = {
  picture: "", layers: [], selected: "", mode: "look", width: 1, height: 1, answer: 0, hint: "Loading …", value: [],
};
const frame = element.querySelector(".ld-frame");
const picture = element.querySelector(".ld-picture");
const overlay = element.querySelector(".ld-overlay");
const hint = element.querySelector(".ld-hint");

let drag = null; // {kind, corner, start: [x, y], before: [x, y, w, h]}
let newest = 0; // number of the server's last answer that came
let drawn = null; // the box as it is dragged, [x, y, w, h]

const scaled = ([x, y, w, h], across, down) => [x * across, y * down, w * across, h * down];
const fresh = () => (props.value?.length ? scaled(props.value, 100 / props.width, 100 / props.height) : []);
const selected = () => props.layers.find((layer) => layer.name === props.selected);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

function point(event) {
  const { left, top, width, height } = frame.getBoundingClientRect();
  return [((event.clientX - left) / width) * 100, ((event.clientY - top) / height) * 100];
}

function tag(name, text = "") {
  const made = document.createElement("div");
  made.className = name;
  made.textContent = text;
  return made;
}

function boxElement(name, box, text, corners) {
  const made = tag(name);
  [made.style.left, made.style.top, made.style.width, made.style.height] = box.map((value) => `${value}%`);
  if (text) made.append(tag("ld-label", text));
  for (const corner of corners ? CORNERS : []) {
    const handle = tag(`ld-corner ld-${corner}`);
    handle.dataset.corner = corner;
    made.append(handle);
  }
  return made;
}

function draw() {
  const boxes = [];
  for (const layer of props.layers) {
    const isSelected = layer.name === props.selected;
    if (isSelected ? layer.made && props.mode !== "move" : layer.made || !layer.visible) continue;
    const moving = isSelected && drag?.kind === "layer" && drawn;
    const name = `ld-box${isSelected ? " ld-selected" : ""}${layer.made ? "" : " ld-words"}`;
    const box = boxElement(name, moving ? drawn : layer.box, isSelected && layer.made ? layer.name : layer.words,
      isSelected && props.mode === "move");
    if (layer.rotation && !moving) box.style.rotate = `${layer.rotation}deg`;
    boxes.push(box);
  }
  const box = (drag?.kind === "new" && drawn) || fresh();
  if (box.length && props.mode === "draw") boxes.push(boxElement("ld-box ld-new", box, "", true));
  overlay.replaceChildren(...boxes);
  picture.hidden = !props.picture;
  if (props.picture && picture.src !== props.picture) picture.src = props.picture;
  frame.style.setProperty("--ld-ratio", props.width / props.height);
  hint.textContent = props.picture ? "" : props.hint;
  frame.classList.toggle("ld-takes-touch", Boolean(props.picture) && (props.mode === "draw" || props.mode === "move"));
  frame.classList.toggle("ld-draws", Boolean(props.picture) && props.mode === "draw");
}

/** The box after a drag to [x, y]. */
function dragged([x, y]) {
  const { kind, corner, start, before } = drag;
  if (before && !corner) return [before[0] + x - start[0], before[1] + y - start[1], before[2], before[3]];
  let fixed = start;
  if (before) {
    fixed = [before[0] + (corner.includes("w") ? before[2] : 0), before[1] + (corner.includes("n") ? before[3] : 0)];
  }
  if (kind === "new") [x, y] = [clamp(x, 0, 100), clamp(y, 0, 100)];
  return [Math.min(fixed[0], x), Math.min(fixed[1], y), Math.abs(x - fixed[0]), Math.abs(y - fixed[1])];
}

function inside([x, y], box) {
  return x >= box[0] && x <= box[0] + box[2] && y >= box[1] && y <= box[1] + box[3];
}

frame.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary || !props.picture) return;
  const start = point(event), corner = event.target.dataset?.corner, layer = selected();
  if (props.mode === "draw") {
    drag = { kind: "new", start: start.map((value) => clamp(value, 0, 100)), corner, before: corner ? fresh() : null };
  } else if (props.mode === "move" && layer && (corner || inside(start, layer.box))) {
    drag = { kind: "layer", start, corner, before: layer.box };
  } else {
    drag = { kind: "tap", start };
  }
  if (drag.kind !== "tap") event.preventDefault();
  frame.setPointerCapture(event.pointerId);
});

// A finger that draws must not scroll, fling or magnify the page as well.
frame.addEventListener("touchstart", (event) => {
  if (frame.classList.contains("ld-takes-touch")) event.preventDefault();
}, { passive: false });

frame.addEventListener("pointermove", (event) => {
  if (!drag || drag.kind === "tap") return;
  const to = point(event);
  if (!drawn && Math.hypot(to[0] - drag.start[0], to[1] - drag.start[1]) < LEAST) return;
  drawn = dragged(to);
  draw();
});

frame.addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { kind } = drag, box = drawn, at = point(event);
  drag = drawn = null;
  if (kind === "new") {
    const drawnWell = box && box[2] > 0 && box[3] > 0;
    props.value = drawnWell ? scaled(box, props.width / 100, props.height / 100).map(Math.round) : [];
    trigger("input");
  } else if (kind === "layer" && box && box[2] > 0 && box[3] > 0) {
    trigger("edit", { box, layer: props.selected });
  } else {
    trigger("select", { at });
  }
  draw();
});

frame.addEventListener("pointercancel", () => {
  drag = drawn = null;
  draw();
});

/** Ask for what there is when an older answer of the server has come after a newer one. */
function check() {
  if (props.answer < newest) trigger("outdated");
  newest = Math.max(newest, props.answer);
}

// Of a board that comes late, an answer that came before it may have left nothing but what it changed.
for (const [name, value] of Object.entries(START)) props[name] ??= value;
watch(Object.keys(START), () => { check(); draw(); }); // a quoted name would be one of an event, for Gradio
draw();
