"""Regional prompts on transformers: tiny random weights of every family, through the pipelines' own calls."""

from dataclasses import replace

import pytest
import torch
from tiny_transformers import TINY

from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.regional_plan import Settings
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_diffusers.pipeline import TransformerPipeline
from layered_diffusers.transformer.latents import pack
from layered_diffusers.transformer.text import encode

MAIN = "a red ball and a blue star in the meadow"
SIZE = {"width": 96, "height": 64}


@pytest.fixture(scope="module", params=list(TINY))
def pipeline(request):
    return made(request.param)


def made(family, **more):
    model = TINY[family](**more)
    model.set_progress_bar_config(disable=True)
    return TransformerPipeline(model, side=96)


def document(first="a red ball", second="a blue star", **recipe):
    """Two layers beside each other; the right third of the canvas shows none."""
    ball = Layer("ball", torch.ones(64, 32, 4), prompt=first, recipe=Recipe(**recipe))
    star = Layer("star", torch.ones(32, 32, 4), x=32, prompt=second, recipe=Recipe(**recipe))
    return LayerDocument(96, 64, (ball, star))


def sampled(pipeline, *methods, prompts=(MAIN,), **options):
    options = {"steps": 2, "guidance": 1.0, **SIZE, **options}
    return pipeline.sample_latents(list(prompts), methods=methods, **options)[0]


def regional(pipeline, documents=None, prompts=(MAIN,), **settings):
    return pipeline.regional_prompts(documents or [document()], Settings(**settings), prompts=prompts)


def planned(method, *regions, half="cond"):
    """Let a method act by other regions of one half."""
    method.plans = [replace(method.plans[0], **{half: tuple(regions)})]
    return method


