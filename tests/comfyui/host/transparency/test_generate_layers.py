"""Generate Layers Together with the storybook: what it makes, holds and refuses."""

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from graph import from_image, generate_layers, layer_diffuse, node, transparent_decode
from sampling import LOADER

import nodes as comfy_nodes

SCENE = "a red ball and a blue star by the sea"
TWO = "a red ball\na blue star"
WORDS = {
    "p": node("CLIPTextEncode", text=SCENE, clip=["loader", 1]),
    "n": node("CLIPTextEncode", text="", clip=["loader", 1]),
}


def made(host, **inputs):
    """Return the stack and the blend of two layers."""
    prompt = {**LOADER, "it": generate_layers(SCENE, TWO, **{"background": "by the sea", **inputs})}
    return host.value(prompt, "it"), host.value(prompt, "it", 1)


def named(stack):
    return {item["name"]: item for item in stack["layers"]}


def sampled(layers, **inputs):
    """Return nodes of the plain route: LayerDiffuse Apply, KSampler, and Split Frames."""
    apply = layer_diffuse("storybook (shipped)", layer_count=layers)
    apply["inputs"]["mode"] = "foreground, background and blend"
    apply["inputs"] |= inputs
    return {
        **LOADER, **WORDS, "m": apply,
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=layers + 2),
        "s": node(
            "KSampler", model=["m", 0], positive=["p", 0], negative=["n", 0], latent_image=["l", 0], seed=7,
            steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        ),
        "v": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
        "f": node("LD_SplitFrames", frames=3, image=["v", 0], latent=["s", 0], layer_count=layers),
        "d": transparent_decode(["f", 0], latent=["f", 3], augmentations="1"),
    }  # fmt: skip


def test_one_layer_is_what_apply_sampler_and_split_frames_make_to_the_bit(host):
    plain = sampled(1)
    del plain["m"]["inputs"]["layer_count"], plain["f"]["inputs"]["layer_count"]
    stack = host.value({**LOADER, "it": generate_layers(SCENE)}, "it")
    layers = named(stack)
    assert list(layers) == ["background", "foreground", "blend"]
    assert torch.equal(layers["foreground"]["image"].cpu(), host.value(plain, "d").cpu())
    assert torch.equal(layers["background"]["image"][..., :3], host.value(plain, "f", 1).cpu())
    assert torch.equal(layers["blend"]["image"][..., :3], host.value(plain, "f", 2).cpu())


def test_several_layers_are_what_the_plain_route_makes_of_as_many_words_to_the_bit(host):
    texts = {
        name: node("CLIPTextEncode", text=text, clip=["loader", 1])
        for name, text in (("a", "a red ball"), ("b", "a blue star"), ("back", "by the sea"))
    }
    both = node("ConditioningCombine", conditioning_1=["a", 0], conditioning_2=["b", 0])
    given = {"mode.foreground_words": ["both", 0], "mode.background_words": ["back", 0]}
    plain = {**sampled(2, **given), **texts, "both": both}
    stack, blend = made(host)
    layers = named(stack)
    assert list(layers) == ["background", "a red ball", "a blue star", "blend"]
    front = host.value(plain, "d").cpu()
    assert torch.equal(torch.cat([layers[n]["image"] for n in ("a red ball", "a blue star")]), front)
    assert torch.equal(layers["background"]["image"][..., :3], host.value(plain, "f", 1).cpu())
    assert torch.equal(blend.cpu(), host.value(plain, "f", 2).cpu())
    assert torch.equal(layers["blend"]["image"][..., :3], blend.cpu())


def test_a_stack_of_words_gives_the_same_layers(host):
    stack, _ = made(host)
    words = {
        **LOADER,
        "s": node("EmptyImage", width=128, height=128, batch_size=1, color=0),
        "a": from_image(image=["s", 0], name="background", prompt="by the sea"),
        "b": from_image(layers=["a", 0], name="a red ball", prompt="a red ball", width=128, height=128),
        "c": from_image(layers=["b", 0], name="a blue star", prompt="a blue star", width=128, height=128),
        "it": generate_layers(SCENE, layers=["c", 0]),
    }
    again = host.value(words, "it")
    assert [i["name"] for i in again["layers"]] == [i["name"] for i in stack["layers"]]
    for a, b in zip(again["layers"], stack["layers"], strict=True):
        assert torch.equal(a["image"], b["image"])
        assert (a["x"], a["y"], a["w"], a["h"], a.get("mask")) == (0, 0, 128, 128, None)


