"""Take the help page's picture of Masked Model Patch: ``python tests/browser/patch_pictures.py``. pictures.py
takes it with all others."""

import sys
import tempfile
from pathlib import Path

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui"), str(HERE.parent / "comfyui" / "host"), str(PACK)]

import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import from_image, masked_patch, node  # noqa: E402
from pictures import crop  # noqa: E402

SCENE = {
    "loader": node("UNETLoader", unet_name="qwen_image_fp8_e4m3fn.safetensors", weight_dtype="default"),
    "file": node("ModelPatchLoader", name="qwen_image_canny_diffsynth_controlnet.safetensors"),
    "vae": node("VAELoader", vae_name="qwen_image_vae.safetensors"),
    "house": from_image(name="house", width=512, height=512, control_hint="canny"),
    "hint": node("LD_LayerControlHint", layers=["house", 0], outline=True),
    "patched": node(
        "QwenImageDiffsynthControlnet", model=["loader", 0], model_patch=["file", 0], vae=["vae", 0],
        image=["hint", 0], strength=1.0,
    ),
    "it": masked_patch(layers=["house", 0]),
}  # fmt: skip
PLACES = {
    "loader": (0, 0), "file": (0, 145), "vae": (0, 260), "hint": (0, 380), "patched": (420, 150), "it": (880, 60),
}  # fmt: skip
"""The nodes that the picture shows."""
FILES = {"loader": "diffusion_models", "file": "model_patches", "vae": "vae"}
"""The folders of the loaders' files. Empty ones do, as nothing is run."""


def take(page, server):
    """Open the scene and save it."""
    for name, folder in FILES.items():
        names = [v for v in SCENE[name]["inputs"].values() if v.endswith(".safetensors")]
        (server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        (server.base / "models" / folder / names[0]).touch()
    numbers = {name: str(i) for i, name in enumerate(SCENE, 1)}

    def linked(value):
        return [numbers[value[0]], value[1]] if isinstance(value, list) else value

    prompt = {
        numbers[name]: {**n, "inputs": {k: linked(v) for k, v in n["inputs"].items()}}
        for name, n in SCENE.items()
    }
    page.page.reload(wait_until="domcontentloaded")  # for the lists of files
    page.page.wait_for_function(pages.READY, timeout=120_000, polling=200)
    page.open_api(prompt)
    page.page.evaluate(
        """places => {
            for (const node of app.graph.nodes) node.pos = places[node.id] ?? [-3000, 0];
        }""",
        {numbers[name]: place for name, place in PLACES.items()},
    )
    crop(page, [numbers[name] for name in PLACES], PACK / "web/docs/LD_MaskedModelPatch/picture.jpg")


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
