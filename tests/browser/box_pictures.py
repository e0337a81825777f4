"""Draw the pictures of workflows whose models' files are missing here: the layers' boxes and words, and the remark
that there is no picture. ``pictures.py`` calls it."""

import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from layered_core.document import Layer, LayerDocument
from layered_core.editing.stack_preview import outlined
from layered_core.formats.pixel_numbers import to_numbers

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = ("16_regions_flux", "17_regions_qwen_image", "18_regions_z_image")
REMARK = "no picture: needs the model's files"
SIDE = 512


def document_of(prompt):
    """Return the stack of a prompt whose layers are boxes with words, one upon the other."""
    boxes = [n["inputs"] for n in prompt.values() if n["class_type"] == "LD_LayerFromImage"]
    layers = tuple(Layer(**{k: b[k] for k in ("name", "prompt", "x", "y", "width", "height")}) for b in boxes)
    return LayerDocument(boxes[0]["canvas_width"], boxes[0]["canvas_height"], layers)


def words_of(document):
    """Return a square with the remark and the layers' words, numbered from the back as in the preview."""
    sheet = Image.new("RGB", (SIDE, SIDE), "#202024")
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(22), ImageFont.load_default(19)
    top = 36
    for number, layer in enumerate(document, 1):
        pen.text((32, top), f"{number} {layer.name}", fill="#ffd740", font=large)
        text = textwrap.fill(layer.prompt, 44)
        pen.text((32, top + 30), text, fill="#f0f0f0", font=small, spacing=6)
        top += 58 + 27 * (text.count("\n") + 1)
    pen.text((32, SIDE - 56), REMARK, fill="#ff9d9d", font=large)
    return sheet


def take():
    """Write the picture of every workflow."""
    for name in WORKFLOWS:
        document = document_of(json.loads((PACK / f"workflows/api/{name}.json").read_text(encoding="utf-8")))
        boxes = Image.fromarray(to_numbers(outlined(document, SIDE), "u1")).resize((SIDE, SIDE))
        sheet = Image.new("RGB", (2 * SIDE, SIDE))
        sheet.paste(boxes, (0, 0))
        sheet.paste(words_of(document), (SIDE, 0))
        sheet.save(PACK / f"workflows/{name}.jpg", quality=88)


if __name__ == "__main__":
    take()
