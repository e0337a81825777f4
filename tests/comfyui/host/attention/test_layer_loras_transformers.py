"""LoRAs of layers on transformers: tiny random weights of ComfyUI's own classes."""

import comfy.sd
import comfy.utils
import pytest
import tiny_transformers as tiny
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from lora_scene import layer, path_of, stack_of, unet_shapes, write_lora
from regional_scene import WIDGETS

FAMILIES = list(tiny.MODELS)
WORDS = {**WIDGETS, "prompt": "a meadow at noon", "negative": "dark"}
LAST = {"flux": "final_layer.linear", "flux2": "final_layer.linear", "chroma": "final_layer.linear",
        "qwen": "proj_out", "zimage": "final_layer.linear", "lumina2": "final_layer.linear",
        "sd3": "final_layer.linear", "krea2": "last.linear", "anima": "final_layer.linear"}  # fmt: skip
"""The last module of each family, which changes each token by itself."""


@pytest.fixture
def seen(regions):
    """Sample a stack of layers on a family."""

    def sample(family, *layers, model=None, steps=1, cfg=2.0):
        model = model or tiny.shared_model(family)
        out = regions.node.execute(model, tiny.clip(family), stack_of(regions, *layers), **WORDS).result
        return tiny.sampled(out[0], family, out[1], out[2], steps=steps, cfg=cfg)

    return sample


def halves(regions, left=(), right=()):
    return (
        layer(regions, "left", *left, width=64, prompt="a red ball"),
        layer(regions, "right", *right, x=64, width=64, prompt="a blue star"),
    )


def everything(family, seed=0):
    return write_lora(f"all_{family}_{seed}", unet_shapes(tiny.shared_model(family)), seed=seed, std=0.4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_over_everything_is_cores_bypass_lora(family, seen, regions):
    name = everything(family)
    model = tiny.shared_model(family)
    file = comfy.utils.load_torch_file(str(path_of(name)))
    bypassed, _ = comfy.sd.load_bypass_lora_for_models(model, None, file, 0.8, 0)
    mine = seen(family, layer(regions, "all", (name, 0.8)))
    whole = layer(regions, "all")
    wanted, plain = seen(family, whole, model=bypassed), seen(family, whole)
    scale = float(wanted.abs().max())
    assert float((mine - wanted).abs().max()) < 1e-4 * scale
    assert float((wanted - plain).abs().max()) > 0.01 * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_changes_its_layers_pixels_and_no_others(family, seen, regions):
    name = write_lora(f"last_{family}", unet_shapes(tiny.shared_model(family), lambda n: n == LAST[family]))
    changed = (seen(family, *halves(regions, [name])) - seen(family, *halves(regions))).abs()
    width = changed.shape[-1]
    assert float(changed[..., : width // 2].amax(tuple(range(changed.ndim - 1))).min()) > 0
    assert float(changed[..., width // 2 :].max()) == 0


@pytest.mark.parametrize("family", ["flux", "qwen", "zimage", "anima"])
def test_words_of_other_layers_keep_their_bits(family, seen, regions):
    """A LoRA on the modules of texts alone changes what the layer's own text says, and nothing without that text."""
    marks = ("txt_in", "cap_embedder", "cross_attn.k_proj", "cross_attn.v_proj")
    texts = unet_shapes(tiny.shared_model(family), lambda n: n.endswith(marks) or "cap_embedder" in n)
    name = write_lora(f"texts_{family}", {k: v for k, v in texts.items() if "llm_adapter" not in k})
    assert not torch.equal(seen(family, *halves(regions, [name])), seen(family, *halves(regions)))
    silent = layer(regions, "left", width=64, prompt="")
    with_lora = layer(regions, "left", name, width=64, prompt="")
    other = halves(regions)[1]
    assert torch.equal(seen(family, with_lora, other), seen(family, silent, other))


@pytest.mark.parametrize("family", ["flux", "sd3", "zimage"])
def test_a_compiled_model_gives_the_same_picture(family, seen, regions):
    stack = halves(regions, [everything(family)], [everything(family, 1)])
    wanted = seen(family, *stack)
    model = tiny.shared_model(family).clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    torch.testing.assert_close(seen(family, *stack, model=model), wanted, atol=1e-4, rtol=1e-3)


def test_weights_of_8_bits_work(seen, regions):
    model = tiny.model("flux", dtype=torch.float8_e4m3fn)
    name = everything("flux")
    got, plain = (seen("flux", *halves(regions, own), model=model) for own in ([name], []))
    assert bool(torch.isfinite(got).all())
    assert not torch.equal(got, plain)


def test_a_file_for_parts_of_a_joined_projection_is_cores_lora(seen, regions):
    """Diffusers has three projections where ComfyUI's Flux has one."""
    file, random = {}, torch.Generator().manual_seed(3)
    for part in ("to_q", "to_v", "add_k_proj"):
        for side, shape in (("A", (3, 64)), ("B", (64, 3))):
            name = f"transformer.transformer_blocks.0.attn.{part}.lora_{side}.weight"
            file[name] = torch.randn(shape, generator=random)
    from lora_scene import write_file

    name = write_file("diffusers_flux", file)
    model = tiny.shared_model("flux")
    loaded = comfy.utils.load_torch_file(str(path_of(name)))
    patched, _ = comfy.sd.load_lora_for_models(model, None, loaded, 0.8, 0)
    mine = seen("flux", layer(regions, "all", (name, 0.8)))
    wanted = seen("flux", layer(regions, "all"), model=patched)
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-3)
    assert not torch.equal(wanted, seen("flux", layer(regions, "all")))


def test_reference_pictures_have_no_place(regions):
    """Flux Kontext's references stand behind the picture, with more tokens than the texts have."""
    family = "flux"
    name = write_lora("references", unet_shapes(tiny.shared_model(family), lambda n: "img_mlp" in n))
    last = write_lora("last_references", unet_shapes(tiny.shared_model(family), lambda n: n == LAST[family]))
    reference = torch.randn(1, 16, 48, 48, generator=torch.Generator().manual_seed(2))

    def seen(*own):
        model, clip = tiny.shared_model(family), tiny.clip(family)
        model, *words = regions.node.execute(
            model, clip, stack_of(regions, *halves(regions, own)), **WORDS
        ).result
        for options in (options for entries in words for _, options in entries):
            options["reference_latents"] = [reference]
        return tiny.sampled(model, family, *words, steps=1, cfg=1.0)

    plain = seen()
    assert not torch.equal(seen(name), plain)
    changed = (seen(last) - plain).abs().amax((0, 1, 2))
    half = len(changed) // 2
    assert float(changed[:half].min()) > 0
    assert float(changed[half:].max()) == 0
