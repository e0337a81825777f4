"""The pipeline on transformers: the pipelines' own calls, folders on disk, layers' noise, stages, and what is
refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from tiny_transformers import TINY

from layered_core.control.control_map import ControlMap
from layered_core.document import Control, Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_diffusers.methods.change_map import ChangeMap
from layered_diffusers.methods.layer_diffuse import LayerDiffuse
from layered_diffusers.methods.masked_control import MaskedControl
from layered_diffusers.models.loading import TRANSFORMERS, load_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline, TransformerPipeline
from layered_diffusers.transformer.latents import pack, unpack

CPU = torch.device("cpu")
PROMPTS = ["a red ball in the meadow", "a blue star"]


@pytest.fixture(scope="module", params=list(TINY))
def pipeline(request):
    return made(request.param)


@pytest.fixture(scope="module")
def flux():
    return made("flux")


def made(family, **more):
    model = TINY[family](**more)
    model.set_progress_bar_config(disable=True)
    return TransformerPipeline(model, side=96)


def noise(count=2, rows=8, columns=12):
    generators = [torch.Generator().manual_seed(s) for s in range(count)]
    return torch.cat([torch.randn(1, 16, rows, columns, generator=g) for g in generators])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("family", list(TINY))
def test_without_methods_a_run_is_the_pipelines_own_call_with_the_same_words(family, guidance):
    pipeline = made(family, **({"terminal": 0.02} if family == "qwen" else {}))
    ours, *_ = pipeline.sample_latents(
        PROMPTS, negative="at night", guidance=guidance, steps=3, width=96, height=64
    )
    scale = {"flux": "true_cfg_scale", "qwen": "true_cfg_scale"}.get(family, "guidance_scale")
    start = noise()
    theirs = pipeline.model(
        prompt=list(PROMPTS), negative_prompt=["at night"] * 2, width=96, height=64, num_inference_steps=3,
        latents=pack(start) if pipeline.host.packed else start, output_type="latent",
        **{scale: guidance - (family == "zimage")},
    ).images  # fmt: skip
    theirs = unpack(theirs, (8, 12)) if pipeline.host.packed else theirs
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", list(TINY))
def test_a_folder_on_disk_gives_the_same_picture(family, tmp_path):
    before = made(family)
    before.model.save_pretrained(tmp_path)
    after = LayeredDiffusionPipeline.from_pretrained(tmp_path, device="cpu")
    assert type(after.model).__name__ in TRANSFORMERS
    if family == "qwen":  # the tiny tokenizer cuts the pipeline's own words otherwise
        after.model.prompt_template_encode_start_idx = before.model.prompt_template_encode_start_idx
    how = {"width": 64, "height": 48, "steps": 2, "guidance": 2.0}
    assert torch.equal(after.generate(PROMPTS, **how), before.generate(PROMPTS, **how))


def test_a_model_with_guidance_as_an_input_gets_it_there(flux):
    model = made("flux", guidance_embeds=True)
    two, five = (model.sample_latents(PROMPTS[:1], guidance=g, steps=1)[0] for g in (2.0, 5.0))
    assert not torch.equal(two, five)
    without = model.sample_latents(PROMPTS[:1], guidance=2.0, steps=1, negative="at night")[0]
    assert torch.equal(two, without)  # no negative prompt is computed
    model.true_guidance = 3.0
    guided = model.sample_latents(PROMPTS[:1], guidance=2.0, steps=1, negative="at night")[0]
    assert float((guided - two).abs().max()) > 1e-3


def test_pictures_pass_through_the_vae_at_strength_0_and_are_forgotten_at_1(pipeline):
    start = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    kept = pipeline.generate(PROMPTS[:1], start=start, strength=0, steps=4)
    assert torch.equal(kept, pipeline.decode(pipeline.encode(start)))
    how = {"steps": 2, "guidance": 1.0, "seeds": [0]}
    forgotten = pipeline.generate(PROMPTS[:1], start=start, strength=1, **how)
    assert torch.equal(forgotten, pipeline.generate(PROMPTS[:1], width=96, height=64, **how))


def test_a_run_from_the_middle_starts_at_that_steps_noise_level(pipeline):
    """Half of four steps are the last two, whose first level mixes picture and noise."""
    seen = []
    hook = pipeline.model.transformer.register_forward_pre_hook(
        lambda module, given, named: seen.append(named.get("hidden_states", given[0] if given else None)),
        with_kwargs=True,
    )
    start = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    pipeline.generate(PROMPTS[:1], start=start, strength=0.5, steps=4, guidance=1.0, seeds=[0])
    hook.remove()
    assert len(seen) == 2
    sigma = float(pipeline.model.scheduler.sigmas[0])
    assert 0.3 < sigma < 0.9
    first = seen[0][0][None, :, 0] if isinstance(seen[0], list) else seen[0]
    first = unpack(first, (8, 12)) if pipeline.host.packed else first
    wanted = (1 - sigma) * pipeline.encode(start) + sigma * noise(1)
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threshold", ["absolute", "normalised"])
def test_frozen_cells_come_out_to_the_bit_and_free_ones_are_made_anew(pipeline, threshold):
    clean = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
    change = torch.zeros(8, 12)
    change[:, 4:8], change[:, 8:] = 0.5, 1
    method = ChangeMap(clean, change, threshold=threshold)
    found, *_ = pipeline.sample_latents(
        PROMPTS[:1], width=96, height=64, steps=4, guidance=1.0, methods=[method]
    )
    assert torch.equal(found[..., :4], clean[..., :4])
    assert float((found[..., 8:] - clean[..., 8:]).abs().mean()) > 0.3
    middle = float((found[..., 4:8] - clean[..., 4:8]).abs().mean())
    assert 0.01 < middle < float((found[..., 8:] - clean[..., 8:]).abs().mean())


def pixels(seed, height, width):
    return torch.rand(height, width, 4, generator=torch.Generator().manual_seed(seed)).index_fill(
        2, torch.tensor([3]), 1.0
    )


def test_each_layer_changes_as_far_as_its_noise_says(pipeline):
    back = Layer("back", pixels(0, 64, 96), prompt="meadow", recipe=Recipe(noise=0))
    ball = Layer("ball", pixels(1, 32, 32), x=32, y=16, prompt="a red ball", recipe=Recipe(noise=1))
    document = LayerDocument(96, 64, (back, ball), prompt="a red ball in the meadow")
    before = np.asarray(
        Image.fromarray((pipeline.flat(document)[0] * 255).round().byte().permute(1, 2, 0).numpy())
    )
    after = np.asarray(pipeline.harmonize(document, steps=2, guidance=1.0))
    outside = np.ones((64, 96), bool)
    outside[16:48, 32:64] = False
    assert np.array_equal(after[outside], before[outside])
    assert np.abs(after[~outside].astype(int) - before[~outside]).mean() > 5


def test_render_lets_words_act_in_their_places(pipeline):
    from layered_core.attention.regional_plan import Settings

    ball = Layer("ball", pixels(1, 32, 32), x=32, y=16, prompt="a red ball")
    document = LayerDocument(96, 64, (Layer("back", pixels(0, 64, 96), prompt="meadow"), ball))
    plain, bound = (
        pipeline.render(document, strength=0.5, steps=2, guidance=1.0, attention=a)
        for a in (None, Settings())
    )
    assert plain.size == bound.size == (96, 64)
    assert not np.array_equal(np.asarray(plain), np.asarray(bound))


def test_render_paints_layers_of_words_and_keeps_pictures(pipeline):
    back = Layer("back", pixels(0, 64, 96), prompt="meadow")
    ball = Layer("ball", prompt="a red ball", x=32, y=16, width=32, height=32)
    document = LayerDocument(96, 64, (back, ball))
    before = (pipeline.flat(document)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    after = np.asarray(pipeline.render(document, strength=0.0, steps=2, guidance=1.0))
    outside = np.ones((64, 96), bool)
    outside[16:48, 32:64] = False
    assert np.array_equal(after[outside], before[outside])
    assert np.abs(after[~outside].astype(int) - before[~outside]).mean() > 5


@pytest.mark.parametrize("how", [{"guidance": 1.0}, {}, {"guidance": 4.0}])
def test_rendering_without_settings_warns_of_no_setting(pipeline, how, caplog):
    document = LayerDocument(96, 64, (Layer("back", pixels(0, 64, 96), prompt="meadow"),))
    pipeline.render(document, strength=0.5, steps=2, **how)
    assert caplog.text == ""


def test_a_document_is_built_stage_by_stage(flux):
    meadow = Layer("meadow", prompt="in the meadow", width=96, height=64)
    ball = Layer("ball", prompt="a red ball", x=32, y=16, width=32, height=32)
    made = flux.generate_layers(LayerDocument(96, 64, (meadow, ball)), steps=2, guidance=1.0, feather=0)
    assert all(layer.image is not None for layer in made)
    other = flux.replace_layer(made, "ball", prompt="a blue star", steps=2, guidance=1.0, feather=0)
    assert torch.equal(made.layer("meadow").image, other.layer("meadow").image)
    assert not torch.equal(flux.flat(made), flux.flat(other))


def test_add_layer_leaves_every_pixel_outside_its_mask_alone(flux):
    before = Image.fromarray((pixels(3, 64, 96)[..., :3] * 255).byte().numpy())
    mask = Image.new("L", (96, 64))
    mask.paste(255, (16, 16, 64, 48))
    after = np.asarray(flux.add_layer(before, "a red ball", mask, steps=2, guidance=1.0))
    outside = np.asarray(mask) == 0
    assert np.array_equal(after[outside], np.asarray(before)[outside])
    assert np.abs(after[~outside].astype(int) - np.asarray(before)[~outside]).mean() > 3


# --- refusals


def test_what_needs_a_unet_is_refused_by_name(flux, tmp_path):
    with pytest.raises(LayeredError, match="LayerDiffuse needs a model with a UNet, and FluxPipeline has"):
        flux.generate_transparent(["a red ball"])
    with pytest.raises(LayeredError, match="Making layers together needs a model with a UNet"):
        flux.generate_scene("a red ball")
    with pytest.raises(LayeredError, match="LayerDiffuse needs a model with a UNet"):
        LayerDiffuse(flux.model, tmp_path / "lora.safetensors")
    stage = LayerDocument(64, 64, (Layer("ball", prompt="a ball", width=64, height=64),))
    with pytest.raises(LayeredError, match="LayerDiffuse needs a model with a UNet"):
        flux.generate_layers(stage, alpha="transparent")
    wanted = replace(stage.layers[0], recipe=Recipe(embedding="krk"))
    with pytest.raises(LayeredError, match="layer 'ball': embedding 'krk' needs a model with a UNet"):
        flux.generate_layers(replace(stage, layers=(wanted,)), adapters=tmp_path)


def test_a_controlnet_of_unets_is_refused_before_sampling(flux):
    net = ControlNetModel(
        block_out_channels=(32, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    )  # fmt: skip
    method = MaskedControl(
        net, torch.zeros(3, 64, 64), ControlMap(torch.ones(1, 64, 64), (Control(hint="canny"),))
    )
    with pytest.raises(
        LayeredError, match="methods is 'MaskedControl'; allowed: methods that act on transformers"
    ):
        flux.generate(["a red ball"], methods=[method])


def test_guidance_below_1_and_unknown_samplers_are_refused(flux, tmp_path):
    with pytest.raises(LayeredError, match="guidance is 0.5; allowed: a number 1..50"):
        flux.generate(["a red ball"], guidance=0.5)
    flux.model.save_pretrained(tmp_path)
    with pytest.raises(
        LayeredError, match="sampler is 'ddim'; allowed: euler, with which flow models sample"
    ):
        load_model(tmp_path, CPU, torch.float32, "ddim")
    assert load_model(tmp_path, CPU, torch.float32, "euler").transformer is not None


def test_another_family_of_transformers_is_refused_by_name_before_it_is_loaded(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "LTXPipeline"}))
    with pytest.raises(LayeredError, match="model family is 'LTXPipeline'; allowed: .*FluxPipeline"):
        LayeredDiffusionPipeline.from_pretrained(tmp_path, device="cpu")


def test_a_picture_larger_than_the_models_positions_is_refused():
    with pytest.raises(LayeredError, match="size of the picture is '1024 x 64'; allowed: sides up to 512"):
        made("sd3").generate(["a red ball"], width=1024, height=64)


def test_a_schedule_that_cannot_begin_in_the_middle_is_refused():
    pipeline = made("zimage")
    pipeline.model.scheduler = type(pipeline.model.scheduler)(use_karras_sigmas=True)
    start = torch.rand(1, 3, 64, 64)
    with pytest.raises(LayeredError, match="use_karras_sigmas is on"):
        pipeline.generate(["a red ball"], start=start, strength=0.5, steps=4)
