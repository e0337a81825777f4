"""Regional prompts on diffusers UNets: the shipped model shows the effect on pictures, tiny random models
stand for other families."""

import copy
from contextlib import ExitStack

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from layered_core.attention import regional_attention, tiles
from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.regional_plan import REGION_MODES, Settings
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_diffusers.methods.regional_attention import RegionalPrompts
from layered_diffusers.pipeline import PLACES, LayeredDiffusionPipeline
from layered_diffusers.sampling import Method, Run


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def halves(left="a red ball", right="a blue star", **more):
    layers = tuple(
        Layer(x, x=64 * i, y=0, width=64, height=128, prompt=x) for i, x in enumerate((left, right))
    )
    return LayerDocument(128, 128, layers, prompt=f"{left} and {right} in a meadow", **more)


def sampled(pipeline, document, settings, steps=4, seeds=(0,), guidance=3.0, **more):
    method = RegionalPrompts(pipeline.model, [document], settings, **more)
    prompts = method.prompts * len(seeds)
    return pipeline.generate(
        prompts, negative=method.negative, seeds=list(seeds), steps=steps, guidance=guidance, methods=[method]
    )


@pytest.mark.parametrize("mode", REGION_MODES)
def test_strength_zero_and_no_layers_are_the_plain_prompt_to_the_bit(pipeline, mode):
    settings = Settings(mode=mode, strength=0, auto_negative=True)
    plain = pipeline.generate([halves().prompt], negative="dark", seeds=[0], steps=3)
    assert torch.equal(sampled(pipeline, halves(negative="dark"), settings, steps=3), plain)
    assert torch.equal(
        sampled(
            pipeline,
            LayerDocument(128, 128, prompt=halves().prompt, negative="dark"),
            Settings(mode=mode),
            steps=3,
        ),
        plain,
    )


@pytest.mark.parametrize("mode", REGION_MODES)
def test_the_processors_are_gone_afterwards_also_after_an_error(pipeline, mode):
    class Broken(Method):
        def after_step(self, run, index):
            raise RuntimeError("broken on purpose")

    before = pipeline.generate(["a red ball"], seeds=[1], steps=2)
    method = RegionalPrompts(pipeline.model, [halves()], Settings(mode=mode))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        pipeline.generate(method.prompts, seeds=[1], steps=2, methods=[method, Broken()])
    assert {type(p) for p in pipeline.model.unet.attn_processors.values()} == {AttnProcessor2_0}
    assert torch.equal(pipeline.generate(["a red ball"], seeds=[1], steps=2), before)


def test_words_change_their_side_more_than_the_other(pipeline):
    a, b = (
        sampled(pipeline, halves(right=x), Settings(global_weight=0), steps=8)
        for x in ("a blue star", "a yellow house")
    )
    change = (a - b).abs().mean((0, 1, 2))
    assert float(change[80:].mean()) > 2 * float(change[:48].mean())


def test_pictures_of_a_batch_have_documents_of_their_own(pipeline):
    documents = [halves(), halves("a green tree", "a white house")]
    method = RegionalPrompts(pipeline.model, documents)
    together = pipeline.generate(method.prompts, seeds=[3, 4], steps=3, methods=[method])
    for i, document in enumerate(documents):
        torch.testing.assert_close(
            sampled(pipeline, document, None, steps=3, seeds=[3 + i])[0], together[i], atol=2e-4, rtol=0
        )


def test_a_batch_of_one_document_is_its_pictures(pipeline):
    together = sampled(pipeline, halves(), None, steps=3, seeds=(3, 4))
    torch.testing.assert_close(
        sampled(pipeline, halves(), None, steps=3, seeds=(4,))[0], together[1], atol=2e-4, rtol=0
    )


def test_documents_must_be_one_or_one_a_picture(pipeline):
    method = RegionalPrompts(pipeline.model, [halves()] * 2)
    with pytest.raises(
        LayeredError, match="documents is 2; allowed: one, or one for each picture, that is 3"
    ):
        pipeline.generate(["a red ball"] * 3, steps=1, methods=[method])


def test_start_and_end_bound_what_acts(pipeline):
    late = sampled(pipeline, halves(), Settings(start=0.999, end=1.0), steps=3)
    never = pipeline.generate([halves().prompt], seeds=[0], steps=3)
    assert torch.equal(late, never)
    assert not torch.equal(sampled(pipeline, halves(), Settings(end=0.5), steps=3), never)


