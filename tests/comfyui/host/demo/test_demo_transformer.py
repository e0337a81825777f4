"""The storybook transformer in ComfyUI's own Flux class computes what diffusers computes, KSampler samples as
its training does, and the nodes of this pack act on it."""

import comfy.ldm.flux.model
import comfy.model_base
import comfy.sample
import pytest
import torch
from graph import from_image, node, regional
from regional_scene import encode
from safetensors.torch import load_file

WORDS = "a red ball and a blue star in a meadow"


@pytest.fixture(scope="module")
def demo(pack):
    return pack("nodes.demo.demo_model")


@pytest.fixture(scope="module")
def folder(demo, run_headless, tmp_path_factory):
    """Return a model's folder with a transformer of random weights, and with diffusers' results."""
    made = tmp_path_factory.mktemp("transformer")
    run_headless("reference_transformer.py", made, WORDS)
    for part in ("text_encoder", "tokenizer", "vae"):
        (made / part).symlink_to(demo.MODEL / part)
    return made


@pytest.fixture(scope="module")
def reference(folder):
    return load_file(folder / "reference.safetensors")


@pytest.fixture
def model(demo, folder):
    """A model of those weights."""
    return demo.load_transformer(str(folder))


@pytest.fixture
def clip(demo):
    return demo.load_clip(str(demo.MODEL))


@pytest.fixture
def loader(host, demo, folder, monkeypatch):
    """Return a prompt with the node "loader" for the transformer of random weights."""
    monkeypatch.setattr(demo, "MODEL", folder)
    host.fresh()
    return {"loader": node("LD_LoadDemoModel", network="transformer")}


def latents(tokens):
    """Return patches [B, 48, 16] as latents [B, 4, 16, 12]."""
    return tokens.reshape(2, 8, 6, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 4, 16, 12)


def scene(loader, **values):
    """Return a prompt of a ball on the left and a star on the right, sampled as "s" and decoded as "d"."""
    ball = from_image(
        width=64, height=128, prompt="a red ball", name="ball", canvas_width=128, canvas_height=128
    )
    star = from_image(x=64, width=64, height=128, prompt="a blue star", name="star")
    star["inputs"]["layers"] = ["a", 0]
    sampler = {
        "seed": 3,
        "steps": 4,
        "cfg": 4.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    return {
        **loader, "a": ball, "b": star, "r": regional("b", prompt=WORDS, **values),
        "l": node("EmptyLatentImage", width=128, height=128, batch_size=2),
        "s": node(
            "KSampler", model=["r", 0], positive=["r", 1], negative=["r", 2], latent_image=["l", 0], **sampler
        ),
        "d": node("VAEDecode", samples=["s", 0], vae=["loader", 2]),
    }  # fmt: skip


@torch.no_grad()
def test_comfyuis_flux_computes_what_diffusers_computes(host, model, reference):
    whole = model.model
    assert type(whole) is comfy.model_base.Flux
    assert type(whole.diffusion_model) is comfy.ldm.flux.model.Flux
    x, t = latents(reference["tokens"]), reference["t"]
    v = whole.diffusion_model(x, t, reference["context"], reference["pooled"])
    torch.testing.assert_close(v, latents(reference["v"]), atol=1e-4, rtol=0)
    clean = whole.apply_model(x, t, c_crossattn=reference["context"], y=reference["pooled"])
    torch.testing.assert_close(clean, x - t.view(-1, 1, 1, 1) * v, atol=1e-4, rtol=0)


def test_the_conditioning_is_the_hidden_states_and_the_pooled_text_of_transformers(clip, reference):
    for words, row in ((WORDS, 0), ("", 2)):
        ((states, rest),) = encode(clip, words)
        torch.testing.assert_close(states[0], reference["words"][row], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            rest["pooled_output"][0], reference["words_pooled"][row], atol=1e-3, rtol=1e-3
        )


def test_ksampler_makes_of_the_same_noise_what_the_sampler_of_the_training_makes(model, clip, reference):
    noise = reference["noise"]
    with torch.inference_mode():
        out = comfy.sample.sample(
            model, noise, 20, 4.0, "euler", "simple", encode(clip, WORDS), encode(clip, ""),
            torch.zeros_like(noise), seed=0,
        )  # fmt: skip
    torch.testing.assert_close(out, reference["sampled"], atol=1e-3, rtol=1e-3)


def test_its_latents_are_those_of_the_storybooks_vae(model, reference):
    whole, noise = model.model, reference["noise"]
    assert torch.equal(whole.process_latent_in(noise), noise)
    assert torch.equal(whole.process_latent_out(noise), noise)


def test_it_can_be_loaded_again_and_trained_though_loaded_while_a_prompt_runs(demo, folder):
    with torch.inference_mode():
        model = demo.load_transformer(str(folder))
    assert not any(p.is_inference() for p in model.model.diffusion_model.parameters())
    factory, arguments = model.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    for a, b in zip(again.model.parameters(), model.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_lora_of_diffusers_finds_its_weights(host, model):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    lora = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 192),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(192, 2),
    }
    assert model.clone().add_patches(comfy.lora.load_lora(lora, keys))


