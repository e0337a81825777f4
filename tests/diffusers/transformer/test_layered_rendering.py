"""Layered rendering on transformers: tiny random weights of every family, through the pipelines' own calls."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tiny_transformers import TINY

from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.rendering.rendering_plan import Rendering
from layered_diffusers.methods.layered_rendering import LayeredRendering
from layered_diffusers.pipeline import TransformerPipeline
from layered_diffusers.sampling import Method
from layered_diffusers.transformer.latents import pack, unpack
from layered_diffusers.transformer.text import encode

MAIN, BALL, STAR, NIGHT = "a red ball and a blue star in the meadow", "a red ball", "a blue star", "at night"
SIZE = {"width": 96, "height": 64}
CELLS = (8, 12)


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


def document(first=BALL, second=STAR, **more):
    """A ball in the left third; a star in the upper half of the middle one, and half of the cells beside it."""
    ball = Layer("ball", torch.ones(64, 32, 4), prompt=first, **more)
    star = Layer("star", torch.ones(32, 36, 4), x=32, prompt=second, **more)
    return LayerDocument(96, 64, (ball, star), prompt=MAIN)


def masks():
    """Return where the background, the ball and the star are seen, ``[3, h, w]``."""
    ball, star = torch.zeros(2, *CELLS)
    ball[:, :4] = 1
    star[:4, 4:8], star[:4, 8] = 1, 0.5
    return torch.stack([1 - ball - star, ball, star])


def noise(seed=0):
    return torch.randn(1, 16, *CELLS, generator=torch.Generator().manual_seed(seed))


def sampled(pipeline, *methods, prompts=(MAIN,), **options):
    options = {"steps": 3, "guidance": 1.0, **SIZE, **options}
    return pipeline.sample_latents(list(prompts), methods=methods, **options)[0]


def rendered(pipeline, documents=None, then=None, prompts=None, negative="", **rendering):
    return pipeline.layered_rendering(
        documents or [document()], Rendering(**rendering), prompts=prompts, negative=negative, then=then
    )


@contextmanager
def stub(pipeline, flow):
    """Let the transformer predict ``flow(text, latents)``, ``[C, h, w]``, noise minus picture, for every row; yield
    the texts and latents that it is asked for."""
    asked, host, transformer = [], pipeline.host, pipeline.model.transformer
    texts = {text: encode(pipeline.model, text).states for text in (MAIN, BALL, STAR, NIGHT, "")}

    def text_of(states):
        return next(t for t, own in texts.items() if own.shape == states.shape and torch.equal(own, states))

    def forward(*given, **named):
        if host.listed:
            latents, states = torch.stack(given[0])[:, :, 0], given[2]
        else:
            latents, states = named["hidden_states"], named["encoder_hidden_states"]
            latents = unpack(latents, CELLS) if host.packed else latents
        rows = [(text_of(s), x) for s, x in zip(states, latents, strict=True)]
        asked.extend(rows)
        out = torch.stack([flow(text, x) for text, x in rows])
        out = -out if host.turned else out
        return (list(out[:, :, None]) if host.listed else pack(out) if host.packed else out,)

    transformer.forward = forward
    try:
        yield asked
    finally:
        del transformer.forward


def by_text(asked):
    """Return the latents of the background's, the ball's and the star's words; texts of one length go together."""
    assert sorted(text for text, _ in asked) == sorted([MAIN, BALL, STAR])
    return torch.stack([dict(asked)[text] for text in (MAIN, BALL, STAR)])


def plane(value):
    return torch.full((16, *CELLS), float(value))


class Noted(Method):
    """Notes the latents after every step."""

    on_transformers = True

    def start(self, run, stack):
        self.latents = []

    def after_step(self, run, index):
        self.latents.append(run.latents.clone())


