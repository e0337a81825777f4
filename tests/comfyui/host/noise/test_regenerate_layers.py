"""Redoing layers and pasting them back keeps every outside pixel exactly, at any size and with any
backend."""

import pytest
import torch
from graph import from_image, load, node, regenerate
from PIL import Image
from sampling import LOADER, sampled, words


@pytest.fixture(autouse=True)
def pictures(host):
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for name, size in (("back.png", (128, 128)), ("odd.png", (101, 67)), ("large.png", (300, 220))):
        pixels = torch.nn.functional.interpolate(small, (size[1], size[0]), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(host.input / name)
    Image.new("RGBA", (40, 40), (200, 30, 40, 255)).save(host.input / "red.png")


def stack(picture="back.png"):
    return {
        "back": load(picture),
        "red": load("red.png", name="red, round", x=20, y=12, layers=["back", 0]),
        "front": load("red.png", name="front", x=60, y=24, layers=["red", 0]),
    }


def redo(names="front", layers="front", **inputs):
    return regenerate(layers, names, **inputs)


def graph(picture="back.png", blend="gradient", sampler=None, **inputs):
    return {
        **LOADER, **words(), **stack(picture),
        "it": redo(**inputs),
        "k": sampled(["it", 0], ["it", 1], **(sampler or {})),
        "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
        "out": node("LD_PasteBack", image=["d", 0], paste=["it", 2], blend=blend, match_colours=True),
        "c": node("LD_LayerComposite", layers=["front", 0], backdrop="grey", rules="photoshop"),
    }  # fmt: skip


@pytest.mark.parametrize("picture", ["back.png", "odd.png", "large.png"])
@pytest.mark.parametrize("size", [0, 128])
@pytest.mark.parametrize("blend", ["gradient", "multi-band", "feather"])
def test_pixels_outside_the_soft_mask_are_the_picture_before_to_the_bit(host, picture, size, blend):
    prompt = graph(picture, blend, size=size)
    before, after, mask = host.value(prompt, "c"), host.value(prompt, "out"), host.value(prompt, "out", 1)[0]
    assert after.shape == before.shape
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    assert float((after - before)[:, mask == 1].abs().mean()) > 0.01
    # The layer is grown by 2 and feathered by 6, and nothing beyond that changes.
    wanted = torch.zeros_like(mask, dtype=torch.bool)
    wanted[24 - 8 : 64 + 8, 60 - 8 : 100 + 8] = True
    assert torch.equal(mask > 0, wanted)


def test_a_stack_without_picture_starts_from_the_picture_that_a_headless_run_starts_from(host, pack):
    """To the bit: one function of the core, whatever is translucent, blended or a hole."""
    core, parts = pack("layered_core.canvas.compositing"), pack("nodes.noise.repaint_parts")
    document = pack("layered_core.document")
    pixels = torch.rand(20, 30, 4, generator=torch.Generator().manual_seed(2))
    layers = (
        document.Layer("a", pixels, x=4, y=3),
        document.Layer("b", pixels, x=9, blend_mode="multiply", opacity=0.6),
    )
    stack = document.LayerDocument(40, 24, layers)
    started = parts.picture_so_far(stack, None)
    assert torch.equal(started, core.flat(stack))
    hole = started[:, 0, 0]
    torch.testing.assert_close(hole, torch.full((3,), 150 / 255))


def test_a_small_region_is_sampled_at_the_size_asked_for(host):
    prompt = graph("large.png", size=128)
    assert host.value(prompt, "it", 1)["samples"].shape[-2:] == (16, 16)
    assert host.value(prompt, "it", 3).shape == (1, 128, 128, 3)
    assert host.value(prompt, "it", 4).shape == (1, 128, 128)
    assert host.value(graph("large.png"), "it", 3).shape == (1, 224, 304, 3)


def test_no_noise_changes_no_bit(host):
    prompt = graph(noise=0.0)
    assert torch.equal(host.value(prompt, "out"), host.value(prompt, "c"))


def test_several_layers_and_names_with_commas(host):
    masks = [
        host.value(graph(names=n, grow=0, feather=0), "out", 1)
        for n in ("red, round", "front", "front\nred, round", "front,back")
    ]
    assert torch.equal(masks[2], torch.maximum(masks[0], masks[1]))
    assert float(masks[3].mean()) > 0.85


def test_the_picture_so_far_counts_and_a_mask_stands_for_names(host):
    prompt = graph()
    prompt |= {
        "inv": node("ImageInvert", image=["c", 0]),
        "m": node("SolidMask", value=1.0, width=30, height=40),
        "z": node("SolidMask", value=0.0, width=128, height=128),
        "mask": node("MaskComposite", destination=["z", 0], source=["m", 0], x=50, y=60, operation="add"),
        "it": redo(names="", image=["inv", 0], mask=["mask", 0], grow=0, border="inside"),
    }
    before, after = host.value(prompt, "inv"), host.value(prompt, "out")
    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[60:100, 50:80] = False
    assert torch.equal(after[:, outside], before[:, outside])
    assert not torch.equal(after, before)


def test_a_batch_of_results_shares_one_picture_before(host):
    prompt = graph()
    prompt |= {"r": node("RepeatLatentBatch", samples=["it", 1], amount=3), "k": sampled(["it", 0], ["r", 0])}
    after, before, mask = host.value(prompt, "out"), host.value(prompt, "c"), host.value(prompt, "out", 1)[0]
    assert after.shape[0] == 3
    assert torch.equal(after[:, mask == 0], before[:, mask == 0].expand(3, -1, -1))
    assert not torch.equal(after[0], after[1])


def test_a_layer_still_to_be_made_is_a_box_to_fill(host):
    prompt = graph()
    prompt["box"] = from_image(name="box", x=10, y=70, width=50, height=40, prompt="a red ball")
    prompt["box"]["inputs"]["layers"] = ["front", 0]
    prompt["it"] = redo(names="box", layers="box", border="inside", grow=0)
    mask = host.value(prompt, "out", 1)[0]
    assert bool((mask[70:110, 10:60] > 0).all())
    assert float(mask.sum()) < 50 * 40


def test_an_inpainting_conditioning_of_core_takes_what_was_cut_out(host):
    """That conditioning's latent has a mask of its own, on which the model's thresholds act; Paste Back keeps
    the rest."""
    prompt = graph()
    prompt["ipc"] = node(
        "InpaintModelConditioning", positive=["p", 0], negative=["n", 0], vae=["loader", 2], pixels=["it", 3],
        mask=["it", 4], noise_mask=True
    )  # fmt: skip
    prompt["k"]["inputs"] |= {"latent_image": ["ipc", 2], "positive": ["ipc", 0], "negative": ["ipc", 1]}
    before, after, mask = host.value(prompt, "c"), host.value(prompt, "out"), host.value(prompt, "out", 1)[0]
    assert torch.equal(after[:, mask == 0], before[:, mask == 0])
    assert float((after - before)[:, mask == 1].abs().mean()) > 0.01


# --- bad input ---


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({"names": "dog"}, ("layer name is 'dog'", "'back'", "'red, round'", "'front'")),
        ({"names": ""}, ("names of layers to redo", "'front'")),
        ({"grow": -60, "feather": 0}, ("mask is 0 everywhere",)),
    ],
)
def test_names_that_are_not_there_and_regions_without_a_pixel_are_told(host, inputs, parts):
    error = host.error_of({**graph(**inputs), "end": node("PreviewImage", images=["out", 0])})
    for part in parts:
        assert part in error


