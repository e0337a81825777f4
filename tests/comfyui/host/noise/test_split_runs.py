"""A run that is cut in two, or more, goes on as the uncut run would; or it is refused before it samples."""

import comfy.samplers
import pytest
import torch
from graph import load, node, per_layer_sdedit, regenerate
from PIL import Image
from sampling import LOADER, words
from tiny import flux

import nodes as comfy_nodes

STEPS = 6
ONE_STEP = ["euler", "heun", "ddim", "dpm_2"]
"""Samplers without a memory or fresh noise: cutting changes nothing for them."""


@pytest.fixture(autouse=True)
def pictures(host):
    small = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(small, (128, 128), mode="bicubic")[0].clamp(0, 1)
    Image.fromarray((pixels.permute(1, 2, 0) * 255).byte().numpy()).save(host.input / "back.png")
    Image.new("RGBA", (40, 40), (200, 30, 40, 255)).save(host.input / "red.png")


def scene(back=0.5, front=0.0, **options):
    return {
        **LOADER, **words(),
        "back": load("back.png", noise=back),
        "front": load("red.png", x=48, y=24, noise=front, layers=["back", 0]),
        "it": per_layer_sdedit("front", **options),
    }  # fmt: skip


def part(latent, first, last, model="it", add=None, seed=3, steps=STEPS, sampler="euler"):
    """KSampler (Advanced) from step ``first`` to ``last``; it adds noise at the first and leaves none at the
    last."""
    return node(
        "KSamplerAdvanced", model=[model, 0], positive=["p", 0], negative=["n", 0], latent_image=latent,
        add_noise="enable" if (first == 0 if add is None else add) else "disable", noise_seed=seed,
        steps=steps, cfg=3.0, sampler_name=sampler, scheduler="normal", start_at_step=first, end_at_step=last,
        return_with_leftover_noise="enable" if last < steps else "disable",
    )  # fmt: skip


def cut(scene, *steps, sampler="euler", latent=("it", 1), begin=0):
    """The scene sampled in one run, and in runs that end at ``steps``."""
    steps = [begin, *steps, STEPS]
    whole = {**scene, "k": part(list(latent), begin, STEPS, sampler=sampler, add=True)}
    before, parts = list(latent), {}
    for i, (first, last) in enumerate(zip(steps, steps[1:], strict=False)):
        parts[f"k{i}"] = part(before, first, last, sampler=sampler, seed=3 + i, add=True if i == 0 else None)
        before = [f"k{i}", 0]
    return whole, {**scene, **parts, "k": parts.pop(f"k{len(steps) - 2}")}


def assert_same(host, whole, parts, slot=0):
    one, two = (host.value(p, "k", slot)["samples"] for p in (whole, parts))
    assert float(one.std()) > 0.3
    torch.testing.assert_close(two, one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ONE_STEP)
@pytest.mark.parametrize("noises", [(1.0, 0.0), (0.35, 0.0), (0.35, 0.35), (0.8, 0.2)])
def test_a_run_cut_in_two_is_the_uncut_run(host, sampler, noises):
    assert_same(host, *cut(scene(*noises), 2, sampler=sampler))


def test_a_run_cut_in_three_is_the_uncut_run(host):
    assert_same(host, *cut(scene(0.7, 0.3), 2, 4))


@pytest.mark.parametrize("options", [{"noise": "fresh"}, {"softness": 0.4}, {"dilation": 3.0}])
def test_a_cut_run_keeps_the_nodes_options(host, options):
    assert_same(host, *cut(scene(0.6, 0.0, **options), 3))


def test_a_run_that_begins_at_less_noise_may_be_cut_too(host):
    assert_same(host, *cut(scene(0.5, 0.0), 4, begin=2))


def test_every_picture_of_a_batch_goes_on(host):
    prompt = {**scene(0.6, 0.0), "r": node("RepeatLatentBatch", samples=["it", 1], amount=3)}
    assert_same(host, *cut(prompt, 2, latent=("r", 0)))


def test_one_picture_taken_out_of_a_batch_goes_on(host):
    prompt = {**scene(0.6, 0.0), "r": node("RepeatLatentBatch", samples=["it", 1], amount=3)}
    whole, parts = cut(prompt, 2, latent=("r", 0))
    parts["one"] = node("LatentFromBatch", samples=["k0", 0], batch_index=1, length=1)
    parts["k"]["inputs"]["latent_image"] = ["one", 0]
    all_three, second = host.value(whole, "k")["samples"], host.value(parts, "k")["samples"]
    torch.testing.assert_close(second, all_three[1:2], atol=1e-4, rtol=0)


