"""Regional Prompt Attention in the real host: equal to diffusers, alone and among other packs' patches, on every attention there is."""

import logging
from functools import partial
from pathlib import Path

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import folder_paths
import pytest
import safetensors.torch
import torch
from graph import from_image, node, regional
from test_no_leaks import LOADER, models, sample

import nodes as comfy_nodes

WIDGETS = {k: v for k, v in regional("a")["inputs"].items() if k not in ("model", "clip", "layers")}
MODES = ("regions", "joint", "collage", "paint with words")


@pytest.fixture(scope="module")
def loaded(host):
    host.fresh()
    return host.value(LOADER, "loader", 0), host.value(LOADER, "loader", 1)


@pytest.fixture(scope="module")
def core(pack):
    class Core:
        document = pack("layered_core.document")
        regional = pack("layered_core.regional")
        layers = pack("nodes.layers")
        patch = pack("nodes.attention_patch")
        node = pack("nodes.regional_prompt_attention").RegionalPromptAttention
        error = pack("layered_core.errors").LayeredError

    return Core


def halves(core, left="a red ball", right="a blue star", **more):
    pair = [core.document.Layer(f"layer {i}", x=64 * i, y=0, width=64, height=128, prompt=x, **more) for i, x in enumerate((left, right))]
    return core.layers.write_stack(core.document.LayerDocument(128, 128, tuple(pair)))


def apply(core, model, clip, stack=None, **values):
    stack = halves(core) if stack is None else stack
    return core.node.execute(model, clip, stack, **{**WIDGETS, **values}).result


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def predicted(model, positive, negative, sigma=5.0, batch=1, cfg=3.0, seed=0):
    """Noisy input at ``sigma``, and what the model takes for the picture: conditional and unconditional."""
    caught = {}
    model = model.clone()
    model.set_model_sampler_post_cfg_function(lambda a: caught.update(a) or a["denoised"])
    noise = torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.KSAMPLER(lambda m, x, sigmas, extra_args=None, **_: m(x, sigmas[:1].expand(len(x)), **extra_args))
    with torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor([sigma, 0.0]), seed=0)
    return caught["input"], caught["cond_denoised"], caught["uncond_denoised"]


def left_and_right(change):
    """Mean change of both halves of a latent, clear of their border."""
    return float(change[..., :6].abs().mean()), float(change[..., 10:].abs().mean())


# --- what it does ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_strength_zero_is_the_plain_prompt_to_the_bit(core, loaded, mode):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip, mode=mode, strength=0.0, negative="dark", auto_negative=True)
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))
    for a, b in zip(predicted(out, positive, negative), plain, strict=True):
        assert torch.equal(a, b)


def test_no_layers_are_the_plain_prompt_to_the_bit(core, loaded):
    model, clip = loaded
    nothing = {"version": 1, "layers": [], "canvas": (128, 128)}
    out, positive, negative = apply(core, model, clip, nothing)
    for a, b in zip(predicted(out, positive, negative), predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "")), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_words_act_on_their_side_in_the_conditional_half_alone(core, loaded, mode):
    model, clip = loaded
    _, cond, uncond = predicted(*apply(core, model, clip, mode=mode))
    _, plain, plain_uncond = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(uncond, plain_uncond)
    assert float((cond - plain).abs().max()) > 1e-3
    if mode in ("regions", "joint"):
        pair = (apply(core, model, clip, halves(core, right=x), mode=mode, prompt="in a meadow") for x in ("a blue star", "a yellow house"))
        cond, other = (predicted(*x, sigma=1.0)[1] for x in pair)
        left, right = left_and_right(other - cond)
        assert right > 2 * left


def test_a_negative_of_a_layer_acts_in_the_unconditional_half_on_its_side_alone(core, loaded):
    model, clip = loaded
    pair = [core.document.Layer(x, x=64 * i, y=0, width=64, height=128, negative=n) for i, (x, n) in enumerate((("l", ""), ("r", "a yellow house")))]
    stack = core.layers.write_stack(core.document.LayerDocument(128, 128, tuple(pair)))
    _, cond, uncond = predicted(*apply(core, model, clip, stack), sigma=1.0)
    _, plain, plain_uncond = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""), sigma=1.0)
    assert torch.equal(cond, plain)
    left, right = left_and_right(uncond - plain_uncond)
    assert right > 2 * left


# --- the other host --------------------------------------------------------------------------------------------------