def test_a_box_without_a_picture_is_made_inside_it(host):
    box = {"x": 32, "y": 24, "width": 88, "height": 88}
    prompt = {
        **LOADER,
        "s": node("EmptyImage", width=128, height=128, batch_size=1, color=0),
        "a": from_image(image=["s", 0], name="background", prompt="by the sea"),
        "b": from_image(layers=["a", 0], name="a red ball", prompt="a red ball", **box),
        "it": generate_layers("a red ball by the sea", layers=["b", 0], steps=8),
    }
    alpha = named(host.value(prompt, "it"))["a red ball"]["image"][0, ..., 3]
    assert float(alpha[24:112, 32:120].sum() / alpha.sum()) > 0.9
    assert float(alpha[24:112, 32:120].max()) > 0.9


def test_layers_that_are_kept_come_back_to_the_bit_and_the_others_fit_them(host):
    prompt = {
        **LOADER,
        "one": generate_layers(SCENE, TWO, background="by the sea"),
        "it": generate_layers(SCENE, layers=["one", 0], keep="background, a red ball", seed=99),
        "other": generate_layers(SCENE, layers=["one", 0], seed=99),
    }
    before, after, other = (named(host.value(prompt, name)) for name in ("one", "it", "other"))
    for name in ("background", "a red ball"):
        assert torch.equal(after[name]["image"], before[name]["image"]), name
    assert not torch.equal(after["a blue star"]["image"], before["a blue star"]["image"])
    assert not torch.equal(after["a blue star"]["image"], other["a blue star"]["image"])
    assert not torch.equal(after["blend"]["image"], before["blend"]["image"])


def test_a_held_blend_is_taken_apart_and_new_layers_join_a_stack(host):
    prompt = {
        **LOADER,
        "picture": node(
            "LD_StorybookPicture", what="star", colour="blue", material="solid", size=128, seed=0
        ),
        "a": from_image(
            image=["picture", 0], name="blend", visible=False, canvas_width=128, canvas_height=128
        ),
        "it": generate_layers("a blue star by the sea", "a blue star", layers=["a", 0], keep="blend"),
        "more": generate_layers(SCENE, "a red ball", layers=["it", 0], keep="background, a blue star"),
    }
    apart, more = host.value(prompt, "it"), host.value(prompt, "more")
    assert [i["name"] for i in apart["layers"]] == ["background", "a blue star", "blend"]
    given = host.value(prompt, "picture")
    assert torch.equal(named(apart)["blend"]["image"][..., :3], given.cpu()[..., :3])
    assert [i["name"] for i in more["layers"]] == ["background", "a blue star", "a red ball", "blend"]
    for name in ("background", "a blue star"):
        assert torch.equal(named(more)[name]["image"], named(apart)[name]["image"])


def test_every_scene_of_a_batch_is_a_stack_of_its_own(host):
    prompt = {**LOADER, "it": generate_layers(SCENE, TWO, batch_size=2)}
    seen = {0: [], 1: []}
    for slot in seen:
        host.value(prompt, "it", slot)
        seen[slot] = list(host_values(slot))
    stacks, blends = seen[0], seen[1]
    assert len(stacks) == len(blends) == 2
    for stack, blend in zip(stacks, blends, strict=True):
        assert torch.equal(named(stack)["blend"]["image"][..., :3], blend.cpu())
    assert not torch.equal(blends[0], blends[1])
    alone, _ = made(host, background="")
    for name, item in named(alone).items():
        torch.testing.assert_close(named(stacks[0])[name]["image"], item["image"], atol=1e-4, rtol=0)


def host_values(slot):
    """Return everything that the node which keeps its inputs has got in the last run."""
    return comfy_nodes.NODE_CLASS_MAPPINGS["TestCatch"].caught


