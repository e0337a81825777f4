"""Masked ControlNets compared with ComfyUI's own, on the storybook model and a ControlNet of its shape with
random weights."""

import importlib
import json
import sys
import types
from pathlib import Path

import comfy.controlnet
import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from conftest import random_controlnet
from control_scene import core, hint
from graph import from_image, node
from regional_scene import predicted
from safetensors.torch import load_file, save_file
from sampling import models, sample

"""The script that computes the headless host's residuals."""


@pytest.fixture(scope="module")
def net(host, pack):
    """Return a CONTROL_NET, and the same net in diffusers."""
    demo = pack("demo.world.places").MODEL
    model = random_controlnet(json.loads((demo / "unet" / "config.json").read_text())).eval()
    return host.value({"net": node("TestControlNet")}, "net"), model


def demo_control(pack):
    return importlib.import_module(
        pack("nodes.demo.demo_model").__name__.replace("demo_model", "demo_control")
    )


@pytest.fixture(scope="module")
def words(host):
    host.fresh()
    return models(host)


def test_the_net_computes_what_diffusers_computes(net, words):
    loaded, theirs = net
    x, context = torch.randn(2, 4, 16, 16), torch.randn(2, 77, theirs.config.cross_attention_dim)
    picture = hint().movedim(-1, 1).expand(2, -1, -1, -1)
    with torch.inference_mode():
        down, middle = theirs(
            x, torch.tensor([300, 300]), context, controlnet_cond=picture, return_dict=False
        )
        ours = loaded.control_model(x=x, hint=picture, timesteps=torch.tensor([300, 300]), context=context)
    for a, b in zip([*ours["output"], *ours["middle"]], [*down, middle], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("strength", "start", "end"), [(1.0, 0.0, 1.0), (0.7, 0.0, 1.0), (1.3, 0.2, 0.7)])
def test_a_mask_of_ones_is_comfyuis_own_node_to_the_bit(net, words, apply, strength, start, end):
    model, positive, negative = words
    plain = sample(model, *core(net[0], positive, negative, hint(), strength, start, end))
    ours = sample(
        model,
        *apply(
            net[0], positive, negative, image=hint(), strength=strength, start_percent=start, end_percent=end
        ),
    )
    assert torch.equal(ours, plain)
    assert not torch.equal(ours, sample(model, positive, negative)), (
        "the net does nothing: nothing is compared"
    )


def test_a_mask_of_zeros_or_no_strength_is_no_control_to_the_bit(net, words, apply):
    model, positive, negative = words
    plain = sample(model, positive, negative)
    assert torch.equal(
        sample(model, *apply(net[0], positive, negative, image=hint(), mask=torch.zeros(1, 128, 128))), plain
    )
    assert torch.equal(sample(model, *apply(net[0], positive, negative, image=hint(), strength=0.0)), plain)


def test_two_complementary_masks_of_one_hint_are_the_plain_net(net, words, apply):
    model, positive, negative = words
    mask = torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(3))
    first = apply(net[0], positive, negative, image=hint(), mask=mask)
    both = sample(model, *apply(net[0], *first, image=hint(), mask=1 - mask))
    torch.testing.assert_close(
        both, sample(model, *core(net[0], positive, negative, hint())), atol=2e-4, rtol=0
    )


def test_it_chains_with_comfyuis_node_before_and_after(net, words, apply):
    model, positive, negative = words
    plain = sample(model, *core(net[0], *core(net[0], positive, negative, hint(seed=1)), hint()))
    after = sample(model, *apply(net[0], *core(net[0], positive, negative, hint(seed=1)), image=hint()))
    before = sample(model, *core(net[0], *apply(net[0], positive, negative, image=hint(seed=1)), hint()))
    assert torch.equal(after, plain)
    assert torch.equal(before, plain)


def test_a_mask_acts_where_it_is_most_of_all(net, words, apply):
    model, positive, negative = words
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    free, held = (
        sample(model, positive, negative),
        sample(model, *apply(net[0], positive, negative, image=hint(), mask=mask)),
    )
    change = (held - free).abs().mean((0, 1))
    assert float(change[:, :6].mean()) > 2 * float(change[:, 10:].mean())


def test_a_control_that_leads_spares_the_negative(net, words, apply):
    model, positive, negative = words
    _, _, without = predicted(model, positive, negative)
    cond, uncond = {}, {}
    for mode in ("balanced", "prompt", "control"):
        held = apply(net[0], positive, negative, image=hint(), mode=mode)
        _, cond[mode], uncond[mode] = predicted(model, *held)
    assert torch.equal(uncond["control"], without)
    for mode in ("balanced", "prompt"):
        assert float((uncond[mode] - without).abs().max()) > 1e-3, mode
    assert torch.equal(cond["control"], cond["prompt"]), "both soften the outer residuals alike"
    assert float((cond["balanced"] - cond["prompt"]).abs().max()) > 1e-3