@pytest.mark.parametrize("mode", ["regions", "joint", "eligen", "collage", "paint with words"])
def test_every_mode_acts_and_gives_numbers(pipeline, mode):
    plain = sampled(pipeline)
    acted = sampled(pipeline, regional(pipeline, mode=mode))
    assert bool(torch.isfinite(acted).all())
    assert float((acted - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_a_region_that_is_masked_everywhere_is_as_if_absent(pipeline, mode):
    ball, star = regional(pipeline, mode=mode).plans[0].cond
    hidden = replace(star, mask=torch.zeros_like(star.mask), outside=0.0)
    with_it = sampled(pipeline, planned(regional(pipeline, mode=mode), ball, hidden))
    without = sampled(pipeline, planned(regional(pipeline, mode=mode), ball))
    torch.testing.assert_close(with_it, without, atol=1e-5, rtol=0)
    assert float((without - sampled(pipeline)).abs().max()) > 1e-3


@pytest.mark.parametrize("family", list(TINY))
def test_in_one_block_another_text_changes_only_its_own_pixels(family):
    pipeline = made(family, layers=1)
    settings = {"mode": "regions", "emphasis": 0.0}
    before = sampled(pipeline, regional(pipeline, [document(outside=0)], **settings), steps=1)
    other = regional(pipeline, [document(second="a green house at night", outside=0)], **settings)
    changed = (sampled(pipeline, other, steps=1) - before).abs().amax((0, 1))
    inside = torch.zeros(8, 12, dtype=torch.bool)
    inside[:4, 4:8] = True
    assert bool((changed[inside] > 1e-5).all())
    assert not bool(changed[~inside].any())


@pytest.mark.parametrize("settings", [{"start": 1.0, "end": 1.0}, {"strength": 0.0}])
def test_outside_the_window_and_at_strength_0_the_run_is_the_plain_one_to_the_bit(pipeline, settings):
    assert torch.equal(sampled(pipeline, regional(pipeline, **settings)), sampled(pipeline))


def test_after_the_window_the_steps_are_plain(pipeline):
    """The second of two steps alone equals the rest of a run whose window ended."""
    windowed = sampled(pipeline, regional(pipeline, end=0.02))
    assert float((windowed - sampled(pipeline)).abs().max()) > 1e-4
    assert float((windowed - sampled(pipeline, regional(pipeline))).abs().max()) > 1e-4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_two_pictures_of_different_documents_are_as_each_alone(pipeline, guidance):
    documents = [document(), document("a green house at night", "a ball")]
    prompts = [MAIN, "a green house at night and a ball"]
    both = sampled(
        pipeline, regional(pipeline, documents, prompts), prompts=prompts, seeds=[3, 4], guidance=guidance
    )
    for i in range(2):
        alone = sampled(
            pipeline, regional(pipeline, [documents[i]], [prompts[i]]), prompts=[prompts[i]], seeds=[3 + i],
            guidance=guidance,
        )  # fmt: skip
        torch.testing.assert_close(both[i : i + 1], alone, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(88, 56), (40, 72), (16, 16)])
def test_odd_sizes_come_out_as_asked(pipeline, size):
    out = pipeline.generate(
        [MAIN], width=size[0], height=size[1], steps=1, guidance=1.0, methods=[regional(pipeline)]
    )
    assert tuple(out.shape) == (1, 3, size[1], size[0])
    assert bool(torch.isfinite(out).all())


def test_guidance_with_a_layers_own_negative_is_both_halves_run_apart(pipeline):
    doc = document()
    ball = replace(doc.layers[0], negative="a green house")
    doc = replace(doc, layers=(ball, doc.layers[1]))
    method = pipeline.regional_prompts([doc], Settings(), prompts=[MAIN], negative="at night")
    plan = method.plans[0]
    assert [r.text for r in plan.uncond] == ["at night, a green house"]
    together = sampled(pipeline, method, steps=1, guidance=3.0, negative="at night")
    cond, uncond, noise = velocities(pipeline, method, plan)
    torch.testing.assert_close(together, noise - guided(pipeline, cond, uncond, 3.0), atol=2e-5, rtol=1e-5)
    without = sampled(pipeline, regional(pipeline), steps=1, guidance=3.0, negative="at night")
    assert float((together - without).abs().max()) > 1e-3


def velocities(pipeline, method, plan):
    """Return what the model predicts for cond and for uncond, each run apart as cond, and the noise."""
    noise = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    cond = sampled(pipeline, planned(method, *plan.cond), steps=1)
    uncond = sampled(pipeline, planned(method, *plan.uncond), steps=1, prompts=["at night"])
    return noise - cond, noise - uncond, noise


def guided(pipeline, cond, uncond, scale):
    """Guide as the pipeline does: Qwen-Image's keeps the length of the conditional prediction."""
    found = uncond + scale * (cond - uncond)
    if pipeline.host.key == "qwen":
        lengths = [pack(x).norm(dim=-1).view(1, 1, 4, 6) for x in (cond, found)]
        found = found * (lengths[0] / lengths[1]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return found


def test_more_guidance_inside_layers_is_that_factor_on_the_scale(pipeline):
    method = regional(pipeline, guidance=4.0)
    plan = method.plans[0]
    more = sampled(pipeline, method, steps=1, guidance=3.0, negative="at night")
    cond, uncond, noise = velocities(pipeline, regional(pipeline), plan)
    factor = torch.ones(8, 12)
    for region in plan.cond:
        mask = torch.nn.functional.avg_pool2d(region.mask[None], 8)[0]
        factor += 3 * mask * (1 - region.mask.mean()) * region.guided
    wanted = noise - guided(pipeline, cond, uncond, 3.0 * factor)
    torch.testing.assert_close(more, wanted, atol=5e-5, rtol=1e-4)
    assert float((more - sampled(pipeline, regional(pipeline), steps=1, guidance=3.0)).abs().max()) > 1e-3


@pytest.mark.parametrize("family", ["qwen", "zimage"])
def test_a_regions_text_stands_where_it_would_stand_as_the_prompt(family):
    """A region that is all of the picture gives what its text gives as the prompt. Texts and picture have as
    many tokens as Z-Image fills up to, so that no padding is read."""
    pipeline, size = made(family), {"width": 128, "height": 64}
    frame = len(encode(pipeline.model, "").own)
    main, text = (" ".join([word] * (32 - frame)) for word in ("night", "star"))
    ball = regional(pipeline, [document(text)], [main], emphasis=0.0, global_weight=0.0).plans[0].cond[0]
    whole = replace(ball, mask=torch.ones_like(ball.mask))
    method = regional(pipeline, [document(text)], [main], emphasis=0.0, global_weight=0.0)
    acted = sampled(pipeline, planned(method, whole), prompts=[main], **size)
    torch.testing.assert_close(acted, sampled(pipeline, prompts=[text], **size), atol=2e-5, rtol=1e-5)
    assert float((acted - sampled(pipeline, prompts=[main], **size)).abs().max()) > 1e-2


def test_attention_to_words_is_recorded_without_changing_the_run(pipeline):
    maps = AttentionMaps(["ball", "star"])
    method = pipeline.regional_prompts([document()], Settings(strength=0), prompts=[MAIN], maps=maps)
    torch.testing.assert_close(sampled(pipeline, method), sampled(pipeline), atol=1e-5, rtol=0)
    found = maps.mean((4, 6))
    assert tuple(found.shape[-3:]) == (2, 4, 6)
    assert 0 < float(found.min()) < float(found.max()) < 1


def test_layers_words_reach_their_places(pipeline):
    """The words of both layers are found in the prompt, at the tokens that spell them."""
    plan = regional(pipeline).plans[0]
    assert [len(r.words) for r in plan.cond] == [3, 3]
    assert len({i for r in plan.cond for i in r.words}) == 6


# --- refusals


def test_a_text_that_the_model_cannot_read_is_named(pipeline):
    long = "ball " * 1200
    with pytest.raises(
        LayeredError, match=r"layer 'ball': its words have \d+ tokens; allowed: at most \d+ with"
    ):
        regional(pipeline, [document(long)])


def test_a_compiled_transformer_is_refused():
    pipeline = made("flux")
    pipeline.model.transformer.compile(backend="eager")
    with pytest.raises(LayeredError, match="FluxTransformer2DModel is compiled"):
        sampled(pipeline)


def test_another_attention_backend_is_refused():
    pipeline = made("qwen")
    pipeline.model.transformer.set_attention_backend("_native_math")
    try:
        with pytest.raises(LayeredError, match="backend of QwenImageTransformer2DModel is '_native_math'"):
            sampled(pipeline)
    finally:  # diffusers remembers it for all models
        pipeline.model.transformer.set_attention_backend("native")
    sampled(pipeline)


def test_rescaled_guidance_is_refused(pipeline):
    with pytest.raises(LayeredError, match="rescale is 0.5; allowed: 0 on transformers"):
        regional(pipeline, rescale=0.5)


def test_an_embedding_of_a_layer_is_refused(pipeline):
    with pytest.raises(LayeredError, match="layer 'ball': its embedding 'krk' needs a model with a UNet"):
        regional(pipeline, [document(embedding="krk")])


def test_negatives_without_guidance_are_told(pipeline, caplog):
    sampled(pipeline, regional(pipeline, guidance=2.0), steps=1)
    assert "Classifier-free guidance is off" in caplog.text


def test_hooks_are_gone_after_an_error(pipeline):
    def stop(done, of):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        sampled(pipeline, regional(pipeline), progress=stop)
    transformer = pipeline.model.transformer
    assert not transformer._forward_pre_hooks
    assert not transformer._forward_hooks
    assert "patchify_and_embed" not in vars(transformer)
    plain = sampled(pipeline)
    assert torch.equal(plain, sampled(made(pipeline.host.key)))


def test_layers_too_small_to_act_are_told(pipeline, caplog):
    dot = Layer("dot", torch.ones(1, 1, 4), x=2, y=2, prompt="a ball", recipe=Recipe(inside=0.5))
    big = Layer("big", torch.ones(64, 64, 4), x=32, prompt="a star")
    sampled(pipeline, regional(pipeline, [LayerDocument(96, 64, (dot, big))]), steps=1)
    assert "The words of layers 'dot' do not act" in caplog.text
