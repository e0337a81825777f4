"""Per-layer noise in the real host is exact where it must be, with every kind of sampler, and together with
ComfyUI's own nodes."""

import types
from pathlib import Path

import comfy.model_sampling
import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from graph import from_image, load, node, per_layer_sdedit
from PIL import Image
from safetensors.torch import save_file
from sampling import LOADER, explode, models, sample, sampled, words
from tiny import flux

import nodes as comfy_nodes

SAMPLERS = [
    "euler",
    "euler_ancestral",
    "dpmpp_2m",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "heun",
    "lcm",
    "ddim",
    "uni_pc",
    "res_multistep",
    "dpm_2_ancestral",
]


@pytest.fixture(autouse=True)
def pictures(host):
    generator = torch.Generator().manual_seed(0)
    for name, size in (("back.png", (128, 128)), ("odd.png", (101, 67))):
        small = torch.rand(1, 3, 6, 6, generator=generator)
        pixels = torch.nn.functional.interpolate(small, (size[1], size[0]), mode="bicubic")[0].clamp(0, 1)
        Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(host.input / name)
    Image.new("RGBA", (40, 40), (200, 30, 40, 255)).save(host.input / "red.png")


def stack(back=0.6, front=0.6, picture="back.png"):
    return {
        "back": load(picture, noise=back, keep_backdrop=False),
        "front": load("red.png", x=48, y=24, noise=front, layers=["back", 0]),
    }


def graph(back, front, sdedit=None, picture="back.png", **sampler):
    return {
        **LOADER, **words(), **stack(back, front, picture),
        "it": per_layer_sdedit("front", **(sdedit or {})),
        "k": sampled(["it", 0], ["it", 1], **sampler),
        "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
        "out": node("LD_PasteBack", image=["d", 0], paste=["it", 3], blend="gradient", match_colours=True),
    }  # fmt: skip


def composite(host, back=0.6, front=0.6, picture="back.png"):
    return host.value(
        {
            **stack(back, front, picture),
            "c": node("LD_LayerComposite", layers=["front", 0], backdrop="grey", rules="photoshop"),
        },
        "c",
    )


# --- neutral ---


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde"])
def test_all_noise_one_at_denoise_one_is_plain_text_to_image_to_the_bit(host, sampler):
    plain = {
        **LOADER, **words(), "e": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "k": sampled(["loader", 0], ["e", 0], sampler_name=sampler),
    }  # fmt: skip
    wanted = host.value(plain, "k")["samples"]
    assert torch.equal(host.value(graph(1.0, 1.0, sampler_name=sampler), "k")["samples"], wanted)
    options = {"threshold": "normalised", "noise": "fresh", "dilation": 4.0, "softness": 0.5}
    assert torch.equal(host.value(graph(1.0, 1.0, options, sampler_name=sampler), "k")["samples"], wanted)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_noise_zero_returns_the_encoded_composite_to_the_bit(host, sampler):
    prompt = graph(0.0, 0.0, {"background": 0.0}, sampler_name=sampler)
    assert torch.equal(host.value(prompt, "k")["samples"], host.value(prompt, "it", 1)["samples"])


def test_all_noise_zero_pasted_back_is_the_composite_to_the_bit(host):
    prompt = graph(0.0, 0.0, {"background": 0.0})
    assert torch.equal(host.value(prompt, "out"), composite(host))


def test_one_noise_for_all_is_denoise_at_that_value(host):
    """Noise values are absolute: a place with more noise than the start is free from the start."""
    ordinary = {
        **LOADER, **words(), **stack(),
        "c": node("LD_LayerComposite", layers=["front", 0], backdrop="grey", rules="photoshop"),
        "e": node("VAEEncode", pixels=["c", 0], vae=["loader", 2]),
        "k": sampled(["loader", 0], ["e", 0], steps=4, denoise=0.5),
    }  # fmt: skip
    wanted = host.value(ordinary, "k")["samples"]
    got = host.value(graph(0.6, 0.6, {"background": 0.6}, steps=4, denoise=0.5), "k")["samples"]
    torch.testing.assert_close(
        got, wanted, atol=1e-4, rtol=0
    )  # a convolution's rounding depends on its input's memory layout