# --- against the plain run


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_share_0_is_the_plain_run_to_the_bit(pipeline, guidance):
    how = {"guidance": guidance, "negative": NIGHT}
    acted = sampled(pipeline, rendered(pipeline, share=0, negative=NIGHT), **how)
    assert torch.equal(acted, sampled(pipeline, **how))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_one_layer_over_all_with_the_prompts_words_is_the_plain_run(pipeline, preset, guidance):
    whole = LayerDocument(96, 64, (Layer("all", torch.ones(64, 96, 4), prompt=MAIN),), prompt=MAIN)
    method = rendered(pipeline, [whole], negative=NIGHT, strength=0, share=1, preset=preset)
    how = {"guidance": guidance, "negative": NIGHT}
    torch.testing.assert_close(
        sampled(pipeline, method, **how), sampled(pipeline, **how), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("settings", [{}, {"preset": "fast"}, {"colour": "picture"}, {"colour": "noise"}])
def test_two_layers_are_another_picture_than_the_prompt(pipeline, settings):
    plain = sampled(pipeline, guidance=3.0)
    acted = sampled(pipeline, rendered(pipeline, **settings), guidance=3.0)
    assert bool(torch.isfinite(acted).all())
    assert float((acted - plain).abs().max()) > 1e-2
    unled = sampled(
        pipeline, rendered(pipeline, strength=0, preset=settings.get("preset", "faithful")), guidance=3.0
    )
    assert float((acted - unled).abs().max()) > 1e-3


def test_a_model_with_guidance_as_an_input_gets_it_in_every_layers_pass():
    model = made("flux", guidance_embeds=True)
    whole = LayerDocument(96, 64, (Layer("all", torch.ones(64, 96, 4), prompt=MAIN),), prompt=MAIN)
    for true_guidance in (1.0, 3.0):
        model.true_guidance = true_guidance
        how = {"guidance": 5.0, "negative": NIGHT}
        acted = sampled(model, rendered(model, [whole], negative=NIGHT, strength=0, share=1), **how)
        torch.testing.assert_close(acted, sampled(model, **how), atol=2e-5, rtol=1e-5)
        two = sampled(model, rendered(model), guidance=2.0, negative=NIGHT)
        assert float((two - sampled(model, rendered(model), **how)).abs().max()) > 1e-3


# --- what is fused


def test_predictions_are_fused_by_masks_and_by_their_share_of_soft_cells(pipeline):
    values = {MAIN: 1.0, BALL: 2.0, STAR: 5.0}
    with stub(pipeline, lambda text, x: plane(values[text])) as asked:
        out = sampled(pipeline, rendered(pipeline, strength=0, share=1), steps=1)
    assert torch.equal(by_text(asked), noise().repeat(3, 1, 1, 1))
    wanted = (torch.tensor([1.0, 2.0, 5.0])[:, None, None] * masks()).sum(0)
    assert wanted.unique().tolist() == [1.0, 2.0, 3.0, 5.0]
    torch.testing.assert_close(noise() - out, wanted.expand(1, 16, *CELLS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["flux", "sd3", "zimage"])
@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_each_half_of_guidance_is_fused_by_itself(family, preset):
    """With ``fast`` the layers' own negatives are not asked for: the main negative stands for all of them."""
    pipeline = made(family)
    doc = document(negative="")
    doc = LayerDocument(96, 64, (doc.layers[0], Layer("star", torch.ones(32, 36, 4), x=32, prompt=STAR,
                                                      negative=NIGHT)), prompt=MAIN)  # fmt: skip
    values = {MAIN: 1.0, BALL: 2.0, STAR: 5.0, NIGHT: -2.0, "": -1.0}
    with stub(pipeline, lambda text, x: plane(values[text])) as asked:
        out = sampled(
            pipeline, rendered(pipeline, [doc], strength=0, share=1, preset=preset), steps=1, guidance=3.0
        )
    main, ball, star = masks()
    cond = main + 2 * ball + 5 * star
    uncond = -main - ball - 2 * star if preset == "faithful" else torch.full(CELLS, -1.0)
    wanted = uncond + 3 * (cond - uncond)
    torch.testing.assert_close(noise() - out, wanted.expand(1, 16, *CELLS), atol=1e-5, rtol=0)
    assert len(asked) == (6 if preset == "faithful" else 4)


def test_the_words_colour_is_planted_inside_and_its_opposite_outside(pipeline):
    """What the words change in the picture is the opposite of what they change in the flow."""
    colour = {
        BALL: torch.linspace(-1, 2, 16),
        STAR: torch.linspace(3, 1, 16),
        MAIN: torch.ones(16),
        "": torch.zeros(16),
    }

    def flow(text, x):
        return colour[text][:, None, None].expand(16, *CELLS)

    with stub(pipeline, flow) as asked:
        sampled(pipeline, rendered(pipeline, strength=0.3, share=1), steps=1)
    first, then = asked[:4], asked[4:]
    assert sorted(text for text, _ in first) == sorted([MAIN, BALL, STAR, ""])
    assert all(torch.equal(x, noise()[0]) for _, x in first)
    for text, x, mask in zip((MAIN, BALL, STAR), by_text(then), masks(), strict=True):
        unit = -colour[text] / colour[text].square().mean().sqrt()
        planted = 0.0 if text == MAIN else 0.3 * unit[:, None, None] * (2 * mask - 1)
        torch.testing.assert_close(x - noise()[0], planted + torch.zeros_like(x), atol=1e-5, rtol=0)


def test_the_papers_form_takes_out_again_what_was_planted(pipeline):
    """At the first step, of noise alone, it is the whole of it."""
    how = {"share": 1, "strength": 0.3, "colour": "constant"}
    with stub(pipeline, lambda text, x: plane(0)) as asked:
        kept = sampled(pipeline, rendered(pipeline, **how), steps=1)
        planted = by_text(asked) - noise()
        paper = sampled(pipeline, rendered(pipeline, form="paper", **how), steps=1)
    wanted = (masks()[:, None] * planted).sum(0, keepdim=True)
    torch.testing.assert_close(kept - paper, wanted, atol=1e-5, rtol=0)
    assert float(wanted.abs().max()) > 0.1


def test_in_one_step_another_text_of_a_layer_changes_only_its_own_cells(pipeline):
    how = {"strength": 0, "share": 1}
    before = sampled(pipeline, rendered(pipeline, **how), steps=1)
    after = sampled(pipeline, rendered(pipeline, [document(second="a green house")], **how), steps=1)
    changed = (after - before).abs().amax((0, 1))
    seen = masks()[2] > 0
    assert bool((changed[seen] > 1e-5).all())
    assert not bool(changed[~seen].any())


@pytest.mark.parametrize("preset", ["faithful", "fast"])
def test_two_pictures_of_different_documents_are_as_each_alone(pipeline, preset):
    documents = [document(), document("a green house at night", "a ball")]
    prompts = [MAIN, "a green house at night and a ball"]
    how = {"steps": 2, "guidance": 3.0}
    both = rendered(pipeline, documents, prompts=prompts, share=0.9, preset=preset)
    together = sampled(pipeline, both, prompts=prompts, seeds=[3, 4], **how)
    for i in range(2):
        alone = rendered(pipeline, [documents[i]], prompts=[prompts[i]], share=0.9, preset=preset)
        one = sampled(pipeline, alone, prompts=[prompts[i]], seeds=[3 + i], **how)
        torch.testing.assert_close(together[i : i + 1], one, atol=5e-5, rtol=1e-5)


def test_when_memory_ends_rows_go_in_parts_to_the_same_picture(pipeline):
    wanted = sampled(pipeline, rendered(pipeline), guidance=3.0)
    transformer, sizes = pipeline.model.transformer, []
    own = type(transformer).forward

    def small(*given, **named):
        count = len(given[0] if pipeline.host.listed else named["hidden_states"])
        if count > 2:
            raise torch.OutOfMemoryError
        sizes.append(count)
        return own(transformer, *given, **named)

    transformer.forward = small
    try:
        out = sampled(pipeline, rendered(pipeline), guidance=3.0)
    finally:
        del transformer.forward
    torch.testing.assert_close(out, wanted, atol=5e-5, rtol=1e-5)
    assert 1 in sizes


# --- what follows


def test_regions_that_follow_act_after_the_share_alone(pipeline):
    how = {"steps": 4, "guidance": 3.0}
    regions = pipeline.regional_prompts([document()], Settings(guidance=2.0))
    alone, followed, regional = Noted(), Noted(), Noted()
    share = {"flux": 0.5, "sd3": 0.3, "qwen": 0.5, "zimage": 0.3}[pipeline.host.key]
    sampled(pipeline, rendered(pipeline, share=share), alone, **how)
    sampled(pipeline, rendered(pipeline, share=share, then=regions), followed, **how)
    sampled(pipeline, regions, regional, **how)
    same = [torch.equal(a, b) for a, b in zip(alone.latents, followed.latents, strict=True)]
    assert same in ([True, False, False, False], [True, True, False, False])
    assert not torch.equal(regional.latents[0], followed.latents[0])
    whole, never = rendered(pipeline, share=1), rendered(pipeline, share=1, then=regions)
    assert torch.equal(sampled(pipeline, whole, **how), sampled(pipeline, never, **how))


def test_a_layer_without_freedom_keeps_its_pixels_while_the_others_are_rendered(pipeline):
    doc = document()
    kept = torch.rand(64, 32, 4, generator=torch.Generator().manual_seed(2)).mul(255).round() / 255
    kept[..., 3] = 1
    ball = Layer("ball", kept, prompt=BALL, recipe=Recipe(noise=0))
    doc = LayerDocument(96, 64, (ball, doc.layers[1]), prompt=MAIN)
    how = {"steps": 3, "guidance": 3.0, "attention": None}
    out = pipeline.harmonize(doc, rendering=Rendering(share=0.9), **how)
    pixels = torch.from_numpy(np.array(out.crop((0, 0, 32, 64)))).float() / 255
    assert torch.equal(pixels, kept[..., :3])
    assert out.tobytes() != pipeline.harmonize(doc, **how).tobytes()


def test_a_share_counts_from_the_start_of_the_run_that_is_left(flux):
    start = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    asked = []
    own = type(flux.model.transformer).forward

    def counted(*given, **named):
        asked.append(len(named["hidden_states"]))
        return own(flux.model.transformer, *given, **named)

    flux.model.transformer.forward = counted
    try:
        sampled(flux, rendered(flux, share=0.01, strength=0), start=start, strength=0.5, steps=4)
    finally:
        del flux.model.transformer.forward
    assert asked == [3, 1]


def test_the_transformer_is_as_before_also_after_an_error(pipeline):
    def stop(done, of):
        raise RuntimeError("stopped")

    transformer = pipeline.model.transformer
    plain = sampled(pipeline)
    with pytest.raises(RuntimeError, match="stopped"):
        sampled(pipeline, rendered(pipeline), progress=stop)
    with stub(pipeline, lambda text, x: plane(0)):
        transformer.forward = lambda *given, **named: stop(0, 0)
        with pytest.raises(RuntimeError, match="stopped"):
            sampled(pipeline, rendered(pipeline))
    assert "forward" not in vars(transformer)
    assert not transformer._forward_pre_hooks
    assert torch.equal(sampled(pipeline), plain)


def test_a_forward_that_another_library_put_there_is_put_back(flux):
    transformer = flux.model.transformer
    own = type(transformer).forward.__get__(transformer)
    transformer.forward = own
    try:
        sampled(flux, rendered(flux), steps=1)
        assert vars(transformer)["forward"] is own
    finally:
        del transformer.forward


# --- refusals and notes


def test_words_that_the_model_cannot_read_are_named_with_their_layer(pipeline):
    with pytest.raises(
        LayeredError, match=r"layer 'ball': its words have \d+ tokens; allowed: at most \d+ with"
    ):
        sampled(pipeline, rendered(pipeline, [document("ball " * 1200)]))


def test_an_embedding_of_a_layer_is_refused_unless_no_step_is_rendered(flux):
    doc = document(recipe=Recipe(embedding="krk"))
    with pytest.raises(LayeredError, match="layer 'ball': its embedding 'krk' needs a model with a UNet"):
        rendered(flux, [doc])
    assert torch.equal(sampled(flux, rendered(flux, [doc], share=0)), sampled(flux))


def test_regions_beside_it_are_refused_with_the_way_to_let_them_follow(flux):
    with pytest.raises(
        LayeredError, match="methods is 'JointPrompts and TransformerRendering'; .* its 'then'"
    ):
        sampled(flux, flux.regional_prompts([document()]), rendered(flux))


def test_the_method_for_unets_is_refused(flux):
    method = LayeredRendering(flux.model, flux.encode, [document()], Rendering())
    with pytest.raises(
        LayeredError, match="methods is 'LayeredRendering'; allowed: methods that act on transformers"
    ):
        sampled(flux, method)


def test_documents_must_be_one_or_one_a_picture(flux):
    with pytest.raises(
        LayeredError, match="documents is 2; allowed: one, or one for each picture, that is 3"
    ):
        sampled(flux, rendered(flux, [document()] * 2), prompts=[MAIN] * 3)


def test_negatives_without_guidance_are_told(flux, caplog):
    sampled(flux, rendered(flux, [document(negative=NIGHT)]), steps=1)
    assert "Classifier-free guidance is off, so negative prompts have no effect" in caplog.text
