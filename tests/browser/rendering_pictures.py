"""Take the help page's picture of Layered Rendering: ``python tests/browser/rendering_pictures.py``. pictures.py
takes it with all others."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui"), str(HERE.parent / "comfyui" / "host"), str(PACK)]

import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import node, rendering  # noqa: E402
from pictures import crop  # noqa: E402

SEED = 2
PLACES = {
    "13": ((0, 0), (420, 520)),
    "80": ((460, 0), (380, 520)),
    "83": ((880, 0), (260, 300)),
    "93": ((1180, 0), (260, 300)),
}
"""Place and size of the nodes that the picture shows: the layers, the node, and the picture with it and without."""


def scene():
    """Return workflow 05's layers, sampled with the node and with Regional Prompt Attention alone."""
    before = json.loads((PACK / "workflows/api/05_regional_prompts.json").read_text(encoding="utf-8"))
    prompt = {k: before[k] for k in ("1", "7", "13")}
    words = before["6"]["inputs"] | {"guidance": 1.0, "record": False}
    prompt["90"] = {**before["6"], "inputs": words}
    ours = {"prompt": words["prompt"], "share": 0.3, "model": ["1", 0], "clip": ["1", 1]}
    made = rendering("13")
    prompt["80"] = {**made, "inputs": made["inputs"] | ours}
    for number, source, title in ((80, "80", "with Layered Rendering"), (90, "90", "without")):
        sampler, decoded, shown = (str(number + i) for i in (1, 2, 3))
        inputs = {"model": [source, 0], "positive": [source, 1], "negative": [source, 2], "seed": SEED}
        prompt[sampler] = {**before["8"], "inputs": before["8"]["inputs"] | inputs}
        prompt[decoded] = node("VAEDecode", samples=[sampler, 0], vae=["1", 2])
        prompt[shown] = {**node("PreviewImage", images=[decoded, 0]), "_meta": {"title": title}}
    return prompt


def take(page):
    """Run the scene and save it."""
    page.open_api(scene())
    page.page.evaluate(
        """places => {
            for (const node of app.graph.nodes) {
                const [place, size] = places[node.id] ?? [[-3000, 0], [200, 100]];
                node.pos = place;
                node.setSize(size);
            }
        }""",
        PLACES,
    )
    page.queue(["83", "93"])
    crop(page, list(PLACES), PACK / "web/docs/LD_LayeredRendering/picture.jpg")


def main():
    with tempfile.TemporaryDirectory() as folder, pages.browser((2000, 1000)) as new:
        server = Server(*find_host(), Path(folder) / "base")
        try:
            page = new(server)
            page.setting("Comfy.Minimap.Visible", False)
            take(page)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