def test_split_sigmas_are_one_run(host):
    custom = {
        **scene(0.5, 0.0),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["it", 0], scheduler="simple", steps=STEPS, denoise=1.0),
        "halves": node("SplitSigmas", sigmas=["sigmas", 0], step=3),
        "guider": node("CFGGuider", model=["it", 0], positive=["p", 0], negative=["n", 0], cfg=3.0),
        "noise": node("RandomNoise", noise_seed=3), "none": node("DisableNoise"),
    }  # fmt: skip

    def run(noise, sigmas, latent):
        return node(
            "SamplerCustomAdvanced", noise=[noise, 0], guider=["guider", 0], sampler=["sampler", 0],
            sigmas=sigmas, latent_image=latent,
        )  # fmt: skip

    whole = {**custom, "k": run("noise", ["sigmas", 0], ["it", 1])}
    first = run("noise", ["halves", 0], ["it", 1])
    assert_same(host, whole, {**custom, "k0": first, "k": run("none", ["halves", 1], ["k0", 0])})


def test_a_redone_layer_is_cut_alike(host):
    prompt = scene() | {"it": regenerate("front", "red", size=128, noise=0.7)}
    assert_same(host, *cut(prompt, 3))


def test_with_any_sampler_a_kept_layer_comes_out_as_it_went_in(host):
    for sampler in ("euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "uni_pc", "lcm"):
        _, parts = cut(scene(0.5, 0.0), 3, sampler=sampler)
        before, after = host.value(parts, "it", 1)["samples"], host.value(parts, "k")["samples"]
        assert torch.equal(after[..., 3:8, 6:11], before[..., 3:8, 6:11])
        assert float((after - before).std()) < 3, sampler  # of latents whose own deviation is 1 to 4


def test_a_flow_model_is_cut_alike(host, pack):
    patched_by = pack("nodes.noise.change_map_patch").with_change_map
    clean = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.full((1, 1, 16, 16), 0.6)
    mask[..., :8] = 0
    with torch.inference_mode():
        model = patched_by(flux())
        context = [[torch.zeros(1, 8, 16), {"pooled_output": torch.zeros(1, 16)}]]

        def run(latent, first, last, noise=True):
            return comfy_nodes.common_ksampler(
                model, 1, 6, 1.0, "euler", "simple", context, context, latent, disable_noise=not noise,
                start_step=first, last_step=last, force_full_denoise=last == 6,
            )[0]  # fmt: skip

        start = {"samples": clean, "noise_mask": mask}
        whole = run(start, 0, 6)["samples"]
        parts = run(run(start, 0, 3), 3, 6, noise=False)["samples"]
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)
    assert torch.equal(parts[..., :8], clean[..., :8])


def test_two_chains_on_one_model_do_not_mix(host):
    prompt = scene(0.5, 0.0)
    whole = {s: {**prompt, "k": part(["it", 1], 0, STEPS, seed=s)} for s in (3, 4)}
    both = {
        **prompt, "a": part(["it", 1], 0, 3, seed=3), "b": part(["it", 1], 0, 3, seed=4),
        "a2": part(["a", 0], 3, STEPS), "b2": part(["b", 0], 3, STEPS),
        "k": node("LatentBatch", samples1=["a2", 0], samples2=["b2", 0]),
    }  # fmt: skip
    wanted = torch.cat([host.value(whole[s], "k")["samples"] for s in (3, 4)])
    torch.testing.assert_close(host.value(both, "k")["samples"], wanted, atol=1e-4, rtol=0)


def test_latents_kept_in_half_precision_are_known_again(pack):
    runs = pack("nodes.noise.split_runs").SplitRuns()
    left, clean, noise = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    runs.remember(left, clean, noise)
    found = runs.origins(left.half())
    assert torch.equal(found[1].clean, clean[1])
    assert torch.equal(found[1].noise, noise[1])
    assert runs.origins(left + 0.01) == [None, None]


def test_the_oldest_pictures_are_forgotten_and_those_of_the_last_run_never(pack, monkeypatch):
    split_runs = pack("nodes.noise.split_runs")
    monkeypatch.setattr(split_runs, "MOST", 2 * 8)  # two pictures of 4 bytes and their noise
    runs = split_runs.SplitRuns()
    left = torch.arange(8.0).view(-1, 1, 1, 1)
    for part in (left[:4], left[4:]):
        runs.remember(part, part, part)
    assert [i for i, origin in enumerate(runs.origins(left)) if origin] == [2, 3, 4, 5, 6, 7]


# --- what cannot go on ---


def refused(host, prompt):
    error = host.error_of({**prompt, "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
                           "end": node("PreviewImage", images=["d", 0])})  # fmt: skip
    assert "the sampler adds no noise" in error, error
    return error


def test_a_part_with_the_model_of_another_node_is_refused(host):
    _, parts = cut(scene(), 3)
    parts["other"] = per_layer_sdedit("back")
    parts["k"]["inputs"]["model"] = ["other", 0]
    assert "the model of one and the same node" in refused(host, parts)


