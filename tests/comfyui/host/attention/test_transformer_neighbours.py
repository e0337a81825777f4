"""Regional Prompt Attention on transformers beside other nodes, backends and bad input."""

import logging
from dataclasses import replace

import comfy.ldm.flux.math
import comfy.ldm.modules.attention as attention
import comfy.model_patcher
import comfy.supported_models as supported
import pytest
import tiny_transformers as tiny
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from regional_scene import WIDGETS, everywhere, halves

FAMILIES = list(tiny.MODELS)
WITH_REFERENCES = ("flux", "flux2", "qwen", "krea2")
VALUES = {**WIDGETS, "prompt": "a meadow at noon", "negative": "dark"}


@pytest.fixture(scope="module")
def made():
    return lambda family: (tiny.shared_model(family), tiny.clip(family))


@pytest.fixture
def words(regions, made):
    """Apply the node to a family: MODEL, positive, negative."""

    def apply(family, stack=None, *, model=None, **values):
        stack = halves(regions) if stack is None else stack
        return regions.node.execute(
            model or made(family)[0], made(family)[1], stack, **{**VALUES, **values}
        ).result

    return apply


def with_key(conditioning, **more):
    return [[c, {**rest, **more}] for c, rest in conditioning]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_conditionings_on_the_nodes_model_are_untouched_to_the_bit(family, words, made):
    model, clip = made(family)
    out = words(family)
    pair = tiny.encode(clip, "a house"), tiny.encode(clip, "dark")
    wanted = tiny.sampled(model, family, *pair, cfg=2.0, steps=1)
    assert torch.equal(tiny.sampled(out[0], family, *pair, cfg=2.0, steps=1), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_packs_override_of_the_attention_is_called(family, words, made):
    calls = []

    def override(func, *args, **named):
        calls.append(1)
        return func(*args, **named)

    model = made(family)[0].clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    values = {"global_weight": 0.0, "emphasis": 0.0}
    seen = tiny.sampled(*_run(words(family, model=model, **values), family), steps=1)
    wanted = tiny.sampled(*_run(words(family, **values), family), steps=1)
    assert len(calls) > 4
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=1e-4)


def _run(out, family):
    return out[0], family, out[1], out[2]


@pytest.mark.parametrize("family", WITH_REFERENCES)
def test_layers_act_beside_reference_pictures(family, words):
    out = words(family, global_weight=0.0, emphasis=0.0)
    shape = tiny.MODELS[family][2]
    generator = torch.Generator().manual_seed(7)
    references = [
        torch.randn(1, *shape, generator=generator),
        torch.randn(1, *shape[:-2], 6, 10, generator=generator),
    ]
    how = {"reference_latents": references}
    if family == "krea2":
        how["reference_latents_method"] = "index"
    found = tiny.sampled(out[0], family, with_key(out[1], **how), out[2])
    assert bool(torch.isfinite(found).all())
    assert float((found - tiny.sampled(out[0], family, out[1], out[2])).abs().max()) > 1e-3
    plain = [[c, {k: v for k, v in rest.items() if k != "layered_diffusion_attention"}] for c, rest in out[1]]
    without = tiny.sampled(out[0], family, with_key(plain, **how), out[2])
    assert float((found - without).abs().max()) > 1e-3


def test_references_of_z_image_are_refused(words, regions):
    out = words("zimage")
    references = with_key(out[1], reference_latents=[torch.randn(1, 16, 16, 12)])
    with pytest.raises(regions.error, match="words per layer do not act on Z-Image with reference pictures"):
        tiny.sampled(out[0], "zimage", references, out[2])


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            supported.ErnieImage,
            {
                "hidden_size": 64,
                "num_layers": 1,
                "num_attention_heads": 4,
                "in_channels": 128,
                "out_channels": 128,
            },
        ),
        (supported.PixArtAlpha, {"depth": 1, "hidden_size": 48, "num_heads": 4}),
    ],
)
def test_other_families_are_refused_by_name(kind, config, words, regions):
    made = kind({**kind.unet_config, **config})
    made.unet_config = {**made.unet_config, **config}
    with torch.inference_mode(False):
        whole = made.get_model({}, device="cpu")
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(whole, cpu, cpu)
    with pytest.raises(
        regions.error, match=rf"model: family is '{kind.__name__}'; allowed: .*Z-Image.*Set Mask"
    ):
        words("flux", model=model)


