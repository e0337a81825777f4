"""LayerDiffuse without ComfyUI: files with either kind of names, both families, and the pipeline classes of
the diffusers port."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from layered_core.errors import LayeredError
from layered_core.transparency.transparent_networks import TransparentDecoder
from layered_diffusers.layer_diffuse_pipeline import (
    StableDiffusionLayerDiffusePipeline,
    StableDiffusionXLLayerDiffusePipeline,
)
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.models.loading import STORYBOOK
from layered_diffusers.pipeline import LayeredDiffusionPipeline

ATTENTIONS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")


@pytest.fixture(scope="module")
def storybook():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def random(shape, seed, std=0.1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(std).half()


def lora_of(unet):
    """Return a LoRA of every attention, with diffusers' names."""
    file = {}
    for i, (name, weight) in enumerate(unet.named_parameters()):
        if name.endswith(ATTENTIONS):
            module = name.removesuffix(".weight")
            file[f"unet.{module}.lora_B.weight"] = random((weight.shape[0], 4), 2 * i)
            file[f"unet.{module}.lora_A.weight"] = random((4, weight.shape[1]), 2 * i + 1)
    return file


@pytest.fixture
def file(storybook, tmp_path):
    save_file(lora_of(storybook.model.unet), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def make(pipeline, methods=(), steps=4):
    return pipeline.generate(["a red ball"], steps=steps, methods=methods)


def weights(pipeline):
    return {k: v.clone() for k, v in pipeline.model.unet.state_dict().items()}


def test_a_run_changes_the_picture_and_leaves_the_model_as_it_was_to_the_bit(storybook, file):
    before, plain = weights(storybook), make(storybook)
    changed = make(storybook, [LayerDiffuse(storybook.model, file)])
    assert (changed - plain).abs().mean() > 0.01
    assert all(torch.equal(v, before[k]) for k, v in weights(storybook).items())
    assert torch.equal(make(storybook), plain)


def test_weight_0_and_a_window_of_no_length_are_the_base_model_to_the_bit(storybook, file):
    plain = make(storybook)
    assert torch.equal(make(storybook, [LayerDiffuse(storybook.model, file, weight=0.0)]), plain)
    assert torch.equal(make(storybook, [LayerDiffuse(storybook.model, file, start=0.5, end=0.5)]), plain)


def test_it_acts_on_the_steps_inside_its_window_alone(storybook, file):
    method = LayerDiffuse(storybook.model, file, start=0.3, end=0.7)
    name = next(k for k in storybook.model.unet.state_dict() if k.endswith("attn1.to_q.weight"))
    base, acted = storybook.model.unet.state_dict()[name].clone(), []
    hook = storybook.model.unet.register_forward_pre_hook(
        lambda m, a: acted.append(not torch.equal(m.state_dict()[name], base))
    )
    make(storybook, [method], steps=10)
    hook.remove()
    assert acted[0] is acted[-1] is False
    assert 3 <= sum(acted) <= 5
    first = acted.index(True)
    assert acted[first : first + sum(acted)] == [True] * sum(acted)


def test_a_run_that_breaks_leaves_the_model_as_it_was_to_the_bit(storybook, file):
    before = weights(storybook)

    def stop(done, total):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        storybook.generate(
            ["a red ball"], steps=3, methods=[LayerDiffuse(storybook.model, file)], progress=stop
        )
    assert all(torch.equal(v, before[k]) for k, v in weights(storybook).items())


def test_every_weight_is_changed_by_its_own_lora(storybook, file):
    tensors, before = lora_of(storybook.model.unet), weights(storybook)
    method = LayerDiffuse(storybook.model, file, weight=0.5)
    method.switch(True)
    after = weights(storybook)
    method.switch(False)
    for name, value in after.items():
        up = tensors.get(f"unet.{name.removesuffix('.weight')}.lora_B.weight")
        if up is None:
            assert torch.equal(value, before[name]), name
        else:
            down = tensors[f"unet.{name.removesuffix('.weight')}.lora_A.weight"]
            assert torch.allclose(value, before[name] + 0.5 * up.float() @ down.float(), atol=1e-6), name
    assert all(torch.equal(v, before[k]) for k, v in weights(storybook).items())


class Sdxl:
    """A tiny SDXL with a file and a decoder in one folder."""

    def __init__(self, folder):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=2, sample_size=16,
            in_channels=4, out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=80,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * 6 + 16,
        )  # fmt: skip
        first = StableDiffusionPipeline.from_pretrained(STORYBOOK, safety_checker=None)
        text = CLIPTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            projection_dim=16,
            eos_token_id=49407,
        )
        pipeline = StableDiffusionXLPipeline(
            unet=unet, vae=AutoencoderTiny.from_pretrained(STORYBOOK / "vae"),
            text_encoder=first.text_encoder, tokenizer=first.tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(text), tokenizer_2=first.tokenizer,
            scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012,
            beta_schedule="scaled_linear"),
        )  # fmt: skip
        self.model, self.files = folder / "model", folder / "files"
        pipeline.save_pretrained(self.model)
        pipeline.save_pretrained(folder / "half", variant="fp16")
        self.files.mkdir()
        save_file(lora_of(unet), self.files / "layer_xl_transparent_attn.safetensors")
        torch.manual_seed(1)
        save_file(
            TransparentDecoder((8, 8, 8, 8, 16, 16, 16)).state_dict(),
            self.files / "vae_transparent_decoder.safetensors",
        )


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return Sdxl(tmp_path_factory.mktemp("sdxl"))