# --- in between ---


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("noise", ["fixed", "fresh"])
def test_with_every_sampler_a_frozen_layer_stays_and_the_other_moves(host, sampler, noise):
    prompt = graph(0.8, 0.0, {"noise": noise}, sampler_name=sampler)
    before, after = host.value(prompt, "it", 1)["samples"], host.value(prompt, "k")["samples"]
    assert bool(torch.isfinite(after).all())
    # The front layer is 40 x 40 at (48, 24) and covers these cells completely.
    assert torch.equal(after[..., 3:8, 6:11], before[..., 3:8, 6:11])
    assert float((after - before)[..., 10:, :].abs().mean()) > 0.05


def test_frozen_pixels_come_back_equal_to_the_bit_in_the_picture(host):
    out, before = host.value(graph(0.8, 0.0), "out"), composite(host, 0.8, 0.0)
    assert torch.equal(out[:, 24:64, 48:88], before[:, 24:64, 48:88])
    assert float((out - before)[:, 80:].abs().mean()) > 0.01


def test_less_noise_keeps_a_layer_closer(host):
    before = host.value(graph(0.5, 0.5), "it", 1)["samples"]
    errors = [
        float((host.value(graph(n, n, {"background": n}, steps=6), "k")["samples"] - before).abs().mean())
        for n in (0.2, 0.5, 0.9)
    ]
    assert errors == sorted(errors)
    assert errors[2] > 2 * errors[0]


def test_the_noise_map_picture_shows_each_layers_noise(host):
    shown = host.value(graph(0.25, 0.75), "it", 2)
    assert shown.shape == (1, 128, 128, 3)
    assert float(shown[0, 100, 100, 0]) == 0.25
    assert float(shown[0, 40, 60, 0]) == 0.75


def test_normalised_equals_cores_differential_diffusion_above_zero(host):
    prompt = graph(0.5, 0.2, {"threshold": "normalised"}, steps=6, denoise=0.7)
    core = {
        **prompt,
        "dd": node("DifferentialDiffusion", model=["loader", 0], strength=1.0),
        "k": sampled(["dd", 0], ["it", 1], steps=6, denoise=0.7),
    }
    assert torch.equal(host.value(prompt, "k")["samples"], host.value(core, "k")["samples"])


def test_a_mask_function_that_is_there_already_is_not_lost(host):
    """With ComfyUI's node before ours, a place is free once both nodes free it."""
    before = {"dd": node("DifferentialDiffusion", model=["loader", 0], strength=1.0)}
    prompt = graph(0.9, 0.3, steps=6, denoise=0.6)
    chained = {
        **prompt,
        **before,
        "it": {**prompt["it"], "inputs": {**prompt["it"]["inputs"], "model": ["dd", 0]}},
    }
    ours, both = host.value(prompt, "k")["samples"], host.value(chained, "k")["samples"]
    assert not torch.equal(ours, both)
    twice = {
        **prompt,
        "it2": per_layer_sdedit("front"),
        "it": {**prompt["it"], "inputs": {**prompt["it"]["inputs"], "model": ["it2", 0]}},
    }
    assert torch.equal(host.value(twice, "k")["samples"], ours)


def test_a_batch_is_sampled_each_with_its_own_noise_and_the_same_frozen_layer(host):
    prompt = graph(0.8, 0.0)
    prompt |= {"r": node("RepeatLatentBatch", samples=["it", 1], amount=2), "k": sampled(["it", 0], ["r", 0])}
    after, out = host.value(prompt, "k")["samples"], host.value(prompt, "out")
    assert torch.equal(after[0, :, 3:8, 6:11], after[1, :, 3:8, 6:11])
    assert not torch.equal(after[0, :, 10:], after[1, :, 10:])
    assert out.shape == (2, 128, 128, 3)


