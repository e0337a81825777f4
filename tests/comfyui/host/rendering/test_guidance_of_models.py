"""What is planted and fused, with networks of which the right prediction is known."""

import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from graph import node
from regional_scene import encode, halves, once
from rendering_scene import PLAIN, render

SPREAD = 0.7
"""Standard deviation of the data that the ideal denoiser knows."""
LEVELS = {"eps": 5.0, "v": 5.0, "flow": 0.8}
"""A noise level of the sampler for each kind of model."""


def of_kind(model, kind, denoised):
    """Return a clone whose network predicts noise, velocity or flow so that the denoised picture is
    ``denoised(x, sigma, context)`` of the latents ``x`` in the sampler's scale."""
    if kind == "flow":
        clone = ModelSamplingSD3().patch(model, 1.0)[0]
    else:
        clone = ModelSamplingDiscrete().patch(model, {"v": "v_prediction"}.get(kind, kind), False)[0]

    def network(executor, x, timesteps=None, context=None, y=None, control=None, options=None, **more):
        sigma = float(options["sigmas"].flatten()[0])
        scale = (sigma**2 + 1) ** 0.5
        x = x if kind == "flow" else x * scale
        picture = denoised(x, sigma, context)
        if kind == "v":
            return (x / scale**2 - picture) * scale / sigma
        return (x - picture) / sigma

    kinds = comfy.patcher_extension.WrappersMP
    clone.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "test", network)
    return clone


def ideal(x, sigma, context=None, flow=False):
    """Denoise as is best for data N(0, SPREAD^2)."""
    if not flow:
        return SPREAD**2 / (SPREAD**2 + sigma**2) * x
    noise = sigma / (1 - sigma)
    return SPREAD**2 / (SPREAD**2 + noise**2) * x / (1 - sigma)


def planted(regions, loaded, vae, strength):
    """Return what a white colour plants in all, ``sum_i M_i Xi_i``, of two layers that cover a half each."""
    model, _ = loaded
    white = model.model.process_latent_in(vae.encode(torch.ones(1, 64, 64, 3))).mean((2, 3))
    colour = white / white.square().mean().sqrt()
    return strength * colour[..., None, None].expand(1, 4, 16, 16)


@pytest.fixture(scope="module")
def vae(host):
    return host.value({"loader": node("LD_LoadDemoModel")}, "loader", 2)


@pytest.mark.parametrize("kind", list(LEVELS))
def test_models_of_noise_velocity_and_flow_are_led_alike(regions, loaded, vae, kind):
    """Inside both halves, hard-edged, each cell sees its own layer's colour with a plus."""
    model, clip = loaded
    sigma, flow = LEVELS[kind], kind == "flow"
    given = of_kind(model, kind, lambda x, s, c: ideal(x, s, flow=flow))
    values = {**PLAIN, "colour": "constant", "strength": 0.2, "vae": vae}
    seen = {
        form: once(*render(regions, given, clip, form=form, **values), sigma=sigma, cfg=1.0)
        for form in ("denoised", "paper")
    }
    x, factor = seen["denoised"]["input"], 1.0 if flow else (sigma**2 + 1) ** 0.5
    shift = factor * planted(regions, loaded, vae, 0.2)
    wanted = ideal(x + shift, sigma, flow=flow)
    torch.testing.assert_close(seen["denoised"]["cond"], wanted, atol=1e-4, rtol=1e-4)
    taken = {"eps": 1.0, "v": 1 / (sigma**2 + 1), "flow": 1.0}[kind] * shift
    torch.testing.assert_close(seen["paper"]["cond"], wanted - taken, atol=1e-4, rtol=1e-4)


def test_each_words_prediction_is_seen_where_its_layer_is_by_the_share_of_a_cell(regions, loaded):
    """Layers end in the middle of a cell: 60 of 128 pixels are 7 1/2 cells."""
    model, clip = loaded
    words = {"a red ball": 1.0, "a blue star": 2.0, "a meadow": 4.0}
    known = {value: encode(clip, text)[0][0] for text, value in words.items()}

    def of_words(x, sigma, context):
        values = [
            next((v for v, c in known.items() if torch.allclose(row, c[0].to(row), atol=1e-3)), 8.0)
            for row in context
        ]
        return torch.tensor(values)[:, None, None, None].expand_as(x)

    pair = [
        regions.document.Layer(text, x=left, y=0, width=60, height=128, prompt=text)
        for text, left in (("a red ball", 0), ("a blue star", 68))
    ]
    stack = regions.layers.write_stack(regions.document.LayerDocument(128, 128, tuple(pair)))
    given = of_kind(model, "eps", of_words)
    out = once(*render(regions, given, clip, stack, **{**PLAIN, "prompt": "a meadow"}), cfg=1.0)["cond"]
    columns = torch.tensor([1.0] * 7 + [2.5, 3.0] + [2.0] * 7)
    torch.testing.assert_close(out, columns.expand(1, 4, 16, 16), atol=1e-4, rtol=0)


def test_layers_have_their_own_negatives_and_fast_has_one_for_all(regions, loaded):
    model, clip = loaded
    seen = []

    def keep(x, sigma, context):
        seen.append(context)
        return x

    given = of_kind(model, "eps", keep)
    stack = halves(regions, negative="a white house")
    own, main = (encode(clip, text)[0][0] for text in ("dark, a white house", "dark"))
    for preset, rows in (("faithful", own), ("fast", main)):
        seen.clear()
        out = render(regions, given, clip, stack, **{**PLAIN, "preset": preset, "negative": "dark"})
        once(*out, cfg=3.0)
        contexts = torch.cat(seen)
        assert len(contexts) == {"faithful": 4, "fast": 3}[preset]
        alike = [torch.allclose(row, rows[0].to(row), atol=1e-3) for row in contexts]
        assert sum(alike) == {"faithful": 2, "fast": 1}[preset]