def test_the_ports_snippet_works_with_our_class(sdxl, monkeypatch, tmp_path):
    monkeypatch.setenv("LAYER_MODEL_DIR", str(sdxl.files))
    pipeline = StableDiffusionXLLayerDiffusePipeline.from_pretrained(
        sdxl.model, torch_dtype=torch.float32
    ).to("cpu")
    asked = {
        "prompt": "portrait of woman",
        "negative_prompt": "ugly, bad",
        "num_inference_steps": 2,
        "width": 128,
        "height": 192,
    }
    images = pipeline(**asked, generator=torch.Generator(device="cpu").manual_seed(42)).images
    images[0].save(tmp_path / "result.png")
    assert (images[0].mode, images[0].size) == ("RGBA", (128, 192))
    assert np.asarray(images[0])[..., 3].std() > 0
    plain = StableDiffusionXLPipeline.from_pretrained(sdxl.model)(
        **asked, generator=torch.Generator().manual_seed(42), output_type="latent"
    ).images
    ours = pipeline(**asked, generator=torch.Generator().manual_seed(42), output_type="latent").images
    assert (ours - plain).abs().mean() > 0.01


def test_a_model_saved_as_a_variant_is_loaded_as_diffusers_does(sdxl):
    options = {"torch_dtype": torch.float32, "variant": "fp16", "layer_models": sdxl.files}
    pipeline = StableDiffusionXLLayerDiffusePipeline.from_pretrained(sdxl.model.parent / "half", **options)
    images = pipeline(prompt=["a", "b"], num_inference_steps=1, width=64, height=64, output_type="pt").images
    assert images.shape == (2, 4, 64, 64)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


