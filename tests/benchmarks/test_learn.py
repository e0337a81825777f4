"""The bench of learnt words measures colours rightly, and its things are ones that no training has seen."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.bench import learning
from benchmarks.bench.judging import Examiner
from benchmarks.bench.learnt import energy_distance, lab, learnt_figures
from benchmarks.bench.methods import METHODS
from benchmarks.bench.scenes import ODD_THINGS, SEEDS, learn_cases
from demo.world.judge import Judge
from demo.world.places import MODEL
from demo.world.vocabulary import COLOURS, KINDS, ODD_COLOURS
from layered_diffusers.pipeline import LayeredDiffusionPipeline


def test_lab_is_that_of_the_standard():
    """Values of CIE L*a*b* for D65, from Lindbloom's calculator."""
    colours = torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5]])
    wanted = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [53.39, 0, 0]]
    assert torch.allclose(lab(colours), torch.tensor(wanted), atol=0.05)


def test_the_energy_distance_is_0_for_equal_points_and_grows_with_the_distance():
    points = torch.randn(200, 3)
    assert energy_distance(points, points) == pytest.approx(0, abs=1e-5)
    assert energy_distance(points, points + 1) < energy_distance(points, points + 5)


def test_the_things_are_odd_on_two_kinds_each_and_shown_in_another_landscape():
    assert set(ODD_COLOURS).isdisjoint(COLOURS)
    looks = [look for look, _ in ODD_THINGS]
    assert {look: looks.count(look) for look in looks} == dict.fromkeys([*ODD_COLOURS, "red and white"], 2)
    assert {kind for _, kind in ODD_THINGS} <= set(KINDS)
    cases = learn_cases(len(ODD_THINGS) * SEEDS)
    assert all(c.scene.background != c.source.background for c in cases)
    assert len({c.source.seed for c in cases}) == len(ODD_THINGS)
    assert len({c.scene.seed for c in cases}) == len(cases)


def test_stripes_have_both_colours():
    case = learn_cases(4 * SEEDS)[-1]
    pixels = torch.from_numpy(case.source.objects[0].image[..., :3].copy()).flatten(0, 1)
    for colour in ("red", "white"):
        near = (pixels - torch.tensor(COLOURS[colour])).abs().amax(1) < 12
        assert int(near.sum()) > 200


def test_the_thing_as_drawn_has_the_best_figures_and_another_colour_bad_ones():
    case = learn_cases(1, beside=True)[0]
    verdict = Judge.load().look(case.picture[None])[0]
    figures = learnt_figures(case, case.picture, verdict)
    assert figures["object"] == figures["background"] == figures["neighbour"] == 1
    assert figures["delta_e"] < 4
    grey = case.picture.mean(0, keepdim=True).expand(3, -1, -1)
    assert learnt_figures(case, grey, verdict)["delta_e"] > 30
    empty = replace(verdict, objects=())
    nothing = learnt_figures(case, case.picture, empty)
    assert nothing["object"] == nothing["neighbour"] == 0
    assert math.isnan(nothing["delta_e"])


def test_pictures_are_made_from_a_word_learnt_once_and_judged(monkeypatch):
    pipeline = LayeredDiffusionPipeline.from_pretrained(device="cpu")
    cases = [*learn_cases(2), *learn_cases(SEEDS + 1)[SEEDS:]]
    made = []

    class Counted(learning.WordTraining):
        def run(self):
            made.append(self)
            super().run()

    monkeypatch.setattr(learning, "WordTraining", Counted)
    how = {"seeds": [0, 1, 8], "steps": 2, "guidance": 3.0, "settings": {"steps": 1, "batch": 1}}
    first = METHODS["learnt_word"](pipeline, cases, **how)
    again = METHODS["learnt_word"](pipeline, cases, first=True, **how)
    assert len(made) == 2
    assert first.shape == again.shape == (3, 3, 128, 128)
    assert not torch.equal(first, again)
    records = Examiner(MODEL).examine(cases, first)
    assert set(records[0]["figures"]) == {"object", "background", "delta_e", "energy", "native"}
    assert records[0]["matches"] is None