def test_it_works_with_custom_samplers_and_split_runs(host):
    prompt = graph(0.8, 0.0)
    prompt |= {
        "sigmas": node("KarrasScheduler", steps=4, sigma_max=14.6, sigma_min=0.03, rho=7.0),
        "sampler": node("KSamplerSelect", sampler_name="euler_ancestral"),
        "k": node("SamplerCustom", model=["it", 0], add_noise=True, noise_seed=3, cfg=3.0, positive=["p", 0],
        negative=["n", 0],
                  sampler=["sampler", 0], sigmas=["sigmas", 0], latent_image=["it", 1]),
    }  # fmt: skip
    before, after = host.value(prompt, "it", 1)["samples"], host.value(prompt, "k")["samples"]
    assert torch.equal(after[..., 3:8, 6:11], before[..., 3:8, 6:11])


def test_a_run_that_leaves_noise_leaves_it_on_frozen_places_too(host):
    """The first half of a split run must not pass on clean places in a noisy picture."""
    prompt = graph(0.8, 0.0)
    prompt["k"] = node(
        "KSamplerAdvanced", model=["it", 0], add_noise="enable", noise_seed=3, steps=6, cfg=3.0,
        sampler_name="euler", scheduler="normal",
        positive=["p", 0], negative=["n", 0], latent_image=["it", 1], start_at_step=0, end_at_step=3,
        return_with_leftover_noise="enable",
    )  # fmt: skip
    before, after = host.value(prompt, "it", 1)["samples"], host.value(prompt, "k")["samples"]
    assert float((after - before)[..., 3:8, 6:11].std()) > 0.3


def test_latents_that_hold_their_noise_already_are_not_forgotten(host, pack):
    """Uses Add Noise before a sampler that adds no noise."""
    model, positive, negative = models(host)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    noisy = model.model.process_latent_out(noise * float(model.get_model_object("model_sampling").sigma_max))
    for latent in (noisy, -noisy):
        plain, ours = (
            comfy.sample.sample(
                m, torch.zeros_like(latent), 3, 3.0, "euler", "normal", positive, negative, latent,
                disable_noise=True,
                noise_mask=torch.ones(1, 1, 16, 16), seed=0,
            )
            for m in (model, pack("nodes.noise.change_map_patch").with_change_map(model))
        )  # fmt: skip
        torch.testing.assert_close(ours, plain)
        assert float(plain.std()) > 0.1


def test_the_model_is_as_before_after_a_run_with_a_noise_mask_and_after_one_that_broke(host):
    model, positive, negative = models(host)
    before = sample(model, positive, negative)
    prompt = graph(0.8, 0.0, {"noise": "fresh"})
    host.value(prompt, "k")
    broken, latent = host.value(prompt, "it", 0).clone(), host.value(prompt, "it", 1)
    assert broken.model is model.model, "the model was loaded anew: nothing is compared"
    broken.set_model_sampler_post_cfg_function(explode)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="broken on purpose"):
        comfy_nodes.common_ksampler(broken, 1, 2, 3.0, "euler", "normal", positive, negative, latent)
    assert torch.equal(sample(model, positive, negative), before)


@pytest.mark.parametrize("threshold", ["absolute", "normalised"])
def test_a_run_of_one_step_is_defined(host, threshold):
    after = host.value(graph(0.8, 0.0, {"threshold": threshold}, steps=1), "k")["samples"]
    assert bool(torch.isfinite(after).all())


def test_denoise_zero_gives_back_what_went_in(host):
    prompt = graph(0.8, 0.0, denoise=0.0)
    assert torch.equal(host.value(prompt, "k")["samples"], host.value(prompt, "it", 1)["samples"])


