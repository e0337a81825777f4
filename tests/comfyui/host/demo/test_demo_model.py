"""LoadDemoModel through ComfyUI's classes computes what diffusers and transformers compute on the same
files."""

import json
import os
from pathlib import Path

import comfy.model_sampling
import folder_paths
import pytest
import torch
from graph import node
from safetensors.torch import load_file, save_file

PROMPTS = ["a glowing red ball and a blue star in a meadow", "", "high quality photo of a purple house"]


@pytest.fixture(scope="module")
def folder(pack):
    """Return the folder of the shipped model, or of the one that LAYERED_DEMO_MODEL names."""
    return Path(os.environ.get("LAYERED_DEMO_MODEL", pack("demo.world.places").MODEL))


@pytest.fixture(scope="module")
def loaded(host, pack, folder):
    demo = pack("nodes.demo.demo_model")
    return demo.load_unet(str(folder)), demo.load_clip(str(folder)), demo.load_vae(str(folder))


@pytest.fixture(scope="module")
def reference(folder, run_headless, tmp_path_factory):
    """Return the results of diffusers and transformers for the same files, computed in the repository's own
    environment."""
    out = tmp_path_factory.mktemp("reference") / "reference.safetensors"
    run_headless("reference.py", folder, out, json.dumps(PROMPTS))
    return load_file(out)


def assert_close(got, want, relative):
    got, want = got.float().cpu(), want.float()
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= relative * float(want.abs().max())


@torch.no_grad()
def test_the_unet_predicts_what_diffusers_predicts(loaded, reference):
    model = loaded[0].model
    network = model.diffusion_model.float()
    for t in (999, 500, 20):
        v = network(reference["latents"], torch.full((3,), t), context=reference["context"])
        assert_close(v, reference[f"v{t}"], 1e-3)


@torch.no_grad()
def test_the_text_encoder_gives_the_last_hidden_states_of_transformers(loaded, reference):
    clip = loaded[1]
    for i, prompt in enumerate(PROMPTS):
        states = clip.encode_from_tokens(clip.tokenize(prompt))
        assert_close(states[0], reference["context"][i], 1e-3)


@torch.no_grad()
def test_the_vae_encodes_and_decodes_as_diffusers_does(loaded, reference):
    vae = loaded[2]
    picture = reference["picture"].movedim(1, -1)
    assert_close(vae.encode(picture), reference["encoded"], 1e-3)
    decoded = vae.decode(reference["latents"]).movedim(-1, 1)
    assert_close(decoded, (reference["decoded"] / 2 + 0.5).clamp(0, 1), 1e-3)


def test_the_latents_of_its_vae_are_those_that_it_samples(loaded, reference):
    model = loaded[0].model
    assert torch.equal(model.process_latent_in(reference["latents"]), reference["latents"])
    assert torch.equal(model.process_latent_out(reference["latents"]), reference["latents"])


def test_its_noise_schedule_is_the_one_it_was_trained_on(loaded, folder):
    model = loaded[0].model
    schedule = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert schedule["prediction_type"] == "v_prediction"
    assert isinstance(model.model_sampling, comfy.model_sampling.V_PREDICTION)
    betas = (
        torch.linspace(schedule["beta_start"] ** 0.5, schedule["beta_end"] ** 0.5, 1000, dtype=torch.float64)
        ** 2
    )
    alphas = (1 - betas).cumprod(0)
    assert_close(model.model_sampling.sigmas, ((1 - alphas) / alphas).sqrt(), 1e-4)


def test_a_lora_changes_it_and_only_the_clone(host, loaded):
    import comfy.lora
    import comfy.utils

    patcher = loaded[0]
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    name = next(k for k in keys if "attn2" in k and "to_k" in k and k.startswith("lora_unet"))
    weight = comfy.utils.get_attr(patcher.model, keys[name])
    lora = {
        f"{name}.lora_up.weight": torch.ones(weight.shape[0], 2),
        f"{name}.lora_down.weight": torch.ones(2, weight.shape[1]),
        f"{name}.alpha": torch.tensor(2.0),
    }
    before = weight.clone()
    clone = patcher.clone()
    assert clone.add_patches(comfy.lora.load_lora(lora, keys)), "no key of the LoRA was found in the model"
    assert torch.equal(comfy.utils.get_attr(patcher.model, keys[name]), before)
    assert not patcher.patches