def test_words_of_the_scene_complete_those_of_a_layer(host):
    def ball(words, enhancer):
        prompt = {**LOADER, "it": generate_layers(words, "a ball\na star", enhancer=enhancer, steps=1)}
        return named(host.value(prompt, "it"))["a ball"]["image"]

    near, far = (
        [ball(f"a {colour} ball and a white star", amount) for colour in ("red", "blue")]
        for amount in (0.0, 1.0)
    )
    assert float((far[0] - far[1]).abs().mean()) > float((near[0] - near[1]).abs().mean())


def test_self_mask_guidance_changes_the_layers_a_little(host):
    (plain, _), (guided, _) = (made(host, self_mask=amount, steps=4) for amount in (0.0, 1.0))
    for name in ("a red ball", "a blue star"):
        a, b = (named(stack)[name]["image"] for stack in (plain, guided))
        assert 1e-3 < float((a - b).abs().mean()) < 0.3


def test_the_preview_while_sampling_shows_all_pictures_side_by_side(host, monkeypatch):
    import latent_preview

    shown = []

    class Previewer(latent_preview.LatentPreviewer):
        def decode_latent_to_preview(self, x0):
            shown.append(tuple(x0.shape))
            return latent_preview.preview_to_image(x0[0, :3].movedim(0, -1))

    monkeypatch.setattr(latent_preview, "get_previewer", lambda *_: Previewer())
    made(host, seed=123)
    assert shown == [(1, 4, 16, 64)] * 2


def test_a_run_that_is_cancelled_leaves_the_model_as_it_was(host, monkeypatch):
    before, _ = made(host)
    import latent_preview

    def stop(*_):
        def callback(step, *_):
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()

        return callback

    with monkeypatch.context() as patch:
        patch.setattr(latent_preview, "prepare_callback", stop)
        prompt = {
            **LOADER,
            "it": generate_layers(SCENE, TWO, seed=5),
            "p": node("PreviewImage", images=["it", 1]),
        }
        assert host.error_of(prompt) == "execution_interrupted"
    model = host.value(LOADER, "loader")
    assert not any("forward" in m.__dict__ for m in model.model.diffusion_model.modules())
    host.fresh()
    after, _ = made(host)
    for name, item in named(before).items():
        assert torch.equal(named(after)[name]["image"], item["image"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"layer_prompts": "\n".join("abcde")}, "number is 5; allowed: 1..4"),
        ({"keep": "ball"}, "keep: 'ball' names layers, but no stack is connected"),
        ({"layers": ["stack", 0], "keep": "nobody"}, "nobody"),
        ({"layers": ["stack", 0], "keep": "words"}, "keep: layer 'words' has no picture that could be held"),
        ({"layers": ["stack", 0], "keep": "back, front", "layer_prompts": ""}, "keep: all layers are held"),
        ({"layers": ["odd", 0]}, "canvas: width is 60; allowed: a multiple of 8 pixels"),
        ({"file": "layer_sd15_joint.safetensors"}, "'layer_sd15_joint.safetensors' is missing"),
        ({"decoder": "layer_sd15_vae_transparent_decoder.safetensors"}, "transparent_decoder.safetensors' is missing"),
        ({"model": ["applied", 0]}, "comes from LayerDiffuse Apply already"),
        ({"prompt": "embedding:nothing there"}, "embedding"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_said_before_anything_is_sampled(host, monkeypatch, inputs, message):
    import comfy.sample

    stack = {
        "e": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "back": from_image(image=["e", 0], name="back", prompt="a meadow"),
        "stack": from_image(
            image=["e", 0], layers=["back", 0], name="front", prompt="a ball", width=8, height=8
        ),
    }
    if inputs.get("keep") == "words":
        stack["stack"] = from_image(layers=["back", 0], name="words", prompt="a ball", width=8, height=8)
    stack["odd"] = from_image(name="odd", prompt="a ball", width=60, height=64)
    stack["applied"] = layer_diffuse("storybook (shipped)")
    stack["it"] = generate_layers(SCENE, TWO)
    stack["it"]["inputs"] |= inputs
    monkeypatch.setattr(comfy.sample, "sample", None)
    assert message in host.error_of({**LOADER, **stack, "p": node("PreviewImage", images=["it", 1])})
