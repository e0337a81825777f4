"""Take the help pages' pictures of the nodes that change stacks: ``python tests/browser/layer_pictures.py``.
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
from box_editor import draw, open_editor  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import KEPT, load, node  # noqa: E402
from pictures import crop, run_scene  # noqa: E402

from demo.world.drawing import sprite  # noqa: E402
from demo.world.vocabulary import Thing  # noqa: E402

STACK = {
    "1": load("sky.png", name="sky", canvas_width=768, canvas_height=512),
    "2": load("green tree.png", name="tree", x=60, y=180, layers=["1", 0]),
    "3": load("blue ball.png", name="glass ball", x=400, y=230, layers=["2", 0]),
    "4": load(
        "yellow star.png", name="star", x=540, y=20, width=160, height=160, rotation=15.0, layers=["3", 0]
    ),
}

SCENES = {
    "LD_ArrangeLayers": {
        "5": node(
            "LD_ArrangeLayers", layers=["4", 0],
            arrangement={
                "version": 1,
                "layers": {"glass ball": {"x": 250, "y": 120, "rotation": -12}},
                "order": ["sky", "glass ball", "tree", "star"],
            },
        ),
        "6": node("LD_LayerComposite", layers=["5", 0], backdrop="transparent"),
    },
    "LD_EditLayer": {
        "5": node("LD_EditLayer", layers=["4", 0], layer="star",
        **{**KEPT, "opacity": "set", "opacity.to": 0.5}),
        "6": node("LD_LayerPreview", layers=["5", 0], size=768),
    },
    "LD_SelectLayers": {
        "5": node("LD_SelectLayers", layers=["4", 0], which="star, 1"),
        "6": node("LD_LayerPreview", layers=["5", 0], size=768),
        "7": node("LD_LayerPreview", layers=["5", 1], size=768),
    },
    "LD_SplitLayer": {
        "5": node("LD_SplitLayer", layers=["4", 0], layer="star"),
        "6": node("ImageInvert", image=["5", 0]),
        "7": node("LD_JoinLayer", layers=["4", 0], layer="star", image=["6", 0], alpha=["5", 1]),
        "8": node("LD_LayerPreview", layers=["7", 0], size=768),
    },
}  # fmt: skip
"""The nodes in each picture, besides those of :data:`STACK`."""

PLACES = {
    "LD_ArrangeLayers": {"5": (0, 0), "6": (600, 0)},
    "LD_EditLayer": {"5": (0, 0), "6": (360, 0)},
    "LD_SelectLayers": {"5": (0, 0), "6": (330, -60), "7": (330, 320)},
    "LD_SplitLayer": {"5": (0, 0), "6": (330, 0), "7": (560, 0), "8": (860, 0)},
}
SIZES = {"LD_LayerComposite": (400, 420), "LD_LayerPreview": (380, 320)}


def take(page, server):
    """Open, run and save every scene."""
    for thing in (
        Thing("glass", "blue", "ball"),
        Thing("solid", "green", "tree"),
        Thing("solid", "yellow", "star"),
    ):
        Image.fromarray(sprite(thing, 256)[0]).save(
            server.base / "input" / f"{thing.colour} {thing.kind}.png"
        )
    y, x = np.mgrid[0:512, 0:768]
    Image.fromarray(np.stack([120 + x / 10, 160 + y / 8, 220 - y / 6], -1).astype(np.uint8)).save(
        server.base / "input" / "sky.png"
    )
    for name, scene in SCENES.items():
        run_scene(page, {**STACK, **scene}, PLACES[name], SIZES)
        if name == "LD_ArrangeLayers":
            page.page.evaluate("() => app.graph.getNodeById('5').layerEditor.select('glass ball')")
        crop(page, list(scene), PACK / f"web/docs/{name}/picture.jpg")
    drawn_boxes(page)
    (PACK / "web/docs/LD_JoinLayer/picture.jpg").write_bytes(
        (PACK / "web/docs/LD_SplitLayer/picture.jpg").read_bytes()
    )


def drawn_boxes(page):
    """Draw three boxes in ComfyUI's editor, run, and save the picture of Layers from Boxes."""
    open_editor(page)
    draw(page, 300, 60, 480, 230, "a yellow star")
    draw(page, 32, 240, 240, 470, "a red house")
    page.page.evaluate(
        """() => {
            app.graph.getNodeById('2').widgets.find(w => w.name === 'prompt').value = 'a red house by the sea';
            app.nodeOutputs = {};
            app.queuePrompt(0, 1);
        }"""
    )
    page.page.wait_for_function("() => app.nodeOutputs?.['3']?.images?.length", polling=200)
    page.page.wait_for_timeout(1500)
    crop(page, ["1", "2", "3"], PACK / "web/docs/LD_LayersFromBoxes/picture.jpg")
    page.setting("Comfy.VueNodes.Enabled", False)


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
