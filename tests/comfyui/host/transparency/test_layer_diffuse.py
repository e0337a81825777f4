"""LayerDiffuse Apply on tiny random models with the structure of SD1.5 and SDXL, in every mode."""

import functools
import json

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.utils
import pytest
import tiny
import torch
from boot import BASE, pack_module
from layer_diffuse_scene import PICTURES, sample
from safetensors.torch import load_file, save_file

IDS = [f"{name} on {family}" for _, family, name, _ in tiny.CASES]


def weights_of(model):
    """Return the base model's own weights; the loaded ones may be those of a patched clone."""
    comfy.model_management.unload_all_models()
    return weights_now(model)


def weights_now(model):
    return {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}


def loaded_weights(model, words):
    """Return the UNet's weights while it samples."""
    seen = {}

    def watch(executor, *arguments, **named):
        seen.update(weights_now(model))
        return executor(*arguments, **named)

    sample(model, words, steps=1, watch=watch)
    return seen


@pytest.mark.parametrize("case", tiny.CASES, ids=IDS)
def test_every_mode_changes_the_picture_and_leaves_the_base_model_as_it_was_to_the_bit(
    applied, models, words, case
):
    model = models[case[1]]
    before, picture_before = weights_of(model), sample(model, words)
    patched = applied(case)
    changed = sample(patched, words)
    assert torch.isfinite(changed).all()
    assert (changed - picture_before).abs().mean() > 0.01
    assert torch.equal(sample(patched, words), changed)
    assert torch.equal(sample(model, words), picture_before)
    assert all(torch.equal(v, before[k]) for k, v in weights_of(model).items())
    assert not any("forward" in m.__dict__ for m in model.model.diffusion_model.modules())


