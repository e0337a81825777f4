"""The demo: makes pictures with every method on the shipped model and shows them on one page."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from demo.world.drawing import draw_background
from demo.world.scenes import caption, place_object
from demo.world.vocabulary import CANVAS, Thing
from layered_core.canvas.compositing import composite, premultiplied, straight
from layered_core.canvas.masks import document_masks
from layered_core.document import Layer, LayerDocument
from layered_core.formats.document_json import write_document
from layered_core.formats.pictures import to_image, write_whole
from layered_core.metrics.picture_metrics import differing_pixels
from layered_core.noise.change_map import noise_map
from layered_diffusers.pipeline import PLACES, LayeredDiffusionPipeline

SAMPLER = "euler_ancestral"
STEPS = 25
PROMPTS = (
    "a red ball in a meadow",
    "a yellow star at night",
    "a blue house in the snow",
    "a purple mushroom by the sea",
    "a green tree and a white house in the desert",
    "a red heart and a yellow star at sunset",
)
STRENGTHS = (0.2, 0.4, 0.6, 0.8)
FREEDOM = 0.4
"""How far the layers of the collage may change while one of them is kept, 0..1."""

STAGES = (
    Layer("sunset", prompt="sunset over the mountains", width=CANVAS, height=CANVAS),
    Layer("tree", prompt="a green tree", x=2, y=36, width=64, height=84),
    Layer("house", prompt="a white house", x=60, y=54, width=66, height=68),
)

Progress = Callable[[int, int], None]


def collage_document(seed: int = 0) -> LayerDocument:
    """Return a collage as a user might make it: overlapping cut-outs, one of them glowing, over a
    landscape."""
    rng = np.random.default_rng(seed)
    backdrop = torch.from_numpy(draw_background("meadow", rng).astype(np.float32) / 255)
    layers = [
        Layer("meadow", torch.cat([backdrop, torch.ones(CANVAS, CANVAS, 1)], -1), prompt="in a meadow"),
        _cut_out("house", Thing("solid", "blue", "house"), (14, 50, 52, 50)),
        _cut_out("tree", Thing("solid", "green", "tree"), (70, 34, 46, 60)),
        _cut_out("mushroom", Thing("solid", "red", "mushroom"), (46, 78, 40, 40)),
        _cut_out("star", Thing("glowing", "yellow", "star"), (40, 8, 34, 34)),
    ]
    words = caption([x.prompt for x in layers[1:]], layers[0].prompt)
    return LayerDocument(CANVAS, CANVAS, tuple(layers), prompt=words)


def make_gallery(folder: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Make the demo's pictures in ``folder``, which is created if missing, and a page that shows them. Return
    the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = LayeredDiffusionPipeline.from_pretrained(sampler=SAMPLER)
    redrawn = sum(_steps(s) for s in STRENGTHS) + 2 * _steps(FREEDOM)
    counter = _Counter(progress, total=STEPS + redrawn + 8 * STEPS)
    page = _Page(folder)
    _from_words(pipeline, page, seed, counter)
    _from_layers(pipeline, page, seed, counter)
    _from_boxes(pipeline, page, seed, counter)
    _layer_by_layer(pipeline, page, seed, counter)
    _redo_one(pipeline, page, _in_stages(pipeline, page, seed, counter), seed, counter)
    return page.write()


def _steps(strength: float) -> int:
    """Return the number of steps that a run from a picture takes at ``strength``."""
    return int(STEPS * strength + 0.5)


def _from_words(pipeline: LayeredDiffusionPipeline, page: _Page, seed: int, counter: _Counter) -> None:
    page.heading("From words", "Each picture is sampled from one sentence and its own seed.")
    seeds = [seed + i for i in range(len(PROMPTS))]
    pictures = pipeline.generate(PROMPTS, seeds=seeds, steps=STEPS, progress=counter.run())
    for index, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        page.picture(f"words_{index + 1}.png", to_image(picture.permute(1, 2, 0)), prompt)
    page.end_row()


def _from_layers(pipeline: LayeredDiffusionPipeline, page: _Page, seed: int, counter: _Counter) -> None:
    document = collage_document(seed)
    write_document(document, page.folder / "collage")
    page.heading(
        "From layers",
        f"The input: {len(document)} layers, back to front, and under each its visible mask, the part that the "
        f"layers above leave visible. "
        "The document is in <code>collage/</code>; <code>layered render collage/document.json -o "
        "out.png</code> makes such a picture again.",
    )
    masks, _ = document_masks(document)
    for index, layer in enumerate(document):
        pixels = straight(premultiplied(layer, document.width, document.height))
        page.picture(
            f"layer_{index + 1}_{layer.name}.png",
            to_image(pixels),
            f"{layer.name}: “{layer.prompt}”, at {layer.x:g}, {layer.y:g}",
            checkered=True,
        )
    page.end_row()
    for index, (layer, mask) in enumerate(zip(document, masks, strict=True)):
        page.picture(f"mask_{index + 1}_{layer.name}.png", to_image(mask), f"visible mask of {layer.name}")
    page.end_row()
    page.note(
        f"The result: “{document.words}”, redrawn as a whole from the composite, while each layer's words act where "
        f"the layer is. At low strength the collage is kept, at high strength the model decides."
    )
    page.picture("composite.png", to_image(composite(document)), "composite, no model")
    for strength in STRENGTHS:
        picture = pipeline.render(document, seed=seed, strength=strength, steps=STEPS, progress=counter.run())
        page.picture(f"render_{round(100 * strength):03d}.png", picture, f"strength {strength:g}")
    page.end_row()


def _from_boxes(pipeline: LayeredDiffusionPipeline, page: _Page, seed: int, counter: _Counter) -> None:
    document = LayerDocument(CANVAS, CANVAS, STAGES)
    write_document(document, page.folder / "boxes")
    page.heading(
        "From boxes with words",
        "Layers without pictures: what <code>layered render boxes/document.json -o out.png</code> does. Each layer's "
        "words act in its box; with <code>--words everywhere</code> the model chooses the places.",
    )
    page.picture("boxes.png", _outlines(document), ", ".join(f"“{x.prompt}”" for x in STAGES))
    for name, words, attention in (("places", "in their boxes", PLACES), ("everywhere", "everywhere", None)):
        for number in range(2):
            picture = pipeline.render(
                document, seed=seed + number, attention=attention, steps=STEPS, progress=counter.run()
            )
            page.picture(
                f"boxes_{name}_{number + 1}.png", picture, f"words act {words}, seed {seed + number}"
            )
    page.end_row()


def _layer_by_layer(pipeline: LayeredDiffusionPipeline, page: _Page, seed: int, counter: _Counter) -> None:
    page.heading(
        "Harmonise or preserve",
        "Each layer changes as far as its own noise says. Where the noise map is black no pixel changes; where "
        "it is white the model is free.",
    )
    document = collage_document(seed)
    page.picture("preserve_before.png", to_image(composite(document)), "composite, no model")
    for kept in ("house", "star"):
        layers = [
            replace(x, recipe=replace(x.recipe, noise=0.0 if x.name == kept else FREEDOM)) for x in document
        ]
        free = replace(document, layers=tuple(layers))
        page.picture(
            f"preserve_{kept}_map.png", to_image(noise_map(free)), f"noise: {kept} 0, others {FREEDOM:g}"
        )
        picture = pipeline.harmonize(free, seed=seed, steps=STEPS, progress=counter.run())
        page.picture(f"preserve_{kept}.png", picture, f"the {kept} kept, the rest redrawn")
    page.end_row("preserve.jpg")


def _in_stages(
    pipeline: LayeredDiffusionPipeline, page: _Page, seed: int, counter: _Counter
) -> LayerDocument:
    page.heading(
        "In stages",
        "A background from words, then one object after another in its box. Each becomes a layer with alpha "
        "and changes no pixel outside its box.",
    )
    document = LayerDocument(CANVAS, CANVAS, STAGES)
    made = pipeline.generate_layers(document, seed=seed + 3, steps=STEPS, progress=counter.run())
    for count, layer in enumerate(made, 1):
        so_far = replace(made, layers=made.layers[:count])
        page.picture(
            f"stage_{count}.png", to_image(composite(so_far)), f"{'+ ' if count > 1 else ''}“{layer.prompt}”"
        )
    for layer in made.layers[1:]:
        alone = to_image(straight(premultiplied(layer, CANVAS, CANVAS)))
        page.picture(f"stage_{layer.name}_alone.png", alone, f"the {layer.name}, a layer", checkered=True)
    page.end_row("stages.jpg")
    write_document(made, page.folder / "stages")
    return made


def _redo_one(
    pipeline: LayeredDiffusionPipeline, page: _Page, made: LayerDocument, seed: int, counter: _Counter
) -> None:
    name, words = "tree", "a purple mushroom"
    page.heading(
        "Redo one layer and nothing else",
        f"The {name} of the picture above becomes {words}. The layer in front of it stays as it is.",
    )
    after = pipeline.replace_layer(
        made, name, prompt=words, seed=seed + 3, steps=STEPS, progress=counter.run()
    )
    old, new = (composite(d)[..., :3].permute(2, 0, 1) for d in (made, after))
    box = STAGES[1]
    place = torch.zeros(CANVAS, CANVAS)
    place[int(box.y) : int(box.y) + box.height, int(box.x) : int(box.x) + box.width] = 1
    changed = (old != new).any(0)
    page.picture("redo_before.png", to_image(old.permute(1, 2, 0)), "before")
    page.picture("redo_after.png", to_image(new.permute(1, 2, 0)), f"after: “{words}”")
    page.picture("redo_place.png", to_image(place), f"where the {name} may be")
    page.picture(
        "redo_changed.png",
        to_image(changed.float()),
        f"what changed: {differing_pixels(new, old, place)} pixels outside",
    )
    page.end_row("redo.jpg")


def _outlines(document: LayerDocument) -> Image.Image:
    """Draw the boxes of the layers in front of the backmost one, on white."""
    picture = Image.new("RGB", (document.width, document.height), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    for layer in document.layers[1:]:
        left, top = int(layer.x), int(layer.y)
        pen.rectangle((left, top, left + layer.width - 1, top + layer.height - 1), outline=(0, 0, 0))
        pen.text((left + 4, top + 3), layer.name, fill=(0, 0, 0))
    return picture


def _cut_out(name: str, thing: Thing, box: tuple[float, float, float, float]) -> Layer:
    item = place_object(thing, box)
    image = torch.from_numpy(item.image.astype(np.float32) / 255)
    return Layer(name, image, prompt=thing.words, x=item.x, y=item.y)


class _Counter:
    """Join the progress of several runs into one."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def run(self) -> Progress:
        """Return the callback for the next run."""
        begun = self.done

        def step(done: int, _: int) -> None:
            self.done = begun + done
            if self.progress is not None:
                self.progress(self.done, self.total)

        return step


