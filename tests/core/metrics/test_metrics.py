"""Metrics compared with cases computed by hand, and with the libraries that define them."""

import contextlib
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layered_core.errors import LayeredError
from layered_core.metrics.layout_metrics import (
    average_precision,
    best_matches,
    box_iou,
    leakage,
    mask_boxes,
    mask_iou,
    match_detections,
    region_accuracy,
    region_labels,
)
from layered_core.metrics.picture_metrics import (
    BEST_PSNR,
    alpha_psnr,
    alpha_sad,
    differing_pixels,
    edge_f1,
    frechet_distance,
    gradient,
    outside_mse,
    psnr,
    seam_gradient_ratio,
    text_similarity,
)


def box(left, top, right, bottom, size=16):
    mask = torch.zeros(size, size)
    mask[top:bottom, left:right] = 1
    return mask


# --- layout


def test_iou_of_two_squares_that_share_a_quarter():
    assert float(mask_iou(box(0, 0, 4, 4), box(2, 2, 6, 6))) == pytest.approx(4 / 28)
    assert float(mask_iou(box(0, 0, 4, 4) > 0, box(0, 0, 4, 4))) == 1


def test_iou_of_soft_masks_is_the_ruzicka_similarity():
    assert float(mask_iou(torch.full((2, 2), 0.5), torch.full((2, 2), 0.8))) == pytest.approx(0.5 / 0.8)


def test_iou_of_empty_masks():
    assert float(mask_iou(torch.zeros(3, 3), torch.zeros(3, 3))) == 1
    assert float(mask_iou(torch.zeros(3, 3), torch.ones(3, 3))) == 0


def test_boxes_are_pixel_edges_and_empty_masks_have_empty_ones():
    assert mask_boxes(torch.stack([box(2, 3, 7, 9), torch.zeros(16, 16)])).tolist() == [
        [2, 3, 7, 9],
        [0, 0, 0, 0],
    ]


