/** The LoRAs of a layer: a chip for each, with its strength, and a field that adds more. */

import { button, element } from "../editor/dom.js";
import { lorasOf, within } from "./loras.js";

export class LoraField {
  /**
   * @param {import("./board.js").Board} board
   * @param {(loras: {name: string, strength: number}[], kind?: string) => void} set `kind`: steps of one change, which is undone as one
   */
  constructor(board, set) {
    const { words, loras: files } = board;
    Object.assign(this, { board, words, files, set, loras: [] });
    this.chips = [];
    this.adder = element("input", { type: "text", className: "ld-text", placeholder: words("loraAdd"), "aria-label": words("lora") });
    files.offer(this.adder);
    this.adder.addEventListener("change", () => this.#add());
    const title = element("span", { textContent: words("lora") });
    this.element = element("div", { className: "ld-label ld-drawer-row ld-loras", title: words("loraWhy") }, title, element("div", { className: "ld-chips" }, this.adder));
  }

  /** @param {{recipe: {loras: {name: string, strength?: number}[]}}} layer */
  show({ recipe }) {
    const loras = recipe.loras.map(({ name, strength = 1 }) => ({ name, strength }));
    const isSame = JSON.stringify(loras) === JSON.stringify(this.loras);
    if (isSame) return;
    const sameNames = loras.length === this.loras.length && loras.every(({ name }, index) => name === this.loras[index].name);
    this.loras = loras;
    if (sameNames) {
      this.#showStrengths();
      return;
    }
    this.#draw();
    if (loras.length) this.#look();
  }

  /** Mark the LoRAs that the server lacks. */
  async #look() {
    await this.files.refresh();
    if (!this.chips.some((chip) => chip.contains(document.activeElement))) this.#draw();
  }

  /** Add what was typed; a LoRA that the layer has already gets the new strength. */
  #add() {
    const added = lorasOf(this.adder.value);
    this.adder.value = "";
    const names = added.map(({ name }) => name);
    if (names.length) this.set([...this.loras.filter(({ name }) => !names.includes(name)), ...added]);
  }

  #draw() {
    this.numbers = this.loras.map(({ name }, index) => this.#strength(name, index));
    for (const chip of this.chips) chip.remove();
    this.chips = this.loras.map(({ name }, index) => this.#chip(name, index));
    this.adder.before(...this.chips);
    this.#showStrengths();
  }

  #showStrengths() {
    this.numbers.forEach((number, index) => {
      if (number !== document.activeElement) number.value = this.loras[index].strength;
    });
  }

  #strength(name, index) {
    const label = this.words("loraStrength", { name });
    const number = element("input", { type: "number", className: "ld-field ld-short", min: -4, max: 4, step: 0.05, title: label, "aria-label": label });
    const changed = (one, at) => (at === index ? { ...one, strength: within(number.value) } : one);
    number.addEventListener("input", () => number.value !== "" && this.set(this.loras.map(changed), `lora ${index}`));
    number.addEventListener("change", () => {
      number.value = this.loras[index].strength;
      this.board.history.pause();
    });
    return number;
  }

  #chip(name, index) {
    const missing = this.files.lacks(name);
    const title = missing ? this.words("loraMissing", { name }) : name;
    const label = element("span", { className: "ld-chip-name", title, textContent: name.split("/").at(-1).replace(/\.safetensors$/, "") });
    const remove = button("remove", this.words("loraRemove", { name }), () => this.set(this.loras.filter((_, at) => at !== index)));
    return element("div", { className: `ld-chip${missing ? " ld-missing" : ""}` }, label, this.numbers[index], remove.label);
  }
}
