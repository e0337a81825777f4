"""The plan of a document, and its effect on a run."""

import math
import re
from dataclasses import replace

import pytest
import torch

from layered_core.attention import tiles
from layered_core.attention.attention_maps import AttentionMaps
from layered_core.attention.cross_attention import plain
from layered_core.attention.regional_attention import RegionalAttention
from layered_core.attention.regional_plan import REGION_MODES, Settings, plan_regions, plan_watching
from layered_core.attention.words import Token
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.noise.guidance import FORMING

HEADS, CHANNELS, TOKENS = 2, 16, 9


def tokenise(text):
    return [Token(w, i + 1) for i, w in enumerate(re.findall(r"\w+|[^\w\s]", text))]


def box(name, x, prompt="", **more):
    return Layer(name, x=x, y=0, width=16, height=32, prompt=prompt, **more)


def pair(**more):
    return LayerDocument(32, 32, (box("ball", 0, "a red ball"), box("star", 16, "a blue star")), **more)


class Block:
    """A cross-attention with weights of its own."""

    def __init__(self, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.to_k, self.to_v = (torch.randn(CHANNELS, CHANNELS, generator=g) / 4 for _ in "kv")
        self.q = torch.randn(2, 64, CHANNELS, generator=g)
        self.main = torch.randn(2, TOKENS, CHANNELS, generator=g)
        self.projections = 0

    def project(self, x):
        self.projections += 1
        return x @ self.to_k, x @ self.to_v

    def run(self, attention, sigma=5.0, block="b", main=None, attend=None):
        main = self.main if main is None else main
        k, v = main @ self.to_k, main @ self.to_v
        base = plain(HEADS)(self.q, k, v, None)
        out = attention(
            self.q, k, v, base, size=(8, 8), sigma=sigma, heads=HEADS, block=block, project=self.project,
            attend=attend or plain(HEADS)
        )  # fmt: skip
        return out, base


def prepared(plan, settings, half="cond", tokens=TOKENS, **more):
    regions = getattr(plan, half)
    contexts = [
        torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(len(r.text)))
        if r.text
        else None
        for r in regions
    ]
    return RegionalAttention(regions, settings, contexts, tokens, **more)


@pytest.mark.parametrize("mode", REGION_MODES)
def test_strength_zero_is_the_plain_prompt_to_the_bit(mode):
    settings = Settings(mode=mode, strength=0)
    out, base = Block().run(
        prepared(
            plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise), settings
        )
    )
    assert out is base


@pytest.mark.parametrize("mode", REGION_MODES)
def test_every_mode_acts(mode):
    settings = Settings(mode=mode)
    out, base = Block().run(
        prepared(
            plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise), settings
        )
    )
    assert float((out - base).abs().max()) > 1e-3


def test_no_layers_is_the_plain_prompt():
    plan = plan_regions(LayerDocument(32, 32), Settings(), "a meadow", "dark", tokenise)
    assert (plan.prompt, plan.negative, plan.cond, plan.uncond) == ("a meadow", "dark", (), ())


def test_hidden_empty_and_wordless_layers_are_no_regions():
    document = LayerDocument(
        32, 32,
        (
            box("hidden", 0, "a tree", visible=False), box("nowhere", 0, "a house", mask=torch.zeros(4, 4)),
            box("mute", 0),
            box("covered", 16, "a heart"), box("star", 16, "a blue star"),
        ),
    )  # fmt: skip
    assert [r.name for r in plan_regions(document, Settings(), "", "", tokenise).cond] == ["star"]


def test_an_empty_prompt_is_the_documents_own_words():
    assert plan_regions(pair(), Settings(), " ", "", tokenise).prompt == "a blue star, a red ball"
    plan = plan_regions(pair(prompt="two things", negative="dark"), Settings(), "", "", tokenise)
    assert (plan.prompt, plan.negative) == ("two things", "dark")


@pytest.mark.parametrize("mode", ["collage", "paint with words"])
def test_words_that_the_prompt_lacks_are_named_or_appended(mode):
    with pytest.raises(
        LayeredError, match=r"layer 'star': its words 'a blue star' were not found in the prompt\..*append"
    ):
        plan_regions(pair(), Settings(mode=mode), "a red ball", "", tokenise)
    plan = plan_regions(pair(), Settings(mode=mode, append=True), "a red ball", "", tokenise)
    assert plan.prompt == "a red ball, a blue star"
    assert [r.words for r in plan.cond] == [(1, 2, 3), (5, 6, 7)]


