"""Take the pictures of the workflows and help pages in a real browser: ``python tests/browser/pictures.py``.
Run it when nodes or the model change."""

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "comfyui"), str(HERE.parent / "comfyui" / "host"), str(PACK)]

import page as pages  # noqa: E402
from comfy_server import Server  # noqa: E402
from graph import from_image  # noqa: E402

NODES = {
    "LD_LayerFromImage": ("01_storybook_collage", ["2", "4", "6"]),
    "LD_LayerComposite": ("01_storybook_collage", ["11"]),
    "LD_LayerPreview": ("01_storybook_collage", ["10"]),
    "LD_LoadDemoModel": ("02_compose_and_save", ["1", "2", "3", "4", "5", "6"]),
    "LD_StorybookPicture": ("01_storybook_collage", ["1", "3", "5"]),
    "LD_LoadLayers": ("03_psd_in_psd_out", ["1", "2"]),
    "LD_SaveLayers": ("03_psd_in_psd_out", ["11"]),
    "LD_PerLayerSDEdit": ("07_harmonise_or_preserve", ["14", "15"]),
    "LD_RegenerateLayers": ("09_stages", ["8", "9"]),
    "LD_PasteBack": ("09_stages", ["11", "12"]),
    "LD_AddLayerByPrompt": ("09_stages", ["2", "3"]),
    "LD_StageLayer": ("09_stages", ["12", "13"]),
    "LD_StageSeed": ("09_stages", ["7"]),
    "LD_RegionalPromptAttention": ("05_regional_prompts", ["6", "8", "11"]),
    "LD_AttentionPreview": ("05_regional_prompts", ["10"]),
    "LD_VisionGuidancePreview": ("22_layered_rendering", ["10"]),
    "LD_LoadDemoControlNet": ("10_control_per_layer", ["12", "17"]),
    "LD_MaskedControlNetApply": ("10_control_per_layer", ["17", "20", "21"]),
    "LD_LayerControlHint": ("10_control_per_layer", ["10", "15"]),
    "LD_TransparentDecode": ("12_transparent_layer", ["10", "11"]),
    "LD_LayerDiffuseApply": ("12_transparent_layer", ["2", "3", "6"]),
    "LD_SplitFrames": ("15_foreground_and_background", ["8", "14", "16", "13"]),
    "LD_GenerateLayers": ("29_layers_together", ["2", "3"]),
    "LD_LearnWords": ("25_learn_a_layer", ["8", "9", "24"]),
    "LD_LayerTrainingData": ("26_lora_from_a_layer", ["8", "9"]),
    "LD_SaveLayerLora": ("26_lora_from_a_layer", ["10", "11", "20"]),
    "LD_LayersFromLayout": ("19_layout_boxes", ["2", "3"]),
    "LD_LayoutFromLayers": ("19_layout_boxes", ["6", "8"]),
}
"""By help page: the workflow and the nodes of it that the page shows."""

RESULTS = {
    "00_start_here": ("14",),
    "01_storybook_collage": ("10", "18"),
    "02_compose_and_save": ("12", "14"),
    "03_psd_in_psd_out": ("2", "11"),
    "04_blend_modes": ("11",),
    "05_regional_prompts": ("5", "10", "11"),
    "06_collage": ("8", "14"),
    "07_harmonise_or_preserve": ("10", "19"),
    "08_redo_one_layer": ("10", "18"),
    "09_stages": ("15", "14"),
    "10_control_per_layer": ("10", "16", "21"),
    "11_two_controls": ("16", "26", "21"),
    "12_transparent_layer": ("14", "12"),
    "15_foreground_and_background": ("14", "16", "12", "13"),
    "19_layout_boxes": ("2", "6", "13"),
    "20_regions_storybook_transformer": ("5", "10", "11"),
    "22_layered_rendering": ("5", "10", "11"),
    "24_lora_per_layer": ("5", "11"),
    "25_learn_a_layer": ("9", "8", "24"),
    "26_lora_from_a_layer": ("9", "24"),
    "28_own_look_of_a_layer": ("5", "11"),
    "29_layers_together": ("3", "4", "5"),
    "30_edit_one_of_them": ("5", "6", "7"),
    "33_redo_one_of_them": ("2", "7", "9"),
    "34_demo_decompose": ("6", "10", "13"),
}
"""The pictures of each workflow that its thumbnail shows side by side."""


def crop(page, ids, path, margin=30):
    """Save the part of the canvas that holds the nodes ``ids``."""
    boxes = page.page.evaluate(
        "(ids) => ids.map(i => { const n = app.graph.getNodeById(i); return [...n.pos, ...n.size]; })", ids
    )
    left, top = min(b[0] for b in boxes) - margin, min(b[1] for b in boxes) - 30 - margin
    right, bottom = max(b[0] + b[2] for b in boxes) + margin, max(b[1] + b[3] for b in boxes) + margin
    # Clear of the page's own bars.
    page.look(1.0, (90 - left, 110 - top))
    page.shoot(path, (90, 110, right - left, bottom - top))


