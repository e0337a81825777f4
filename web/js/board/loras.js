/**
 * LoRAs as text: `ink:0.5, people/anna`, or as prompts often have them, `<lora:ink:0.5>`. The same as layered_core/formats/lora_text.py, but
 * a strength beyond -4..4 becomes the nearest that is allowed.
 */

/** @returns {string} LoRAs as `name:strength, name:strength` */
export function lorasAsText(loras) {
  return loras.map(({ name, strength = 1 }) => `${name}:${strength}`).join(", ");
}

/** @returns {{name: string, strength: number}[]} LoRAs of `name:strength, name`; without a strength, 1 */
export function lorasOf(text) {
  const parts = text.replace(/<lora:([^<>]*)>/g, "$1,").split(/[,\n]/).map((part) => part.trim()).filter(Boolean);
  return parts.map((part) => {
    const [, name, strength] = part.match(/^(.*?)(?:\s*:\s*(-?\d*\.?\d+(?:e-?\d+)?))?$/);
    return { name: name.trim().replaceAll("\\", "/"), strength: within(strength ?? 1) };
  });
}

/** @returns {number} a strength that a LoRA may have, -4..4; 1 for what is no number */
export function within(strength) {
  const number = Number(strength);
  return Number.isNaN(number) ? 1 : Math.min(Math.max(number, -4), 4);
}
