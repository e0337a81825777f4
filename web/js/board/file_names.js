/** Names of files that the server has, offered while a name is typed: one list for all layers of a board. */

import { element } from "../editor/dom.js";

let count = 0;

export class FileNames {
  /** @param {() => Promise<string[]>} read asks the server */
  constructor(read) {
    this.read = read;
    this.names = null; // not known yet
    this.element = element("datalist", { id: `ld-names-${(count += 1)}` });
  }

  /** Ask the server again, so that new files are offered. */
  async refresh() {
    this.names = (await this.read()).map((name) => name.replaceAll("\\", "/"));
    this.element.replaceChildren(...this.names.map((value) => element("option", { value })));
  }

  /** Offer the names in a field. */
  offer(field) {
    field.setAttribute("list", this.element.id);
    field.addEventListener("focus", () => this.refresh());
  }

  /** @returns {boolean} whether a file is certainly missing; the same rule as nodes/layers/lora_files.py */
  lacks(file) {
    const stem = (name) => name.replace(/\.[^./]*$/, "");
    const means = (name) => file === name || file === stem(name);
    return this.names !== null && !this.names.some((name) => means(name) || means(name.split("/").at(-1)));
  }
}
