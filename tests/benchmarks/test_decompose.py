"""The figures of pictures taken apart: drawn layers are right, planted failures show, and the command prints rows."""

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.bench.judging import Examiner
from benchmarks.bench.scenes import layout_cases
from benchmarks.decompose import Made, figures, main
from demo.world.places import MODEL


@pytest.fixture(scope="module")
def examiner():
    return Examiner(MODEL)


@pytest.fixture(scope="module")
def case():
    return layout_cases(2)[1]


def test_the_drawn_layers_are_right_in_every_figure(examiner, case):
    found = figures(examiner, case, Made(case.scene.document(), 1.0))
    assert (found["layer_right"], found["all_right"], found["soft_iou"]) == (1.0, 1.0, 1.0)
    assert found["alpha_iou"] == pytest.approx(1)
    assert found["rgb_l1"] == 0.0
    assert found["behind_psnr"] == 100.0
    assert found["composite_psnr"] > 45


def test_a_missing_and_a_needless_layer_count(examiner, case):
    drawn = case.scene.document()
    less = figures(examiner, case, Made(replace(drawn, layers=drawn.layers[:-1]), 1.0))
    count = len(case.things)
    assert less["layer_right"] == pytest.approx((count - 1) / count)
    assert less["alpha_iou"] == pytest.approx((count - 1) / count)
    assert (less["all_right"], less["exact"]) == (0.0, 0.0)
    more = replace(drawn.layers[-1], name="again")
    found = figures(examiner, case, Made(replace(drawn, layers=(*drawn.layers, more)), 1.0))
    assert found["layer_right"] == pytest.approx(count / (count + 1))
    assert found["alpha_iou"] == pytest.approx(1)


def test_a_scene_in_which_nothing_was_found_is_one_layer(examiner, case):
    found = figures(examiner, case, Made(None, 0.0))
    assert (found["layer_right"], found["alpha_iou"], found["exact"], found["kept"]) == (0.0, 0.0, 1.0, 0.0)
    assert found["behind_psnr"] < 25


def test_a_wrong_background_shows_behind_the_objects_only(examiner, case):
    drawn = case.scene.document()
    back = drawn.layers[0]
    wrong = replace(back, image=torch.cat([1 - back.image[..., :3], back.image[..., 3:]], -1))
    found = figures(examiner, case, Made(replace(drawn, layers=(wrong, *drawn.layers[1:])), math.nan))
    assert found["behind_psnr"] < 15
    assert found["layer_right"] == 1.0


@pytest.mark.slow
def test_the_command_prints_one_object_with_every_row(capsys, tmp_path):
    main(["-n", "1", "--steps", "2", "--json", "--pictures", str(tmp_path)])
    printed = json.loads(capsys.readouterr().out)
    rows = printed["rows"]
    assert list(rows) == ["masks", "judge", "joint", "judge - masks", "joint - masks"]
    assert rows["masks"]["exact"]["mean"] == rows["judge"]["exact"]["mean"] == 1.0
    assert rows["judge"]["layer_right"]["n"] == 1
    assert printed["settings"]["thresholds"]["layers"] == 4
    assert len(list(tmp_path.glob("decompose_*.png"))) == 3