def run_scene(page, prompt, places, sizes):
    """Open a prompt with its nodes at ``places`` (the others outside the page), give the kinds of nodes in
    ``sizes`` these sizes, and run it."""
    ours = {i: sizes[n["class_type"]] for i, n in prompt.items() if n["class_type"] in sizes}
    page.open_api(prompt)
    page.page.evaluate(
        """([places, sizes]) => {
            for (const node of app.graph.nodes) node.pos = places[node.id] ?? [-3000, 0];
            for (const [id, size] of Object.entries(sizes)) app.graph.getNodeById(id).setSize(size);
        }""",
        [places, ours],
    )
    page.queue(list(ours))


def thumbnail(server, entry, ids, path):
    """Join the last pictures of nodes side by side, 512 pixels high."""
    pictures = [
        Image.open(io.BytesIO(server.picture(entry["outputs"][i]["images"][-1]))).convert("RGB") for i in ids
    ]
    sizes = [(round(512 * p.width / p.height), 512) for p in pictures]
    sheet = Image.new("RGB", (sum(width for width, _ in sizes), 512))
    left = 0
    for picture, size in zip(pictures, sizes, strict=True):
        sheet.paste(
            picture.resize(
                size, Image.Resampling.BICUBIC if picture.width < 512 else Image.Resampling.LANCZOS
            ),
            (left, 0),
        )
        left += size[0]
    sheet.save(path, quality=88)


def measure(page, prompt):
    """Take the picture of Layout Metrics at the end of the collage workflow, with its table."""
    layers = next(n["inputs"]["layers"] for n in prompt.values() if n["class_type"] == "LD_LayerPreview")
    image = next([i, 0] for i, n in prompt.items() if n["class_type"] == "VAEDecode")
    prompt["90"] = {
        "class_type": "LD_LayoutMetrics",
        "inputs": {"layers": layers, "image": image, "names": ""},
        "_meta": {},
    }
    prompt["91"] = {"class_type": "PreviewAny", "inputs": {"source": ["90", 0]}, "_meta": {}}
    page.open_api(prompt)
    page.page.evaluate(
        "() => { const n = app.graph.getNodeById('90'); n.pos = [3000, 3000]; n.setSize([340, 500]); }"
    )
    page.page.evaluate(
        "() => { const n = app.graph.getNodeById('91'); n.pos = [3380, 3000]; n.setSize([560, 320]); }"
    )
    page.queue(["90"])
    crop(page, ["90", "91"], PACK / "web/docs/LD_LayoutMetrics/picture.jpg")


def find_place(page, prompt):
    """Take the picture of Find Place between the picture of workflow 09's first stage and a draft of it."""
    cut = prompt["8"]["inputs"] | {"names": "", "layers": ["2", 0], "image": ["2", 1], "mask": ["50", 0]}
    sampler = prompt["9"]["inputs"] | {
        "seed": 3,
        "steps": 12,
        "denoise": 0.75,
        "model": ["51", 0],
        "latent_image": ["51", 1],
    }
    nodes = {
        "50": ("SolidMask", {"value": 1.0, "width": 128, "height": 128}),
        "51": ("LD_RegenerateLayers", cut),
        "52": ("KSampler", sampler),
        "53": ("VAEDecode", {"samples": ["52", 0], "vae": ["1", 2]}),
        "54": ("PreviewImage", {"images": ["53", 0]}),
        "55": ("LD_FindPlace", {"before": ["2", 1], "draft": ["53", 0], "share": 0.5, "grow": 8}),
        "56": ("MaskPreview", {"mask": ["55", 0]}),
    }
    prompt = {k: prompt[k] for k in ("1", "2", "4", "5")}
    page.open_api(
        prompt
        | {k: {"class_type": kind, "inputs": inputs, "_meta": {}} for k, (kind, inputs) in nodes.items()}
    )
    page.page.evaluate("() => app.graph.nodes.forEach((n, i) => { n.pos = [500 * i, 2000]; })")
    for n, node in enumerate(("54", "55", "56")):
        page.page.evaluate(
            "([i, x]) => { const n = app.graph.getNodeById(i); n.pos = [x, 0]; n.setSize([340, 380]); }",
            [node, 380 * n],
        )
    page.queue(["54", "56"])
    crop(page, ["54", "55", "56"], PACK / "web/docs/LD_FindPlace/picture.jpg")


