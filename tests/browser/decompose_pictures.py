"""Take the help pages' pictures of the nodes that take pictures apart: ``python tests/browser/decompose_pictures.py``.
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
from graph import node  # noqa: E402
from pictures import crop, run_scene  # noqa: E402

from demo.world.drawing import draw_background, sprite  # noqa: E402
from demo.world.vocabulary import Thing  # noqa: E402

SIDE = 512
THINGS = (
    (Thing("solid", "red", "house"), 260, (20, 200)),
    (Thing("glass", "blue", "ball"), 190, (290, 280)),
)
SCENE = {
    "1": node("LoadImage", image="layer_0.png"),
    **{str(2 + i): node("LoadImage", image=f"layer_{i + 1}.png") for i in range(2)},
    **{
        str(5 + i): node("JoinImageWithAlpha", image=[str(1 + i), 0], alpha=[str(1 + i), 1]) for i in range(3)
    },
    "8": node("ImageBatch", image1=["5", 0], image2=["6", 0]),
    "9": node("ImageBatch", image1=["8", 0], image2=["7", 0]),
    "4": node("LoadImage", image="example.png"),
    "10": node(
        "LD_LayersFromPictures", image=["9", 0], names="meadow\na red house\na blue ball", first="a layer",
        original=["4", 0], prompt="", made_by="", seed=0,
    ),
    "11": node("LD_LayerComposite", layers=["10", 0], backdrop="transparent", rules="photoshop"),
    "12": node("LD_LayerPreview", layers=["10", 0], size=768),
}  # fmt: skip
PLACES = {"4": (0, 0), "10": (330, 0), "11": (760, 0), "12": (1120, 0)}
SIZES = {"LD_LayerComposite": (330, 420), "LD_LayerPreview": (330, 420)}


def write_pictures(folder):
    """Write a meadow, two things with alpha, and the picture of all."""
    meadow = Image.fromarray(draw_background("meadow", np.random.default_rng(3), SIDE))
    whole = meadow.copy()
    meadow.putalpha(255)
    meadow.save(folder / "layer_0.png")
    for i, (thing, side, place) in enumerate(THINGS, 1):
        drawn = Image.fromarray(sprite(thing, side)[0])
        alone = Image.new("RGBA", (SIDE, SIDE))
        alone.paste(drawn, place)
        alone.save(folder / f"layer_{i}.png")
        whole.paste(drawn, place, drawn)
    whole.save(folder / "example.png")


def take(page, server):
    """Save both pictures. Decompose Picture does not run: its model's files are missing."""
    write_pictures(server.base / "input")
    run_scene(page, SCENE, PLACES, SIZES)
    page.page.evaluate("() => app.graph.getNodeById('4').setSize([300, 420])")
    without_marks(page)
    crop(page, list(PLACES), PACK / "web/docs/LD_LayersFromPictures/picture.jpg")
    page.open(PACK / "workflows" / "32_decompose_qwen_layered.json")
    without_marks(page)
    crop(page, ["4", "5"], PACK / "web/docs/LD_DecomposePicture/picture.jpg")


def without_marks(page):
    """Take away the red frames of nodes whose files are missing here."""
    page.page.wait_for_timeout(1000)
    page.page.evaluate(
        "() => { for (const n of app.graph.nodes) n.has_errors = false; app.canvas.setDirty(true, true); }"
    )


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
