"""The figures of the looks see a look where it is drawn, and the shares of effects are ratios of means."""

import numpy as np
import pytest
import torch

from benchmarks.bench.looks import OWNERS, look_figures
from benchmarks.bench.scenes import few_cases
from benchmarks.look_effect import share
from benchmarks.look_prediction import predict, shares
from demo.world.judge import Judge
from demo.world.looks import LOOKS, STRIPE_HEIGHT, is_stripe
from demo.world.scenes import random_scene
from layered_diffusers.models.loading import find_model
from layered_diffusers.pipeline import LayeredDiffusionPipeline


def picture(scene):
    return torch.from_numpy(scene.picture().astype(np.float32) / 255).permute(2, 0, 1)


def figures(case, look=None, own=True):
    """Return the figures of a scene of which the look's own object, or all the others, are drawn with it."""
    if look is None:
        shown = case.picture
    else:
        drawn = picture(
            random_scene(case.scene.seed, count=len(case.things), materials=("solid",), draw=LOOKS[look])
        )
        mask = case.masks[OWNERS[look]] > 0
        shown = torch.where(mask if own else ~mask, drawn, case.picture)
    return look_figures(case, shown, Judge.load().look(shown[None])[0])


@pytest.mark.parametrize("look", list(LOOKS))
def test_a_look_counts_inside_in_its_own_object_and_outside_in_the_others(look):
    for case in few_cases(4):
        plain, inside, outside = figures(case), figures(case, look), figures(case, look, own=False)
        assert abs(plain[f"{look}_inside"]) < 0.1 > abs(plain[f"{look}_outside"])
        assert inside[f"{look}_inside"] > 0.12 > 0.1 > abs(inside[f"{look}_outside"])
        assert outside[f"{look}_outside"] > 0.12 > 0.1 > abs(outside[f"{look}_inside"])


def test_the_judge_misses_the_colour_of_an_object_that_became_pink():
    seen = [(figures(case), figures(case, "pink")) for case in few_cases(4)]
    assert np.mean([plain["colour_inside"] for plain, _ in seen]) == 1
    assert np.mean([pink["colour_inside"] for _, pink in seen]) < 0.5
    assert np.mean([pink["colour_outside"] for _, pink in seen]) == 1


def test_a_look_changes_nothing_in_a_scene_but_its_objects():
    for draw in LOOKS.values():
        plain, drawn = (random_scene(3, count=2, materials=("solid",), draw=d) for d in (None, draw))
        around = plain.object_map() == 0
        assert np.array_equal(plain.background_image, drawn.background_image)
        assert [o.thing for o in plain.objects] == [o.thing for o in drawn.objects]
        assert np.array_equal(plain.object_map(), drawn.object_map())
        assert np.abs(plain.picture()[around].astype(int) - drawn.picture()[around]).mean() < 0.5


def test_stripes_lie_in_the_same_rows_of_every_canvas():
    rows = is_stripe(np.arange(4 * STRIPE_HEIGHT)).reshape(4, -1)
    assert rows.all(1).tolist() == [False, True, False, True]
    assert rows.any(1).tolist() == [False, True, False, True]


def test_a_share_of_an_effect_is_a_ratio_of_means_with_its_interval():
    without, everywhere = [0.0, 0.1] * 8, [0.8, 0.9] * 8
    found = share([0.4, 0.5] * 8, without, everywhere)
    assert found.mean == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)
    assert found.n == 16
    loose = share([0.0, 0.9] * 8, without, everywhere)
    assert loose.low < 0.5 < loose.high


def test_shares_of_predictions_are_along_the_whole_pictures_effect_and_by_length():
    everywhere = torch.ones(3, 1, 2, 2)
    here = torch.tensor([[0.5, -0.5], [0.25, 0.0]]).expand(3, 1, 2, 2)
    inside = torch.tensor([[1.0, 1.0], [0.0, 0.5]]).expand(3, 1, 2, 2)
    found = shares(here, everywhere, inside)
    assert {name: (x.mean, x.low, x.n) for name, x in found.items()} == {
        "along": (0.0, 0.0, 3), "length": (0.5, 0.5, 3), "outside": (0.25, 0.25, 3),
    }  # fmt: skip


def test_what_a_lora_adds_to_one_prediction_is_nothing_without_it():
    pipeline = LayeredDiffusionPipeline.from_pretrained(find_model(None))
    cases = few_cases(1)
    plain, here, everywhere = (
        predict(pipeline, cases, 0.8, *looks, everywhere=whole)
        for looks, whole in (((), False), (("pink",), False), (("pink",), True))
    )
    assert torch.equal(plain, predict(pipeline, cases, 0.8, everywhere=True))
    assert float((here - plain).norm()) < float((everywhere - plain).norm())
