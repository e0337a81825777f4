"""Transparent Decode and Encode in the real host: the meaning of alpha at every socket, bad input, sizes."""

import comfy.model_management
import numpy as np
import pytest
import torch
from graph import from_image, layer_diffuse, node, transparent_decode, transparent_encode
from PIL import Image
from sampling import LOADER

import nodes as comfy_nodes


@pytest.fixture(scope="module")
def glass(host):
    """Return a prompt that encodes a file with alpha, decodes it and decodes its transparency, and the file's
    alpha."""
    host.fresh()
    picture = host.value(
        {"p": node("LD_StorybookPicture", what="star", colour="blue", material="glass", size=128, seed=0)},
        "p",
    )
    mask = host.value(
        {"p": node("LD_StorybookPicture", what="star", colour="blue", material="glass", size=128, seed=0)},
        "p",
        1,
    )
    rgba = torch.cat([picture, 1 - mask[..., None]], -1)
    Image.fromarray((rgba[0] * 255).round().to(torch.uint8).numpy()).save(host.input / "glass.png")
    prompt = {
        **LOADER,
        "file": node("LoadImage", image="glass.png"),
        "e": transparent_encode(["file", 0], mask=["file", 1]),
        "v": node("VAEDecode", samples=["e", 0], vae=["loader", 2]),
        "it": transparent_decode(["v", 0], latent=["e", 0]),
    }
    return prompt, rgba[0, ..., 3]


def psnr(a, b):
    return float(-10 * torch.log10((a - b).square().mean()))


def test_alpha_of_a_file_comes_back_through_encode_and_decode(host, glass):
    prompt, alpha = glass
    image, mask = host.value(prompt, "it", 0), host.value(prompt, "it", 1)
    assert image.shape == (1, 128, 128, 4)
    assert torch.equal(image[..., 3], mask)
    assert psnr(mask[0], alpha) > 24
    assert 0.3 < float(mask[0, 60:70, 60:70].mean()) < 0.7, "glass is half opaque"
    assert float(mask[0, :8].max()) < 0.05, "the border is transparent"


def test_an_opaque_picture_is_the_default_where_nothing_gives_alpha(host, glass):
    prompt, alpha = glass
    opaque = {k: v for k, v in prompt.items() if k != "e"} | {"e": transparent_encode(["file", 0])}
    assert not torch.equal(host.value(opaque, "e")["samples"], host.value(prompt, "e")["samples"])


def test_inverted_alpha_joins_to_the_same_rgba_and_alpha_as_it_is_to_its_inverse(host, glass):
    prompt, _ = glass
    joins = {
        "split": node("SplitImageWithAlpha", image=["it", 0]),
        "inverted": node("InvertMask", mask=["it", 1]),
        "right": node("JoinImageWithAlpha", image=["split", 0], alpha=["inverted", 0]),
        "wrong": node("JoinImageWithAlpha", image=["split", 0], alpha=["it", 1]),
    }
    image = host.value(prompt, "it")
    torch.testing.assert_close(host.value({**prompt, **joins}, "right"), image, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        host.value({**prompt, **joins}, "wrong")[..., 3], 1 - image[..., 3], atol=1e-6, rtol=0
    )


def test_porter_duff_with_inverted_alpha_lays_it_over_a_background(host, glass):
    prompt, _ = glass
    more = {
        "split": node("SplitImageWithAlpha", image=["it", 0]),
        "inverted": node("InvertMask", mask=["it", 1]),
        "back": node("LD_StorybookPicture", what="meadow", colour="red", material="solid", size=128, seed=0),
        "opaque": node("SolidMask", value=0.0, width=128, height=128),
        "over": node(
            "PorterDuffImageComposite", source=["split", 0], source_alpha=["inverted", 0],
            destination=["back", 0],
            destination_alpha=["opaque", 0], mode="SRC_OVER",
        ),
    }  # fmt: skip
    image, back = host.value(prompt, "it"), host.value({**prompt, **more}, "back")
    expected = image[..., :3] * image[..., 3:] + back * (1 - image[..., 3:])
    torch.testing.assert_close(host.value({**prompt, **more}, "over"), expected, atol=1e-4, rtol=0)


def test_save_image_and_load_image_keep_rgba_to_8_bits(host, glass):
    prompt, _ = glass
    image = host.value(prompt, "it")
    shown = host.run({**prompt, "save": node("SaveImage", images=["it", 0], filename_prefix="rgba")})["save"][
        "images"
    ][0]
    saved = (
        np.asarray(Image.open(host.output / shown["subfolder"] / shown["filename"])).astype(np.float32) / 255
    )
    assert saved.shape == (128, 128, 4)
    assert np.abs(saved - image[0].numpy()).max() <= 1 / 255


def test_the_layer_lies_on_the_stack_with_the_same_colours_and_alpha(host, glass):
    prompt, _ = glass
    more = {
        "below": node("LD_StorybookPicture", what="meadow", colour="red", material="solid", size=128, seed=0),
        "it": transparent_decode(["v", 0], latent=["e", 0], name="star"),
        "flat": node("LD_LayerComposite", layers=["it", 2], backdrop="transparent", rules="photoshop"),
    }
    item = host.value({**prompt, **more}, "it", 2)["layers"][-1]
    image = host.value({**prompt, **more}, "it")
    assert item["name"] == "star"
    assert torch.equal(item["image"].cpu(), image.cpu())
    flat = host.value({**prompt, **more}, "flat")
    torch.testing.assert_close(flat[..., 3], image[..., 3], atol=1e-4, rtol=0)


