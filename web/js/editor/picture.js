/** A layer's picture, cut by its mask, and where it is not transparent. */

/** @returns {Promise<HTMLImageElement>} */
function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error(url));
    image.src = url;
  });
}

/** @returns {[number, number]} width and height in pixels */
export const sizeOf = (image) => [image.naturalWidth ?? image.width, image.naturalHeight ?? image.height];

/** @returns {OffscreenCanvas} an empty canvas of whole pixels */
export const sheet = (width, height) => new OffscreenCanvas(Math.max(Math.round(width), 1), Math.max(Math.round(height), 1));

/** @returns {OffscreenCanvas} the picture of a mask, white where the layer is and clear elsewhere; by the same rule as the server: the alpha if there is any, else the brightness */
export function maskSheet(image) {
  const made = sheet(...sizeOf(image));
  const pen = made.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  const pixels = pen.getImageData(0, 0, made.width, made.height);
  const { data } = pixels;
  let opaque = true;
  for (let i = 3; i < data.length; i += 4) opaque &&= data[i] === 255;
  for (let i = 0; i < data.length; i += 4) {
    if (opaque) data[i + 3] = Math.max(data[i], data[i + 1], data[i + 2]);
    data[i] = data[i + 1] = data[i + 2] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  return made;
}

/** @returns {OffscreenCanvas} the image where the mask is */
export function cutBy(image, mask) {
  const made = sheet(...sizeOf(image));
  const pen = made.getContext("2d");
  pen.drawImage(image, 0, 0);
  if (image === mask) return made;
  pen.globalCompositeOperation = "destination-in";
  pen.drawImage(mask, 0, 0, made.width, made.height);
  return made;
}

/** @returns {OffscreenCanvas} the mask in a colour */
function coloured(mask, colour) {
  const made = cutBy(mask, mask);
  const pen = made.getContext("2d");
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = colour;
  pen.fillRect(0, 0, made.width, made.height);
  return made;
}

export class Picture {
  /**
   * @param {{url?: string, mask?: string | OffscreenCanvas, tint?: string}} source addresses; a mask that was just painted may be the canvas
   *   itself; tint: the colour of a mask without a picture
   * @param {() => void} onChange called when it can be drawn, and when it turns out to be missing
   */
  constructor({ url, mask, tint = "#fff" }, onChange) {
    this.url = url;
    this.source = null; // the picture without its mask
    this.mask = null; // where the layer is, as the alpha of a canvas
    this.image = null; // what is drawn
    this.alpha = null;
    this.missing = null; // the address that gave no picture
    this.#load(url, mask, tint).catch((error) => (this.missing = error.message)).then(onChange);
  }

  async #load(url, mask, tint) {
    this.source = url ? await load(url) : null;
    this.mask = typeof mask === "string" ? maskSheet(await load(mask)) : (mask ?? null);
    if (this.source) this.image = this.mask ? cutBy(this.source, this.mask) : this.source;
    else if (this.mask) this.image = coloured(this.mask, tint);
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
