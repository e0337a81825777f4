// The list of layers, front to back. A row selects its layer; its second button shows or hides it.
// Names and words come into the page as text, never as HTML.
const list = element.querySelector(".ld-layers");

function make(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function rowOf(layer) {
  const row = make("li", `ld-row${layer.name === props.selected ? " ld-selected" : ""}`);
  row.dataset.layer = layer.name;
  const pick = make("button", "ld-pick");
  pick.type = "button";
  pick.setAttribute("aria-pressed", String(layer.name === props.selected));
  const small = layer.picture ? make("img", "ld-small") : make("span", "ld-small ld-none");
  if (layer.picture) [small.src, small.alt] = [layer.picture, ""];
  const text = make("span", "ld-text");
  text.append(make("span", "ld-name", layer.name));
  const more = layer.made ? (layer.words === layer.name ? "" : layer.words) : `not made yet: ${layer.words}`;
  if (more) text.append(make("span", "ld-more", more));
  pick.append(small, text);
  const show = make("button", "ld-show", layer.visible ? "Hide" : "Show");
  show.type = "button";
  show.setAttribute("aria-label", `${layer.visible ? "Hide" : "Show"} ${layer.name}`);
  row.append(pick, show);
  row.classList.toggle("ld-hidden", !layer.visible);
  return row;
}

function draw() {
  list.replaceChildren(...props.layers.map(rowOf));
}

list.addEventListener("click", (event) => {
  const row = event.target.closest(".ld-row");
  if (!row) return;
  const { layer } = row.dataset;
  if (event.target.closest(".ld-show")) trigger("input", { layer });
  else trigger("select", { layer });
});

watch(Object.keys(props), draw);
draw();
