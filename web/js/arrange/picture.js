/** A layer's picture from the last run, and where it is not transparent. */

export class Picture {
  /** @param {string} url @param {() => void} onLoad */
  constructor(url, onLoad) {
    this.url = url;
    this.image = null;
    this.alpha = null;
    const image = new Image();
    image.onload = () => {
      this.image = image;
      onLoad();
    };
    image.src = url;
  }

  /** Whether the picture is not transparent at a place, 0..1 in both directions. */
  isSolid(x, y) {
    if (!this.image) return true;
    const side = 64;
    if (!this.alpha) {
      const pen = new OffscreenCanvas(side, side).getContext("2d");
      pen.drawImage(this.image, 0, 0, side, side);
      this.alpha = pen.getImageData(0, 0, side, side).data.filter((_, index) => index % 4 === 3);
    }
    const at = (value) => Math.min(Math.floor(value * side), side - 1);
    return this.alpha[at(y) * side + at(x)] > 12;
  }
}