@pytest.mark.parametrize("mode", ["collage", "paint with words"])
@pytest.mark.parametrize("append", [False, True])
def test_strength_zero_leaves_the_prompt_as_it_is_unless_words_are_recorded(mode, append):
    settings = Settings(mode=mode, strength=0, append=append)
    plan = plan_regions(pair(), settings, "a meadow", "", tokenise)
    assert plan.prompt == "a meadow"
    assert not any(r.acts for r in plan.cond)
    if append:
        recorded = plan_regions(pair(), settings, "a red ball", "", tokenise, record=True)
        assert (recorded.prompt, [r.words for r in recorded.cond]) == (
            "a red ball, a blue star",
            [(1, 2, 3), (5, 6, 7)],
        )
    else:
        with pytest.raises(LayeredError, match="words 'a red ball' were not found in the prompt"):
            plan_regions(pair(), settings, "a meadow", "", tokenise, record=True)


def test_unclear_words_are_named():
    with pytest.raises(
        LayeredError,
        match=r"layer 'ball': its words 'a red ball' were found 2 times in the prompt; allowed: once.*longer",
    ):
        plan_regions(pair(), Settings(mode="collage"), "a red ball, a red ball, a blue star", "", tokenise)


@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_regions_need_no_word_in_the_prompt(mode):
    assert [r.text for r in plan_regions(pair(), Settings(mode=mode), "a meadow", "", tokenise).cond] == [
        "a red ball",
        "a blue star",
    ]


def test_negatives_act_in_their_regions_alone():
    document = LayerDocument(
        32, 32, (box("ball", 0, "a red ball", negative="dots"), box("star", 16, "a blue star"))
    )
    plan = plan_regions(document, Settings(), "", "dark", tokenise)
    assert [(r.name, r.text) for r in plan.uncond] == [("ball", "dark, dots")]
    out, base = Block().run(prepared(plan, Settings(), "uncond"))
    left = torch.arange(64) % 8 < 4
    assert torch.equal(out[:, ~left], base[:, ~left])
    assert float((out - base)[:, left].abs().max()) > 1e-3


def test_auto_negative_covers_the_other_layers_and_the_holes():
    document = LayerDocument(64, 32, pair().layers)
    plan = plan_regions(document, Settings(auto_negative=True), "", "dark", tokenise)
    assert [(r.name, r.text) for r in plan.uncond] == [
        ("ball", "dark, a blue star"), ("star", "dark, a red ball"),
        ("no layer", "dark, a red ball, a blue star"),
    ]  # fmt: skip
    torch.testing.assert_close(sum(r.mask for r in plan.uncond), torch.ones(32, 64))


def test_layers_made_elsewhere_do_nothing():
    neutral = Recipe(inside=0, outside=0, noise=1)
    document = LayerDocument(32, 32, (box("ball", 0, "a red ball", negative="dots", recipe=neutral),))
    plan = plan_regions(document, Settings(auto_negative=True), "a red ball", "", tokenise)
    assert not plan.uncond
    assert not any(r.acts for r in plan.cond)


def test_outside_its_window_of_noise_nothing_acts():
    settings = Settings()
    attention = prepared(plan_regions(pair(), settings, "", "", tokenise), settings, window=(10.0, 2.0))
    block = Block()
    for sigma, acts in ((11.0, False), (10.0, True), (2.1, True), (2.0, False)):
        out, base = block.run(attention, sigma)
        assert (out is not base) == acts


def test_layers_get_the_guidance_that_their_strength_and_window_give_them():
    quarters = tuple(
        box(n, x, f"a {n}", recipe=Recipe(inside=i)) for n, x, i in (("ball", 0, 1.0), ("star", 8, 0.0))
    )
    document = LayerDocument(32, 32, tuple(replace(b, width=8) for b in quarters))
    for strength in (1.0, 0.5, 0.0):
        settings = Settings(guidance=5, strength=strength)
        factor = prepared(
            plan_regions(document, settings, "", "", tokenise), settings, window=(10.0, 2.0)
        ).guidance((8, 8), 5.0)
        torch.testing.assert_close(factor[:, :2], torch.full((8, 2), 1 + 4 * 0.75 * strength))
        assert (factor[:, 2:] == 1).all()
    attention = prepared(
        plan_regions(document, Settings(guidance=5), "", "", tokenise),
        Settings(guidance=5),
        window=(10.0, 2.0),
    )
    for sigma, more in ((11.0, False), (3.0, True), (1.9, False)):
        assert bool((attention.guidance((8, 8), sigma) > 1).any()) == more