@pytest.mark.parametrize("option", ["fp16_unet", "bf16_unet"])
def test_it_samples_in_half_precision(host, demo, folder, clip, reference, monkeypatch, option):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management.args, option, True)
    model, noise = demo.load_transformer(str(folder)), reference["noise"]
    assert next(model.model.diffusion_model.parameters()).dtype in (torch.float16, torch.bfloat16)
    with torch.inference_mode():
        out = comfy.sample.sample(
            model, noise, 20, 4.0, "euler", "simple", encode(clip, WORDS), encode(clip, ""),
            torch.zeros_like(noise), seed=0,
        )  # fmt: skip
    assert float((out - reference["sampled"]).abs().mean()) < 0.05 * float(reference["sampled"].abs().mean())


def test_the_choice_loads_the_transformer(host, loader):
    assert type(host.value(loader, "loader").model) is comfy.model_base.Flux


def test_prompts_from_before_the_choice_load_the_unet(host):
    host.fresh()
    assert (
        type(host.value({"loader": node("LD_LoadDemoModel")}, "loader").model) is comfy.model_base.BaseModel
    )


def test_without_its_weights_the_error_names_the_file_and_the_way_out(
    host, demo, loader, monkeypatch, tmp_path
):
    monkeypatch.setattr(demo, "MODEL", tmp_path)
    loader["it"] = node("ModelSave", model=["loader", 0], filename_prefix="x")
    error = host.error_of(loader)
    assert str(tmp_path / "transformer" / "config.json") in error
    assert "Install the pack again" in error
    assert "choose network 'UNet'" in error


def test_words_act_where_their_layers_are(host, loader):
    plain = host.value(scene(loader, strength=0.0), "s")["samples"]
    acting = host.value(scene(loader), "s")["samples"]
    other = scene(loader)
    other["b"]["inputs"]["prompt"] = "a green house"
    changed = (host.value(other, "s")["samples"] - acting).abs()
    assert plain.shape == (2, 4, 16, 16)
    assert float((acting - plain).abs().mean()) > 1e-2
    # The picture's tokens read one another, so that a layer's words have some effect everywhere.
    assert float(changed[..., 8:].mean()) > 2 * float(changed[..., :8].mean()) > 0


def test_recorded_attention_is_shown_for_every_layer_and_picture(host, loader):
    prompt = scene(loader, record=True)
    prompt["it"] = node("LD_AttentionPreview", positive=["r", 1], image=["d", 0], size=128)
    maps = host.value(prompt, "it")
    assert maps.shape == (4, 128, 128, 3)
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_masks_are_made_from_its_attention(host, loader):
    prompt = {
        **loader,
        "a": from_image(name="ball", width=128, height=128, prompt="a red ball", canvas_width=128, canvas_height=128),
        "it": node(
            "LD_LayerMaskFromAttention", model=["loader", 0], clip=["loader", 1], layers=["a", 0], prompt=WORDS,
            negative="", seed=1, steps=2, cfg=4.0, threshold=0.5, largest=False,
        ),
    }  # fmt: skip
    masks = host.value(prompt, "it", 1)
    assert masks.shape[0] == 1
    assert 0 < float(masks.mean()) < 1