@pytest.mark.parametrize(
    "scheduler", ["normal", "karras", "simple", "sgm_uniform", "beta", "ddim_uniform", "exponential"]
)
def test_any_spacing_of_steps_frees_by_noise_not_by_step(host, scheduler):
    """At noise 0.5 a layer becomes free where denoise 0.5 starts, whatever the spacing of the steps."""
    seen = []
    prompt = graph(0.5, 0.5, {"background": 0.5}, steps=8, scheduler=scheduler)
    model, (positive, negative) = host.value(prompt, "it", 0), models(host)[1:]
    function = model.model_options["denoise_mask_function"]
    latent = host.value(prompt, "it", 1)

    def watch(sigma, mask, extra_options):
        free = function(sigma, mask, extra_options)
        t = float(extra_options["model"].inner_model.model_sampling.timestep(sigma)[0])
        seen.append((t / 999, bool((free == 1).all()), bool((free == 0).all())))
        return free

    watched = model.clone()
    watched.set_model_denoise_mask_function(watch)
    with torch.inference_mode():
        comfy_nodes.common_ksampler(watched, 1, 8, 3.0, "euler", scheduler, positive, negative, latent)
    assert all(free if level <= 0.5 else pinned for level, free, pinned in seen)
    assert any(level <= 0.5 for level, *_ in seen)


def test_sizes_that_fit_no_cell_come_out_as_they_went_in(host):
    prompt = graph(0.8, 0.0, picture="odd.png")
    assert host.value(prompt, "k")["samples"].shape[-2:] == (9, 13)
    out = host.value(prompt, "out")
    assert out.shape == (1, 67, 101, 3)
    assert torch.equal(out[:, 24:64, 48:88], composite(host, picture="odd.png")[:, 24:64, 48:88])


def test_a_lora_by_cores_hooks_acts_where_its_words_are_and_a_frozen_layer_stays(host):
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(0)
    width = host.value(LOADER, "loader").model.model_config.unet_config["context_dim"]
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    weights = {
        "lora_up.weight": torch.randn(64, 4, generator=random),
        "lora_down.weight": torch.randn(4, width, generator=random),
    }
    save_file(
        {f"{name}.{k}": v for k, v in weights.items()} | {f"{name}.alpha": torch.tensor(4.0)},
        folder / "hooked.safetensors",
    )
    folder_paths.cache_helper.clear()

    def out(strength):
        prompt = graph(0.9, 0.0) | {
            "left": node("SolidMask", value=1.0, width=40, height=128),
            "none": node("SolidMask", value=0.0, width=128, height=128),
            "mask": node("MaskComposite", destination=["none", 0], source=["left", 0], x=0, y=0,
            operation="add"),
            "rest": node("InvertMask", mask=["mask", 0]),
            "hook": node("CreateHookLora", lora_name="hooked.safetensors", strength_model=strength,
            strength_clip=0.0),
            "in": node("ConditioningSetProperties", cond_NEW=["p", 0], strength=1.0, set_cond_area="default",
            mask=["mask", 0], hooks=["hook", 0]),
            "ex": node("ConditioningSetProperties", cond_NEW=["p", 0], strength=1.0, set_cond_area="default",
            mask=["rest", 0]),
            "both": node("ConditioningCombine", conditioning_1=["in", 0], conditioning_2=["ex", 0]),
        }  # fmt: skip
        prompt["k"]["inputs"] |= {"positive": ["both", 0], "steps": 2}
        return host.value(prompt, "out")

    plain, hooked = out(0.0), out(1.0)
    change = (hooked - plain).abs()
    assert float(change[:, :, :40].mean()) > 2 * float(change[:, :, 88:].mean())
    assert float(change[:, :, :40].mean()) > 0.001
    assert torch.equal(hooked[:, 24:64, 48:88], composite(host)[:, 24:64, 48:88])


# --- other models ---