@pytest.mark.parametrize("case", tiny.CASES, ids=IDS)
def test_a_run_that_breaks_leaves_the_base_model_as_it_was_to_the_bit(applied, models, words, case):
    model = models[case[1]]
    before = sample(model, words)
    for start, end in ((0.0, 1.0), (0.3, 0.7)):
        patched = applied(case, start=start, end=end)
        patched.set_model_sampler_post_cfg_function(lambda arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(patched, words)
    assert torch.equal(sample(model, words), before)
    assert not any("forward" in m.__dict__ for m in model.model.diffusion_model.modules())


@pytest.mark.parametrize("case", tiny.CASES, ids=IDS)
def test_at_weight_0_or_over_no_steps_every_mode_is_the_base_model_to_the_bit(applied, models, words, case):
    before = sample(models[case[1]], words)
    assert torch.equal(sample(applied(case, weight=0.0), words), before)
    assert torch.equal(sample(applied(case, start=0.4, end=0.4), words), before)


@pytest.mark.parametrize("case", tiny.CASES, ids=IDS)
def test_a_window_acts_on_the_steps_inside_it_alone(applied, models, words, case):
    """At every step the UNet's result equals that of the fully patched model or of the base model."""
    seen, alone = [], {"base": [], "patched": []}

    def record(executor, x, t, *arguments, **named):
        seen.append((x, t, executor(x, t, *arguments, **named)))
        return seen[-1][-1]

    sample(applied(case, start=0.3, end=0.7), words, steps=4, watch=record)
    for kind, model in (("base", models[case[1]]), ("patched", applied(case))):

        def replay(executor, x, t, *arguments, into=alone[kind], **named):
            into.append(executor(*seen[len(into)][:2], *arguments, **named))
            return into[-1]

        sample(model, words, steps=4, watch=replay)
    acting = []
    for i, (_, _, out) in enumerate(seen):
        near = {k: float((out - v[i]).abs().max()) for k, v in alone.items()}
        assert min(near.values()) < 1e-4, near
        assert max(near.values()) > 1e-3, near
        acting.append(near["patched"] < near["base"])
    assert acting == [False, True, True, False]


@pytest.mark.parametrize("case", tiny.CASES, ids=IDS)
def test_outside_its_window_every_mode_is_the_base_model_to_the_bit_and_leaves_it_so(
    applied, models, words, case
):
    model = models[case[1]]
    before, picture_before = weights_of(model), sample(model, words)
    seen = {"late": [], "early": []}

    def record(executor, *arguments, into, **named):
        into.append(executor(*arguments, **named))
        return into[-1]

    plain = []
    sample(model, words, steps=4, watch=functools.partial(record, into=plain))
    late = applied(case, start=0.6)
    sample(late, words, steps=4, watch=functools.partial(record, into=seen["late"]))
    assert [torch.equal(a, b) for a, b in zip(seen["late"], plain, strict=True)] == [True, True, False, False]
    early = applied(case, end=0.3)
    sample(early, words, steps=4, watch=functools.partial(record, into=seen["early"]))
    assert not torch.equal(seen["early"][0], plain[0])
    assert torch.equal(sample(model, words), picture_before)
    assert all(torch.equal(v, before[k]) for k, v in weights_of(model).items())


class Dynamic(comfy.model_patcher.ModelPatcher):
    """Refuses changes of weights during sampling, as ComfyUI's patcher that loads weights piece by piece
    does, which needs a GPU."""

    non_dynamic_delegate_model = None

    def get_non_dynamic_delegate(self):
        return comfy.model_patcher.ModelPatcherDynamic.get_non_dynamic_delegate(self)

    def is_dynamic(self):
        return True

    def patch_hook_weight_to_device(self, *arguments, **named):
        raise RuntimeError("Hooks not implemented")


@pytest.mark.skipif(
    not hasattr(comfy.model_patcher, "ModelPatcherDynamic"), reason="this host has no dynamic patcher"
)
def test_a_window_acts_on_a_host_that_loads_weights_piece_by_piece(applied, models, words):
    case = next(c for c in tiny.CASES if c[2] == "layer_xl_transparent_attn")
    base = models["sdxl"]
    dynamic = Dynamic(base.model, base.load_device, base.offload_device)
    dynamic.cached_patcher_init = base.cached_patcher_init
    patched = applied(case, model=dynamic, start=0.3, end=0.7)
    assert torch.allclose(
        sample(patched, words, steps=4), sample(applied(case, start=0.3, end=0.7), words, steps=4), atol=1e-5
    )
    assert not patched.is_dynamic()
    assert patched.model is not base.model


@pytest.mark.parametrize(
    "case", [c for c in tiny.CASES if c[1] == "sdxl"], ids=[i for i in IDS if "sdxl" in i]
)
def test_every_tensor_of_an_sdxl_file_lands_on_the_weight_of_its_name(applied, models, words, case):
    before = weights_of(models["sdxl"])
    file = case[3](tiny.shapes_of(models["sdxl"]))
    expected = dict(before)
    for key, tensor in file.items():
        name = key.removeprefix("diffusion_model.").split("::")[0]
        if "::diff::" in key:
            expected[name] = (
                before[name] + 0.5 * tensor.float()[:, : before[name].shape[1]]
                if tensor.ndim > 1
                else before[name] + 0.5 * tensor.float()
            )
        elif "::lora::0" in key:
            down, alpha = file[key.replace("::0", "::1")].float(), file.get(key.replace("::0", "::2"))
            expected[name] = (
                before[name]
                + 0.5 * (1.0 if alpha is None else float(alpha) / tiny.RANK) * tensor.float() @ down
            )
    assert sum(not torch.equal(expected[k], before[k]) for k in before) == len(
        {k.split("::")[0] for k in file}
    )
    found = loaded_weights(applied(case, weight=0.5), words)
    for name, value in found.items():
        if torch.equal(expected[name], before[name]):
            assert torch.equal(value, before[name]), name
        else:
            assert torch.allclose(value, expected[name], atol=1e-6), name


def test_the_pictures_latents_act_as_further_channels_of_a_widened_first_convolution(
    applied, models, words, vae
):
    case = next(c for c in tiny.CASES if c[2] == "layer_xl_fgble2bg")
    file = case[3](tiny.shapes_of(models["sdxl"]))
    patched = applied(case, weight=0.7)
    before = weights_of(models["sdxl"])
    seen, hidden = [], []

    def watch(executor, x, *arguments, **named):
        seen.append(x.clone())
        return executor(x, *arguments, **named)

    second = (
        models["sdxl"]
        .model.diffusion_model.input_blocks[1][0]
        .register_forward_pre_hook(lambda m, a: hidden.append(a[0].clone()))
    )
    sample(patched, words, batch=2, steps=1, watch=watch)
    second.remove()
    flat = PICTURES["foreground"]
    grey = 0.5 + (flat[..., :3] - 0.5) * flat[..., 3:]
    latents = torch.cat([0.13025 * vae.encode(p) for p in (grey, PICTURES["blend"])], 1)
    wide = (
        torch.cat([before["input_blocks.0.0.weight"], torch.zeros(32, 8, 3, 3)], 1)
        + 0.7 * file["diffusion_model.input_blocks.0.0.weight::diff::0"].float()
    )
    bias = (
        before["input_blocks.0.0.bias"] + 0.7 * file["diffusion_model.input_blocks.0.0.bias::diff::0"].float()
    )
    x = torch.cat([seen[0], latents.expand(len(seen[0]), -1, -1, -1)], 1)
    assert torch.allclose(hidden[0], torch.nn.functional.conv2d(x, wide, bias, padding=1), atol=1e-4)


def test_names_of_diffusers_mean_the_weights_that_comfyui_says_at_every_size(node_module, models):
    from_pack = pack_module("layered_core.transparency.layer_diffuse_weights")
    real = {
        "sdxl": tiny.config("sdxl", [0, 2, 10], [1, 2, 4], 320, 2048),
        "sd15": tiny.config("sd15", [1, 1, 1, 0], [1, 2, 4, 4], 320, 768),
    }
    for family, settings in real.items():
        with torch.device("meta"):
            names = [n for n, _ in settings.get_model({}, device="meta").diffusion_model.named_parameters()]
        theirs = {
            ldm: name
            for name, ldm in comfy.utils.unet_to_diffusers(settings.unet_config).items()
            if not name.startswith("class_embedding")
        }
        assert {n: from_pack.diffusers_name(n, 2) for n in names} == {n: theirs[n] for n in names}
        assert sum(tiny.is_attention(n) for n in names) == {"sdxl": 560, "sd15": 128}[family]


@pytest.mark.parametrize("naming", ["lora_A", "lora.down", "whole differences"])
def test_a_file_with_diffusers_names_does_the_same_as_with_forges(applied, models, words, naming):
    case = next(c for c in tiny.CASES if c[2] == "layer_xl_transparent_attn")
    shapes = tiny.shapes_of(models["sdxl"])
    forge = tiny.forge_lora(shapes)
    theirs = {
        ldm: name for name, ldm in comfy.utils.unet_to_diffusers(tiny.CONFIGS["sdxl"]().unet_config).items()
    }
    file = {}
    for ldm in [s for s in shapes if tiny.is_attention(s)]:
        up, down, alpha = (forge.get(f"diffusion_model.{ldm}::lora::{i}") for i in range(3))
        scale = 1.0 if alpha is None else float(alpha) / tiny.RANK
        module = theirs[ldm].removesuffix(".weight")
        if naming == "whole differences":
            file[theirs[ldm]] = scale * up.float() @ down.float()
        else:
            ends = ("lora_B", "lora_A") if naming == "lora_A" else ("lora.up", "lora.down")
            file[f"unet.{module}.{ends[0]}.weight"], file[f"unet.{module}.{ends[1]}.weight"] = (
                scale * up.float(),
                down.float(),
            )
    names = {
        "lora_A": "diffuser_layer_xl_transparent_attn",
        "lora.down": "mine",
        "whole differences": "ld_diffusers_sdxl_attn",
    }
    other = applied(case, file=tiny.write(tiny.FOLDER, names[naming], file))
    assert torch.allclose(sample(other, words), sample(applied(case), words), atol=1e-4)


def test_a_frames_own_words_reach_that_frame_and_no_other_scene(applied, words):
    case = next(c for c in tiny.CASES if c[2] == "layer_sd15_joint")
    own, shared = sample(applied(case), words), sample(applied(case, own=False), words)
    assert (own - shared).abs().mean(dim=(1, 2, 3)).min() > 1e-4
    three = sample(applied(case), words, batch=3)
    assert torch.allclose(own[:3], three, atol=1e-3)


def test_every_mode_computes_the_same_in_the_headless_host(
    applied, models, words, vae, run_headless, tmp_path
):
    """Compares one pass of the UNet in this host with one in diffusers, in a process of the other host, for
    every case; the relative error is below 1e-3."""
    jobs, expected = [], []
    for case in tiny.CASES:
        mode, family, name, _ = case
        seen = {}

        def watch(executor, x, t, context, y, control, options, seen=seen, **named):
            out = executor(x, t, context, y, control, options, **named)
            order = [i for mark in (1, 0) for i, m in enumerate(options["cond_or_uncond"]) if m == mark]
            rows = [j for i in order for j in range(i * 6, i * 6 + 6)]
            seen |= {"x": x[rows], "t": t[:1], "context": context[rows], "out": out[rows]} | (
                {} if y is None else {"y": y[rows]}
            )
            return out

        sample(applied(case, weight=0.8), words, steps=1, watch=watch)
        number = len(jobs)
        save_file({k: v.contiguous() for k, v in seen.items()}, tmp_path / f"{number}.safetensors")
        makes = 1 if family == "sdxl" else {"joint": 3, "fg2bg": 2, "bg2fg": 2}.get(name.split("_")[-1], 1)
        jobs.append({
            "unet": str(BASE / f"tiny_{family}"), "family": family,
            "file": str(tiny.FOLDER / f"{name}.safetensors"), "mode": mode, "weight": 0.8,
            "words": makes > 1, "data": str(tmp_path / f"{number}.safetensors"),
        })  # fmt: skip
        expected.append(seen["out"])
    save_file(
        {k: v.movedim(-1, 1).contiguous() for k, v in PICTURES.items()}, tmp_path / "pictures.safetensors"
    )
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    run_headless("layer_diffuse_reference.py", tmp_path)
    found = load_file(tmp_path / "out.safetensors")
    for number, out in enumerate(expected):
        relative = float((found[str(number)] - out).norm() / out.norm())
        assert relative < 1e-3, (tiny.CASES[number][2], relative)
    assert len(found) == len(expected) == 10
