/** Pictures that the user drops, pastes or chooses. */

/** What a picture may be called; the browser decides whether it really is one. */
export const ACCEPT = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/avif,image/tiff";

const LAYERED = [".psd", ".psb", ".ora", ".kra", ".xcf"];

/** Something about a file that the user should know: a key of the words, and what stands in them. */
export class FileError extends Error {
  constructor(key, values) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/**
 * Look at a file before it is sent.
 *
 * @param {File} file
 * @param {number} mostBytes what the server takes
 * @param {number} mostPixels longest side of a layer
 * @returns {Promise<{width: number, height: number}>}
 * @throws {FileError}
 */
export async function checkPicture(file, mostBytes, mostPixels) {
  const name = file.name || "picture";
  if (LAYERED.some((end) => name.toLowerCase().endsWith(end))) throw new FileError("layeredFile", { name });
  const megabytes = (bytes) => Math.ceil(bytes / 2 ** 20);
  if (file.size > mostBytes) throw new FileError("tooLarge", { name, size: megabytes(file.size), most: megabytes(mostBytes) });
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    throw new FileError("noPicture", { name });
  }
  const { width, height } = picture;
  picture.close();
  if (Math.max(width, height) > mostPixels) throw new FileError("tooWide", { name, size: `${width} x ${height}`, most: mostPixels });
  return { width, height };
}

/** @returns {{x: number, y: number, width: number, height: number}} the place of a picture on the canvas: as it is, or scaled down to fit; about a point, or the middle */
export function placeOf({ width, height }, canvas, point) {
  const scale = Math.min(1, canvas.width / width, canvas.height / height);
  const [w, h] = [Math.max(Math.round(width * scale), 1), Math.max(Math.round(height * scale), 1)];
  const middle = point ?? { x: canvas.width / 2, y: canvas.height / 2 };
  const inside = (value, size, whole) => Math.round(Math.min(Math.max(value - size / 2, 0), whole - size));
  return { x: inside(middle.x, w, canvas.width), y: inside(middle.y, h, canvas.height), width: w, height: h };
}
