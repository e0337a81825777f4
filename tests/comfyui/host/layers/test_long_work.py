"""Long work: the bar moves, the run can be cancelled at any of its steps and leaves nothing, too little memory is told
first."""

import math
import os
import shutil
import time

from boot import pack_module  # isort: skip  # first: it makes ComfyUI importable

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy_execution.utils import get_executing_context
from graph import from_image, load, node, transparent_decode
from PIL import Image
from sampling import LOADER

import nodes


@pytest.fixture(autouse=True)
def fresh(host, monkeypatch):
    Image.effect_noise((600, 500), 90).convert("RGBA").save(host.input / "noise.png")
    shutil.rmtree(host.output, ignore_errors=True)
    host.output.mkdir()
    host.fresh()
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    yield
    nodes.interrupt_processing(False)


def stack(side=1500, count=6):
    """Return layers that are turned and scaled, on a large canvas."""
    size = {"width": side, "height": side, "canvas_width": side, "canvas_height": side}
    layers = {"0": load("noise.png", name="0", rotation=10, **size)}
    for i in range(1, count):
        layers[str(i)] = load("noise.png", name=str(i), rotation=10 + i, layers=[str(i - 1), 0], **size)
    return layers, [str(count - 1), 0]


ENDS = {
    "LD_LayerComposite": {"backdrop": "grey", "rules": "comfyui"},
    "LD_LayerPreview": {"size": 768},
    "LD_SaveLayers psd": {"filename_prefix": "x", "format": "psd", "bits": "8"},
    "LD_SaveLayers ora": {"filename_prefix": "x", "format": "ora", "bits": "8"},
    "LD_SaveLayers png folder": {"filename_prefix": "x", "format": "png folder", "bits": "8"},
    "LD_LayerControlHint": {"outline": True},
    "LD_ArrangeLayers": {"arrangement": {}},
    "LD_LayerBoard": {"board": {}},
}


def previews():
    folder = folder_paths.get_temp_directory()
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()


@pytest.mark.parametrize("end", ENDS)
def test_a_node_stops_within_two_seconds_and_leaves_nothing(host, end, monkeypatch):
    layers, last = stack()
    prompt = {**layers, "end": node(end.split(" ")[0], layers=last, **ENDS[end])}
    if end == "LD_LayerControlHint":
        prompt["end"] = node("PreviewImage", images=["hint", 0])
        prompt["hint"] = node("LD_LayerControlHint", layers=last, outline=True)
    cancelled, before = [], previews()

    def at_the_end(value, total, preview, node_id=None, **_):
        if get_executing_context().node_id in ("end", "hint") and not cancelled:
            cancelled.append(time.monotonic())
            nodes.interrupt_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", at_the_end)
    assert host.error_of(prompt) == "execution_interrupted"
    assert time.monotonic() - cancelled[0] < 2
    assert list(host.output.rglob("*")) == []
    assert previews() == before


