/** The history of states, for undo and redo. */
export class History {
  #past = [];
  #future = [];
  #kind = null;

  /** Record `state` as the state before a change. Successive changes of one kind, such as presses of an arrow key, are one step. */
  push(state, kind = null) {
    if (kind === null || kind !== this.#kind) this.#past.push(state);
    if (this.#past.length > 200) this.#past.shift();
    this.#future = [];
    this.#kind = kind;
  }

  /** Make the next change a separate step. */
  pause() {
    this.#kind = null;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** @returns {object | undefined} the state before `state` */
  undo(state) {
    return this.#step(this.#past, this.#future, state);
  }

  /** @returns {object | undefined} the state that followed `state` before undo */
  redo(state) {
    return this.#step(this.#future, this.#past, state);
  }

  #step(from, to, state) {
    this.#kind = null;
    if (!from.length) return undefined;
    to.push(state);
    return from.pop();
  }
}