def test_guidance_in_layers_acts_unless_there_is_nothing_to_be_guided_away_from(pipeline):
    def made(guidance, cfg, **more):
        return sampled(pipeline, halves(), Settings(guidance=guidance, **more), steps=3, guidance=cfg)

    assert not torch.equal(made(4, 3.0), made(1, 3.0))
    assert torch.equal(made(4, 1.0), made(1, 1.0))
    assert torch.equal(made(4, 3.0, strength=0), made(1, 3.0, strength=0))
    assert torch.equal(made(4, 3.0, start=0.999), made(1, 3.0, start=0.999))


def test_rescaling_layers_acts_unless_there_is_nothing_to_rescale(pipeline):
    def made(rescale, cfg, **more):
        return sampled(pipeline, halves(), Settings(rescale=rescale, **more), steps=3, guidance=cfg)

    plain = sampled(pipeline, halves(), Settings(), steps=3)
    assert torch.equal(made(0.0, 3.0), plain)
    assert not torch.equal(made(0.7, 3.0), plain)
    assert torch.equal(made(0.7, 1.0), made(0.0, 1.0))
    assert torch.equal(made(0.7, 3.0, strength=0), made(0.0, 3.0, strength=0))
    assert torch.equal(made(0.7, 3.0, start=0.999), made(0.0, 3.0, start=0.999))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_models_of_every_prediction_type_are_rescaled_alike_and_in_layers_alone(pipeline, kind):
    """A run that only looks at one step: what it predicts of the picture is rescaled by the formula."""
    layer = Layer("left", x=0, y=0, width=64, height=128, prompt="a red ball")
    document = LayerDocument(128, 128, (layer,), prompt="a meadow")
    method = RegionalPrompts(pipeline.model, [document], Settings(rescale=0.6))
    scheduler = copy.deepcopy(pipeline.model.scheduler)
    scheduler.register_to_config(prediction_type=kind)
    x, guided, cond = torch.randn(3, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([700])
    run = Run(
        unet=pipeline.model.unet, scheduler=scheduler, timesteps=timesteps, latents=x, noise=x,
        context=torch.zeros(4, 1, 1), guidance=3.0,
    )  # fmt: skip
    alpha = float(scheduler.alphas_cumprod[700])
    a, s = alpha**0.5, (1 - alpha) ** 0.5

    def picture(p):
        return {"epsilon": (x - s * p) / a, "v_prediction": a * x - s * p, "sample": p}[kind]

    with ExitStack() as stack:
        method.start(run, stack)
        method.before_step(run, 0)
        got = method.guided(run, 3 * guided, cond, x, 0)
    before, wanted = picture(3 * guided)[..., :8], picture(cond)[..., :8]
    dims = (1, 2, 3)
    factor = wanted.std(dims, keepdim=True) / before.std(dims, keepdim=True)
    torch.testing.assert_close(picture(got)[..., :8], before * (0.6 * factor + 0.4), atol=1e-4, rtol=1e-4)
    assert torch.equal(got[..., 8:], 3 * guided[..., 8:])


def test_every_picture_of_a_batch_is_rescaled_by_its_own_document(pipeline):
    documents = [
        halves(),
        LayerDocument(128, 128, prompt="a meadow"),
        halves("a green tree", "a white house"),
    ]
    settings = Settings(guidance=4, rescale=0.7)
    method = RegionalPrompts(pipeline.model, documents, settings)
    together = pipeline.generate(method.prompts, seeds=[3, 4, 5], steps=3, methods=[method])
    for i, document in enumerate(documents):
        alone = sampled(pipeline, document, settings, steps=3, seeds=[3 + i])[0]
        torch.testing.assert_close(alone, together[i], atol=5e-4, rtol=0)


def test_every_picture_of_a_batch_is_guided_by_its_own_document(pipeline):
    documents = [
        halves(),
        LayerDocument(128, 128, prompt="a meadow"),
        halves("a green tree", "a white house"),
    ]
    method = RegionalPrompts(pipeline.model, documents, Settings(guidance=4))
    together = pipeline.generate(method.prompts, seeds=[3, 4, 5], steps=3, methods=[method])
    for i, document in enumerate(documents):
        alone = sampled(pipeline, document, Settings(guidance=4), steps=3, seeds=[3 + i])[0]
        torch.testing.assert_close(alone, together[i], atol=5e-4, rtol=0)


@pytest.mark.parametrize("words", [1, 30, 400])
def test_prompts_of_any_length_act(pipeline, words):
    """Both halves have the words, which get all of the attention: as with them for a prompt."""
    long, dark = " ".join(["a blue star"] * words), " ".join(["dark"] * words)
    layers = tuple(Layer(str(i), x=64 * i, y=0, width=64, height=128, prompt=long) for i in range(2))
    method = RegionalPrompts(
        pipeline.model,
        [LayerDocument(128, 128, layers, negative=dark)],
        Settings(global_weight=0, emphasis=0),
        prompts=["in a meadow"],
    )
    out = pipeline.generate(method.prompts, negative=method.negative, seeds=[0], steps=1, methods=[method])
    wanted = pipeline.generate([long], negative=dark, seeds=[0], steps=1)
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=0)
    assert float((wanted - pipeline.generate(method.prompts, seeds=[0], steps=1)).abs().max()) > 1e-3