def test_the_bar_moves_while_a_stack_is_composited(host, monkeypatch):
    seen = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: seen.append((value, total))
    )
    layers, last = stack()
    host.run({**layers, "end": node("LD_LayerComposite", layers=last, **ENDS["LD_LayerComposite"])})
    bands = [value for value, total in seen if total == -(-1500 // (32_000 // 1500))]
    assert len(bands) >= 3
    assert bands[0] < bands[-1]


def files_of(host, form):
    """Save a stack of three large layers, and return a prompt that loads the file at its node "end"."""
    layers, last = stack(900, 3)
    saved = node("LD_SaveLayers", layers=last, filename_prefix="x", format=form, bits="8")
    host.run({**layers, "saved": saved})
    (file,) = host.output.glob("x*")
    shutil.move(file, host.input / f"long.{form}")
    shutil.rmtree(host.output)
    host.output.mkdir()
    host.fresh()
    return {
        "end": node("LD_LoadLayers", file=f"long.{form}", memory_limit=4),
        "c": node("LD_LayerComposite", layers=["end", 0], backdrop="grey"),
    }


def decoding(host):
    return {
        "p": node("EmptyImage", width=256, height=256, batch_size=1, color=255),
        "end": transparent_decode(["p", 0], augmentations="4"),
        "c": node("PreviewImage", images=["end", 0]),
    }


def masking(host):
    from_attention = node(
        "LD_LayerMaskFromAttention", model=["loader", 0], clip=["loader", 1], layers=["a", 0],
        prompt="a red ball in a meadow", negative="", seed=0, steps=12, cfg=3.0, threshold=0.5, largest=True,
    )  # fmt: skip
    return {
        **LOADER,
        "a": from_image(width=128, height=128, prompt="a red ball"),
        "end": from_attention,
        "c": node("LD_LayerComposite", layers=["end", 0], backdrop="grey"),
    }


def saving(host, form):
    layers, last = stack(900, 3)
    return {**layers, "end": node("LD_SaveLayers", layers=last, filename_prefix="x", format=form, bits="8")}


LONG = {
    "PSD reading": lambda host: files_of(host, "psd"),
    "PSD writing": lambda host: saving(host, "psd"),
    "OpenRaster reading": lambda host: files_of(host, "ora"),
    "Transparent Decode": decoding,
    "Layer Mask from Attention": masking,
}


def watching(monkeypatch, use):
    """Let ``use`` be called with the share that is done whenever the bar of the node "end" moves."""

    def move(value, total, preview, node_id=None, **_):
        if get_executing_context().node_id == "end":
            use(value / total)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", move)


@pytest.mark.parametrize("work", LONG)
def test_the_bar_moves_during_long_work(host, work, monkeypatch):
    prompt, seen = LONG[work](host), []
    monkeypatch.setattr(pack_module("nodes.layers.long_work"), "_PAUSE", 0.0)
    watching(monkeypatch, seen.append)
    host.run(prompt)
    assert len({round(share, 1) for share in seen if 0 < share < 1}) >= 3


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("work", LONG)
def test_long_work_stops_within_two_seconds_wherever_it_is_and_leaves_nothing(host, work, share, monkeypatch):
    prompt, cancelled, before = LONG[work](host), [], previews()

    def cancel(done):
        if done >= share and not cancelled:
            cancelled.append(time.monotonic())
            nodes.interrupt_processing()

    # A quick machine reads the file between two moves of the bar.
    monkeypatch.setattr(pack_module("nodes.layers.long_work"), "_PAUSE", 0.0)
    watching(monkeypatch, cancel)
    assert host.error_of(prompt) == "execution_interrupted"
    assert time.monotonic() - cancelled[0] < 2
    assert list(host.output.rglob("*")) == []
    assert previews() == before


def test_a_file_is_not_hashed_on_after_the_run_was_cancelled(host, pack):
    Image.effect_noise((1500, 1500), 90).save(host.input / "large.png")
    loader = pack("nodes.layers.load_layer").LoadLayer
    nodes.interrupt_processing()
    assert math.isnan(loader.fingerprint_inputs(image="large.png"))
    assert comfy.model_management.processing_interrupted()  # the run ends before its next node
    nodes.interrupt_processing(False)
    first = loader.fingerprint_inputs(image="large.png")
    assert len(first) == 64
    assert loader.fingerprint_inputs(image="large.png") == first
    Image.effect_noise((1500, 1500), 90).save(host.input / "large.png")
    assert loader.fingerprint_inputs(image="large.png") != first


@pytest.mark.parametrize("end", ["LD_LayerComposite", "LD_SaveLayers psd", "LD_LayerControlHint"])
def test_too_little_memory_is_told_before_the_work(host, end, monkeypatch):
    layers, last = stack(700, 1)
    prompt = {**layers, "end": node(end.split(" ")[0], layers=last, **ENDS[end])}
    if end == "LD_LayerControlHint":
        prompt["shown"] = node("PreviewImage", images=["end", 0])
    free = comfy.model_management.get_free_memory
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *x, **y: min(2**20, free(*x, **y)))
    said = host.error_of(prompt)
    assert "of 700x700 pixels: needs 0.0 GiB of main memory, and 0.0 GiB are free. " in said
    assert list(host.output.rglob("*")) == []


def test_a_preview_has_the_bytes_that_save_image_writes(host, pack):
    image = torch.rand(2, 7, 5, 4)
    shown = pack("nodes.layers.preview").Preview(image).as_dict()["images"]
    assert len(shown) == 2
    for file, picture in zip(shown, image, strict=True):
        with Image.open(os.path.join(folder_paths.get_temp_directory(), file["filename"])) as saved:
            assert np.array_equal(np.asarray(saved), (picture * 255).numpy().astype("uint8"))
