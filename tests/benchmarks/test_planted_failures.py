"""Failures that are planted in drawn scenes move the figures which they should move, and no others."""

from dataclasses import replace

import pytest
import torch

from benchmarks.bench.judging import Examiner, laid_on, reference_features, words_vector
from benchmarks.bench.report import _matches
from benchmarks.bench.scenes import Case, layer_cases, layout_cases, redo_cases
from demo.world.scenes import place_object
from demo.world.vocabulary import COLOURS, KINDS, Thing
from layered_core.metrics.layout_metrics import average_precision
from layered_core.metrics.picture_metrics import frechet_distance
from layered_diffusers.models.loading import STORYBOOK

CASES = layout_cases(8, objects=(2,))


@pytest.fixture(scope="module")
def examiner():
    return Examiner(STORYBOOK)


@pytest.fixture(scope="module")
def right(examiner):
    return figures(examiner, CASES, [c.picture for c in CASES])


def figures(examiner, cases, pictures):
    """Return the means over the scenes, and the figures of the whole set."""
    records = examiner.examine(cases, torch.stack(pictures))
    names = records[0]["figures"]
    out = {n: sum(r["figures"][n] or 0 for r in records) / len(records) for n in names}
    out["ap50"] = float(average_precision([_matches(r["matches"]) for r in records])[0])
    out["features"] = torch.cat([torch.tensor(r["features"]) for r in records])
    return out


def redrawn(case, things):
    """Draw the scene with other things in the places of its objects."""
    objects = []
    for item, thing in zip(case.scene.objects, things, strict=True):
        rows, columns = (item.silhouette > 127).nonzero()
        box = (
            int(columns.min()) + item.x,
            int(rows.min()) + item.y,
            int(columns.max() - columns.min()) + 1,
            int(rows.max() - rows.min()) + 1,
        )
        objects.append(place_object(thing, box))
    return Case(replace(case.scene, objects=tuple(objects))).picture


def other(value, values):
    names = list(values)
    return names[(names.index(value) + 1) % len(names)]


def test_what_is_drawn_right_is_found_right(right):
    assert right["exact"] == right["both"] == right["background"] == 1
    assert right["iou"] > 0.8
    assert right["any_iou"] >= right["iou"]
    assert right["box_iou"] > 0.8
    assert right["ap50"] > 0.95
    assert right["leak_object"] < 0.02
    assert right["t2i_sim"] == pytest.approx(100, abs=1e-3)
    assert right["fidelity"] == 100
    assert right["edges"] == 1


def test_swapped_layers_lose_their_places_but_not_the_picture(examiner, right):
    swapped = figures(examiner, CASES, [redrawn(c, c.things[::-1]) for c in CASES])
    for name in ("iou", "box_iou", "both", "ap50"):
        assert swapped[name] < right[name] - 0.5, name
    assert swapped["leak_object"] > 0.8
    assert swapped["any_iou"] > 0.6  # an object is there, but of another shape
    assert swapped["exact"] > 0.8  # all objects are there, but in other places
    assert swapped["t2i_sim"] > 95


def test_shifted_pictures_lose_overlap_but_not_their_objects(examiner, right):
    little = figures(examiner, CASES, [c.picture.roll(5, -1) for c in CASES])
    far = figures(examiner, CASES, [c.picture.roll(64, -1) for c in CASES])
    for name in ("iou", "any_iou", "box_iou", "fidelity", "edges"):
        assert right[name] > little[name] > far[name], name
    assert far["iou"] < 0.35
    assert little["both"] > 0.9


def test_wrong_colours_are_told_from_wrong_objects(examiner, right):
    colours = figures(
        examiner,
        CASES,
        [redrawn(c, [t._replace(colour=other(t.colour, COLOURS)) for t in c.things]) for c in CASES],
    )
    kinds = figures(
        examiner,
        CASES,
        [redrawn(c, [t._replace(kind=other(t.kind, KINDS)) for t in c.things]) for c in CASES],
    )
    assert colours["colour"] < 0.2 < 0.8 < colours["object"]
    assert kinds["object"] < 0.2 < 0.8 < kinds["colour"]
    for wrong in (colours, kinds):
        assert wrong["both"] < 0.2
        assert wrong["exact"] == 0
        assert wrong["iou"] < 0.2
        assert wrong["t2i_sim"] < right["t2i_sim"] - 30


def test_a_colour_that_spreads_to_another_layer_leaks(examiner, right):
    cases = [
        c for c in CASES if c.things[0].colour != c.things[1].colour and c.things[0].kind != c.things[1].kind
    ]
    assert len(cases) > 2
    spread = figures(
        examiner,
        cases,
        [redrawn(c, [c.things[0], c.things[1]._replace(colour=c.things[0].colour)]) for c in cases],
    )
    assert right["leak_colour"] < 0.02
    assert spread["leak_colour"] > 0.25
    assert spread["leak_object"] < 0.1


