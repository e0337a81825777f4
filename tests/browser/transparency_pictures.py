"""Take the help page's picture of Transparent Encode: ``python tests/browser/transparency_pictures.py``.
pictures.py takes it with all others."""

import sys
import tempfile
from pathlib import Path

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui"), str(HERE.parent / "comfyui" / "host"), str(PACK)]

import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import node, transparent_decode  # noqa: E402
from pictures import crop, run_scene  # noqa: E402

HEART = {"what": "heart", "colour": "red", "material": "glowing", "size": 128, "seed": 3}

SCENES = {
    "LD_TransparentEncode": {
        "12": node("LD_LoadDemoModel"),
        "1": node("LD_StorybookPicture", **HEART),
        "2": node(
            "LD_TransparentEncode",
            image=["1", 0],
            vae=["12", 2],
            file="storybook (shipped)",
            offset_scale=0.0,
            mask=["1", 1],
        ),
        "3": node("VAEDecode", samples=["2", 0], vae=["12", 2]),
        "4": node("PreviewImage", images=["3", 0]),
        "5": transparent_decode(["3", 0], latent=["2", 0], name="heart"),
        "6": node("LD_LayerPreview", layers=["5", 2], size=512),
    },
}
"""The nodes in each picture."""

PLACES = {
    "LD_TransparentEncode": {"1": (0, 0), "2": (330, 0), "4": (700, 0), "6": (1010, 0)},
}
SIZES = {"PreviewImage": (260, 300), "LD_LayerPreview": (340, 360)}


def take(page):
    """Open, run and save every scene."""
    for name, scene in SCENES.items():
        run_scene(page, scene, PLACES[name], SIZES)
        crop(page, list(PLACES[name]), PACK / f"web/docs/{name}/picture.jpg")


def main():
    with tempfile.TemporaryDirectory() as folder, pages.browser((1900, 1000)) as new:
        server = Server(*find_host(), Path(folder) / "base")
        try:
            page = new(server)
            page.setting("Comfy.Minimap.Visible", False)
            take(page)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