def masks_from_words(page, prompt):
    """Take the picture of Layer Mask from Attention: its masks for the words of workflow 05's layers, and the
    picture that the same noise becomes."""
    whole = {"width": 128, "height": 128, "canvas_width": 128, "canvas_height": 128}
    layers = {
        "1": prompt["1"],
        "3": from_image(name="house", prompt="a red house", **whole),
        "4": from_image(name="ball", prompt="a purple ball", layers=["3", 0], **whole),
    }
    words, sampler = (
        prompt["6"]["inputs"]["prompt"],
        prompt["8"]["inputs"] | {"seed": 4, "steps": 20, "sampler_name": "euler"},
    )
    look = {
        "model": ["1", 0],
        "clip": ["1", 1],
        "layers": ["4", 0],
        "prompt": words,
        "negative": "",
        "seed": 4,
        "steps": 8,
        "cfg": 3.0,
    }
    nodes = {
        "61": ("LD_LayerMaskFromAttention", {**look, "threshold": 0.4, "largest": True}),
        "62": ("MaskToImage", {"mask": ["61", 1]}),
        "63": (
            "ImageScale",
            {
                "image": ["62", 0],
                "upscale_method": "bicubic",
                "width": 256,
                "height": 256,
                "crop": "disabled",
            },
        ),
        "64": ("PreviewImage", {"images": ["63", 0]}),
        "65": ("CLIPTextEncode", {"clip": ["1", 1], "text": words}),
        "66": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "67": ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1}),
        "68": (
            "KSampler",
            sampler
            | {"model": ["1", 0], "positive": ["65", 0], "negative": ["66", 0], "latent_image": ["67", 0]},
        ),
        "69": ("VAEDecode", {"samples": ["68", 0], "vae": ["1", 2]}),
        "70": ("PreviewImage", {"images": ["69", 0]}),
    }
    page.open_api(
        layers
        | {k: {"class_type": kind, "inputs": inputs, "_meta": {}} for k, (kind, inputs) in nodes.items()}
    )
    page.page.evaluate("() => app.graph.nodes.forEach((n, i) => { n.pos = [500 * i, 2000]; })")
    for node, x, size in (("61", 0, [400, 380]), ("64", 440, [440, 300]), ("70", 920, [260, 300])):
        page.page.evaluate(
            "([i, x, s]) => { const n = app.graph.getNodeById(i); n.pos = [x, 0]; n.setSize(s); }",
            [node, x, size],
        )
    page.queue(["64", "70"])
    crop(page, ["61", "64", "70"], PACK / "web/docs/LD_LayerMaskFromAttention/picture.jpg")


def main():
    from demo.world.drawing import sprite
    from demo.world.vocabulary import Thing

    with tempfile.TemporaryDirectory() as folder, pages.browser((2900, 1400)) as new:
        server = Server(*find_host(), Path(folder) / "base")
        try:
            for name, ids in RESULTS.items():
                entry = server.run(json.loads((PACK / f"workflows/api/{name}.json").read_text()))
                thumbnail(server, entry, ids, PACK / f"workflows/{name}.jpg")
            for thing in (Thing("glass", "blue", "ball"), Thing("solid", "green", "tree")):
                Image.fromarray(sprite(thing, 128)[0]).save(
                    server.base / "input" / f"{thing.colour} {thing.kind}.png"
                )
            page = new(server)
            page.setting("Comfy.Minimap.Visible", False)
            for name in RESULTS:
                page.open(PACK / f"workflows/{name}.json")
                page.queue(RESULTS[name])
                if name == "01_storybook_collage":
                    ids = [i for i, kind, _ in page.nodes() if kind != "MarkdownNote"]
                    crop(page, ids, PACK / "web/docs/graph.jpg")
                for node, (workflow, ids) in NODES.items():
                    if workflow == name:
                        crop(page, ids, PACK / f"web/docs/{node}/picture.jpg")
            defaults = json.loads((PACK / "workflows/api/01_storybook_collage.json").read_text())["4"][
                "inputs"
            ]
            inputs = {k: v for k, v in defaults.items() if not isinstance(v, list)} | {
                "prompt": "",
                "name": "",
            }
            ball = {
                **inputs,
                "image": "blue ball.png",
                "prompt": "a glass blue ball",
                "x": 40,
                "y": 30,
                "layers": ["1", 0],
            }
            prompt = {
                "1": {
                    "class_type": "LD_LoadLayer",
                    "inputs": {**inputs, "image": "green tree.png", "prompt": "a green tree"},
                    "_meta": {},
                },
                "2": {"class_type": "LD_LoadLayer", "inputs": ball, "_meta": {}},
                "3": {
                    "class_type": "LD_LayerPreview",
                    "inputs": {"layers": ["2", 0], "size": 768},
                    "_meta": {},
                },
            }
            page.open_api(prompt)
            page.page.evaluate(
                "() => ['1', '2', '3'].forEach((i, n) => { app.graph.getNodeById(i).pos = [460 * n, 0]; })"
            )
            page.page.evaluate("() => app.graph.getNodeById('3').setSize([400, 480])")
            page.queue(["3"])
            crop(page, ["1", "2", "3"], PACK / "web/docs/LD_LoadLayer/picture.jpg")
            measure(page, json.loads((PACK / "workflows/api/01_storybook_collage.json").read_text()))
            masks_from_words(page, json.loads((PACK / "workflows/api/05_regional_prompts.json").read_text()))
            find_place(page, json.loads((PACK / "workflows/api/09_stages.json").read_text()))
            import box_pictures
            import decompose_pictures
            import layer_pictures
            import mask_pictures
            import patch_pictures
            import rendering_pictures
            import transparency_pictures

            layer_pictures.take(page, server)
            mask_pictures.take(page, server)
            decompose_pictures.take(page, server)
            patch_pictures.take(page, server)
            transparency_pictures.take(page)
            rendering_pictures.take(page)
            box_pictures.take()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