def test_a_missing_object_costs_recall_and_words(examiner, right):
    bare = figures(
        examiner, CASES, [Case(replace(c.scene, objects=c.scene.objects[:1])).picture for c in CASES]
    )
    assert bare["iou"] < right["iou"] - 0.3
    assert bare["exact"] == 0
    assert bare["t2i_sim"] < 90


def test_another_landscape_is_noticed_alone(examiner):
    cases = layout_cases(6, objects=(2,))
    moved = [
        Case(replace(a.scene, background_image=b.scene.background_image))
        for a, b in zip(cases, cases[1:] + cases[:1], strict=True)
    ]
    same = sum(
        a.scene.background == b.scene.background for a, b in zip(cases, cases[1:] + cases[:1], strict=True)
    )
    wrong = figures(examiner, cases, [m.picture for m in moved])
    assert wrong["background"] == pytest.approx(same / len(cases))
    assert wrong["both"] > 0.8


def test_pasted_layers_are_less_harmonious(examiner, right):
    cases = layout_cases(24)
    whole = figures(examiner, cases, [c.picture for c in cases])
    pasted = figures(examiner, cases, [c.start for c in cases])
    assert whole["native"] > pasted["native"] + 0.3
    assert pasted["both"] > 0.8  # the layout is right
    assert pasted["fidelity"] < 30
    reference = reference_features(examiner, 64)
    assert frechet_distance(pasted["features"], reference) > 1.05 * frechet_distance(
        whole["features"], reference
    )


def test_redo_figures_tell_what_changed_and_what_did_not(examiner):
    cases = redo_cases(8)
    done = figures(examiner, cases, [c.picture for c in cases])
    undone = figures(examiner, cases, [c.picture_before for c in cases])
    assert done["changed_right"] > 0.9 > 0.1 > undone["changed_right"]
    assert undone["kept_right"] > 0.9
    assert undone["outside_psnr"] == 100
    assert undone["differing_pixels"] == 0
    noisy = figures(
        examiner, cases, [(c.picture + 0.1 * torch.randn(3, 128, 128)).clamp(0, 1) for c in cases]
    )
    assert noisy["outside_psnr"] < 25
    assert noisy["differing_pixels"] > 5000
    pasted = figures(
        examiner, cases, [torch.where(c.change_mask > 0, c.picture.mean(), c.picture_before) for c in cases]
    )
    assert pasted["seam"] > undone["seam"]
    assert pasted["changed_right"] < 0.2


def test_words_are_read_as_they_are_written():
    vector = words_vector("snowy mountains, a glass blue star and a red ball")
    colours, kinds = list(COLOURS), list(KINDS)
    named = {
        colours.index("blue") * 6 + kinds.index("star"),
        colours.index("red") * 6 + kinds.index("ball"),
        36 + 4,
    }
    assert set(vector.nonzero()[:, 0].tolist()) == named
    assert Thing("solid", "blue", "star").words in "a blue star"


def test_scenes_are_the_same_whatever_their_number_and_are_held_out():
    few, many = layout_cases(3), layout_cases(7)
    assert [c.scene.seed for c in few] == [c.scene.seed for c in many[:3]]
    assert [len(c.things) for c in many] == [2, 3, 4, 2, 3, 4, 2]


def test_a_drawn_layer_is_right_where_an_opaque_square_or_a_veil_over_everything_is_not(examiner):
    cases = layer_cases(36)
    drawn = [c.sprite for c in cases]
    best = figures(examiner, cases, drawn)
    assert best["object_right"] > 0.95
    assert best["alpha_iou"] > 0.85
    assert best["background_alpha"] < 0.005
    assert best["material"] < 0.1
    squares = figures(
        examiner,
        cases,
        [
            torch.cat([laid_on(s, c.backdrop), torch.ones(1, 128, 128)])
            for s, c in zip(drawn, cases, strict=True)
        ],
    )
    assert squares["alpha_iou"] < 0.5
    assert squares["background_alpha"] > 0.8
    veiled = figures(examiner, cases, [torch.cat([s[:3], s[3:].clamp_min(0.1)]) for s in drawn])
    assert veiled["background_alpha"] > 0.08
    assert veiled["alpha_iou"] > best["alpha_iou"] - 0.1
    solid = figures(examiner, cases, [torch.cat([s[:3], (s[3:] >= 0.4).float()]) for s in drawn])
    assert solid["material"] > 2 * best["material"]
    empty = figures(examiner, cases, [torch.zeros(4, 128, 128)] * len(cases))
    assert empty["object_right"] == empty["alpha_iou"] == 0


def test_a_drawn_layer_of_another_thing_is_not_the_right_one(examiner):
    cases = layer_cases(12)
    moved = figures(examiner, cases, [c.sprite for c in cases[1:] + cases[:1]])
    assert moved["object_right"] < 0.2
    assert moved["alpha_iou"] < 0.2