class Twin:
    """The same weights in diffusers, and the noise it predicts from the same input, words and layers."""

    def __init__(self, folder):
        from diffusers import DDPMScheduler, UNet2DConditionModel

        self.unet = UNet2DConditionModel.from_pretrained(Path(folder, "unet")).eval()
        self.alphas = DDPMScheduler.from_pretrained(Path(folder, "scheduler")).alphas_cumprod

    def predict(self, core, x, sigma, contexts, attentions):
        """Denoised, uncond then cond; ``attentions`` of both halves, or None for the plain prompts."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        attention = core.attention
        alpha = 1 / (sigma**2 + 1)
        timestep = (self.alphas - alpha).abs().argmin()

        class Regional(AttnProcessor2_0):
            def __init__(self, name):
                self.name = name

            def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
                q, k, v = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
                plain = attention.plain(attn.heads)
                out = plain(q, k, v, None)
                side = int(q.shape[1] ** 0.5)
                for row, half in enumerate(attentions):
                    if half is not None:
                        at = slice(row, row + 1)
                        out[at] = half(
                            q[at], k[at], v[at], out[at], size=(side, side), sigma=sigma, heads=attn.heads, block=self.name,
                            project=lambda c: (attn.to_k(c), attn.to_v(c)), attend=plain,
                        )  # fmt: skip
                return attn.to_out[0](out)

        before = self.unet.attn_processors
        if attentions is not None:
            self.unet.set_attn_processor({n: Regional(n) if ".attn2." in n else p for n, p in before.items()})
        try:
            with torch.inference_mode():
                scaled = (x * alpha**0.5).expand(2, -1, -1, -1)
                v = self.unet(scaled, timestep, contexts).sample
        finally:
            self.unet.set_attn_processor(before)
        return (x * alpha - v * sigma * alpha**0.5).chunk(2)


@pytest.mark.parametrize("mode", ["plain", *MODES])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_both_hosts_predict_the_same_noise(core, pack, loaded, mode, share):
    model, clip = loaded
    core.attention = pack("layered_core.attention")
    sigma = model.get_model_object("model_sampling").sigma(torch.tensor(round((1 - share) * 999.0))).item()
    stack = halves(core, negative="a white house")
    regional = apply(core, model, clip, stack, mode=mode, negative="dark") if mode != "plain" else None
    positive, negative = regional[1:] if regional else (encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))
    x, cond, uncond = predicted(regional[0] if regional else model, positive, negative, sigma)
    attentions = None
    if regional:
        carried = [c[0][1][core.patch.KEY] for c in (negative, positive)]
        attentions = [core.regional.RegionalAttention(h.regions, h.settings, h.contexts, h.tokens) for h in carried]
    theirs = Twin(pack("nodes.demo_model").FOLDER).predict(core, x, sigma, torch.cat([negative[0][0], positive[0][0]]), attentions)
    for ours, other in zip((uncond, cond), theirs, strict=True):
        a, b = (x - ours) / sigma, (x - other) / sigma
        assert float((a - b).norm() / b.norm()) < 1e-3


# --- every way attention is computed ---------------------------------------------------------------------------------

BACKENDS = {"sub_quad": host_attention.attention_sub_quad, "split": host_attention.attention_split, "pytorch": host_attention.attention_pytorch}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_attention_backend_gives_the_same(core, loaded, monkeypatch, mode, backend):
    patched = apply(core, *loaded, mode=mode, auto_negative=True)
    monkeypatch.setattr(host_attention, "optimized_attention", host_attention.attention_basic)
    monkeypatch.setattr(host_attention, "optimized_attention_masked", host_attention.attention_basic)
    basic = predicted(*patched)
    monkeypatch.setattr(host_attention, "optimized_attention", BACKENDS[backend])
    monkeypatch.setattr(host_attention, "optimized_attention_masked", BACKENDS[backend])
    for a, b in zip(predicted(*patched), basic, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(core, pack, loaded, monkeypatch, kind):
    monkeypatch.setattr(comfy.model_management, "unet_dtype", lambda **_: kind)
    monkeypatch.setattr(comfy.model_management, "unet_manual_cast", lambda *_: None)
    demo = pack("nodes.demo_model")
    half = demo.load_unet(str(demo.FOLDER))
    assert half.model.get_dtype() == kind
    _, clip = loaded
    exact = predicted(*apply(core, *loaded))[1]
    rough = predicted(*apply(core, half, clip))[1]
    assert bool(rough.isfinite().all())
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# --- beside other things ---------------------------------------------------------------------------------------------


def louder(q, k, v, extra):
    return host_attention.optimized_attention(q, k, v, extra["n_heads"]) * 1.5


BLOCKS = [("input", 1), ("input", 3), ("middle", 0), ("output", 2), ("output", 5)]


def with_replace(model, chosen=BLOCKS):
    model = model.clone()
    for block in chosen:
        model.set_model_attn2_replace(louder, *block)
    return model


def test_blocks_are_found_by_the_hosts_own_names(core, loaded):
    model, _ = loaded
    seen = set()

    def note(q, context, value, extra):
        seen.add((*extra["block"], extra["block_index"]))
        return q, context, value

    watched = model.clone()
    watched.set_model_attn2_patch(note)
    predicted(watched, encode(loaded[1], "a red ball"), encode(loaded[1], ""))
    assert seen == set(core.patch.cross_attentions(model.model.diffusion_model))
    assert set(BLOCKS) <= {b[:2] for b in seen}


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_packs_replacement_keeps_its_effect_whichever_node_comes_first(core, loaded, order):
    model, clip = loaded
    if order == "before":
        out, positive, negative = apply(core, with_replace(model), clip)
    else:
        out, positive, negative = apply(core, model, clip)
        out = with_replace(out)
    both = predicted(out, positive, negative)
    regions = predicted(*apply(core, model, clip))
    theirs = predicted(with_replace(model), encode(clip, WIDGETS["prompt"]), encode(clip, ""))
    assert torch.equal(both[2], theirs[2])
    assert float((both[1] - theirs[1]).abs().max()) > 1e-3
    assert float((both[1] - regions[1]).abs().max()) > 1e-3


def test_all_other_patches_of_a_block_are_still_called(core, loaded):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    called = {"patch": 0, "output": 0, "override": 0}

    def patch(q, context, value, extra):
        called["patch"] += 1
        return q, context, value

    def output(n, extra):
        called["output"] += 1
        return n

    def override(function, *more, **named):
        called["override"] += 1
        return function(*more, **named)

    out = out.clone()
    out.set_model_attn2_patch(patch)
    out.set_model_attn2_output_patch(output)
    out.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(predicted(out, positive, negative)[1], predicted(*apply(core, model, clip))[1])
    blocks = len(core.patch.cross_attentions(model.model.diffusion_model))
    assert called["patch"] == called["output"] == blocks
    assert called["override"] >= 2 * blocks


def test_a_second_node_takes_the_place_of_the_first_and_says_so(core, loaded, caplog):
    model, clip = loaded
    first = apply(core, model, clip, halves(core, "a green tree", "a white house"))[0]
    with caplog.at_level(logging.INFO):
        twice = apply(core, first, clip)
    assert "take the place" in caplog.text
    once = apply(core, model, clip)
    for a, b in zip(predicted(*twice), predicted(*once), strict=True):
        assert torch.equal(a, b)
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    assert len(twice[0].get_wrappers(kind, core.patch.KEY)) == 1


def test_a_model_without_its_conditionings_is_plain_and_warns(core, loaded, caplog):
    model, clip = loaded
    words = encode(clip, WIDGETS["prompt"]), encode(clip, "")
    with caplog.at_level(logging.WARNING):
        out = predicted(apply(core, model, clip)[0], *words)
    assert "connect positive and negative" in caplog.text
    assert torch.equal(out[1], predicted(model, *words)[1])


def test_an_area_beside_it_gets_the_prompt_of_the_whole_picture(core, loaded):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    area = comfy_nodes.ConditioningSetArea().append(positive, 64, 64, 0, 0, 1.0)[0]
    plain = comfy_nodes.ConditioningSetArea().append(encode(clip, WIDGETS["prompt"]), 64, 64, 0, 0, 1.0)[0]
    assert torch.equal(predicted(out, area, negative)[1], predicted(model, plain, encode(clip, ""))[1])


def test_a_conditioning_combined_with_it_stays_plain(core, loaded):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    other = encode(clip, "a white house")
    mixed = predicted(out, positive + other, negative)[1]
    alone = predicted(out, positive, negative)[1], predicted(model, other, negative)[1]
    torch.testing.assert_close(mixed, sum(alone) / 2, atol=1e-4, rtol=1e-3)


def test_a_mask_on_the_conditioning_keeps_the_regions(core, loaded):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    masked = comfy_nodes.ConditioningSetMask().append(positive, torch.ones(1, 128, 128), "default", 1.0)[0]
    torch.testing.assert_close(predicted(out, masked, negative)[1], predicted(out, positive, negative)[1], atol=1e-4, rtol=1e-3)


def test_a_batch_is_its_pictures(core, loaded):
    patched = apply(core, *loaded, auto_negative=True)
    together, alone = predicted(*patched, batch=2), predicted(*patched)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[:1], b, atol=1e-4, rtol=1e-3)
    assert not torch.equal(together[1][0], together[1][1])


@pytest.mark.parametrize(("main", "layer", "negative"), [(2, 1, 1), (1, 3, 2), (5, 1, 1), (3, 28, 2)])
def test_prompts_of_different_lengths_act_together(core, loaded, main, layer, negative):
    model, clip = loaded
    filler = " ".join(["thing"] * 75)
    words = f"{WIDGETS['prompt']} " + " ".join([filler] * (main - 1))
    stack = halves(core, right="a blue star " + " ".join([filler] * (layer - 1)))
    out = apply(core, model, clip, stack, prompt=words, negative=" ".join(["dark"] + [filler] * (negative - 1)))
    assert out[1][0][0].shape[1] == 77 * main
    assert bool(predicted(*out)[1].isfinite().all())
    same = apply(core, model, clip, prompt=words)
    # Repeating the tokens of one half to the length of the other leaves the other half's result alone.
    torch.testing.assert_close(predicted(*same)[1], predicted(same[0], same[1], encode(clip, " ".join([filler] * negative)))[1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prompt", ["((a red ball", "a red ball))) :1.3", "(a red ball:nan) \\(", "", "ball " * 2000, "a red ball" + "\0"])
def test_odd_prompts_do_not_break_it(core, loaded, prompt):
    model, clip = loaded
    assert bool(predicted(*apply(core, model, clip, halves(core, left=prompt), prompt=prompt))[1].isfinite().all()) or "nan" in prompt


def test_weights_in_parentheses_do_not_hide_the_words(core, loaded):
    model, clip = loaded
    out = apply(core, model, clip, prompt="(a red ball:1.3) and a [blue] star, a blue star", mode="collage")
    words = [r.words for r in out[1][0][1][core.patch.KEY].regions]
    assert words[0] == (1, 2, 3)
    assert len(words[1]) == 3


def test_an_embedding_in_a_layers_prompt_is_read(core, loaded):
    model, clip = loaded
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    table = clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ids = [t for t, *_ in clip.tokenize("red ball")["l"][0][1:3]]
    safetensors.torch.save_file({"emb_params": table[ids].detach().clone()}, folder / "redball.safetensors")
    named, written = (apply(core, model, clip, halves(core, left=x), prompt="in a meadow") for x in ("a embedding:redball", "a red ball"))
    torch.testing.assert_close(predicted(*named)[1], predicted(*written)[1])
    recipe = core.document.Recipe(embedding="redball")
    layer = core.document.Layer("x", width=64, height=128, prompt="star", recipe=recipe)
    stack = core.layers.write_stack(core.document.LayerDocument(128, 128, (layer,)))
    region = apply(core, model, clip, stack, prompt="an embedding:redball star", mode="collage")[1][0][1][core.patch.KEY].regions[0]
    assert region.words == (2, 3, 4)


def test_a_lora_on_model_and_clip_acts_through_the_regions(core, loaded):
    import comfy.lora

    model, clip = loaded
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if "attn2_to_k" in k and k.startswith("lora_unet"))
    weight = model.model.state_dict()[keys[name]]
    lora = {f"{name}.lora_up.weight": torch.ones(len(weight), 2), f"{name}.lora_down.weight": torch.ones(2, weight.shape[1])}
    adapted = model.clone()
    adapted.add_patches(comfy.lora.load_lora(lora, keys), 0.1)
    before = predicted(*apply(core, model, clip))[1]
    changed = predicted(*apply(core, adapted, clip))[1]
    assert float((changed - before).abs().max()) > 1e-4
    torch.testing.assert_close(predicted(*apply(core, model, clip))[1], before, atol=1e-5, rtol=1e-5)


def test_other_guiders_work(core, loaded):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    guider = Guider_DualCFG(out)
    guider.set_conds(positive, encode(clip, "a white house"), negative)
    guider.set_cfg(3.0, 2.0)
    noise = torch.randn(1, 4, 16, 16)
    with torch.inference_mode():
        sampled = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), torch.tensor([5.0, 1.0, 0.0]), seed=0)
    assert bool(sampled.isfinite().all())


def test_start_and_end_bound_the_noise_at_which_it_acts(core, loaded):
    model, clip = loaded
    patched = apply(core, model, clip, start=0.2, end=0.6)
    sampling = model.get_model_object("model_sampling")
    for share, acts in ((0.1, False), (0.3, True), (0.5, True), (0.7, False)):
        sigma = sampling.percent_to_sigma(share)
        plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""), sigma)[1]
        assert torch.equal(predicted(*patched, sigma)[1], plain) != acts


@pytest.mark.parametrize("size", [(16, 24), (20, 12), (9, 17)])
def test_any_latent_size_works(core, loaded, size):
    model, clip = loaded
    out, positive, negative = apply(core, model, clip)
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 4, *size)}
        sampled = comfy_nodes.common_ksampler(out, 7, 2, 3.0, "euler", "normal", positive, negative, latent)[0]["samples"]
        plain = comfy_nodes.common_ksampler(
            model, 7, 2, 3.0, "euler", "normal", encode(clip, WIDGETS["prompt"]), encode(clip, ""), latent
        )[0]["samples"]  # fmt: skip
    assert bool(sampled.isfinite().all())
    assert not torch.equal(sampled, plain)


def test_nothing_of_a_run_is_left_on_the_model(core, loaded):
    out, positive, negative = apply(core, *loaded)
    before = repr(sorted(out.model_options["transformer_options"]))
    predicted(out, positive, negative)
    assert repr(sorted(out.model_options["transformer_options"])) == before
    assert "patches_replace" not in out.model_options["transformer_options"]


# --- other families --------------------------------------------------------------------------------------------------

SMALL_TEXT = {
    "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 77,
    "hidden_act": "gelu", "eos_token_id": 49407, "layer_norm_eps": 1e-5, "vocab_size": 49408,
}  # fmt: skip


class SmallXLText(comfy.sdxl_clip.SDXLClipModel):
    """SDXL's two encoders, small, with random weights."""

    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006 - as ComfyUI has it
        torch.nn.Module.__init__(self)
        text = partial(
            comfy.sd1_clip.SDClipModel, layer="hidden", layer_idx=-2, device=device, dtype=dtype, layer_norm_hidden_state=False,
            textmodel_json_config=dict(SMALL_TEXT),
        )  # fmt: skip
        self.clip_l, self.clip_g = text(), text(special_tokens={"start": 49406, "end": 49407, "pad": 0}, return_projected_pooled=True)
        self.dtypes = {dtype}
        torch.manual_seed(0)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)


