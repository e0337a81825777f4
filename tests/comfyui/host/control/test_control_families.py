"""Masked ControlNets of families other than the storybook's, and T2I-Adapters: tiny ones with random weights,
in ComfyUI's own classes."""

import comfy.cldm.dit_embedder
import comfy.cldm.mmdit
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.hydit.controlnet
import comfy.ldm.hydit.models
import comfy.ldm.qwen_image.controlnet
import comfy.ldm.wan.vae
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy.t2i_adapter.adapter
import comfy.taesd.taesd
import patch_scene
import pytest
import torch
from control_scene import core, hint
from diffusers import UNet2DConditionModel

import nodes as comfy_nodes

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 24, "context_in_dim": 40,
    "hidden_size": 48, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 8, 8], "theta": 10000,
    "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
SD3 = {
    "input_size": None, "in_channels": 16, "depth": 2, "adm_in_channels": 24, "num_patches": 256,
    "pos_embed_max_size": 16,
    "context_embedder_config": {"target": "torch.nn.Linear",
    "params": {"in_features": 40, "out_features": 128}},
}  # fmt: skip
QWEN = {
    "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 24, "num_attention_heads": 2,
    "joint_attention_dim": 56,
    "axes_dims_rope": (8, 8, 8),
}  # fmt: skip


def randomised(module, std=0.05):
    """Fill a module with random weights, which ComfyUI's classes leave uninitialised, and return it."""
    generator = torch.Generator().manual_seed(0)
    for parameter in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
        parameter.data = torch.randn(parameter.shape, generator=generator) * std
    return module.eval()


def loaded(kind, config, shape, words=40):
    """Return MODEL, positive, negative and empty latents of a tiny model in ComfyUI's own class."""
    config = kind({**config})
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode(False):
        model = config.get_model({}, device=torch.device("cpu"))
        randomised(model.diffusion_model)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
    generator = torch.Generator().manual_seed(1)
    options = {"pooled_output": torch.randn(1, 24, generator=generator)}
    positive, negative = ([[torch.randn(1, 7, words, generator=generator), dict(options)]] for _ in range(2))
    return patcher, positive, negative, torch.zeros(shape)


def control_of(net, **options):
    """Return a CONTROL_NET with this network."""
    return comfy.controlnet.ControlNet(randomised(net), load_device=torch.device("cpu"), **options)


def plain(config):
    return {
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "operations": comfy.ops.disable_weight_init,
        **config,
    }


def flux():
    """Return Flux with a ControlNet that takes pictures, as XLabs' do."""
    net = comfy.ldm.flux.controlnet.ControlNetFlux(**plain(FLUX))
    return (
        loaded(comfy.supported_models.Flux, FLUX, (1, 16, 8, 12)),
        control_of(net, extra_conds=["y", "guidance"]),
        None,
    )


def flux_latents():
    """Return Flux with a ControlNet that takes latents, as InstantX' do."""
    net = comfy.ldm.flux.controlnet.ControlNetFlux(
        latent_input=True, control_latent_channels=16, **plain(FLUX)
    )
    control = control_of(
        net, compression_ratio=1, latent_format=comfy.latent_formats.Flux(), extra_conds=["y", "guidance"]
    )
    return loaded(comfy.supported_models.Flux, FLUX, (1, 16, 8, 12)), control, tiny_vae()


def sd3():
    net = comfy.cldm.mmdit.ControlNet(num_blocks=1, control_latent_channels=16, **plain(SD3))
    control = control_of(net, compression_ratio=1, latent_format=comfy.latent_formats.SD3())
    return loaded(comfy.supported_models.SD3, SD3, (1, 16, 8, 12)), control, tiny_vae()


def qwen():
    config = {k: v for k, v in QWEN.items() if k != "num_layers"}
    net = comfy.ldm.qwen_image.controlnet.QwenImageControlNetModel(num_layers=1, **plain(config))
    control = control_of(net, compression_ratio=1, latent_format=comfy.latent_formats.Wan21(), extra_conds=[])
    return (
        loaded(comfy.supported_models.QwenImage, QWEN, (1, 16, 1, 8, 12), words=56),
        control,
        tiny_wan_vae(),
    )


