/** What the pointer does on the board's canvas instead of selecting: draws a box, paints a mask, erases it. */

const LEAST = 8; // canvas pixels: a smaller box was a click

/** Draws the box of a new layer of words. */
export class BoxTool {
  constructor(board) {
    this.board = board;
    this.cursor = "crosshair";
    this.from = this.to = null;
  }

  down(point) {
    this.from = this.to = point;
  }

  move(point, event) {
    const side = Math.max(Math.abs(point.x - this.from.x), Math.abs(point.y - this.from.y));
    const square = { x: this.from.x + Math.sign(point.x - this.from.x) * side, y: this.from.y + Math.sign(point.y - this.from.y) * side };
    this.to = event.shiftKey ? square : point;
  }

  #box() {
    const { width, height } = this.board.canvas;
    const inside = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
    const [x0, x1] = [this.from.x, this.to.x].map((value) => inside(value, width)).sort((a, b) => a - b);
    const [y0, y1] = [this.from.y, this.to.y].map((value) => inside(value, height)).sort((a, b) => a - b);
    return { x: x0, y: y0, width: x1 - x0, height: y1 - y0 };
  }

  up() {
    const box = this.#box();
    this.from = null;
    if (Math.min(box.width, box.height) < Math.min(LEAST, this.board.canvas.width / 8)) return;
    this.board.addBox(box);
    this.board.useTool("select");
  }

  /** Make a box without a pointer. */
  enter() {
    const { width, height } = this.board.canvas;
    this.board.addBox({ x: Math.round(width / 4), y: Math.round(height / 4), width: Math.round(width / 2), height: Math.round(height / 2) });
    this.board.useTool("select");
  }

  cancel() {
    this.from = null;
  }

  paint(pen, view, colours) {
    if (!this.from) return;
    const { x, y, width, height } = this.#box();
    pen.save();
    pen.strokeStyle = colours.accent;
    pen.lineWidth = 1.5;
    pen.strokeRect(x * view.scale + view.x, y * view.scale + view.y, width * view.scale, height * view.scale);
    pen.restore();
  }
}

/** Paints on the selected layer's mask, or takes away from it. */
export class Brush {
  constructor(board, erases) {
    this.board = board;
    this.erases = erases;
    this.cursor = "none";
    this.last = null;
  }

  down(point) {
    this.drawing = this.board.painting.start(this.erases);
    this.last = this.drawing ? point : null;
    this.move(point);
  }

  move(point) {
    if (!this.drawing) return;
    this.board.painting.go(this.drawing, this.last, point, this.board.brushSize, this.erases);
    this.last = point;
  }

  up() {
    if (this.drawing) this.board.painting.end(this.drawing);
    this.drawing = null;
  }

  enter() {}

  cancel() {
    if (this.drawing) this.board.painting.drop(this.drawing);
    this.drawing = null;
  }

  /** Draw the brush's outline where the pointer is. */
  paint(pen, view) {
    const { pointer } = this.board.stage;
    if (!pointer) return;
    pen.save();
    pen.beginPath();
    pen.arc(pointer.x * view.scale + view.x, pointer.y * view.scale + view.y, Math.max((this.board.brushSize * view.scale) / 2, 1), 0, 2 * Math.PI);
    pen.lineWidth = 3;
    pen.strokeStyle = "rgb(0 0 0 / 55%)";
    pen.stroke();
    pen.lineWidth = 1.2;
    pen.strokeStyle = this.erases ? "#fca5a5" : "#fff";
    pen.stroke();
    pen.restore();
  }
}