def small_unet(kind, **shape):
    config = kind({
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": [1, 1],
        "use_spatial_transformer": True, "legacy": False, "num_head_channels": 16, "transformer_depth": [0, 2],
        "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 2, 2], "use_temporal_attention": False, "use_temporal_resblock": False,
        **shape,
    })  # fmt: skip
    config.unet_extra_config = {}
    with torch.inference_mode(False):
        model = config.get_model({}, device="cpu")
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def test_sdxl_keeps_both_encoders_pooled_words_and_sizes(core):
    model = small_unet(
        comfy.supported_models.SDXL, context_dim=64, use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=32 + 6 * 256
    )
    with torch.inference_mode(False):
        target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, SmallXLText)
        clip = comfy.sd.CLIP(target, parameters=1)
    out, positive, negative = apply(core, model, clip, negative="dark")
    assert torch.equal(positive[0][1]["pooled_output"], encode(clip, WIDGETS["prompt"])[0][1]["pooled_output"])
    sized = [[words, {**rest, "width": 512, "height": 640}] for words, rest in positive]
    cond = predicted(out, positive, negative)[1]
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, "dark"))[1]
    assert float((cond - plain).abs().max()) > 1e-4
    assert not torch.equal(predicted(out, sized, negative)[1], cond)
    assert len(core.patch.cross_attentions(model.model.diffusion_model)) == 8


