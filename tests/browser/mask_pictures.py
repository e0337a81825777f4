"""Take the help pages' pictures of the nodes that take a picture apart: ``python tests/browser/mask_pictures.py``.
pictures.py takes them with all others."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui"), str(HERE.parent / "comfyui" / "host"), str(PACK)]

import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import MODELS, fill_behind, from_masks, node  # noqa: E402
from pictures import crop, run_scene  # noqa: E402

from demo.world.drawing import draw_background, sprite  # noqa: E402
from demo.world.vocabulary import Thing  # noqa: E402

SIDE = 128
THINGS = ((Thing("solid", "red", "house"), 70, (14, 44)), (Thing("solid", "yellow", "star"), 56, (58, 62)))
"""What is in the picture, from the back: the thing, its side, and its left top corner, pixels."""

APART = {
    "1": node("LoadImage", image="scene.png"),
    "2": node("LoadImage", image="house mask.png"),
    "3": node("LoadImage", image="star mask.png"),
    "4": node("ImageBatch", image1=["2", 0], image2=["3", 0]),
    "5": node("ImageToMask", image=["4", 0], channel="red"),
    "6": from_masks(["1", 0], ["5", 0], layer_prompts="a red house\na yellow star", band=2),
}
SCENES = {
    "LD_LayersFromMasks": {
        "7": node("MaskPreview", mask=["5", 0]),
        "8": node("LD_LayerPreview", layers=["6", 0], size=512),
    },
    "LD_StorybookMasks": {
        "30": node("LD_StorybookMasks", image=["1", 0], grow=1),
        "31": node("MaskPreview", mask=["30", 0]),
    },
    "LD_FillBehindLayers": {
        "loader": node("LD_LoadDemoModel"),
        "20": fill_behind(["6", 0], prompt="a meadow", seed=2, steps=20, cfg=4.0, **MODELS),
        "8": node("LD_SelectLayers", layers=["6", 0], which="background"),
        "9": node("LD_LayerComposite", layers=["8", 0], backdrop="grey", rules="photoshop"),
        "10": node("LD_SelectLayers", layers=["20", 0], which="background"),
        "11": node("LD_LayerComposite", layers=["10", 0], backdrop="grey", rules="photoshop"),
    },
}
"""The nodes in each picture, besides those of :data:`APART`."""

PLACES = {
    "LD_LayersFromMasks": {"1": (0, 0), "7": (330, 0), "6": (660, 0), "8": (1080, 0)},
    "LD_StorybookMasks": {"1": (0, 0), "30": (330, 0), "31": (740, 0)},
    "LD_FillBehindLayers": {"9": (0, 0), "20": (330, 0), "11": (750, 0)},
}
SIZES = {"MaskPreview": (300, 320), "LD_LayerPreview": (400, 360), "LD_LayerComposite": (300, 400)}


def draw_scene(scale=1):
    """Return the picture, and a mask of each of :data:`THINGS`, enlarged."""
    side = SIDE * scale
    scene = Image.fromarray(draw_background("meadow", np.random.default_rng(3), side)).convert("RGBA")
    masks = []
    for thing, size, (x, y) in THINGS:
        cut_out, corner = Image.fromarray(sprite(thing, size * scale)[0]), (x * scale, y * scale)
        mask = Image.new("RGB", (side, side))
        mask.paste((255, 255, 255), corner, cut_out.getchannel("A").point(lambda a: 255 * (a > 127)))
        scene.alpha_composite(cut_out, corner)
        masks.append(mask)
    return scene.convert("RGB"), masks


def take(page, server):
    """Open, run and save every scene."""
    scene, masks = draw_scene()
    scene.save(server.base / "input" / "scene.png")
    for (thing, _, _), mask in zip(THINGS, masks, strict=True):
        mask.save(server.base / "input" / f"{thing.kind} mask.png")
    # The page knows the files that were there when it was opened, and rings the nodes of others in red.
    page.page.reload(wait_until="domcontentloaded")
    page.wait(pages.READY)
    for name, nodes in SCENES.items():
        run_scene(page, {**APART, **nodes}, PLACES[name], SIZES)
        crop(page, list(PLACES[name]), PACK / f"web/docs/{name}/picture.jpg")


def main():
    with tempfile.TemporaryDirectory() as folder, pages.browser((1900, 1000)) as new:
        server = Server(*find_host(), Path(folder) / "base")
        try:
            page = new(server)
            page.setting("Comfy.Minimap.Visible", False)
            take(page, server)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