def test_a_picture_of_another_size_than_the_canvas_is_refused(host):
    prompt = graph() | {"other": node("EmptyImage", width=64, height=128, batch_size=1, color=0)}
    prompt["it"] = redo(image=["other", 0])
    assert "image size is '64x128'; allowed: the canvas's, 128x128" in host.error_of(
        {**prompt, "end": node("PreviewImage", images=["out", 0])}
    )


def test_a_mask_of_another_size_is_refused(host):
    prompt = graph() | {"m": node("SolidMask", value=1.0, width=64, height=64)}
    prompt["it"] = redo(mask=["m", 0])
    assert "mask size is '64x64'; allowed: the picture's, 128x128" in host.error_of(
        {**prompt, "end": node("PreviewImage", images=["out", 0])}
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_no_pixel_is_refused_and_one_of_all_redoes_the_whole_picture(host, value):
    prompt = graph() | {"m": node("SolidMask", value=value, width=128, height=128)}
    prompt["it"] = redo(mask=["m", 0])
    if value == 0:
        assert "mask is 0 everywhere" in host.error_of(
            {**prompt, "end": node("PreviewImage", images=["out", 0])}
        )
    else:
        torch.testing.assert_close(host.value(prompt, "out"), host.value(prompt, "d"))


def test_a_batch_before_and_a_decoded_picture_of_another_size_are_refused(host):
    prompt = graph() | {"two": node("RepeatImageBatch", image=["c", 0], amount=2)}
    prompt["it"] = redo(image=["two", 0])
    assert "image batch is 2; allowed: 1" in host.error_of(
        {**prompt, "end": node("PreviewImage", images=["out", 0])}
    )
    prompt = graph(size=64) | {"e": node("EmptyImage", width=32, height=32, batch_size=1, color=0)}
    prompt["out"]["inputs"]["image"] = ["e", 0]
    assert "size of the sampled picture is '32x32'" in host.error_of(
        {**prompt, "end": node("PreviewImage", images=["out", 0])}
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [("noise", 1.5), ("noise", -0.1), ("feather", -1), ("context", 99.0), ("border", "around")],
)
def test_values_out_of_range_are_refused_before_running(host, field, value):
    prompt = graph(**{field: value})
    del prompt["c"]  # without this the prompt would have another, valid output
    valid, _, _, errors = host.validate({**prompt, "end": node("PreviewImage", images=["out", 0])})
    assert not valid
    assert str(value) in str(errors)