def test_a_sampled_layer_has_a_transparent_border_and_an_opaque_middle(host):
    host.fresh()
    prompt = {
        **LOADER,
        "m": layer_diffuse("storybook (shipped)"),
        "p": node("CLIPTextEncode", text="a red ball", clip=["loader", 1]),
        "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "s": node(
            "KSampler", model=["m", 0], positive=["p", 0], negative=["n", 0], latent_image=["l", 0], seed=1,
            steps=20, cfg=3.0,
            sampler_name="euler_ancestral", scheduler="normal", denoise=1.0,
        ),
        "v": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
        "it": transparent_decode(["v", 0], latent=["s", 0], augmentations="1"),
    }  # fmt: skip
    alpha = host.value(prompt, "it", 1)
    assert float(alpha[:, :6].mean()) < 0.05
    assert float(alpha[:, 58:70, 58:70].mean()) > 0.9
    names = [item["name"] for item in host.value(prompt, "it", 2)["layers"]]
    assert names == ["layer 1", "layer 2"]


def test_any_size_and_a_missing_latent(host, glass):
    prompt, _ = glass
    odd = {
        "it": transparent_decode(["a", 0], augmentations="2"),
        "a": node("EmptyImage", width=201, height=77, batch_size=3, color=255),
    }
    assert host.value(odd, "it").shape == (3, 77, 201, 4)


def test_a_batch_that_no_stack_has_room_for_is_decoded_without_one(host):
    blank = {
        "a": node("EmptyImage", width=64, height=64, batch_size=51, color=255),
        "it": transparent_decode(["a", 0], augmentations="1"),
    }
    assert host.value(blank, "it").shape == (51, 64, 64, 4)
    alone = comfy_nodes.NODE_CLASS_MAPPINGS["LD_TransparentDecode"].execute(
        torch.ones(51, 64, 64, 3), "storybook (shipped)", augmentations="1"
    )
    assert "number of pictures is 51; allowed: at most 50 in a stack" in alone.args[2].message
    stack = {
        "one": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "s": from_image(image=["one", 0], name="x"),
    }
    wanted = {
        **blank,
        **stack,
        "it": transparent_decode(["a", 0], layers=["s", 0]),
        "p": node("PreviewImage", images=["it", 0]),
    }
    assert "number of layers is 52; allowed: at most 50" in host.error_of(wanted)


def test_bad_input_is_named(host, glass):
    prompt, _ = glass
    blank = node("EmptyImage", width=64, height=64, batch_size=1, color=255)
    decode = {
        "a": blank,
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "p": node("PreviewImage", images=["it", 0]),
    }
    for inputs, message in (
        ({"latent": ["l", 0]}, "64x64 pixels beside a latent of 16x16"),
        ({"file": "vae_transparent_decoder.safetensors"}, "layerdiffusion-v1"),
        ({"augmentations": "65"}, "augmentations"),
        ({"augmentations": "0"}, "augmentations"),
    ):
        assert message in host.error_of({**decode, "it": transparent_decode(["a", 0], **inputs)}), inputs


def test_too_large_a_picture_says_how_much_memory_it_needs(host, monkeypatch):
    free = comfy.model_management.get_free_memory

    def little(*arguments, **named):
        result = free(*arguments, **named)
        return (2**20, 2**20) if isinstance(result, tuple) else 2**20

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    prompt = {
        "a": node("EmptyImage", width=512, height=512, batch_size=1, color=255),
        "it": transparent_decode(["a", 0]),
    }
    assert "GiB" in host.error_of({**prompt, "p": node("PreviewImage", images=["it", 0])})


def test_where_there_is_one_memory_the_result_takes_its_part_of_it(host, monkeypatch):
    """The memory suffices for the network or for the result, but not for both."""
    picture = node("EmptyImage", width=64, height=4096, batch_size=40, color=255)
    prompt = {
        "a": picture,
        "it": transparent_decode(["a", 0], augmentations="1"),
        "p": node("PreviewImage", images=["it", 0]),
    }
    result = 40 * 64 * 4096 * 16
    free = comfy.model_management.get_free_memory

    def leave(size):
        def free_memory(*arguments, **named):
            return (size, size) if isinstance(free(*arguments, **named), tuple) else size

        monkeypatch.setattr(comfy.model_management, "get_free_memory", free_memory)

    leave(result + 2**20)
    assert "GiB of memory on cpu" in host.error_of(prompt)
    leave(result - 1)
    assert "GiB of main memory" in host.error_of(prompt)


def test_the_deviation_of_an_ordinary_vae_scales_the_offset_and_the_vae_is_left_as_it_was(host, pack):
    encode = pack("nodes.transparency.transparent_encode")
    regularization = torch.nn.Identity()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.regularization = regularization

    class Vae:
        first_stage_model = Model()

        def encode(self, pixels):
            moments = torch.cat([torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 2 * np.log(0.5))], 1)
            return self.first_stage_model.regularization(moments)[:, :4]

    mean, deviation = encode.posterior(Vae(), torch.rand(1, 3, 16, 16))
    assert torch.equal(mean, torch.full((1, 4, 2, 2), 3.0))
    torch.testing.assert_close(deviation, torch.full((1, 4, 2, 2), 0.5))
    assert not regularization._forward_pre_hooks
    assert comfy_nodes.NODE_CLASS_MAPPINGS["LD_TransparentEncode"]