def test_a_lora_file_works_through_comfyuis_own_loader(host, loaded):
    width = loaded[0].model.model_config.unet_config["context_dim"]
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    random = torch.Generator().manual_seed(0)
    weights = {
        f"{name}.lora_up.weight": torch.randn(64, 4, generator=random),
        f"{name}.lora_down.weight": torch.randn(4, width, generator=random),
        f"{name}.alpha": torch.tensor(4.0),
    }
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "made_up.safetensors")

    def picture(strength):
        prompt = {
            "m": node("LD_LoadDemoModel"),
            "l": node("LoraLoader", model=["m", 0], clip=["m", 1], lora_name="made_up.safetensors",
            strength_model=strength, strength_clip=strength),
            "p": node("CLIPTextEncode", text="a red ball in a meadow", clip=["l", 1]),
            "n": node("CLIPTextEncode", text="", clip=["m", 1]),
            "e": node("EmptyLatentImage", width=128, height=128, batch_size=1),
            "k": node("KSampler", seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal",
            denoise=1.0, model=["l", 0], positive=["p", 0],
                      negative=["n", 0], latent_image=["e", 0]),
        }  # fmt: skip
        return host.value(prompt, "k")["samples"]

    plain = picture(0.0)
    assert not torch.allclose(picture(1.0), plain, atol=1e-2)
    assert torch.equal(picture(0.0), plain)


def test_a_textual_inversion_embedding_is_read_by_its_name(loaded):
    clip = loaded[1]
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ball = clip.tokenize("ball")["l"][0][1][0]
    save_file({"emb_params": table[ball : ball + 1].float().clone()}, folder / "thing.safetensors")
    named, written = (
        clip.encode_from_tokens(clip.tokenize(text))
        for text in ("a red embedding:thing in a meadow", "a red ball in a meadow")
    )
    assert torch.allclose(named, written, atol=1e-5)


def test_every_lora_key_of_the_text_encoder_is_known(loaded):
    import comfy.lora

    keys = comfy.lora.model_lora_keys_clip(loaded[1].cond_stage_model, {})
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in keys


def test_it_can_be_loaded_again_for_training_and_other_devices(loaded):
    for patcher in (loaded[0], loaded[1].patcher, loaded[2].patcher):
        factory, arguments = patcher.cached_patcher_init
        again = factory(*arguments, disable_dynamic=True)
        assert again.model is not patcher.model
        for a, b in zip(again.model.parameters(), patcher.model.parameters(), strict=True):
            assert torch.equal(a.float(), b.float())


def test_its_weights_can_be_trained_though_loaded_while_a_prompt_runs(host, pack, folder):
    with torch.inference_mode():
        patcher = pack("nodes.demo.demo_model").load_unet(str(folder))
    weight = next(patcher.model.diffusion_model.parameters())
    assert not weight.is_inference()


def test_a_missing_file_is_named(pack, folder, tmp_path):
    demo, errors = pack("nodes.demo.demo_model"), pack("layered_core.errors")
    with pytest.raises(errors.LayeredError, match=r"demo model: file .*config\.json.*Install the pack again"):
        demo.load_unet(str(tmp_path))


def test_a_truncated_file_is_named(pack, folder, tmp_path):
    demo, errors = pack("nodes.demo.demo_model"), pack("layered_core.errors")
    (tmp_path / "unet").mkdir()
    for file in (folder / "unet").iterdir():
        (tmp_path / "unet" / file.name).write_bytes(file.read_bytes()[:4000])
    with pytest.raises(errors.LayeredError, match=r"demo model: file .*safetensors.*Install the pack again"):
        demo.load_unet(str(tmp_path))