def test_a_prompt_of_two_thousand_words_is_read_to_its_end(pipeline):
    far = " ".join(["a"] * 2000)
    a, b = (pipeline.generate([f"{far} {x} ball"], seeds=[0], steps=1) for x in ("red", "blue"))
    assert not torch.equal(a, b)


@pytest.mark.parametrize(("width", "height"), [(160, 96), (101, 67), (64, 200)])
def test_any_aspect_ratio_works(pipeline, width, height):
    method = RegionalPrompts(pipeline.model, [halves()])
    out = pipeline.generate(method.prompts, width=width, height=height, steps=1, methods=[method])
    assert out.shape[-2:] == (height, width)
    assert not torch.equal(out, pipeline.generate(method.prompts, width=width, height=height, steps=1))


def test_a_processor_installed_before_keeps_its_effect(pipeline):
    class Louder(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, *more, **named):
            return super().__call__(attn, hidden_states, encoder_hidden_states, *more, **named) * 1.5

    unet = pipeline.model.unet
    before = unet.attn_processors
    try:
        unet.set_attn_processor({name: Louder() if ".attn2." in name else p for name, p in before.items()})
        louder = pipeline.generate([halves().prompt], seeds=[0], steps=2)
        assert torch.equal(sampled(pipeline, halves(), Settings(strength=0), steps=2), louder)
        # These regions hardly act, so what is left is the effect of the other method.
        weak = sampled(pipeline, halves(), Settings(strength=1e-4), steps=2)
        torch.testing.assert_close(weak, louder, atol=0.02, rtol=0)
    finally:
        unet.set_attn_processor(before)


def test_maps_show_each_layers_words_on_its_side(pipeline):
    maps = AttentionMaps(["a red ball", "a blue star"])
    sampled(pipeline, halves(), Settings(), maps=maps)
    left, right = maps.mean((16, 16))[0]
    assert float(left[:, :8].mean()) > 3 * float(left[:, 8:].mean())
    assert float(right[:, 8:].mean()) > 3 * float(right[:, :8].mean())


def test_maps_of_a_plain_run_change_no_bit(pipeline):
    maps = AttentionMaps(["a red ball", "a blue star"])
    watched = sampled(pipeline, halves(), Settings(strength=0), maps=maps)
    assert torch.equal(watched, pipeline.generate([halves().prompt], seeds=[0], steps=4))
    assert maps


def test_render_takes_regions_and_does_so_by_itself(pipeline):
    plain, regional, default = (
        pipeline.render(halves(), strength=1.0, steps=2, **how)
        for how in ({"attention": None}, {"attention": PLACES}, {})
    )
    assert plain.tobytes() != regional.tobytes() == default.tobytes()
    assert (
        pipeline.render(halves(), strength=1.0, steps=2, attention=Settings(strength=0)).tobytes()
        == plain.tobytes()
    )


def test_the_gathered_result_equals_every_region_computed_everywhere_in_the_whole_model(
    pipeline, monkeypatch
):
    gathered = sampled(pipeline, halves(), Settings(), steps=3)
    cut = tiles.tile
    calls = []

    def one_tile_a_layer(weights, tokens):
        calls.append(1)
        everywhere = cut(torch.ones_like(weights), tokens)
        return [
            tiles.Tiles(
                g.layers, g.owner, g.rows, weights[list(g.layers)][g.owner[:, None], g.rows], g.rounds
            )
            for g in everywhere
        ]

    monkeypatch.setattr(regional_attention, "tile", one_tile_a_layer)
    # Emphasis is relative to a maximum over the layer's pixels, so this comparison leaves it out.
    dense = sampled(pipeline, halves(), Settings(emphasis=0), steps=3)
    monkeypatch.undo()
    assert calls
    torch.testing.assert_close(
        dense, sampled(pipeline, halves(), Settings(emphasis=0), steps=3), atol=1e-4, rtol=0
    )
    assert not torch.equal(gathered, dense)