class Sd15:
    """A tiny SD1.5 with an attention-sharing file, which has every published key in the tiny widths, and a
    decoder."""

    WIDTHS = {320: 32, 640: 64, 1280: 64, 768: 64, 256: 8}

    def __init__(self, folder):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64, 64, 64), layers_per_block=2, attention_head_dim=8, sample_size=16,
            cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        )  # fmt: skip
        pipeline = StableDiffusionPipeline.from_pretrained(STORYBOOK, safety_checker=None)
        pipeline.register_modules(unet=unet)
        self.model, self.files = folder / "model", folder / "files"
        pipeline.save_pretrained(self.model)
        self.files.mkdir()
        keys = json.loads(
            (Path(__file__).parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text()
        )["layer_sd15_transparent_attn"]
        file = {
            k: random([self.WIDTHS.get(n, n) for n in shape], i) for i, (k, shape) in enumerate(keys.items())
        }
        save_file(file, self.files / "layer_sd15_transparent_attn.safetensors")
        torch.manual_seed(1)
        save_file(
            TransparentDecoder((8, 8, 8, 8, 16, 16, 16)).state_dict(),
            self.files / "layer_sd15_vae_transparent_decoder.safetensors",
        )


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return Sd15(tmp_path_factory.mktemp("sd15"))


def test_the_ports_snippet_works_on_sd15_too(sd15, monkeypatch, tmp_path):
    monkeypatch.setenv("LAYER_MODEL_DIR", str(sd15.files))
    pipeline = StableDiffusionLayerDiffusePipeline.from_pretrained(
        sd15.model, torch_dtype=torch.float32, safety_checker=None
    ).to("cpu")
    asked = {
        "prompt": "portrait of woman",
        "negative_prompt": "ugly, bad",
        "num_inference_steps": 2,
        "width": 128,
        "height": 192,
    }
    images = pipeline(**asked, generator=torch.Generator(device="cpu").manual_seed(42)).images
    images[0].save(tmp_path / "result.png")
    assert (images[0].mode, images[0].size) == ("RGBA", (128, 192))
    assert np.asarray(images[0])[..., 3].std() > 0
    again = pipeline(
        **asked, generator=torch.Generator().manual_seed(42), output_type="pt", return_dict=False
    )[0]
    assert np.abs(again[0].permute(1, 2, 0).numpy() * 255 - np.asarray(images[0])).max() < 0.51
    plain = StableDiffusionPipeline.from_pretrained(
        sd15.model, torch_dtype=torch.float32, safety_checker=None
    )
    base = plain(**asked, generator=torch.Generator().manual_seed(42), output_type="latent").images
    ours = pipeline(**asked, generator=torch.Generator().manual_seed(42), output_type="latent").images
    assert (ours - base).abs().mean() > 0.01
    pipeline.layer_diffuse.switch(False)
    restored = StableDiffusionPipeline.__call__(
        pipeline, **asked, generator=torch.Generator().manual_seed(42), output_type="latent"
    ).images
    assert torch.equal(restored, base)


def test_a_pipeline_of_the_classes_may_be_moved_after_a_call_and_gives_arrays_too(sd15):
    pipeline = StableDiffusionLayerDiffusePipeline.from_pretrained(
        sd15.model, layer_models=sd15.files, torch_dtype=torch.float32
    )
    asked = {"prompt": "a tree", "num_inference_steps": 1, "width": 64, "height": 64}
    arrays = pipeline(**asked, generator=torch.Generator().manual_seed(0), output_type="np").images
    pictures = pipeline(**asked, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert np.array_equal(arrays, pictures.permute(0, 2, 3, 1).numpy())
    moved = pipeline.to(torch.float64)(
        **asked, generator=torch.Generator().manual_seed(0), output_type="latent"
    ).images
    assert moved.dtype == torch.float64


def test_words_of_one_picture_are_seen_with_and_without_guidance(sd15):
    keys = json.loads((Path(__file__).parents[2] / "data" / "sd15_attention_sharing_keys.json").read_text())[
        "layer_sd15_joint"
    ]
    joint = sd15.files / "joint.safetensors"
    save_file(
        {k: random([Sd15.WIDTHS.get(n, n) for n in shape], i) for i, (k, shape) in enumerate(keys.items())},
        joint,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(
        sd15.model, torch_dtype=torch.float32, safety_checker=None
    )
    asked = {
        "prompt": ["a tree"] * 3,
        "num_inference_steps": 1,
        "width": 64,
        "height": 64,
        "output_type": "latent",
    }

    def latents(guidance, words):
        change = LayerDiffuse(pipeline, joint, "foreground, background and blend", words=words)
        change.switch(True, guided=guidance > 1)
        try:
            return pipeline(
                **asked, guidance_scale=guidance, generator=torch.Generator().manual_seed(0)
            ).images
        finally:
            change.switch(False)

    for guidance in (1.0, 3.0):
        assert (latents(guidance, {"foreground": "a cat"}) - latents(guidance, None)).abs().max() > 1e-4


def test_an_sdxl_file_on_sd15_and_an_sd15_file_on_sdxl_are_refused_by_the_classes(sd15, sdxl):
    with pytest.raises(LayeredError, match=r"layer_xl_transparent_attn.*for SDXL.*does not fit the model"):
        StableDiffusionLayerDiffusePipeline.from_pretrained(
            sd15.model,
            layer_models=sdxl.files,
            file="layer_xl_transparent_attn.safetensors",
            decoder="vae_transparent_decoder.safetensors",
        )
    with pytest.raises(
        LayeredError, match=r"layer_sd15_transparent_attn.*for SD1\.5.*does not fit the model"
    ):
        StableDiffusionXLLayerDiffusePipeline.from_pretrained(
            sdxl.model,
            layer_models=sd15.files,
            file="layer_sd15_transparent_attn.safetensors",
            decoder="layer_sd15_vae_transparent_decoder.safetensors",
        )


def test_without_the_files_the_snippet_says_which_is_missing_and_where_it_comes_from(
    sdxl, monkeypatch, tmp_path
):
    monkeypatch.delenv("LAYER_MODEL_DIR", raising=False)
    with pytest.raises(
        LayeredError,
        match=r"layer_xl_transparent_attn.*743 MB.*LayerDiffusion/layerdiffusion-v1.*LAYER_MODEL_DIR",
    ):
        StableDiffusionXLLayerDiffusePipeline.from_pretrained(sdxl.model)
    with pytest.raises(LayeredError, match=r"vae_transparent_decoder.*208 MB"):
        StableDiffusionXLLayerDiffusePipeline.from_pretrained(sdxl.model, layer_models=tmp_path)


def test_a_file_of_another_base_model_is_refused(storybook, sdxl):
    with pytest.raises(
        LayeredError,
        match=r"attn\.safetensors' \(for SDXL\) does not fit the model \(StableDiffusionPipeline\)",
    ):
        LayerDiffuse(storybook.model, sdxl.files / "layer_xl_transparent_attn.safetensors")


def test_a_file_in_the_wrong_mode_and_a_missing_picture_are_refused(storybook, file):
    with pytest.raises(LayeredError, match="pictures is"):
        LayerDiffuse(storybook.model, file, "foreground to blend")
    with pytest.raises(LayeredError, match="pictures that it takes is 0"):
        LayerDiffuse(
            storybook.model, file, "foreground to blend", pictures={"foreground": torch.rand(1, 3, 128, 128)}
        )
    with pytest.raises(LayeredError, match="mode"):
        LayerDiffuse(storybook.model, file, "nothing")