@pytest.mark.parametrize(("guider", "positive_at"), [("CFG", 0), ("Dual CFG", 2)])
def test_a_control_that_leads_acts_on_the_positive_alone_however_a_guider_counts(
    net, words, apply, pack, guider, positive_at
):
    model, *conditionings = words
    other = core(net[0], *conditionings, hint(seed=1))
    positive, negative = apply(
        net[0], *apply(net[0], *other, image=hint(), mode="control"), image=hint(seed=2), mode="control"
    )
    seen = []

    def watch(apply_model, asked):
        assert pack("nodes.control.masked_control_apply").IS_POSITIVE_KEY not in asked["c"]
        seen.append(
            (asked["cond_or_uncond"], asked["c"]["control"]["middle"][0].clone())
        )  # the model removes it
        return apply_model(asked["input"], asked["timestep"], **asked["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(watch)
    plain = core(net[0], *conditionings, hint(seed=1))
    for given, led in (((positive, negative), True), (plain, False)):
        if guider == "CFG":
            run = comfy.samplers.CFGGuider(model)
            run.set_conds(*given)
            run.set_cfg(3.0)
        else:
            run = Guider_DualCFG(model)
            run.set_conds(given[0], given[1], given[1])
            run.set_cfg(3.0, 2.0)
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            run.sample(
                noise,
                torch.zeros_like(noise),
                comfy.samplers.sampler_object("euler"),
                torch.tensor([5.0, 0.0]),
                seed=0,
            )
        marks, deepest = seen[-1]
        assert sorted(marks) == list(range(2 if guider == "CFG" else 3)), "one evaluation for all"
        deepest = dict(zip(marks, deepest, strict=True))
        if led:
            ours = deepest
    for mark, residual in ours.items():
        assert (float((residual - deepest[mark]).abs().max()) > 1e-3) == (mark == positive_at)


def test_layers_share_one_evaluation_and_keep_their_ranges(host, net, words, apply):
    model, positive, negative = words
    left = from_image(
        width=64, height=128, control_hint="segmentation", canvas_width=128, canvas_height=128, name="left"
    )
    right = from_image(
        width=64, height=128, x=64, control_hint="segmentation", control_strength=0.5, name="right"
    )
    right["inputs"]["layers"] = ["a", 0]
    layers = host.value({"a": left, "it": right}, "it", 0)
    calls = []
    forward = net[0].control_model.forward
    net[0].control_model.forward = lambda *a, **k: (calls.append(1), forward(*a, **k))[1]
    try:
        sample(model, *apply(net[0], positive, negative, layers=layers))
    finally:
        net[0].control_model.forward = forward
    assert len(calls) == 3, "three steps, one evaluation each"


def test_a_controls_end_is_exclusive_and_its_start_inclusive_as_every_window_is(host, pack):
    masked, document = pack("nodes.control.masked_control_net"), pack("layered_core.document")
    asked = []

    class Net(comfy.controlnet.ControlBase):
        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            asked.append(float(t[0]))

    masks = torch.ones(1, 8, 8)
    control_map = pack("layered_core.control.control_map").ControlMap(
        masks, (document.Control("canny", start=0.2, end=0.7),)
    )
    control = masked.MaskedControl(Net(), control_map)
    control.windows = [pack("layered_core.noise.window").Window(10.0, 2.0)]
    for sigma in (10.1, 10.0, 5.0, 2.0001, 2.0, 1.0):
        control.get_control(torch.zeros(1, 4, 8, 8), torch.tensor([sigma]), {}, 1, {})
    assert asked == pytest.approx([10.0, 5.0, 2.0001])


def test_the_original_net_is_untouched(net, words, apply):
    before = dict(vars(net[0]))
    apply(net[0], words[1], words[2], image=hint(), strength=0.5)
    assert vars(net[0]) == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "image: neither a hint picture nor layers are connected"),
        ({"image": hint(64, 128), "mask": torch.ones(1, 64, 64)}, "image: size of the hint is '128x64'"),
        ({"image": hint(), "mask": torch.ones(2, 128, 128)}, "mask: number of masks is 2; allowed: 1"),
        ({"image": hint(), "mask": torch.full((1, 128, 128), float("nan"))}, "control masks' values"),
        ({"image": hint(), "strength": float("nan")}, "strength is nan"),
        ({"image": hint(), "strength": -1.0}, "strength is -1"),
        (
            {"image": hint(), "start_percent": 0.8, "end_percent": 0.2},
            "^end_percent is 0.2; allowed: a number 0.8..1",
        ),
        ({"image": hint(), "strength": 0.0, "start_percent": float("nan")}, "^start_percent is nan"),
    ],
)
def test_bad_input_is_named(net, words, apply, values, message):
    with pytest.raises(ValueError, match=message):
        apply(net[0], words[1], words[2], **values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cross_attention_dim": 48},
            "control_net: width of the words it reads is 48; allowed: 64, as the model has",
        ),
        ({"block_out_channels": (32, 64, 64)}, "control_net: width of the residuals is 32; allowed: 64"),
        (
            {"block_out_channels": (64, 128), "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
            "number of resolutions is 2; allowed: 3",
        ),
    ],
)
def test_a_net_of_another_family_is_refused_before_sampling(pack, words, apply, tmp_path, change, message):
    shape = json.loads((pack("demo.world.places").MODEL / "unet" / "config.json").read_text())
    random_controlnet({**shape, **change}).save_pretrained(tmp_path / "controlnet")
    loaded = demo_control(pack).load_control(str(tmp_path))
    steps = []
    with pytest.raises(ValueError, match=message):
        sample(
            words[0],
            *apply(loaded, words[1], words[2], image=hint()),
            callback=lambda arguments: steps.append(1) or arguments["denoised"],
        )
    assert not steps