def test_layers_are_wider_for_their_words_while_the_picture_forms():
    document = LayerDocument(32, 32, (Layer("ball", x=8, y=8, width=8, height=8, prompt="a red ball"),))
    changed = {}
    for growth in (0.0, 0.125):
        settings = Settings(growth=growth)
        attention = prepared(plan_regions(document, settings, "a meadow", "", tokenise), settings)
        for sigma in (FORMING + 0.1, FORMING):
            out, base = Block().run(attention, sigma)
            changed[growth, sigma] = (out - base).abs().amax((0, 2)).view(8, 8) > 0
    exact = torch.zeros(8, 8, dtype=torch.bool)
    exact[2:4, 2:4] = True
    for when, cells in changed.items():
        wide = exact.clone()
        if when == (0.125, FORMING + 0.1):
            wide[1:5, 1:5] = True
        assert torch.equal(cells, wide), when


def test_masks_are_cut_as_the_picture_is_after_they_have_grown():
    document = LayerDocument(32, 32, (Layer("ball", x=8, y=8, width=8, height=8, prompt="a red ball"),))
    settings = Settings(growth=0.125)
    plan = plan_regions(document, settings, "a meadow", "", tokenise)
    attention = prepared(plan, settings, cut=lambda masks: masks[:, :16, :16])
    for sigma, box in ((FORMING + 0.1, slice(2, 8)), (FORMING, slice(4, 8))):
        out, base = Block().run(attention, sigma)
        wanted = torch.zeros(8, 8, dtype=torch.bool)
        wanted[box, box] = True  # pixels 4..20 and 8..16 of the canvas, of which 0..16 are cut out
        assert torch.equal((out - base).abs().amax((0, 2)).view(8, 8) > 0, wanted)


def test_keys_and_values_are_projected_once_unless_weights_may_change():
    settings = Settings()
    attention = prepared(plan_regions(pair(), settings, "", "", tokenise), settings)
    block = Block()
    for _ in range(3):
        block.run(attention)
    assert block.projections == 1
    for _ in range(3):
        block.run(attention, block=None)
    assert block.projections == 4