def test_a_network_of_another_class_is_refused_by_name(words, regions):
    """As Nunchaku puts its own network into ComfyUI's model of Flux."""

    class NunchakuFlux(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.dtype = inner, torch.float32

    model = tiny.model("flux")
    model.model.diffusion_model = NunchakuFlux(model.model.diffusion_model)
    with pytest.raises(regions.error, match="Its network is a NunchakuFlux"):
        words("flux", model=model)


def test_words_longer_than_the_familys_limit_are_refused_by_the_layers_name(words, regions):
    long = " ".join(["red"] * 600)
    with pytest.raises(
        regions.error, match="layer 'all': tokens of its words is 601; allowed: at most 512, as Flux"
    ):
        words("flux", everywhere(regions, long))


def test_fifty_layers_act(words, regions):
    document = regions.document
    layers = tuple(
        document.Layer(f"{i}", x=i % 10 * 12, y=i // 10 * 24, width=12, height=24, prompt=f"thing {i}")
        for i in range(50)
    )
    out = words("flux", regions.layers.write_stack(document.LayerDocument(120, 120, layers)))
    assert bool(torch.isfinite(tiny.sampled(*_run(out, "flux"))).all())


def test_layers_too_small_for_a_cell_are_told(words, regions, caplog):
    document = regions.layers.read_stack(halves(regions))
    dot = document.layers[0], replace(document.layers[1], name="dot", width=1, height=1)
    out = words("flux", regions.layers.write_stack(replace(document, layers=dot)))
    with caplog.at_level(logging.WARNING):
        tiny.sampled(*_run(out, "flux"))
    assert (
        "words of layers 'dot' do not act: these layers cover too little of any of the picture's 6 x 8"
        in caplog.text
    )


def test_what_has_no_effect_at_cfg_1_is_told_once(words, regions, caplog):
    out = words("flux", halves(regions, negative="blurred"), guidance=4.0)
    with caplog.at_level(logging.WARNING):
        tiny.sampled(*_run(out, "flux"), cfg=1.0, steps=3)
    told = [m for m in caplog.messages if "whose cfg is 1" in m]
    assert len(told) == 1
    assert told[0].endswith("the layers' negatives and guidance")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tiny.sampled(*_run(out, "flux"), cfg=3.0, steps=1)
    assert "whose cfg is 1" not in caplog.text


@pytest.mark.parametrize("backend", ["attention_sub_quad", "attention_split", "attention_basic"])
def test_other_attention_backends_give_the_same_picture(backend, words, monkeypatch):
    values = {"global_weight": 0.0, "emphasis": 0.0}
    wanted = tiny.sampled(*_run(words("flux", **values), "flux"), steps=1)
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", getattr(attention, backend))
    seen = tiny.sampled(*_run(words("flux", **values), "flux"), steps=1)
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-3)


SHALLOW = {
    "flux": {"depth": 1, "depth_single_blocks": 1}, "qwen": {"num_layers": 1},
    "zimage": {"n_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", SHALLOW)
def test_a_compiled_model_gives_the_same_picture(family, words):
    """The model has one block of each kind: dynamo takes seconds for each."""
    model = tiny.model(family, **SHALLOW[family])
    wanted = tiny.sampled(*_run(words(family, model=model), family), steps=1)
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    seen = tiny.sampled(*_run(words(family, model=model), family), steps=1)
    torch.testing.assert_close(seen, wanted, atol=1e-4, rtol=1e-3)


def test_weights_of_8_bits_work(words):
    model = tiny.model("flux", dtype=torch.float8_e4m3fn)
    out = words("flux", model=model)
    found = tiny.sampled(*_run(out, "flux"))
    assert bool(torch.isfinite(found).all())
    assert not torch.equal(found, tiny.sampled(*_run(words("flux", model=model, strength=0.0), "flux")))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_recorded_and_masks_are_made_of_it(family, words, regions, made, pack):
    out = words(family, prompt="a red ball and a blue star", record=True)
    tiny.sampled(*_run(out, family), steps=1)
    maps = out[1][0][1]["layered_diffusion_attention"].maps
    shares = maps.mean((8, 6))
    assert tuple(shares.shape) == (1, 2, 8, 6)
    assert float(shares.min()) >= 0
    assert float(shares.max()) <= 1.001
    # Each layer's own words act in its own half only.
    left, right = shares[0, 0], shares[0, 1]
    assert float(left[:, :3].mean()) > float(left[:, 3:].mean())
    assert float(right[:, 3:].mean()) > float(right[:, :3].mean())


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()  # as ComfyUI runs nodes
def test_layer_mask_from_attention_works(family, regions, made, pack):
    kind = pack("nodes.attention.attention_preview").LayerMaskFromAttention
    model, clip = made(family)
    stack = everywhere(regions, "a red ball")
    layers, masks = kind.execute(
        model, clip, stack, prompt="a red ball in a meadow", negative="", seed=0, steps=1, cfg=2.0,
        threshold=0.5, largest=True,
    ).result  # fmt: skip
    assert regions.layers.read_stack(layers).layers[0].mask is not None
    assert 0 < float(masks.mean()) < 1


def test_tiles_get_their_part_of_the_layers(words, regions):
    out = words("flux", global_weight=0.0, emphasis=0.0)

    def tiled(apply_model, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        return torch.cat([apply_model(x[..., a : a + 6], t, **c) for a in (0, 6)], -1)

    model = out[0].clone()
    model.set_model_unet_function_wrapper(tiled)
    found = tiny.sampled(model, "flux", out[1], out[2], steps=1)
    # A tile is a picture of its own, over which one layer lies.
    ball = words("flux", everywhere(regions, "a red ball"), global_weight=0.0, emphasis=0.0)
    noise = torch.randn(1, 16, 16, 12, generator=torch.Generator().manual_seed(1))
    alone = tiny.sampled(ball[0], "flux", ball[1], ball[2], steps=1, noise=noise[..., :6])
    torch.testing.assert_close(found[..., :6], alone, atol=1e-4, rtol=1e-3)