class _Page:
    """An HTML page of pictures with captions, and one picture of them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[str] = []
        self.row: list[str] = []
        self.captions: list[str] = []
        self.pictures: list[Image.Image] = []
        self.sheet: list[Image.Image] = []

    def heading(self, title: str, text: str) -> None:
        """Start a section; ``text`` is HTML."""
        self.parts.append(f"<h2>{html.escape(title)}</h2><p>{text}</p>")

    def note(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def picture(self, name: str, image: Image.Image, text: str, checkered: bool = False) -> None:
        """Save a picture and add it to the current row."""
        write_whole(self.folder / name, lambda file: image.save(file, "PNG"))
        kind = ' class="checkered"' if checkered else ""
        alt = html.escape(text, quote=True)
        self.row.append(
            f'<figure><img src="{name}" alt="{alt}"{kind}><figcaption>{html.escape(text)}</figcaption></figure>'
        )
        shown = Image.new("RGB", image.size, (255, 255, 255))
        if image.mode == "RGBA":
            shown = _checkerboard(image.size)
            shown.paste(image, (0, 0), image)
        else:
            shown.paste(image.convert("RGB"))
        self.pictures.append(shown)
        self.captions.append(text)

    def end_row(self, strip: str | None = None) -> None:
        """Close the row of pictures; ``strip`` is the name of a JPEG to write of this row alone."""
        sheet = _strip(self.pictures, self.captions)
        if strip is not None:
            write_whole(self.folder / strip, lambda file: sheet.save(file, "JPEG", quality=92))
        self.sheet.append(sheet)
        self.parts.append(f'<div class="row">{"".join(self.row)}</div>')
        self.row, self.captions, self.pictures = [], [], []

    def write(self) -> Path:
        """Write ``overview.jpg`` and ``index.html``, and return the path of the page."""
        gap = 10
        size = max(r.width for r in self.sheet), sum(r.height + gap for r in self.sheet) - gap
        sheet = Image.new("RGB", size, (255, 255, 255))
        top = 0
        for row in self.sheet:
            sheet.paste(row, (0, top))
            top += row.height + gap
        write_whole(self.folder / "overview.jpg", lambda file: sheet.save(file, "JPEG", quality=92))
        text = _HTML.replace("BODY", "\n".join(self.parts))
        path = self.folder / "index.html"
        write_whole(path, lambda file: file.write(text.encode()))
        return path


def _strip(
    pictures: list[Image.Image], captions: list[str], side: int = 192, gap: int = 6, head: int = 20
) -> Image.Image:
    """Return the pictures side by side, each under its caption."""
    sheet = Image.new("RGB", (len(pictures) * (side + gap) - gap, head + side), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for column, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        pen.text((column * (side + gap), 2), _cut(text, font, side), fill=(0, 0, 0), font=font)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (column * (side + gap), head))
    return sheet


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of the text as ``width`` pixels hold."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip(' ,')}…"


def _checkerboard(size: tuple[int, int]) -> Image.Image:
    board = Image.new("RGB", size, (255, 255, 255))
    pen = ImageDraw.Draw(board)
    for y in range(0, size[1], 8):
        for x in range(y % 16, size[0], 16):
            pen.rectangle((x, y, x + 7, y + 7), fill=(214, 214, 214))
    return board


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Layered Diffusion: demo</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fafafa }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em }
.row { display: flex; flex-wrap: wrap; gap: 14px; margin: 14px 0 }
figure { margin: 0; width: 188px } figcaption { font-size: 13px; color: #555 }
img { width: 188px; height: 188px; border-radius: 6px; box-shadow: 0 1px 4px #0003 }
.checkered { background: repeating-conic-gradient(#d6d6d6 0 25%, #fff 0 50%) 0 0 / 24px 24px }
code { background: #eee; padding: 0 .3em; border-radius: 3px }
</style>
<h1>Layered Diffusion</h1>
<p>Pictures made layer by layer, with the tiny storybook model that ships with the project.
128 pixels a side, on the CPU, nothing downloaded.</p>
BODY
</html>
"""