def sd35():
    """Return SD3.5 with one of Stability's ControlNets, which read no words."""
    config = {**SD3, "pos_embed_scaling_factor": None, "qk_norm": "rms"}
    net = comfy.cldm.dit_embedder.ControlNetEmbedder(
        img_size=None, patch_size=2, in_chans=16, num_layers=1, main_model_double=2, double_y_emb=True,
        attention_head_dim=64, num_attention_heads=2, adm_in_channels=24, dtype=torch.float32,
        device=torch.device("cpu"), operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    control = comfy.controlnet.ControlNetSD35(
        randomised(net), load_device=torch.device("cpu"), compression_ratio=1,
        latent_format=comfy.latent_formats.SD3(),
    )  # fmt: skip
    return loaded(comfy.supported_models.SD3, config, (1, 16, 8, 12)), control, tiny_vae()


def qwen_fun():
    """Return Qwen-Image with a Fun ControlNet, which adds one residual every two blocks here."""
    net = comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel(
        control_in_features=132, inner_dim=48, num_attention_heads=2, attention_head_dim=24,
        num_control_blocks=1, main_model_double=2, injection_layers=(0,), dtype=torch.float32,
        device=torch.device("cpu"), operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    control = comfy.controlnet.QwenFunControlNet(
        randomised(net), load_device=torch.device("cpu"), compression_ratio=1,
        latent_format=comfy.latent_formats.Wan21(), extra_conds=[],
    )  # fmt: skip
    model = loaded(comfy.supported_models.QwenImage, QWEN, (1, 16, 1, 8, 12), words=56)
    return model, control, tiny_wan_vae()


def tiny_vae():
    """Return a VAE of 16 channels with random weights."""
    return comfy.sd.VAE(sd=randomised(comfy.taesd.taesd.TAESD(latent_channels=16)).state_dict())


def tiny_wan_vae():
    net = comfy.ldm.wan.vae.WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    return comfy.sd.VAE(sd=randomised(net).state_dict())


@pytest.fixture(
    scope="module", params=[flux, flux_latents, sd3, sd35, qwen, qwen_fun], ids=lambda f: f.__name__
)
def family(request, host):
    with torch.inference_mode():
        return request.param()


def sampled(model, positive, negative, latents):
    with torch.inference_mode():
        return comfy_nodes.common_ksampler(
            model, 7, 2, 3.0, "euler", "simple", positive, negative, {"samples": latents}
        )[0]["samples"]


def plainly(net, positive, negative, strength, vae):
    image = hint(64, 96)
    return comfy_nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, net, image, strength, 0.0, 1.0, vae
    )


def residuals(model, conditioning, negative, latents):
    """Return the masked net's residuals at the last step, before and after they are weighted."""
    given = {}
    masked = type(conditioning[0][1]["control"])
    weigh = masked._weighted
    try:
        masked._weighted = lambda self, control, *rest: (
            given.update(before=control, after=weigh(self, control, *rest)) or given["after"]
        )
        sampled(model, conditioning, negative, latents)
    finally:
        masked._weighted = weigh
    return given["before"], given["after"]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_on_transformers_a_mask_of_ones_is_comfyuis_node_and_zeros_are_no_control_to_the_bit(
    family, apply, strength
):
    (model, positive, negative, latents), net, vae = family
    free = sampled(model, positive, negative, latents)
    held = sampled(model, *plainly(net, positive, negative, strength, vae), latents)
    ones, zeros = (
        sampled(
            model,
            *apply(
                net,
                positive,
                negative,
                image=hint(64, 96),
                mask=m * torch.ones(1, 64, 96),
                strength=strength,
                vae=vae,
            ),
            latents,
        )
        for m in (1, 0)
    )
    assert torch.isfinite(held).all()
    assert not torch.equal(held, free), "the net does nothing: nothing is compared"
    assert torch.equal(ones, held)
    assert torch.equal(zeros, free)


def test_on_transformers_complementary_masks_are_the_plain_net(family, apply):
    (model, positive, negative, latents), net, vae = family
    held = sampled(model, *plainly(net, positive, negative, 1.0, vae), latents)
    mask = torch.rand(1, 64, 96, generator=torch.Generator().manual_seed(3))
    first = apply(net, positive, negative, image=hint(64, 96), mask=mask, vae=vae)
    both = sampled(model, *apply(net, *first, image=hint(64, 96), mask=1 - mask, vae=vae), latents)
    torch.testing.assert_close(both, held, atol=2e-4 * float(held.abs().max()), rtol=0)


def test_a_transformers_residuals_are_weighted_cell_by_cell_and_shared_between_blocks(family, apply):
    (model, positive, negative, latents), net, vae = family
    mask = torch.zeros(1, 64, 96)
    mask[:, :32, 48:] = 1
    controlled = apply(net, positive, negative, image=hint(64, 96), mask=mask, vae=vae)[0]
    before, after = residuals(model, controlled, negative, latents)
    place = "output" if before.get("output") else "input"
    before, after = before[place], after[place]
    cells = after[0].unflatten(1, (4, 6))
    assert torch.equal(cells[:, :2, 3:], before[0].unflatten(1, (4, 6))[:, :2, 3:])
    assert not cells[:, 2:].any()
    assert not cells[:, :, :3].any()
    assert len({id(x) for x in after}) == len({id(x) for x in before})


@pytest.mark.parametrize("make", [flux, qwen, qwen_fun])
def test_inside_a_mask_a_strength_weighs_as_comfyuis_node_does(host, apply, make):
    """Qwen-Image's Fun ControlNets take the root of their strength."""
    with torch.inference_mode():
        (model, positive, negative, latents), net, vae = make()
    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1
    strong = apply(net, positive, negative, image=hint(64, 96), strength=0.36, vae=vae)[0]
    masked = apply(net, positive, negative, image=hint(64, 96), mask=mask, strength=0.36, vae=vae)[0]
    (_, plain), (_, half) = (residuals(model, c, negative, latents) for c in (strong, masked))
    place = "output" if plain.get("output") else "input"
    wanted, got = (x[place][0].unflatten(1, (4, 6)) for x in (plain, half))
    # The residuals are of the last step, whose input differs a little.
    torch.testing.assert_close(got[:, :, 0].std(), wanted[:, :, 0].std(), atol=0, rtol=0.1)
    assert not got[:, :, 3:].any()


@pytest.mark.parametrize(("one", "other"), [(flux, qwen), (sd3, flux), (qwen, sd3)])
def test_a_control_net_of_another_family_is_refused_before_sampling(host, apply, one, other):
    with torch.inference_mode():
        (model, positive, negative, latents), _, _ = one()
        _, net, vae = other()
    with pytest.raises(
        ValueError,
        match=r"control_net: (kind of network|width of the .*) is .*; allowed: .*, as the model has",
    ):
        sampled(model, *apply(net, positive, negative, image=hint(64, 96), vae=vae), latents)


@pytest.mark.parametrize(("make", "name"), [
    (patch_scene.z_image, "a Z-Image or Lumina 2 transformer"), (patch_scene.krea2, "a Krea 2 transformer"),
    (patch_scene.anima, "an Anima or Cosmos transformer"), (patch_scene.wan, "a Wan transformer"),
])  # fmt: skip
def test_models_whose_class_adds_no_residuals_refuse_a_control_net(host, apply, make, name):
    """ComfyUI runs the net and passes over what it gives."""
    scene = make()
    with torch.inference_mode():
        _, net, vae = flux_latents()
    given = apply(net, scene.positive, scene.negative, image=hint(*scene.size), vae=vae)
    message = (
        f"kind of network is 'a Flux or Qwen transformer'; allowed: {name}, .* ComfyUI has no ControlNets for"
    )
    with pytest.raises(ValueError, match=message):
        scene.sampled(scene.model, positive=given[0], negative=given[1])


def test_the_log_tells_of_an_unknown_net_that_such_a_model_passes_over(host, pack, caplog):
    scene = patch_scene.krea2()
    check = pack("nodes.control.control_family").check_family
    unknown = comfy.controlnet.ControlNet(torch.nn.Linear(2, 2), load_device=torch.device("cpu"))
    check(unknown, scene.model.model)
    assert "ComfyUI's class of a Krea 2 transformer adds no ControlNet's residuals" in caplog.text


def test_hunyuan_dit_and_sd3_are_different_kinds(host, pack):
    """Both begin with the same layer."""
    shape = pack("nodes.control.control_family")._shape
    small = {"hidden_size": 128, "depth": 2, "num_heads": 2, "text_states_dim": 32, "text_states_dim_t5": 64,
             "text_len_t5": 8}  # fmt: skip
    options = {
        "operations": comfy.ops.disable_weight_init,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    net = comfy.ldm.hydit.controlnet.HunYuanControlNet(**small, **options)
    model = comfy.ldm.hydit.models.HunYuanDiT(**small, log_fn=lambda *_: None, **options)
    wanted = {"kind of network": "a Hunyuan DiT", "width of the residuals": 128}
    assert shape(net) == shape(model) == wanted


# --- T2I-Adapter ---


@pytest.fixture(scope="module")
def sd15(host, pack, tmp_path_factory):
    """Return a UNet with SD1.5's blocks of an eighth of their width or less, and conditionings for it."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 128),
        cross_attention_dim=40,
        attention_head_dim=2,
        norm_num_groups=32,
    )
    folder = tmp_path_factory.mktemp("sd15")
    net.save_pretrained(folder / "unet")
    generator = torch.Generator().manual_seed(1)
    words = ([[torch.randn(1, 77, 40, generator=generator), {}]] for _ in range(2))
    return pack("nodes.demo.demo_model").load_unet(str(folder)), *words


def adapter(xl=False, width=32):
    torch.manual_seed(0)
    channels = [width, 2 * width, 4 * width, 4 * width]
    net = comfy.t2i_adapter.adapter.Adapter(
        cin=768 if xl else 192, channels=channels, nums_rb=2, ksize=1, sk=True, use_conv=False, xl=xl
    )
    return comfy.controlnet.T2IAdapter(net.eval(), 3, 8, "nearest-exact", torch.device("cpu"))


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_masked_t2i_adapter_keeps_the_same_promises(sd15, apply, strength):
    model, positive, negative = sd15
    latents = torch.zeros(1, 4, 16, 16)
    net, options = adapter(), {"image": hint(), "strength": strength}
    free = sampled(model, positive, negative, latents)
    held = sampled(model, *core(net, positive, negative, hint(), strength), latents)
    assert not torch.equal(held, free), "the adapter does nothing: nothing is compared"
    assert torch.equal(sampled(model, *apply(net, positive, negative, **options), latents), held)
    assert torch.equal(
        sampled(model, *apply(net, positive, negative, mask=torch.zeros(1, 128, 128), **options), latents),
        free,
    )
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(3))
    first = apply(net, positive, negative, mask=mask, **options)
    both = sampled(model, *apply(net, *first, mask=1 - mask, **options), latents)
    torch.testing.assert_close(both, held, atol=2e-4 * float(held.abs().max()), rtol=0)


def test_soft_modes_weaken_an_adapters_outer_features_most(sd15, apply):
    model, positive, negative = sd15
    controlled = apply(adapter(), positive, negative, image=hint(), mode="prompt")[0]
    before, after = residuals(model, controlled, negative, torch.zeros(1, 4, 16, 16))
    shares = {
        b.shape[-1]: float((a / b).nanmean())
        for a, b in zip(after["input"], before["input"], strict=True)
        if b is not None
    }
    sides = sorted(shares)
    assert sides == [2, 4, 8, 16]
    assert [shares[s] for s in sides] == pytest.approx([1, 0.825, 0.62, 0.25], abs=1e-3)


def test_an_adapter_of_another_family_is_refused_before_sampling(sd15, apply):
    model, positive, negative = sd15
    for net, message in (
        (adapter(xl=True), "number of resolutions is 3; allowed: 4"),
        (adapter(width=64), "width of the residuals is 64; allowed: 32"),
    ):
        with pytest.raises(ValueError, match=message):
            sampled(model, *apply(net, positive, negative, image=hint()), torch.zeros(1, 4, 16, 16))
