"""Layout Metrics in a real ComfyUI, with masks of any segmenter and with the storybook's judge."""

import numpy as np
import pytest
import torch
from graph import from_image, load, node
from PIL import Image


def boxes_on_canvas():
    """Return a stack with two boxes on a canvas of 64 x 64."""
    left = from_image(width=16, height=32, x=0, y=0, name="left", canvas_width=64, canvas_height=64)
    return {"1": left, "2": from_image(width=16, height=32, x=32, y=0, name="right", layers=["1", 0])}


def masks(host, *boxes):
    """Return nodes that load a batch of masks from files, each with one white box."""
    prompt, last = {}, None
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[y0:y1, x0:x1] = 255
        Image.fromarray(pixels).save(host.input / f"found_{i}.png")
        prompt[f"f{i}"] = node("LoadImage", image=f"found_{i}.png")
        if last is not None:
            prompt[f"b{i}"] = node("ImageBatch", image1=last, image2=[f"f{i}", 0])
        last = [f"f{i}" if i == 0 else f"b{i}", 0]
    return {**prompt, "found": node("ImageToMask", image=last, channel="red")}


def metrics(prompt, **inputs):
    picture = node("EmptyImage", width=64, height=64, batch_size=1, color=0x808080)
    return {
        **prompt,
        "p": picture,
        "m": node("LD_LayoutMetrics", **{"layers": ["2", 0], "image": ["p", 0], "names": "", **inputs}),
    }


def test_masks_of_any_segmenter_are_compared_with_the_layers(host):
    found = masks(host, (32, 0, 48, 32), (0, 0, 16, 16), (50, 50, 60, 60))
    prompt = metrics({**boxes_on_canvas(), **found}, detections=["found", 0], names="dog\ncat\nbird")
    table = host.value(prompt, "m", 0)
    assert "| left | cat | 0.50 | 0.50 | 0.00 |" in table
    assert "| right | dog | 1.00 | 1.00 | 0.00 |" in table
    assert "| mean of 2 | 2 of 2 | 0.75 | 0.75 | 0.00 |" in table
    assert "Found and not asked for: bird." in table
    assert host.value(prompt, "m", 2) == pytest.approx(0.75)


def test_what_lies_in_another_layer_leaks(host):
    prompt = metrics({**boxes_on_canvas(), **masks(host, (0, 0, 48, 32))}, detections=["found", 0])
    table = host.value(prompt, "m", 0)
    assert "| left | 1 | 0.33 | 0.33 | 0.33 |" in table
    assert "| right | – | 0.00 | 0.00 | – |" in table


def test_the_overlay_fills_what_was_found_and_outlines_what_was_wanted(host):
    prompt = metrics({**boxes_on_canvas(), **masks(host, (0, 0, 16, 16))}, detections=["found", 0])
    overlay = host.value(prompt, "m", 1)
    assert overlay.shape == (1, 512, 512, 3)  # small canvases are enlarged
    filled, plain, outline = overlay[0, 64, 64], overlay[0, 400, 64], overlay[0, 240, 124]
    assert filled[0] > filled[2] + 0.2
    assert torch.allclose(plain, plain[0].expand(3), atol=1e-3)
    assert outline[2] > 0.9
    ui = host.run(prompt)["m"]
    assert ui["images"][0]["type"] == "temp"
    assert "mean of 2" in ui["text"][0]


def test_without_detections_the_storybooks_judge_reads_the_picture(host, pack):
    storybook = pack("demo.world.scenes")
    scene = storybook.random_scene(10_000_003, count=2, materials=("solid",))
    prompt = {}
    for i, layer in enumerate(scene.document()):
        Image.fromarray((layer.image * 255).round().to(torch.uint8).numpy()).save(
            host.input / f"scene_{i}.png"
        )
        below = {"layers": [str(i - 1), 0]} if i else {"canvas_width": 128, "canvas_height": 128}
        prompt[str(i)] = load(f"scene_{i}.png", x=int(layer.x), y=int(layer.y), name=layer.name, **below)
    top = str(len(prompt) - 1)
    prompt["c"] = node("LD_LayerComposite", layers=[top, 0], backdrop="grey")
    prompt["m"] = node("LD_LayoutMetrics", layers=[top, 0], image=["c", 0], names="")
    table = host.value(prompt, "m", 0)
    for item in scene.objects:
        assert f"{item.colour} {item.kind}" in table.split("mean of")[0].replace(
            item.thing.words.removeprefix("a "), "", 1
        )
    assert "| mean of 2 | 2 of 2 |" in table
    assert host.value(prompt, "m", 2) > 0.75


def test_bad_input_is_named(host):
    prompt = {**boxes_on_canvas(), **masks(host, (0, 0, 16, 16))}
    assert "number of names of detections is 2; allowed: one a mask, that is 1" in host.error_of(
        metrics(prompt, detections=["found", 0], names="a\nb")
    )
    assert "there are no detections to name" in host.error_of(metrics(prompt, names="a"))
    hidden = {"2": from_image(width=16, height=32, visible=False, canvas_width=64, canvas_height=64)}
    assert "no layer has a place of its own" in host.error_of(
        metrics({**prompt, **hidden}, detections=["found", 0])
    )


def test_a_picture_of_another_size_is_scaled_to_the_canvas(host):
    prompt = metrics({**boxes_on_canvas(), **masks(host, (0, 0, 16, 32))}, detections=["found", 0])
    prompt["p"] = node("EmptyImage", width=200, height=100, batch_size=2, color=0)
    assert host.value(prompt, "m", 1).shape == (1, 512, 512, 3)
