"""The pack in a ComfyUI server over HTTP: every node is offered, every shipped workflow runs, and its
pictures show the right objects."""

import functools
import io
import json
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_server import NotStartedError, Server
from PIL import Image

from benchmarks.hosts.find import find_host

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
API = sorted((PACK / "workflows" / "api").glob("*.json"))


@pytest.fixture(scope="module")
def server(skip_suite, could_not_start, tmp_path_factory):
    host = find_host()
    if isinstance(host, str):
        skip_suite("ComfyUI over HTTP", host)
    try:
        server = Server(*host, tmp_path_factory.mktemp("comfyui") / "base")
    except NotStartedError as error:
        could_not_start("ComfyUI's server", str(error))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ran(server):
    """Return ``ran(name)``, the history entry of a shipped workflow, which runs once for all tests."""
    return functools.cache(
        lambda name: server.run(json.loads((PACK / f"workflows/api/{name}.json").read_text()))
    )


def pictures(server, entry, node):
    """Return the pictures that ``node`` showed, as float ``[H, W, C]`` arrays in 0..1."""
    shown = entry["outputs"][node]["images"]
    return [
        np.asarray(Image.open(io.BytesIO(server.picture(image))), dtype=np.float32) / 255 for image in shown
    ]


def test_the_pack_is_imported_without_a_complaint(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log
    assert re.search(r"seconds: .*layered-diffusion", log)


def test_every_node_is_offered_with_its_words_and_place_in_the_menu(server):
    ours = {k: v for k, v in server.get("/object_info").items() if k.startswith("LD_")}
    assert {
        "LD_LoadLayer",
        "LD_LayerFromImage",
        "LD_LayerComposite",
        "LD_LayerPreview",
        "LD_LoadDemoModel",
        "LD_StorybookPicture",
    } <= set(ours)
    for name, info in ours.items():
        assert info["python_module"] == "custom_nodes.layered-diffusion", name
        assert info["category"].startswith("layered diffusion/"), name
        assert len(info["output_tooltips"]) == len(info["output"]), name


def test_every_node_has_a_help_page(server):
    for name in (k for k in server.get("/object_info") if k.startswith("LD_")):
        with urllib.request.urlopen(f"{server.url}/extensions/layered-diffusion/docs/{name}/en.md") as answer:
            assert answer.read().decode().startswith("# ")


def test_the_words_are_there_in_english_and_chinese(server):
    words = server.get("/i18n")
    nodes = server.get("/object_info")
    for language in ("en", "zh"):
        for name in (k for k in nodes if k.startswith("LD_")):
            entry = words[language]["nodeDefs"][name]
            assert entry["display_name"], (language, name)
            inputs = {k for group in ("required", "optional") for k in nodes[name]["input"].get(group, {})}
            assert set(entry.get("inputs", {})) == inputs, (language, name)
            assert all(i["tooltip"] for i in entry.get("inputs", {}).values()), (language, name)


def test_the_workflows_are_offered_as_templates(server):
    names = {f.stem for f in (PACK / "workflows").glob("*.json")}
    assert names == {f.stem for f in API}
    assert set(server.get("/workflow_templates")["layered-diffusion"]) == names


SHOWN = {
    "00_start_here": ("14", "sea", {("red", "house"), ("purple", "ball")}),
    "01_storybook_collage": ("18", "meadow", {("red", "house"), ("yellow", "heart")}),
    "02_compose_and_save": ("14", "sunset", {("green", "tree"), ("blue", "ball")}),
    "03_psd_in_psd_out": ("11", "meadow", {("red", "house"), ("green", "tree")}),
    "04_blend_modes": ("13", "sunset", {("blue", "ball")}),
    "05_regional_prompts": ("11", "sea", {("red", "house"), ("purple", "ball")}),
    "06_collage": ("14", "desert", {("green", "tree"), ("blue", "ball")}),
    "07_harmonise_or_preserve": ("19", "meadow", {("blue", "house"), ("green", "tree"), ("yellow", "star")}),
    "08_redo_one_layer": ("18", "sea", {("red", "mushroom"), ("yellow", "star")}),
    "10_control_per_layer": ("21", "meadow", {("red", "house"), ("yellow", "star")}),
    "11_two_controls": ("21", "desert", {("green", "tree"), ("blue", "ball")}),
    "09_stages": ("14", "sunset", {("green", "tree"), ("white", "house")}),
    "12_transparent_layer": ("12", "meadow", {("red", "heart")}),
    "15_foreground_and_background": ("12", "sea", {("purple", "ball")}),
    "19_layout_boxes": ("13", "sea", {("red", "house"), ("purple", "ball"), ("yellow", "star")}),
    "21_make_then_redo": ("14", "sea", {("red", "house"), ("purple", "ball")}),
    "22_layered_rendering": (
        "11",
        "meadow",
        {("yellow", "star"), ("red", "house"), ("green", "tree"), ("blue", "ball")},
    ),
    # Orange balls, a colour that the judge does not know.
    "25_learn_a_layer": ("24", "sea", {("red", "ball")}),
    "26_lora_from_a_layer": ("24", "sea", {("red", "ball")}),
    "20_regions_storybook_transformer": ("11", "meadow", {("red", "mushroom"), ("blue", "ball")}),
    "29_layers_together": ("4", "sea", {("red", "ball"), ("blue", "star")}),
    "30_edit_one_of_them": ("7", "sea", {("red", "ball"), ("green", "tree")}),
    "33_redo_one_of_them": ("9", "meadow", {("red", "house"), ("purple", "mushroom")}),
    "34_demo_decompose": ("11", "meadow", {("red", "mushroom"), ("blue", "ball")}),
}
"""For each workflow, the node of its saved picture, and the landscape and objects in the picture's first 128
x 128 pixels."""


OWN_LOOKS = ("24_lora_per_layer", "28_own_look_of_a_layer")
"""Workflows with things that look as no word says, so that the judge takes them for others."""

_THREE_FILES = {("UNETLoader", "unet_name"), ("CLIPLoader", "clip_name"), ("VAELoader", "vae_name")}

_FLUX_FILES = {
    ("UNETLoader", "unet_name"),
    ("DualCLIPLoader", "clip_name1"),
    ("DualCLIPLoader", "clip_name2"),
    ("VAELoader", "vae_name"),
}

FOR_OWN_FILES = {
    "13_layerdiffuse_sdxl": {("CheckpointLoaderSimple", "ckpt_name")},
    "14_foreground_on_background": {("CheckpointLoaderSimple", "ckpt_name"), ("LoadImage", "image")},
    "16_regions_flux": _FLUX_FILES,
    "17_regions_qwen_image": _THREE_FILES,
    "18_regions_z_image": _THREE_FILES,
    "23_layered_rendering_flux": _FLUX_FILES,
    "27_layers_own_look_sdxl": {("CheckpointLoaderSimple", "ckpt_name")},
    "31_picture_to_layers": {
        ("LoadImage", "image"),
        ("CheckpointLoaderSimple", "ckpt_name"),
        ("LoadDA3Model", "model_name"),
    },
    "32_decompose_qwen_layered": _THREE_FILES | {("LoadImage", "image")},
    "35_alpha_qwen_image": _THREE_FILES,
    "36_alpha_flux": _FLUX_FILES
    | {
        ("LoraLoaderModelOnly", "lora_name"),
        ("LD_TransparentDecode", "file"),
        ("LD_TransparentEncode", "file"),
    },
}
"""Workflows for the user's own models and pictures, which cannot run here, and the inputs that name the
missing files. ``host/attention/test_transformer_templates.py`` runs 16 to 18 and 23 on small networks, and
``host/transparency/test_alpha_templates.py`` 32, 35 and 36."""


def test_every_workflow_says_here_what_it_shows():
    assert {*SHOWN, *OWN_LOOKS, *FOR_OWN_FILES} == {f.stem for f in API}


@pytest.mark.parametrize("file", API, ids=lambda f: f.stem)
def test_every_template_has_a_note_and_a_line_in_the_list_of_templates(file):
    graph = json.loads((PACK / "workflows" / file.name).read_text(encoding="utf-8"))
    (note,) = (n["widgets_values"][0] for n in graph["nodes"] if n["type"] == "MarkdownNote")
    assert "**What to change first.**" in note
    title = note.splitlines()[0].lstrip("# ")
    listed = (PACK / "workflows/README.md").read_text(encoding="utf-8")
    assert f"| [{file.stem}]({file.name}) | {title}" in listed


@pytest.mark.parametrize("name", FOR_OWN_FILES)
def test_a_workflow_for_the_users_own_files_lacks_nothing_but_those(server, name):
    prompt = json.loads((PACK / f"workflows/api/{name}.json").read_text())
    code, answer = server.queue(prompt)
    wrong = {
        (n["class_type"], e["extra_info"]["input_name"])
        for n in answer["node_errors"].values()
        for e in n["errors"]
    }
    # A preview of the layers needs no file, so the server runs that part of a workflow.
    previews = any(n["class_type"] == "LD_LayerPreview" for n in prompt.values())
    assert (code, wrong) == (200 if previews else 400, FOR_OWN_FILES[name])


@pytest.mark.parametrize("file", [f for f in API if f.stem in SHOWN], ids=lambda f: f.stem)
def test_the_judge_sees_in_the_picture_what_the_workflow_is_about(server, ran, file):
    from demo.world.judge import Judge

    entry = ran(file.stem)
    node, background, things = SHOWN[file.stem]
    (picture,) = pictures(server, entry, node)
    picture = picture[:128, :128]
    assert picture.shape == (128, 128, 3)
    (verdict,) = Judge.load().look(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    assert verdict.background == background
    assert {f.thing for f in verdict.objects} == things


def test_the_loras_of_two_layers_act_where_the_layers_are(server):
    prompt = json.loads((PACK / "workflows/api/24_lora_per_layer.json").read_text())
    (look,) = pictures(server, server.run(prompt), "11")
    layers = prompt["13"]["inputs"]["board"]["layers"]
    own = [layer for layer in layers if layer["recipe"].pop("loras", None)]
    assert [layer["name"] for layer in own] == ["house", "ball"]
    (without,) = pictures(server, server.run(prompt), "11")
    change = np.abs(look - without).mean(-1)
    elsewhere = np.ones_like(change, bool)
    for layer in own:
        x, y, width, height = (layer[key] for key in ("x", "y", "width", "height"))
        inside = slice(y, y + height), slice(x, x + width)
        assert change[inside].mean() > 0.12
        elsewhere[inside] = False
    assert np.median(change[elsewhere]) < 0.02  # nearly all of it: a sun may come out there


def test_a_layer_with_all_of_its_own_look_stands_beside_a_frozen_one(server, ran):
    entry = ran("28_own_look_of_a_layer")
    (shown,), (made,) = pictures(server, entry, "5"), pictures(server, entry, "11")
    before = shown[2::4, 2::4]  # the preview is four times as large
    house, ball = (slice(76, 94), slice(20, 50)), (slice(80, 108), slice(86, 110))
    assert np.abs(before - made)[house].max() < 0.02
    assert np.abs(before - made)[ball].mean() > 0.02


def test_the_sampled_collage_keeps_the_layout_and_is_not_the_collage(server, ran):
    entry = ran("01_storybook_collage")
    (collage,), (sampled,) = pictures(server, entry, "11"), pictures(server, entry, "18")
    error = float(((collage - sampled) ** 2).mean())
    assert 0.0003 < error < 0.03


def test_the_psd_that_comes_out_holds_the_layers_that_went_in_and_the_sampled_one(server, ran, tmp_path):
    from psd_tools import PSDImage

    entry = ran("03_psd_in_psd_out")
    (saved,) = entry["outputs"]["11"]["layered_files"]
    psd = PSDImage.open(io.BytesIO(server.picture(saved)))
    before = PSDImage.open(PACK / "demo/files/storybook.psd")
    assert [x.name for x in psd] == [*(x.name for x in before), "sampled"]
    for theirs, ours in zip(before, psd, strict=False):
        assert np.array_equal(theirs.numpy(), ours.numpy())
        assert (theirs.offset, theirs.visible, theirs.blend_mode) == (
            ours.offset,
            ours.visible,
            ours.blend_mode,
        )
    (sampled,) = pictures(server, entry, "11")
    assert np.abs(psd[-1].numpy()[..., :3] - sampled).max() < 1.5 / 255


def test_a_frozen_layer_is_saved_as_it_was(server, ran):
    entry = ran("07_harmonise_or_preserve")
    (collage,), (noise,), (sampled,) = (pictures(server, entry, n) for n in ("10", "15", "19"))
    frozen = noise[..., 0] == 0
    assert frozen.mean() > 0.05
    assert np.array_equal(collage[..., :3][frozen], sampled[frozen])
    assert np.abs(collage[..., :3] - sampled)[~frozen].mean() > 0.01


def test_redoing_one_layer_changes_no_pixel_outside_its_mask(server):
    prompt = json.loads((PACK / "workflows/api/08_redo_one_layer.json").read_text())
    (paste,) = (k for k, n in prompt.items() if n["class_type"] == "LD_PasteBack")
    prompt["90"] = {"class_type": "MaskPreview", "inputs": {"mask": [paste, 1]}, "_meta": {}}
    entry = server.run(prompt)
    (before,), (mask,), (after,) = (pictures(server, entry, n) for n in ("10", "90", "18"))
    outside = mask[..., 0] == 0
    assert 0.3 < outside.mean() < 0.9
    # A mask below 1/510 is drawn black, so a pixel there may differ by one grey level.
    assert np.abs(before[..., :3] - after)[outside].max() <= 1.01 / 255
    assert (np.abs(before[..., :3] - after)[outside].max(-1) > 0).mean() < 0.01


def test_redoing_a_thing_of_a_picture_taken_apart_changes_no_pixel_outside_its_place(server):
    prompt = json.loads((PACK / "workflows/api/33_redo_one_of_them.json").read_text())
    prompt["90"] = {"class_type": "MaskPreview", "inputs": {"mask": ["8", 3]}, "_meta": {}}
    prompt["91"] = {
        "class_type": "LD_LayerComposite",
        "inputs": {"layers": ["6", 0], "backdrop": "transparent", "rules": "photoshop"},
        "_meta": {},
    }
    entry = server.run(prompt)
    (before,), (apart,), (mask,), (after,) = (pictures(server, entry, n) for n in ("2", "91", "90", "9"))
    assert np.array_equal(before[..., :3], apart[..., :3])
    outside = mask[..., 0] == 0
    assert 0.6 < outside.mean() < 0.95
    assert np.array_equal(before[..., :3][outside], after[..., :3][outside])
    assert np.abs(before[..., :3] - after[..., :3])[~outside].mean() > 0.05


def test_a_picture_taken_apart_with_the_demo_model_is_the_picture_again_and_so_is_its_psd(server, ran):
    from psd_tools import PSDImage

    entry = ran("34_demo_decompose")
    (picture,), (again,), (background,) = (pictures(server, entry, n) for n in ("6", "11", "13"))
    # Layer Composite gives no alpha where nothing is transparent.
    assert picture.shape == again.shape == background.shape
    assert np.array_equal(picture, again)
    (saved,) = entry["outputs"]["14"]["layered_files"]
    psd = PSDImage.open(io.BytesIO(server.picture(saved)))
    assert [x.name for x in psd] == [
        "background",
        "a blue ball: a blue ball",
        "a red mushroom: a red mushroom",
    ]
    assert np.abs(psd.composite(force=True).convert("RGB") - picture * 255).max() <= 1
    for thing in list(psd)[1:]:
        alpha = thing.numpy()[..., 3]
        covered = np.zeros(picture.shape[:2], bool)
        covered[thing.top : thing.bottom, thing.left : thing.right] = alpha == 1
        assert 0.05 < covered.mean() < 0.4
        # The background is not the thing.
        assert np.abs(background - picture)[covered].mean() > 0.2


def test_the_blueprints_are_offered(server):
    ours = {
        e["name"]
        for e in server.get("/global_subgraphs").values()
        if e["info"]["node_pack"] == "custom_nodes.layered-diffusion"
    }
    files = {f.stem for f in (PACK / "subgraphs").glob("*.json")}
    assert ours == files == {"Add Layer by Prompt", "Render Layers", "Redo Layers"}


def test_the_sheet_of_blend_modes_is_cores_and_no_two_cells_are_alike(server, ran):
    entry = ran("04_blend_modes")
    (ours,), (cores,), (photoshops,) = (pictures(server, entry, n) for n in ("13", "16", "15"))
    assert ours.shape == photoshops.shape == (536, 944, 3)
    differing = (np.abs(ours - cores) > 2.01 / 255).any(-1)
    hard_mix = np.zeros_like(differing)
    hard_mix[272:400, 408:536] = (
        True  # where backdrop and layer sum to 1, the last bit decides between black and white
    )
    assert not differing[~hard_mix].any()
    assert differing.sum() < 50
    for sheet in (ours, photoshops):
        cells = [sheet[136 * (k // 7) :, 136 * (k % 7) :][:128, :128] for k in range(26)]
        alike = [(i, k) for i in range(26) for k in range(i) if np.abs(cells[i] - cells[k]).mean() < 1 / 255]
        assert alike == []


def test_what_is_shown_in_the_node_is_what_is_saved(server, ran):
    entry = ran("02_compose_and_save")
    (shown,), (saved,) = pictures(server, entry, "13"), pictures(server, entry, "14")
    assert np.array_equal(shown, saved)


def test_the_visible_masks_of_a_finished_picture_sum_to_one(server, ran):
    entry = ran("02_compose_and_save")
    masks = pictures(server, entry, "17")
    assert len(masks) == 3
    assert np.abs(sum(m[..., 0] for m in masks) - 1).max() <= 2 / 255


def test_an_uploaded_picture_keeps_its_alpha_and_its_colours(server):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    head = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="up.png"\r\n'
    head += b"Content-Type: image/png\r\n\r\n"
    request = urllib.request.Request(f"{server.url}/upload/image", head + png.getvalue() + b"\r\n--cut--\r\n")
    request.add_header("Content-Type", "multipart/form-data; boundary=cut")
    name = json.loads(urllib.request.urlopen(request).read())["name"]
    widgets = json.loads((PACK / "workflows/api/01_storybook_collage.json").read_text())["2"]["inputs"]
    widgets = {k: v for k, v in widgets.items() if not isinstance(v, list)} | {
        "image": name,
        "canvas_width": 0,
        "canvas_height": 0,
    }
    prompt = {
        "1": {"class_type": "LD_LoadLayer", "inputs": widgets, "_meta": {}},
        "2": {
            "class_type": "LD_LayerComposite",
            "inputs": {"layers": ["1", 0], "backdrop": "transparent"},
            "_meta": {},
        },
    }
    (shown,) = pictures(server, server.run(prompt), "2")
    assert np.abs(shown * 255 - pixels).max() <= 1


def test_a_wrong_file_is_answered_with_400_and_a_named_error(server):
    prompt = {
        "1": {"class_type": "LD_LoadLayer", "inputs": {"image": "../../secret.png"}, "_meta": {}},
        "2": {"class_type": "LD_LayerPreview", "inputs": {"layers": ["1", 0], "size": 64}, "_meta": {}},
    }
    code, answer = server.queue(prompt)
    assert code == 400
    assert "leads out of the folder" in json.dumps(answer["node_errors"])
