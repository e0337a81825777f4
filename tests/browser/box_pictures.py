"""Draw the pictures of workflows whose models' files are missing here: the layers' boxes and words, or a drawing of
what comes out, and the remark that no model made it. ``pictures.py`` calls it."""

import json
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.world.drawing import draw_background, sprite
from demo.world.vocabulary import Thing
from layered_core.document import Layer, LayerDocument
from layered_core.editing.board import laid, read_board
from layered_core.editing.stack_preview import outlined
from layered_core.formats.limits import Budget, Limits
from layered_core.formats.pixel_numbers import to_numbers
from layered_core.painting.layers_from_masks import layers_from_masks

PACK = Path(__file__).resolve().parents[2]
WORKFLOWS = (
    "16_regions_flux", "17_regions_qwen_image", "18_regions_z_image", "23_layered_rendering_flux",
    "27_layers_own_look_sdxl",
)  # fmt: skip
REMARK = "no picture: needs the model's files"
DRAWN = "a drawing: needs the model's files"
SIDE = 512


def checkered():
    """Return a square of the checks that stand for transparency."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] // 16
    return Image.fromarray(np.where((x + y) % 2, 178, 204).astype(np.uint8)).convert("RGB")


def drawings():
    """Yield the name and the squares of each workflow that makes transparent layers: what goes in, what comes out."""
    ball = Image.fromarray(sprite(Thing("glass", "blue", "ball"), 400)[0])
    glass = checkered()
    glass.paste(ball, (56, 56), ball)
    yield "13_layerdiffuse_sdxl", [glass]
    meadow = Image.fromarray(draw_background("meadow", np.random.default_rng(3), SIDE))
    house = Image.fromarray(sprite(Thing("solid", "red", "house"), 300)[0])
    alone, both = checkered(), meadow.copy()
    for picture in (alone, both):
        picture.paste(house, (106, 150), house)
    yield "14_foreground_on_background", [meadow, alone, both]
    yield "31_picture_to_layers", taken_apart()


def taken_apart():
    """Return the squares of a picture and of its layers."""
    from mask_pictures import draw_scene

    scene, masks = draw_scene(SIDE // 128)
    found = torch.stack([torch.from_numpy(np.asarray(mask)[..., 0] / 255.0) for mask in masks]).float()
    picture = torch.from_numpy(np.asarray(scene) / 255.0).float()
    squares = [scene]
    for layer in layers_from_masks(picture, found, band=4).document:
        square, pixels = checkered(), Image.fromarray(to_numbers(layer.image, "u1"))
        square.paste(pixels, (int(layer.x), int(layer.y)), pixels)
        squares.append(square)
    return squares


def document_of(prompt):
    """Return the stack of a prompt whose layers are boxes with words: on a board, or one upon the other."""
    for item in prompt.values():
        if item["class_type"] == "LD_LayerBoard":
            board = read_board(item["inputs"]["board"])
            return laid(board, lambda name, key: Path(str(name)), Budget(Limits()))[0]
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
    for name, squares in drawings():
        sheet = Image.new("RGB", (len(squares) * SIDE, SIDE))
        for place, square in enumerate(squares):
            sheet.paste(square, (place * SIDE, 0))
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(22)
        pen.rectangle((0, SIDE - 40, pen.textlength(DRAWN, font) + 24, SIDE), fill="#202024")
        pen.text((12, SIDE - 34), DRAWN, fill="#ff9d9d", font=font)
        sheet.save(PACK / f"workflows/{name}.jpg", quality=88)
    for name in WORKFLOWS:
        document = document_of(json.loads((PACK / f"workflows/api/{name}.json").read_text(encoding="utf-8")))
        boxes = ImageOps.contain(Image.fromarray(to_numbers(outlined(document, SIDE), "u1")), (SIDE, SIDE))
        sheet = Image.new("RGB", (2 * SIDE, SIDE), "#202024")
        sheet.paste(boxes, (0, (SIDE - boxes.height) // 2))
        sheet.paste(words_of(document), (SIDE, 0))
        sheet.save(PACK / f"workflows/{name}.jpg", quality=88)


if __name__ == "__main__":
    take()