def test_an_inpainting_unet_works(core, loaded):
    model = small_unet(comfy.supported_models.SD15, context_dim=64, in_channels=9, use_linear_in_transformer=False, num_heads=2, num_head_channels=-1)
    _, clip = loaded
    out, positive, negative = apply(core, model, clip)
    mask = {"concat_latent_image": torch.zeros(1, 4, 16, 16), "concat_mask": torch.ones(1, 1, 128, 128)}
    positive, negative = ([[words, {**rest, **mask}] for words, rest in c] for c in (positive, negative))
    assert bool(predicted(out, positive, negative)[1].isfinite().all())


def test_a_model_that_is_no_such_unet_is_refused_by_its_familys_name(core, loaded):
    shape = {"image_model": "flux", "in_channels": 16, "hidden_size": 24, "depth": 0, "depth_single_blocks": 0, "num_heads": 1, "axes_dim": [8, 8, 8]}
    shape |= {
        "vec_in_dim": 8,
        "context_in_dim": 8,
        "mlp_ratio": 1.0,
        "txt_ids_dims": [],
        "theta": 10,
        "qkv_bias": True,
        "guidance_embed": False,
        "patch_size": 2,
    }
    config = comfy.supported_models.Flux({**shape, "out_channels": 16})
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, device="cpu"), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(core.error, match="model: family is 'Flux'; allowed: Stable Diffusion 1.x, 2.x and XL"):
        apply(core, model, loaded[1])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_defaults_of_these_tests_are_those_of_the_node(core):
    schema = core.node.GET_SCHEMA()
    assert {i.id: i.default for i in schema.inputs if i.id in WIDGETS} == {**WIDGETS, "prompt": ""}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"strength": float("nan")}, ["strength", "nan", "0..1"]), ({"strength": -1.0}, ["strength"]),
        ({"start": 0.7, "end": 0.2}, ["end", "0.2", "0.7..1"]),
        ({"mode": "magic"}, ["mode"]), ({"mode": "collage", "prompt": "a meadow"}, ["layer 'ball'", "a red ball", "not found", "append"]),
        ({"mode": "collage", "prompt": "a red ball, a red ball"}, ["layer 'ball'", "found 2 times", "longer"]),
    ],
)  # fmt: skip
def test_bad_values_are_named_before_sampling(host, values, parts):
    ball = from_image(width=64, height=128, prompt="a red ball", name="ball")
    prompt = {**LOADER, "a": ball, "it": regional("a", **values), "out": node("PreviewAny", source=["it", 1])}
    told = host.error_of(prompt)
    for part in parts:
        assert part in told, told