class SixteenByFour:
    """A VAE of 16 channels that divides sides by 4."""

    def spacial_compression_encode(self):
        return 4

    def encode(self, pixels):
        cells = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 4)
        return cells.repeat(1, 6, 1, 1)[:, :16] * 2 - 1


@pytest.mark.parametrize("scheduler", ["simple", "normal"])
@pytest.mark.parametrize(
    ("kind", "shift"),
    [("ModelSamplingDiscreteFlow", 1.0), ("ModelSamplingDiscreteFlow", 3.0), ("ModelSamplingFlux", 1.15)],
)
def test_a_flow_models_noise_is_its_denoise_however_its_schedule_is_shifted(pack, kind, shift, scheduler):
    sampling = getattr(comfy.model_sampling, kind)()
    sampling.set_parameters(shift=shift)
    guider = types.SimpleNamespace(inner_model=types.SimpleNamespace(model_sampling=sampling))
    for denoise in (0.3, 0.6, 0.8):
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, round(20 / denoise))[-21:]
        level = pack("nodes.noise.change_map_patch")._level(
            sigmas[:1], "absolute", {"model": guider, "sigmas": sigmas}
        )
        assert level == pytest.approx(denoise, abs=0.02)


def test_a_flow_model_with_sixteen_channels_and_another_divisor(host, pack):
    model = flux()
    layers = host.value(stack(0.7, 0.0), "front")
    sdedit = pack("nodes.noise.per_layer_sdedit").PerLayerSDEdit
    with torch.inference_mode():
        patched, latent, _, _ = sdedit.execute(
            model, SixteenByFour(), layers, 1.0, 0.0, "absolute", "fixed", 0.0, 0.0
        ).args
        context = [[torch.zeros(1, 8, 16), {"pooled_output": torch.zeros(1, 16)}]]
        out = comfy_nodes.common_ksampler(patched, 1, 4, 1.0, "euler", "simple", context, context, latent)[0][
            "samples"
        ]
    assert out.shape == (1, 16, 32, 32)
    assert torch.equal(out[..., 6:16, 12:22], latent["samples"][..., 6:16, 12:22])
    assert float((out - latent["samples"])[..., 20:, :].abs().mean()) > 0.05
    assert bool(torch.isfinite(out).all())


# --- bad input ---


def alone(**inputs):
    return {
        **LOADER,
        **stack(),
        "it": per_layer_sdedit("front", **inputs),
        "end": node("PreviewImage", images=["it", 2]),
    }


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"background": 1.5}, "1.5"),
        ({"blur": -1.0}, "-1.0"),
        ({"softness": 2.0}, "2.0"),
        ({"threshold": "relative"}, "relative"),
    ],
)
def test_values_out_of_range_are_refused_before_running(host, inputs, says):
    valid, _, _, errors = host.validate(alone(**inputs))
    assert not valid
    assert says in str(errors)


def test_a_number_that_is_none_is_named(host):
    error = host.error_of(alone(background=float("nan")))
    assert "background noise is nan; allowed: a number 0..1" in error


def test_a_stack_without_layers_is_refused(host, pack):
    with pytest.raises(pack("layered_core.errors").LayeredError, match="number of layers is 0"):
        pack("nodes.noise.per_layer_sdedit").PerLayerSDEdit.execute(
            None, None, {"version": 1, "layers": []}, 1.0, 0.0, "absolute", "fixed", 0.0, 0.0
        )


def test_a_box_without_a_picture_is_free(host):
    prompt = {**LOADER, **stack(0.0, 0.0), "box": {**from_image(width=20, height=20, noise=0.1)}}
    prompt["box"]["inputs"]["layers"] = ["front", 0]
    shown = host.value({**prompt, "it": per_layer_sdedit("box")}, "it", 2)
    assert float(shown[0, 10, 10, 0]) == 1
    assert float(shown[0, 100, 100, 0]) == 0


def test_core_offers_the_samplers_that_are_tested_here():
    assert set(SAMPLERS) <= set(comfy.samplers.KSampler.SAMPLERS)