def test_a_latent_that_was_scaled_between_the_parts_is_refused(host):
    _, parts = cut(scene(), 3)
    parts["up"] = node("LatentUpscaleBy", samples=["k0", 0], upscale_method="bilinear", scale_by=1.5)
    parts["k"]["inputs"]["latent_image"] = ["up", 0]
    refused(host, parts)


def test_noise_that_another_node_added_is_refused(host):
    prompt = scene() | {
        "sigmas": node("BasicScheduler", model=["it", 0], scheduler="normal", steps=STEPS, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=3),
        "noisy": node("AddNoise", model=["it", 0], noise=["noise", 0], sigmas=["sigmas", 0],
                      latent_image=["it", 1]),
        "k": part(["noisy", 0], 0, STEPS, add=False),
    }  # fmt: skip
    refused(host, prompt)


def test_a_sampler_that_cannot_be_started_elsewhere_is_refused(pack):
    split_runs = pack("nodes.noise.split_runs")

    class Own(comfy.samplers.Sampler):
        def sample(self, *_):
            raise AssertionError("it sampled")

    runs, left = split_runs.SplitRuns(), torch.randn(1, 4, 8, 8)
    runs.remember(left, left, left)
    run = split_runs.Run(torch.zeros_like(left), left, Own())
    with pytest.raises(pack("layered_core.errors").LayeredError, match="sampler is 'Own'"):
        split_runs.uncut(runs, run, torch.tensor([5.0, 0.0]), 0.03, True)


def test_the_nodes_own_latent_may_be_sampled_without_noise(host):
    prompt = {**scene(0.5, 0.0), "k": part(["it", 1], 2, STEPS, add=False)}
    before, after = host.value(prompt, "it", 1)["samples"], host.value(prompt, "k")["samples"]
    assert torch.equal(after[..., 3:8, 6:11], before[..., 3:8, 6:11])


def test_a_finished_picture_may_be_sampled_on_without_noise(host):
    prompt = {**scene(0.5, 0.0), "k0": part(["it", 1], 0, STEPS)}
    prompt["k"] = part(["k0", 0], 4, STEPS, add=False)
    before, after = host.value(prompt, "it", 1)["samples"], host.value(prompt, "k")["samples"]
    assert torch.equal(after[..., 3:8, 6:11], before[..., 3:8, 6:11])


def test_a_run_whose_last_sigma_is_not_quite_zero_is_finished(host):
    """What a later sampler adds noise to is the picture that it left, and not the one before."""
    prompt = scene(0.5, 0.0) | {
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("ManualSigmas", sigmas="14.6, 3, 1, 0.01"),
        "k0": node("SamplerCustom", model=["it", 0], positive=["p", 0], negative=["n", 0], add_noise=True,
                   noise_seed=3, cfg=3.0, sampler=["sampler", 0], sigmas=["sigmas", 0], latent_image=["it", 1]),
        "other": per_layer_sdedit("front", dilation=0.25),
    }  # fmt: skip
    got, wanted = (
        host.value({**prompt, "k": part(["k0", 0], 2, STEPS, model=m, add=True)}, "k")["samples"]
        for m in ("it", "other")
    )
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("which", ["first", "second"])
def test_normalised_thresholds_need_the_whole_run(host, which):
    whole, parts = cut(scene(0.5, 0.0, threshold="normalised"), 3)
    if which == "first":
        parts["k"] = parts["k0"]
    error = host.error_of({**parts, "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
                           "end": node("PreviewImage", images=["d", 0])})  # fmt: skip
    assert "threshold is 'normalised'; allowed: absolute, where a run is cut in two" in error
    assert host.value(whole, "k")["samples"].shape == (1, 4, 16, 16)


@pytest.mark.parametrize("before", [True, False])
def test_another_nodes_thresholds_need_the_whole_run_too(host, before):
    _, parts = cut(scene(0.5, 0.0), 3)
    parts["dd"] = node("DifferentialDiffusion", model=["loader" if before else "it", 0], strength=1.0)
    if before:
        parts["it"]["inputs"]["model"] = ["dd", 0]
    else:
        for k in ("k0", "k"):
            parts[k]["inputs"]["model"] = ["dd", 0]
    error = host.error_of({**parts, "d": node("VAEDecode", samples=["k", 0], vae=["loader", 2]),
                           "end": node("PreviewImage", images=["d", 0])})  # fmt: skip
    assert "another node, such as Differential Diffusion" in error


def test_one_picture_of_a_batch_that_is_not_known_is_refused(host):
    _, parts = cut(scene(), 3)
    parts["b"] = node("LatentBatch", samples1=["k0", 0], samples2=["up", 0])
    parts["up"] = node("LatentUpscaleBy", samples=["k0", 0], upscale_method="bilinear", scale_by=0.5)
    parts["k"]["inputs"]["latent_image"] = ["b", 0]
    refused(host, parts)


def test_normalised_thresholds_that_decide_nothing_may_be_cut(host):
    assert_same(host, *cut(scene(1.0, 0.0, threshold="normalised"), 3))