@pytest.mark.parametrize("mask", ["zero", "one", "pixel", "tiny", "huge"])
def test_masks_of_any_kind_have_a_result(core, loaded, mask):
    model, clip = loaded
    made = {
        "zero": torch.zeros(64, 64),
        "one": torch.ones(64, 64),
        "pixel": torch.zeros(128, 128),
        "tiny": torch.ones(1, 1),
        "huge": torch.ones(700, 300),
    }[mask]
    if mask == "pixel":
        made[5, 5] = 1
    layer = core.document.Layer("x", mask=made, width=64, height=128, prompt="a blue star")
    out = apply(core, model, clip, core.layers.write_stack(core.document.LayerDocument(128, 128, (layer,))))
    cond = predicted(*out)[1]
    plain = predicted(model, encode(clip, WIDGETS["prompt"]), encode(clip, ""))[1]
    assert bool(cond.isfinite().all())
    assert torch.equal(cond, plain) == (mask == "zero")


def test_fifty_layers_work(core, loaded):
    model, clip = loaded
    layers = tuple(core.document.Layer(f"{i}", x=i % 10 * 12, y=i // 10 * 25, width=12, height=25, prompt=f"a ball {i}") for i in range(50))
    stack = core.layers.write_stack(core.document.LayerDocument(128, 128, layers))
    assert bool(predicted(*apply(core, model, clip, stack))[1].isfinite().all())


def test_sampling_with_the_original_is_untouched_by_broken_and_interrupted_regional_runs(core, host):
    host.fresh()
    model, positive, negative = models(host)
    clip = host.value(LOADER, "loader", 1)
    before = sample(model, positive, negative)
    out = apply(core, model, clip)

    def broken(arguments):
        raise RuntimeError("broken on purpose")

    def interrupt(arguments):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    sample(*out)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        sample(*out, broken)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*out, interrupt)
    assert torch.equal(sample(model, positive, negative), before)