@pytest.mark.parametrize("kind", ["scribble", "lineart", "depth", "normal", "pose"])
def test_a_missing_preprocessor_is_named_by_both_nodes(host, net, words, apply, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    layer = from_image(image=["p", 0], control_hint=kind, canvas_width=64, canvas_height=64)
    prompt = {"p": node("EmptyImage", width=64, height=64, batch_size=1, color=255), "a": layer}
    error = host.error_of(
        {
            **prompt,
            "it": node("LD_LayerControlHint", layers=["a", 0], outline=False),
            "s": node("PreviewImage", images=["it", 0]),
        }
    )
    assert f"control hint '{kind}' needs the package controlnet_aux" in error
    assert "pip install controlnet-aux" in error
    with pytest.raises(ValueError, match=f"control hint '{kind}' needs the package controlnet_aux"):
        apply(net[0], words[1], words[2], layers=host.value(prompt, "a"))


def test_a_missing_checkpoint_is_named_with_its_place(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", types.ModuleType("controlnet_aux"))
    layer = from_image(image=["p", 0], control_hint="depth", canvas_width=64, canvas_height=64)
    prompt = {"p": node("EmptyImage", width=64, height=64, batch_size=1, color=255), "a": layer}
    error = host.error_of(
        {
            **prompt,
            "it": node("LD_LayerControlHint", layers=["a", 0], outline=False),
            "s": node("PreviewImage", images=["it", 0]),
        }
    )
    assert "dpt_hybrid-midas-501f0c75.pt" in error
    assert str(Path(folder_paths.models_dir, "controlnet_aux")) in error


@pytest.fixture(scope="module")
def headless(pack, net, run_headless, tmp_path_factory):
    """Return a document and a latent, and the headless host's residuals for them with the same net. That host
    runs in the repository's own environment."""
    document, files = pack("layered_core.document"), pack("layered_core.files")
    random = torch.Generator().manual_seed(4)
    layers = []
    for i, (name, control) in enumerate(
        {"left": {"strength": 0.6}, "right": {"strength": 1.7}, "free": {"hint": "none"}}.items()
    ):
        image = torch.rand(8, 8, 4, generator=random)
        image = torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], (80, 72), mode="bilinear")[
            0
        ].permute(1, 2, 0)
        recipe = document.Recipe(control=document.Control(**{"hint": "canny", **control}))
        layers.append(document.Layer(name, image, x=28 * i, y=20 * i, recipe=recipe))
    folder = tmp_path_factory.mktemp("headless")
    files.write_layers(document.LayerDocument(128, 128, tuple(layers)), folder / "layers")
    inputs = {
        "latents": torch.randn(1, 4, 16, 16, generator=random),
        "context": torch.randn(2, 77, 64, generator=random),
    }
    save_file(inputs, folder / "layers" / "inputs.safetensors")
    net[1].save_pretrained(folder / "controlnet")
    demo = pack("demo.world.places").MODEL
    places = (folder / n for n in ("controlnet", "layers", "out.safetensors"))
    run_headless("control_reference.py", demo, *places)
    return files.read_layers(folder / "layers").document, inputs, load_file(folder / "out.safetensors")