@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_a_host_may_make_keys_of_a_layers_words_for_every_picture(mode):
    class Patched(Block):
        def project(self, x):
            return tuple(y[:, None] * torch.tensor([1.0, 3.0])[:, None, None] for y in super().project(x))

    settings = Settings(mode=mode)
    plan = plan_regions(pair(), settings, "a red ball and a blue star", "", tokenise)
    maps = [AttentionMaps([r.name for r in plan.cond]) for _ in range(2)]
    plain, _ = Block().run(prepared(plan, settings, maps=maps[0]))
    patched, _ = Patched().run(prepared(plan, settings, maps=maps[1]))
    torch.testing.assert_close(patched[0], plain[0])
    assert float((patched[1] - plain[1]).abs().max()) > 1e-2
    first, second = (m.mean((8, 8)) for m in maps)
    torch.testing.assert_close(second[0], first[0])
    assert float((second[1] - first[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("mode", REGION_MODES)
def test_a_host_that_repeats_the_tokens_of_the_prompt_gets_the_same(mode):
    settings = Settings(mode=mode)
    attention = prepared(
        plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise), settings
    )
    block = Block()
    once, _ = block.run(attention)
    thrice, _ = block.run(attention, main=block.main.repeat(1, 3, 1))
    torch.testing.assert_close(once, thrice)


@pytest.mark.parametrize("mode", REGION_MODES)
@pytest.mark.parametrize(("appended", "repeats"), [(4, 1), (TOKENS, 1), (TOKENS, 3)])
def test_tokens_that_others_append_to_the_prompt_are_no_words_of_layers(mode, appended, repeats):
    settings = Settings(mode=mode)
    plan = plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise)
    block = Block()
    main = torch.cat(
        [block.main, torch.randn(2, appended, CHANNELS, generator=torch.Generator().manual_seed(1))], 1
    )
    maps = [AttentionMaps([r.name for r in plan.cond]) for _ in range(2)]
    longer = prepared(plan, settings, maps=maps[0], tokens=TOKENS + appended)
    wanted, _ = block.run(longer, main=main)
    out, _ = block.run(
        prepared(plan, settings, maps=maps[1], length=TOKENS + appended), main=main.repeat(1, repeats, 1)
    )
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(*(m.mean((8, 8)) for m in maps))


def test_a_prompt_that_lost_tokens_and_keys_of_another_length_are_named():
    settings = Settings(mode="collage")
    plan = plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise)
    with pytest.raises(
        LayeredError,
        match=f"number of tokens of the prompt that has regions is 8; allowed: {TOKENS} and more",
    ):
        prepared(plan, settings, length=8)
    block = Block()
    for mode in ("collage", "joint"):
        settings = Settings(mode=mode)
        attention = prepared(
            plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise), settings
        )
        with pytest.raises(LayeredError, match=f"cross-attention is 13; allowed: {TOKENS}, or a multiple"):
            block.run(attention, main=torch.cat([block.main, block.main[:, :4]], 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_one_run_may_be_divided_among_devices():
    settings = Settings(mode="collage")
    attention = prepared(
        plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise), settings
    )
    block = Block()
    here, _ = block.run(attention)
    for name in ("q", "main", "to_k", "to_v"):
        setattr(block, name, getattr(block, name).cuda())
    torch.testing.assert_close(block.run(attention)[0].cpu(), here, atol=1e-4, rtol=1e-3)


LOG, LOG_LOG = math.log(5.01 + 1), math.log(math.log(5.01 + 1) + 1)
"""The two schedules at sigma 5."""


@pytest.mark.parametrize(
    ("mode", "name", "amount"),
    [
        ("regions", "log", LOG),
        ("joint", "log", LOG),
        ("collage", "log log", LOG_LOG),
        ("paint with words", "log", LOG),
    ],
)
def test_words_follow_the_noise_by_log_log_in_collage_and_by_log_elsewhere(mode, name, amount):
    assert Settings(mode=mode).amount(5.0) == pytest.approx(amount)
    assert Settings(mode=mode, schedule="constant").amount(5.0) == 1
    runs = []
    for schedule in ("auto", name):
        settings = Settings(mode=mode, schedule=schedule)
        plan = plan_regions(pair(prompt="a red ball and a blue star"), settings, "", "", tokenise)
        runs.append(Block().run(prepared(plan, settings))[0])
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("mode", "share", "inside", "outside"),
    [
        ("regions", 0.8 * 0.5 * (1 - 0.2), 0.3 * 0.8 * 0.5, 0.8 * 0.25),
        ("joint", 0.8 * 0.5 * (1 - 0.2), 0.0, 0.0),
        ("collage", 0.0, 0.8 * 0.5, 0.8 * 0.25),
        ("paint with words", 0.0, 0.1 * 0.8 * 0.5, 0.0),
    ],
)
def test_strengths_of_a_region_are_those_of_its_recipe_times_the_settings(mode, share, inside, outside):
    ball = box("ball", 0, "a red ball", recipe=Recipe(inside=0.5, outside=0.25))
    settings = Settings(mode=mode, strength=0.8, global_weight=0.2, emphasis=0.3)
    (region,) = plan_regions(LayerDocument(32, 32, (ball,)), settings, "a red ball", "", tokenise).cond
    assert (region.strength, region.inside, region.outside, region.guided) == pytest.approx(
        (share, inside, outside, 0.8 * 0.5)
    )


@pytest.mark.parametrize("weight", [0.0, 0.2, 0.7])
def test_the_global_prompt_keeps_its_share_of_the_attention_where_a_layer_is(weight):
    made = {}
    for share in (0.0, weight):
        settings = Settings(global_weight=share, emphasis=0)
        plan = plan_regions(pair(), settings, "a meadow", "", tokenise)
        assert [r.strength for r in plan.cond] == pytest.approx([1 - share] * 2)
        made[share], base = Block().run(prepared(plan, settings))
    torch.testing.assert_close(made[weight], weight * base + (1 - weight) * made[0.0])


