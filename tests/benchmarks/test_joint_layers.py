"""The figures of layers made at once: drawn scenes are all right, and each planted failure moves its own figure."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.bench.judging import Examiner, laid_on
from benchmarks.bench.scenes import Case
from benchmarks.joint_layers import examined, main, measure, model_of, printed, summary
from benchmarks.joint_ways import How, Made, weak_words_of
from demo.world.drawing import draw_background
from demo.world.places import MODEL
from demo.world.scenes import Scene, place_object
from demo.world.vocabulary import Thing

THINGS = (Thing("solid", "red", "ball"), Thing("solid", "yellow", "star"))
APART = ((8.0, 30.0, 50.0, 50.0), (68.0, 40.0, 48.0, 48.0))
CROSSED = ((22.0, 30.0, 56.0, 56.0), (52.0, 44.0, 56.0, 56.0))


@pytest.fixture(scope="module")
def examiner():
    return Examiner(MODEL)


def drawn(boxes):
    """Return a scene and its pictures as drawn."""
    objects = tuple(place_object(t, box) for t, box in zip(THINGS, boxes, strict=True))
    scene = Scene(0, "sea", draw_background("sea", np.random.default_rng(0)), objects)
    case = Case(scene)
    layers = torch.stack([Case(replace(scene, objects=(x,))).sprite for x in objects])
    return case, Made(layers, case.backdrop, case.picture)


def flat(made, order):
    out = made.background
    for i in order:
        out = laid_on(made.layers[i], out)
    return out


def test_a_drawn_scene_is_right_in_every_figure(examiner):
    for boxes, order in ((APART, math.nan), (CROSSED, 1.0)):
        found = examined(examiner, *drawn(boxes)).figures
        for name in ("layer_right", "all_right", "blend_right", "background_right"):
            assert found[name] == 1.0, name
        assert found["alpha_iou"] > 0.85
        assert found["same_object"] > 0.85
        assert found["background_alpha"] < 0.01
        assert found["same_background"] == math.inf or found["same_background"] > 60
        assert found["order_right"] == order or (math.isnan(order) and math.isnan(found["order_right"]))


def test_layers_in_one_place_hide_each_other_though_each_is_right(examiner):
    case, made = drawn(APART)
    moved = made.layers.clone()
    moved[0] = made.layers[0].roll((12, 60), (1, 2))
    found = examined(examiner, case, made._replace(layers=moved)).figures
    assert found["overlap"] > 0.5 > examined(examiner, case, made).figures["overlap"]
    assert (found["layer_right"], found["all_right"], found["blend_right"]) == (1.0, 0.0, 1.0)
    assert found["same_object"] < 0.6


def test_a_blend_that_shows_the_lower_layer_in_front_has_the_wrong_order(examiner):
    case, made = drawn(CROSSED)
    swapped = made._replace(blend=flat(made, (1, 0)))
    found = examined(examiner, case, swapped).figures
    assert found["order_right"] == 0.0
    assert found["blend_right"] == 1.0
    assert found["all_right"] == 1.0


def test_a_thing_that_the_blend_lacks_and_a_thing_on_the_background_count(examiner):
    case, made = drawn(APART)
    lacks = examined(examiner, case, made._replace(blend=flat(made, (0,)))).figures
    assert lacks["blend_right"] == 0.0
    assert 0.4 < lacks["same_object"] < 0.5
    shows = examined(examiner, case, made._replace(background=flat(made, (0,)))).figures
    assert shows["background_right"] == 0.0
    assert shows["same_background"] > 60 or math.isinf(shows["same_background"])


def test_without_a_blend_its_figures_are_left_out(examiner):
    case, made = drawn(APART)
    found = examined(examiner, case, made._replace(blend=None)).figures
    assert "same_object" not in found
    assert found["all_right"] == 1.0


def test_differences_are_paired_by_scene_and_empty_figures_are_not_printed():
    found = {
        "together": [
            {"all_right": 1.0, "order_right": math.nan},
            {"all_right": 0.0, "order_right": math.nan},
        ],
        "alone": [{"all_right": 0.5, "order_right": math.nan}, {"all_right": -0.5, "order_right": math.nan}],
    }
    result = summary(found)
    difference = result["together - alone"]["all_right"]
    assert (difference.mean, difference.low, difference.high, difference.n) == (0.5, 0.5, 0.5, 2)
    lines = printed(result).splitlines()
    assert lines[0] == "| figure | together | alone | together - alone |"
    assert lines[-1] == "| order_right |  |  |  |"


def test_the_command_prints_one_object_with_every_row(capsys):
    main(["-n", "2", "--layers", "1", "--rows", "together", "alone", "stages", "--steps", "1", "--json"])
    printed_out = json.loads(capsys.readouterr().out)
    rows = printed_out["layers"]["1"]
    assert list(rows)[:3] == ["together", "alone", "stages"]
    assert rows["together"]["all_right"]["n"] == 2
    assert "same_object" not in rows["stages"]
    assert printed_out["settings"]["steps"] == 1


def test_the_command_measures_guidance_editing_and_taking_apart(capsys):
    rows = ["together", "sag_1", "self_mask_1", "edit", "decompose"]
    main(["-n", "1", "--layers", "1", "--rows", *rows, "--steps", "4", "--json"])
    found = json.loads(capsys.readouterr().out)["layers"]["1"]
    assert list(found)[:5] == rows
    assert found["edit"]["kept"]["mean"] == 1.0
    assert found["together"]["kept"]["n"] == 0
    assert found["decompose"]["blend_right"]["mean"] == 1.0, "the blend is the drawing"
    psnrs = [found[row]["composite_psnr"]["mean"] for row in ("together", "sag_1", "self_mask_1")]
    assert len(set(psnrs)) == 3


def test_weak_words_lack_the_colour_where_the_scene_can_tell_it():
    case, _ = drawn(APART)
    assert weak_words_of(case).layers == ("a ball", "a star")
    assert "red" in weak_words_of(case).prompt
    twice = replace(
        case.scene, objects=(case.scene.objects[0], place_object(Thing("solid", "blue", "ball"), APART[1]))
    )
    assert weak_words_of(Case(twice)).layers == ("a red ball", "a blue ball")


@pytest.mark.slow
def test_drawn_blends_are_nearer_to_drawn_scenes_than_those_of_one_step():
    found = measure(model_of("storybook"), 2, 8, ["together", "decompose"], How(1, 2.0, None), 8, None)
    assert found["together"]["frechet_blend"].n == 8
    assert found["decompose"]["frechet_blend"].mean < 0.5 * found["together"]["frechet_blend"].mean


def test_the_command_measures_transplanted_layers_and_the_transformer(capsys):
    main(["-n", "1", "--layers", "1", "--rows", "transplant", "transplant_0", "--steps", "2", "--json"])
    found = json.loads(capsys.readouterr().out)["layers"]["1"]
    assert list(found) == ["transplant", "transplant_0", "transplant - transplant_0"]
    assert found["transplant - transplant_0"]["layer_right"]["mean"] == 0.0, "the layers are the same"
    main(["-n", "1", "--layers", "1", "--model", "transformer", "--steps", "2", "--json"])
    printed_out = json.loads(capsys.readouterr().out)
    assert list(printed_out["layers"]["1"]) == ["transplant", "alone", "transplant - alone"]
    assert printed_out["settings"]["model"] == "transformer"
    with pytest.raises(SystemExit):
        main(["--model", "transformer", "--rows", "together"])
    assert "the transformer has no together" in capsys.readouterr().err