@pytest.mark.parametrize("mode", ["balanced", "prompt", "control"])
def test_both_hosts_weigh_the_residuals_of_a_document_alike(net, words, apply, pack, headless, mode):
    document, inputs, theirs = headless
    model, positive, negative = words
    drawn = pack("layered_core.control.hints").document_hint(document, outline=True)
    torch.testing.assert_close(drawn, theirs["hint"])
    layers = pack("nodes.layers.socket").write_stack(document)
    controlled = apply(net[0], positive, negative, layers=layers, image=drawn[None].movedim(1, -1), mode=mode)
    control = controlled[0][0][1]["control"]
    sampling = model.model.model_sampling
    sigma = sampling.sigma(torch.tensor([500.0]))
    both = torch.cat([inputs["latents"]] * 2) * (sigma**2 + 1).sqrt()
    control.pre_run(model.model, sampling.percent_to_sigma)
    led = {
        pack("nodes.control.masked_control_apply").IS_POSITIVE_KEY: torch.tensor([0.0, 1.0])
    }  # as the sampler passes it on, with the negative first
    with torch.inference_mode():
        ours = control.get_control(both, sigma.expand(2), {"c_crossattn": inputs["context"], **led}, 2, {})
    control.cleanup()
    for i, residual in enumerate([*ours["output"], *ours["middle"]]):
        torch.testing.assert_close(residual, theirs[f"{mode} {i}"], atol=2e-4, rtol=1e-3)
        assert float(residual[1].abs().max()) > 0


def test_hints_of_layers_come_as_a_picture(host):
    layer = from_image(width=64, height=128, control_hint="segmentation", canvas_width=128, canvas_height=128)
    picture = host.value(
        {"a": layer, "it": node("LD_LayerControlHint", layers=["a", 0], outline=False)}, "it", 0
    )
    assert picture.shape == (1, 128, 128, 3)
    assert float(picture[:, :, :64].amax()) > 0.9
    assert not picture[:, :, 64:].any()


# --- nodes that sample tile by tile ---


def two_masks(height=128, width=128):
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2], masks[1, height // 2 :, width // 2 :] = 0.5, 1
    return masks


def controlled(pack, net, hint, masks):
    """A masked net on a hint ``[1, H, W, 3]`` with masks ``[K, H, W]``."""
    document, maps = pack("layered_core.document"), pack("layered_core.control.control_map")
    control_map = maps.ControlMap(masks, tuple(document.Control("canny") for _ in masks))
    inner = net.copy().set_cond_hint(hint.movedim(-1, 1))
    return pack("nodes.control.masked_control_net").MaskedControl(inner, control_map)


def tile_by_tile(control, boxes):
    """What a node that samples in tiles makes of a net's hint: ``boxes`` of it, one after the other."""
    whole = control.cond_hint_original
    return torch.cat([whole[..., top : top + 64, left : left + 64] for top, left in boxes])


def of_control(words, control, positive=True):
    return [[text, {**rest, "control": control}] for text, rest in words[1 if positive else 2]]


def test_a_hint_that_another_node_cuts_takes_the_masks_along(net, words, pack):
    """As Ultimate SD Upscale does for every tile."""
    whole = controlled(pack, net[0], hint(), two_masks())
    cut = whole.copy()
    cut.cond_hint_original = tile_by_tile(whole, [(64, 32)])
    by_hand = controlled(pack, net[0], hint()[:, 64:, 32:96], two_masks()[:, 64:, 32:96])
    got, wanted = (
        predicted(words[0], of_control(words, c), words[2], size=(8, 8))[1] for c in (cut, by_hand)
    )
    # A convolution's rounding depends on its input's memory layout.
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert whole.inner.cond_hint_original.shape[-2:] == (128, 128)
    assert torch.equal(whole.map.masks, two_masks())


def test_tiles_of_one_pass_have_masks_of_their_own(net, words, pack):
    """As Tiled Diffusion does: it sets the hint of all tiles of a pass, and calls the net itself."""
    boxes = [(0, 0), (64, 32)]
    whole = controlled(pack, net[0], hint(), two_masks())
    model = words[0].model
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 5
    context = words[1][0][0]

    def residuals(control, x):
        with torch.inference_mode():
            control.pre_run(model, model.model_sampling.percent_to_sigma)
            return control.get_control(
                x, torch.full((len(x),), 5.0), {"c_crossattn": context.expand(len(x), -1, -1)}, 1, {}
            )

    whole.cond_hint = tile_by_tile(whole, boxes)
    together = residuals(whole, x)
    assert whole.inner.cond_hint_original.shape[-2:] == (128, 128)
    for i, (top, left) in enumerate(boxes):
        box = slice(top, top + 64), slice(left, left + 64)
        one = controlled(pack, net[0], hint()[:, box[0], box[1]], two_masks()[:, box[0], box[1]])
        for place, wanted in residuals(one, x[i : i + 1]).items():
            for a, b in zip(together[place], wanted, strict=True):
                torch.testing.assert_close(a[i : i + 1], b, atol=1e-4, rtol=1e-3)


def test_tiles_in_a_batch_that_have_different_masks_are_refused(net, pack):
    whole = controlled(pack, net[0], hint(), two_masks())
    with pytest.raises(pack("layered_core.errors").LayeredError, match="a node samples 2 tiles in one batch"):
        whole.cond_hint_original = tile_by_tile(whole, [(0, 0), (64, 32)])