def test_in_joint_attention_the_global_prompt_has_its_share_and_the_layer_the_rest():
    biases = []

    def attend(q, k, v, bias):
        biases.append(bias)
        return plain(HEADS)(q, k, v, bias)

    settings = Settings(mode="joint", global_weight=0.2, strength=0.5)
    Block().run(prepared(plan_regions(pair(), settings, "a meadow", "", tokenise), settings), attend=attend)
    main, ball, star = biases[0].exp().view(8, 8, -1).split(TOKENS, -1)
    torch.testing.assert_close(main, torch.full_like(main, 0.6))
    for own, other in ((ball[:, :4], ball[:, 4:]), (star[:, 4:], star[:, :4])):
        torch.testing.assert_close(own, torch.full_like(own, 0.4))
        assert not other.any()


@pytest.mark.parametrize("mode", ["regions", "joint"])
def test_a_global_weight_of_one_is_the_plain_prompt_to_the_bit(mode):
    settings = Settings(mode=mode, global_weight=1)
    out, base = Block().run(prepared(plan_regions(pair(), settings, "a meadow", "", tokenise), settings))
    assert torch.equal(out, base)


@pytest.mark.parametrize("emphasis", [0.0, 0.5])
@pytest.mark.parametrize(("even", "most"), [(True, 1), (False, 2)])
def test_fifty_layers_cost_no_more_rows_than_the_canvas_has_or_twice_as_many_if_sizes_differ(
    monkeypatch, emphasis, even, most
):
    """A layer computed on the whole canvas would cost fifty times as many."""
    rows = []

    def counted(work):
        def count(q, *more):
            rows.append(q.shape[0] * q.shape[1])
            return work(q, *more)

        return count

    monkeypatch.setattr(tiles, "scores", counted(tiles.scores))
    places = [divmod(i, 8) for i in range(50)]
    layers = [
        Layer(f"{i:02}", x=x, y=y, width=1, height=1, prompt="thing") for i, (y, x) in enumerate(places)
    ]
    if not even:
        layers[0] = replace(layers[0], width=8, height=8)
    settings = Settings(emphasis=emphasis)
    document = LayerDocument(8, 8, tuple(layers))
    block, plan = Block(), plan_regions(document, settings, "a meadow", "", tokenise)
    out, base = block.run(prepared(plan, settings), attend=counted(plain(HEADS)))
    covered = 64 if not even else 50
    assert 2 * covered <= sum(rows) <= 2 * covered * most, "of a batch of 2"
    if not emphasis:
        context = prepared(plan, settings).contexts[0][None]
        keys, values = (x.expand(2, -1, -1) for x in block.project(context))
        own = plain(HEADS)(block.q, keys, values, None)
        torch.testing.assert_close(out[:, :covered], (0.2 * base + 0.8 * own)[:, :covered])
        assert torch.equal(out[:, covered:], base[:, covered:])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"strength": math.nan}, "strength"), ({"strength": -0.1}, "strength"),
        ({"start": 0.6, "end": 0.5}, "end"), ({"mode": "magic"}, "mode"),
        ({"schedule": "x"}, "schedule"), ({"global_weight": 2}, "global_weight"),
        ({"emphasis": math.inf}, "emphasis"),
        ({"guidance": 0.5}, "guidance"), ({"guidance": math.nan}, "guidance"), ({"growth": -0.1}, "growth"),
        ({"growth": 0.3}, "growth"), ({"rescale": -0.1}, "rescale"), ({"rescale": 1.1}, "rescale"),
        ({"rescale": math.nan}, "rescale"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad, said):
    with pytest.raises(LayeredError, match=said):
        Settings(**bad)


def test_maps_tell_where_the_words_act():
    settings = Settings(global_weight=0)
    plan = plan_regions(pair(), settings, "a meadow", "", tokenise)
    maps = AttentionMaps([r.name for r in plan.cond])
    out, _ = Block().run(prepared(plan, settings, maps=maps))
    plainly, _ = Block().run(prepared(plan, settings))
    assert torch.equal(out, plainly)
    mean = maps.mean((8, 8))
    assert mean.shape == (2, 2, 8, 8)
    assert float(mean[:, 0, :, 4:].max()) == 0
    assert float(mean[:, 0, :, :4].min()) > 0
    maps.clear()
    assert not maps


def test_a_plan_that_watches_appends_what_the_prompt_lacks_and_does_nothing():
    document = pair()
    plan = plan_watching(document, list(document), "a red ball", "dark", tokenise)
    assert (plan.prompt, plan.negative, plan.uncond) == ("a red ball, a blue star", "dark", ())
    assert [r.words for r in plan.cond] == [(1, 2, 3), (5, 6, 7)]
    assert not any(r.acts for r in plan.cond)
