/** Painting on the board: strokes become masks, masks become files, and their names go into the state. */

import { cutBy } from "../editor/picture.js";
import { asFile, nameOf, painted, stroke, strokeSheet } from "./masks.js";

export class Painting {
  constructor(board) {
    this.board = board;
    this.drafts = new Map(); // what is painted and not in the state yet, by the layers' names
    this.masks = new Map(); // masks of this session, by their names in the input folder
  }

  /** Layers that are only being painted. */
  get fresh() {
    return [...this.drafts.values()].filter((draft) => draft.fresh).map((draft) => draft.fresh);
  }

  /** Keep a draft whose layer gets another name. */
  rename(from, to) {
    const draft = this.drafts.get(from);
    this.drafts.delete(from);
    if (draft) this.drafts.set(to, draft);
  }

  /** Begin a stroke on the selected layer, or with the brush on a new one. @returns {object | null} the stroke */
  start(erases) {
    const { board } = this;
    const { selected } = board;
    if (selected && (!selected.own || board.isLocked(selected.name))) {
      board.complain(selected.own ? "lockedLayer" : "notOwn", { name: selected.name });
      return null;
    }
    if (!selected && erases) {
      board.complain("selectFirst");
      return null;
    }
    const layer = selected ?? board.newPlace();
    if (!layer) return null;
    const before = this.drafts.get(layer.name);
    if (before) return { layer, before, ...before };
    const picture = selected && board.pictureOf(layer);
    if (picture && !picture.image) return null; // still loading
    const target = strokeSheet(layer, picture?.mask ?? null, board.canvas);
    return { layer, target, fresh: selected ? null : layer, source: picture?.source ?? null };
  }

  /** Draw the stroke on, from one canvas point to the next. */
  go(drawing, from, to, size, erases) {
    const { layer, fresh, target, source } = drawing;
    stroke(target, from, to, size, erases);
    const { width, height } = this.board.canvas;
    const box = target.fitted ? { x: 0, y: 0, width, height, rotation: 0, flip_h: false, flip_v: false } : {};
    drawing.draft = { target, source, fresh, box, image: source ? cutBy(source, target.sheet) : target.sheet };
    this.drafts.set(layer.name, drawing.draft);
    this.board.stage.draw();
  }

  /** Give a stroke up; one on top of another that is on its way to the server stays. */
  drop(drawing) {
    if (drawing.before) return this.end(drawing);
    this.drafts.delete(drawing.layer.name);
    return this.board.refresh();
  }

  /** Keep what was painted: send the mask to the server, then put its name into the state. */
  end(drawing) {
    return this.board.track(this.#keep(drawing));
  }

  async #keep(drawing) {
    const { board } = this;
    const { layer, fresh, target, draft } = drawing;
    const made = painted(target, board.canvas);
    if (!made) {
      this.drafts.delete(layer.name);
      board.refresh();
      if (!fresh) board.complain("nothingLeft", { name: layer.name });
      return;
    }
    try {
      const mask = made.mask && (await this.#send(made.mask));
      const name = [...this.drafts].find(([, one]) => one === draft)?.[0];
      if (name === undefined) return; // painted on meanwhile, or given up
      this.drafts.delete(name);
      if (fresh) board.add([{ ...fresh, name, ...made.box, mask }]);
      else board.change(name, { ...made.box, mask });
      board.refresh();
    } catch (error) {
      board.fileTrouble(error, () => this.end(drawing));
    }
  }

  /** @returns {Promise<string>} the mask's name in the input folder */
  async #send(mask) {
    const file = await asFile(mask);
    const name = await this.board.host.upload(file, await nameOf(file));
    this.masks.set(name, mask);
    return name;
  }
}