def test_box_iou_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 2, 6, 6], [0, 0, 4, 2], [9, 9, 12, 12]])
    expected = torch.tensor([[4 / 28, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(box_iou(a, b), expected)


def test_found_and_wanted_are_paired_one_to_one_the_best_first():
    ious = torch.tensor([[0.9, 0.8], [0.7, 0.0], [0.0, 0.0]])
    assert best_matches(ious).tolist() == [0, -1]  # the only match of the second is taken by the first
    assert best_matches(torch.tensor([[0.5, 0.8], [0.7, 0.1]])).tolist() == [1, 0]
    assert best_matches(torch.zeros(0, 2)).tolist() == [-1, -1]


# --- average precision


def test_one_object_found_above_every_threshold_but_three():
    matches = match_detections(
        torch.tensor([0.9]), torch.tensor([1]), torch.tensor([1]), torch.tensor([[0.82]])
    )
    assert matches.hits[:, 0].tolist() == [True] * 7 + [False] * 3
    assert float(average_precision([matches])[0]) == 1
    assert float(average_precision([matches]).mean()) == pytest.approx(0.7)


def test_a_confident_false_alarm_halves_precision_and_a_late_one_costs_nothing():
    ious = torch.tensor([[0.0], [1.0]])
    early = match_detections(torch.tensor([0.9, 0.8]), torch.tensor([1, 1]), torch.tensor([1]), ious)
    late = match_detections(torch.tensor([0.7, 0.8]), torch.tensor([1, 1]), torch.tensor([1]), ious)
    assert float(average_precision([early])[0]) == pytest.approx(0.5)
    assert float(average_precision([late])[0]) == 1


def test_a_missed_object_leaves_half_of_the_recall():
    matches = match_detections(
        torch.tensor([0.9]), torch.tensor([1]), torch.tensor([1, 1]), torch.tensor([[1.0, 0.0]])
    )
    assert float(average_precision([matches])[0]) == pytest.approx(51 / 101)


def test_a_detection_of_another_class_is_none():
    matches = match_detections(
        torch.tensor([0.9]), torch.tensor([2]), torch.tensor([1]), torch.tensor([[1.0]])
    )
    assert float(average_precision([matches])[0]) == 0


def test_average_precision_of_nothing_wanted_is_no_number():
    none = match_detections(
        torch.zeros(0),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 0),
    )
    assert bool(average_precision([none]).isnan().all())
    assert bool(average_precision([]).isnan().all())


def test_overlaps_of_another_shape_are_refused():
    with pytest.raises(LayeredError, match=r"ious: shape is \[1, 2\]; allowed: \[1, 1\]"):
        match_detections(torch.tensor([0.9]), torch.tensor([2]), torch.tensor([1]), torch.zeros(1, 2))


def random_pictures(seed, count=12, classes=3):
    """Return boxes of which some are near the wanted ones, with classes that are mostly right and scores that
    occur more than once."""
    random = torch.Generator().manual_seed(seed)

    def real(*shape):
        return torch.rand(*shape, generator=random)

    for _ in range(count):
        wanted = int(torch.randint(0, 5, (1,), generator=random))
        corners = real(wanted, 2) * 60
        truth = torch.cat([corners, corners + 10 + real(wanted, 2) * 30], 1)
        labels = torch.randint(classes, (wanted,), generator=random)
        near = truth + (real(wanted, 4) - 0.5) * 12
        stray = real(int(torch.randint(0, 4, (1,), generator=random)), 2) * 60
        found = torch.cat([near, torch.cat([stray, stray + 20], 1)])
        said = torch.cat(
            [
                torch.where(real(wanted) < 0.8, labels, (labels + 1) % classes),
                torch.randint(classes, (len(stray),), generator=random),
            ]
        )
        yield truth, labels, found, said, (real(len(found)) * 8).round() / 8


def coco_precision(pictures):
    """Return AP .5:.95 and AP .5 from COCO's own code, which torchmetrics uses too."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(b):
        return [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]

    objects, found = [], []
    for image, (truth, labels, boxes, said, scores) in enumerate(pictures, 1):
        for b, label in zip(truth, labels, strict=True):
            area = float((b[2] - b[0]) * (b[3] - b[1]))
            number = len(objects) + 1
            objects.append(
                {
                    "id": number,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": xywh(b),
                    "area": area,
                    "iscrowd": 0,
                }
            )
        for b, label, score in zip(boxes, said, scores, strict=True):
            found.append(
                {"image_id": image, "category_id": int(label), "bbox": xywh(b), "score": float(score)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {}, "images": [{"id": i + 1} for i in range(len(pictures))], "annotations": objects,
            "categories": [{"id": i} for i in range(3)],
        }  # fmt: skip
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(found), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0], run.stats[1]


@pytest.mark.parametrize("seed", range(12))
def test_average_precision_is_cocos_on_random_cases(seed, skip_suite):
    try:
        import pycocotools  # noqa: F401
    except ModuleNotFoundError:
        skip_suite("AP against COCO's code", "pip install pycocotools")
    pictures = list(random_pictures(seed))
    matches = [
        match_detections(scores, said, labels, box_iou(found, truth))
        for truth, labels, found, said, scores in pictures
    ]
    ours = average_precision(matches)
    everything, half = coco_precision(pictures)
    assert float(ours.mean()) == pytest.approx(everything, abs=1e-9)
    assert float(ours[0]) == pytest.approx(half, abs=1e-9)


# --- what is where


def test_a_region_shows_what_covers_most_of_it():
    labels = torch.zeros(16, 16, dtype=torch.int64)
    labels[:, 6:] = 3
    masks = torch.stack([box(0, 0, 8, 8), box(4, 0, 12, 8), torch.zeros(16, 16)])
    assert region_labels(labels, masks).tolist() == [0, 3, 0]


def test_object_colour_and_both_are_told_apart():
    kinds, colours = torch.zeros(2, 16, 16, dtype=torch.int64)
    kinds[:, :8], colours[:, :8] = 1, 2
    kinds[:, 8:], colours[:, 8:] = 4, 5
    masks = torch.stack([box(0, 0, 8, 16), box(8, 0, 16, 16)])
    right = region_accuracy(kinds, colours, masks, torch.tensor([1, 4]), torch.tensor([2, 6]))
    assert [r.tolist() for r in right] == [[True, True], [True, False], [True, False]]


def test_leakage_is_the_share_found_in_other_layers():
    masks = torch.stack([box(0, 0, 8, 16), box(8, 0, 16, 16)])
    found = torch.stack([box(0, 0, 10, 16), torch.zeros(16, 16)])
    values = leakage(found, masks)
    assert float(values[0]) == pytest.approx(0.2)
    assert math.isnan(float(values[1]))
    alike = torch.ones(2, 2, dtype=torch.bool)
    assert float(leakage(found, masks, alike)[0]) == 0


def test_what_lies_on_the_background_does_not_leak():
    assert float(leakage(box(10, 10, 16, 16)[None], box(0, 0, 8, 8)[None])[0]) == 0


# --- what changed


def test_outside_error_counts_only_what_the_mask_forbids():
    before = torch.zeros(3, 16, 16)
    after = before.clone()
    after[:, :8] = 1
    after[:, 15, 15] = 0.5
    mask = box(0, 0, 16, 8)
    assert outside_mse(after, before, mask) == pytest.approx(0.25 / 128)
    assert differing_pixels(after, before, mask) == 1
    assert differing_pixels(before + 1 / 1024, before, mask) == 0  # less than one level of 8 bits
    assert math.isnan(outside_mse(after, before, torch.ones(16, 16)))


def test_psnr_by_hand_and_finite_where_nothing_differs():
    assert psnr(0.01) == pytest.approx(20, abs=1e-4)
    assert psnr(0.0) == BEST_PSNR


def test_a_seam_is_steeper_than_its_surroundings_and_a_flat_picture_has_none():
    mask = box(16, 16, 48, 48, 64)
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64)
    pasted = torch.where(mask > 0, ramp + 0.3, ramp)
    assert seam_gradient_ratio(torch.full((3, 64, 64), 0.5), mask) == 1
    assert seam_gradient_ratio(ramp, mask) == pytest.approx(1, abs=0.05)
    assert seam_gradient_ratio(pasted, mask) > 3
    assert math.isnan(seam_gradient_ratio(ramp, torch.zeros(64, 64)))


# --- edges, alpha


def test_gradient_of_a_step_is_its_height():
    step = torch.zeros(8, 8)
    step[:, 4:] = 0.6
    assert float(gradient(step)[4].max()) == pytest.approx(0.6)
    assert float(gradient(step.expand(3, 8, 8))[4, 0]) == 0


def test_edge_f1_forgives_one_pixel_and_not_three():
    line = torch.zeros(16, 16, dtype=torch.bool)
    line[:, 5] = True
    assert edge_f1(line.roll(1, 1), line) == 1
    assert edge_f1(line.roll(3, 1), line) == 0
    assert edge_f1(line | line.roll(8, 1), line) == pytest.approx(2 / 3)
    assert edge_f1(torch.zeros_like(line), torch.zeros_like(line)) == 1
    assert edge_f1(torch.zeros_like(line), line) == 0


def test_alpha_figures_by_hand():
    wanted = box(0, 0, 8, 16)
    off = (wanted - 0.1).clamp_min(0)
    assert alpha_psnr(off, wanted) == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-3)
    assert alpha_sad(off, wanted) == pytest.approx(0.0128, abs=1e-6)
    assert float(mask_iou(off, wanted)) == pytest.approx(0.9, abs=1e-6)


# --- distributions, words


def test_frechet_distance_of_gaussians_that_are_known():
    a = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + torch.tensor([1.0, 2.0, 0.0])) == pytest.approx(5, abs=1e-6)
    assert frechet_distance(a, 3 * a) == pytest.approx(3 * 4, rel=0.03)  # (3 - 1)^2 a dimension


def test_frechet_distance_is_torchmetrics(skip_suite):
    try:
        from torchmetrics.image.fid import _compute_fid
    except ModuleNotFoundError:
        skip_suite("Fréchet distance against torchmetrics", "pip install torchmetrics")
    random = torch.Generator().manual_seed(1)
    a, b = (
        torch.randn(200, 6, generator=random).double(),
        torch.rand(150, 6, generator=random).double() @ torch.rand(6, 6, generator=random).double(),
    )
    theirs = _compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-6)


def test_a_distance_of_too_few_is_refused():
    with pytest.raises(LayeredError, match="features b: number is 1"):
        frechet_distance(torch.zeros(5, 2), torch.zeros(1, 2))


def test_text_similarity_by_hand():
    image, text = (
        torch.tensor([[3.0, 4], [1, 0], [1, 0], [0, 0]]),
        torch.tensor([[3.0, 4], [0, 1], [-1, 0], [1, 0]]),
    )
    torch.testing.assert_close(text_similarity(image, text), torch.tensor([100.0, 0, 0, 0]))


@given(st.integers(0, 10_000))
def test_shares_stay_shares(seed):
    random = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 3, 8, 8, generator=random)
    masks = b / b.sum(0).clamp_min(1)
    for values in (mask_iou(a, b), leakage(a, masks)):
        assert bool(((values >= 0) & (values <= 1 + 1e-6)).all())
    assert torch.equal(mask_iou(a, b), mask_iou(b, a))
