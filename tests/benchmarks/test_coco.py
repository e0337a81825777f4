"""The suite ``coco`` on a set in COCO's format that is drawn from the storybook, whose figures are known."""

import numpy as np
import pytest
import torch
from coco_sets import SIDE, change, runs, write, write_set
from pycocotools import mask as coco_masks

from benchmarks.bench.coco import CocoCases, choose, coco_case, fit, named
from benchmarks.bench.coco_files import Instance, Photo, Square, _counts, read_photos
from benchmarks.bench.coco_judging import CocoExaminer
from benchmarks.bench.detecting import JudgeDetector
from benchmarks.bench.judging import Examiner, seen_vector, words_vector
from benchmarks.bench.report import _matches
from benchmarks.bench.scenes import layout_cases
from benchmarks.bench.suite import CocoSettings
from layered_core.errors import LayeredError
from layered_core.metrics.layout_metrics import average_precision, mask_boxes
from layered_core.metrics.picture_metrics import text_similarity
from layered_diffusers.models.loading import STORYBOOK

CASES = layout_cases(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("coco"), CASES)


def by_number(cases):
    return sorted(cases, key=lambda c: c.chosen.number)


# --- files


@pytest.mark.parametrize("outlines", ["runs", "compressed", "polygons"])
def test_outlines_of_every_kind_are_read_as_they_were_drawn(tmp_path, outlines):
    write_set(tmp_path, CASES, outlines)
    found = by_number(CocoCases(CocoSettings(tmp_path), len(CASES), SIDE))
    for case, scene in zip(found, CASES, strict=True):
        assert case.words == scene.words
        masks = {t.category: m for t, m in zip(case.things, case.masks, strict=True)}
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            assert torch.equal(masks[f"{thing.colour} {thing.kind}"], mask), outlines


def test_run_lengths_are_read_as_cocos_own_code_writes_them():
    random = np.random.default_rng(0)
    for density in (0.01, 0.3, 0.99):
        mask = (random.random((37, 53)) < density).astype(np.uint8)
        code = coco_masks.encode(np.asfortranarray(mask))
        counts = _counts(code["counts"].decode())
        pixels = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(pixels.reshape(53, 37).T, mask)


def test_polygons_cover_what_cocos_own_code_covers():
    polygon = [30.5, 12.2, 90.1, 40.7, 70.3, 110.9, 15.0, 80.4]
    theirs = coco_masks.decode(coco_masks.frPyObjects([polygon], SIDE, SIDE))[..., 0] > 0
    ours = Instance("dog", (15, 12, 75, 99), [polygon], SIDE).mask(Square(0, 0, SIDE), SIDE).numpy()
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.98


def test_a_square_part_is_cut_out_and_scaled():
    polygon = [100, 20, 140, 20, 140, 60, 100, 60]
    mask = Instance("dog", (100, 20, 40, 40), [polygon], 120).mask(Square(80, 0, 120), 60)
    wanted = torch.zeros(60, 60, dtype=torch.bool)
    wanted[10:30, 10:30] = True
    assert torch.equal(mask, wanted)
    whole = torch.zeros(120, 240)
    whole[20:60, 100:140] = 1
    code = runs(whole, False)["counts"]
    assert torch.equal(
        Instance("dog", (100, 20, 40, 40), np.array(code), 120).mask(Square(80, 0, 120), 60), wanted
    )


def test_of_several_sets_val_is_read(tmp_path):
    write_set(tmp_path, CASES)
    for kind in ("captions", "instances"):
        write(tmp_path / f"{kind}_train2017.json", {})
    assert len(read_photos(tmp_path)) == len(CASES)


def test_crowds_are_left_out(tmp_path):
    write_set(tmp_path, CASES)
    change(tmp_path / "instances_val2017.json", lambda t: t["annotations"][0].update(iscrowd=1))
    photos = read_photos(tmp_path)
    assert len(photos[0].instances) == len(CASES[0].things) - 1
    assert len(photos[1].instances) == len(CASES[1].things)


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("captions", lambda t: t.pop("annotations"), "has no list 'annotations', so it is no file of COCO"),
        ("captions", lambda t: t["annotations"][1].pop("caption"), "annotations[1] lacks 'caption'"),
        ("captions", lambda t: t["annotations"][1].update(caption=3), "annotations[1]: text is 3; allowed: a string"),
        ("instances", lambda t: t["images"][0].update(width=0), "images[0]: width is 0; allowed: a whole number 1.."),
        ("instances", lambda t: t["annotations"][2].update(category_id=99), "annotations[2] lacks 99"),
        ("instances", lambda t: t["annotations"][2].update(bbox=[1, 2]), "annotations[2] is broken"),
        (
            "instances",
            lambda t: t["annotations"][2].update(segmentation=[[1, 2, 3]]),
            "annotations[2]: segmentation is [1, 2, 3]; allowed: polygons of three or more points",
        ),
        (
            "instances",
            lambda t: t["annotations"][2]["segmentation"].update(counts=[5]),
            "annotations[2]: segmentation: sum of counts is 5; allowed: 16384, the pixels",
        ),
        (
            "instances",
            lambda t: t["annotations"][2]["segmentation"].update(size=[9, 9]),
            "segmentation: size is [9, 9]; allowed: [128, 128], the photograph's",
        ),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_entry(tmp_path, name, edit, says):
    write_set(tmp_path, CASES)
    change(tmp_path / f"{name}_val2017.json", edit)
    with pytest.raises(LayeredError) as caught:
        read_photos(tmp_path)
    assert says in str(caught.value)
    assert f"{name}_val2017.json" in str(caught.value)


# --- choosing captions


def test_a_category_is_named_by_whole_words_and_plurals():
    known = {"dog", "hot dog", "person", "knife", "cat", "teddy bear", "bear", "bus", "cherry", "mouse"}
    assert named("Two dogs and a HOT DOG on a bus.", known) == {"dog", "hot dog", "bus"}
    assert named("a hot dog", known) == {"hot dog"}
    assert named("people with knives, cherries, and mice", known) == {"person", "knife", "cherry", "mouse"}
    assert named("teddy bears in buses", known) == {"teddy bear", "bus"}
    assert named("a catalogue, a dogma and a bearing", known) == set()


def rectangle(category, left, top, width, height, photo_height=100):
    polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
    return Instance(category, (left, top, width, height), [polygon], photo_height)


def test_a_caption_needs_large_objects_of_two_categories():
    dog, cat = rectangle("dog", 0, 0, 40, 40), rectangle("cat", 50, 50, 30, 30)
    small = rectangle("cat", 50, 50, 9, 9)
    photo = Photo(1, 100, 100, (), (cat, small, dog))
    chosen = fit(photo, "A dog and a cat.")
    assert chosen.objects == (dog, cat)  # larger objects lie behind; the small one does not count
    assert fit(photo, "A dog.") is None
    assert fit(Photo(1, 100, 100, (), (small, dog)), "A dog and a cat.") is None
    many = tuple(rectangle("cat", 10 * i, 80, 10, 20) for i in range(8))
    assert len(fit(Photo(1, 100, 100, (), (dog, *many[:7])), "a dog and cats").objects) == 8
    assert fit(Photo(1, 100, 100, (), (dog, *many)), "a dog and cats") is None


def test_the_square_lies_around_the_objects():
    dog, cat = rectangle("dog", 120, 0, 40, 40), rectangle("cat", 170, 50, 30, 30)
    assert fit(Photo(1, 300, 100, (), (dog, cat)), "a dog, a cat").square == Square(110, 0, 100)
    dog, cat = rectangle("dog", 250, 0, 40, 40), rectangle("cat", 270, 50, 30, 30)
    assert fit(Photo(1, 300, 100, (), (dog, cat)), "a dog, a cat").square == Square(200, 0, 100)


def test_more_captions_begin_with_the_same_ones_and_another_seed_takes_others(folder):
    few, many = (choose(CocoSettings(folder), n) for n in (2, 6))
    assert many[:2] == few
    orders = {tuple(c.number for c in choose(CocoSettings(folder, seed=s), 6)) for s in range(4)}
    assert len(orders) > 1
    assert all(sorted(order) == list(range(6)) for order in orders)


# --- cases


def test_boxes_cover_what_their_objects_cover_and_smaller_ones_lie_in_front():
    dog, cat = rectangle("dog", 10, 10, 60, 60), rectangle("cat", 40, 40, 50, 20)
    chosen = fit(Photo(1, 100, 100, (), (cat, dog)), "a dog and a cat")
    case = coco_case(chosen, True, 50)
    assert [t.words for t in case.things] == ["a dog", "a cat"]
    assert mask_boxes(case.box_masks).tolist() == [[5, 5, 35, 35], [20, 20, 45, 30]]
    assert torch.equal(case.masks[1], case.box_masks[1])
    assert torch.equal(case.masks[0], case.box_masks[0] * (1 - case.box_masks[1]))
    torch.testing.assert_close(case.frames, torch.tensor([[0.1, 0.1, 0.7, 0.7], [0.4, 0.4, 0.9, 0.6]]))
    layer = case.boxes.layers[1]
    assert (layer.prompt, layer.x, layer.y, layer.width, layer.height) == ("a cat", 20, 20, 25, 10)


def test_a_method_that_starts_from_pictures_is_refused_by_name(folder):
    case = CocoCases(CocoSettings(folder), 1, SIDE)[0]
    for picture in ("start", "picture", "backdrop"):
        with pytest.raises(
            LayeredError, match="a method starts from pictures, .* Leave it out with --methods"
        ):
            getattr(case, picture)


# --- figures


@pytest.fixture(scope="module")
def judge():
    return JudgeDetector(STORYBOOK)


def categories(folder):
    return sorted({x.category for photo in read_photos(folder) for x in photo.instances})


def of_sets(records, name):
    """Return the average precisions of records that a suite would show."""
    key = "box_matches" if name.startswith("box") else "matches"
    return average_precision([_matches(r[key]) for r in records])


@pytest.mark.parametrize("planted", ["as drawn", "shifted", "each a later one"])
def test_the_judge_finds_the_same_figures_as_the_suite_layout(folder, judge, planted):
    pictures = torch.stack([c.picture for c in CASES])
    pictures = {
        "as drawn": pictures,
        "shifted": pictures.roll((7, -5), (2, 3)),
        "each a later one": pictures.roll(1, 0),
    }[planted]
    cases = by_number(CocoCases(CocoSettings(folder), len(CASES), SIDE))
    ours = CocoExaminer(judge, categories(folder)).examine(cases, pictures)
    theirs = Examiner(STORYBOOK).examine(CASES, pictures)
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("iou", "box_iou"):
            assert mine["figures"][name] == pytest.approx(other["figures"][name], abs=2e-5), name
    for name in ("matches", "box_matches"):
        torch.testing.assert_close(of_sets(ours, name), of_sets(theirs, name))


def test_t2i_sim_by_labels_is_the_storybooks_own_without_the_landscape(folder, judge):
    pictures = torch.stack([c.picture for c in CASES]).roll(1, 0)
    cases = by_number(CocoCases(CocoSettings(folder), len(CASES), SIDE))
    ours = CocoExaminer(judge, categories(folder)).examine(cases, pictures)
    for case, record, sight in zip(CASES, ours, judge.examiner.look(pictures), strict=True):
        objects = (v[:36] for v in (seen_vector(sight.verdict), words_vector(case.words)))
        assert record["figures"]["t2i_sim_labels"] == pytest.approx(
            float(text_similarity(*objects)), abs=0.01
        )


def test_by_boxes_no_figure_of_masks_is_given(folder, judge):
    pictures = torch.stack([c.picture for c in CASES])
    cases = by_number(CocoCases(CocoSettings(folder, "boxes"), len(CASES), SIDE))
    for record in CocoExaminer(judge, categories(folder)).examine(cases, pictures):
        assert record["matches"] is None
        assert "iou" not in record["figures"]
        assert record["figures"]["box_iou"] > 0.7


def test_a_picture_in_which_nothing_is_found_has_figures_of_zero(folder, judge):
    case = CocoCases(CocoSettings(folder), 1, SIDE)
    (record,) = CocoExaminer(judge, categories(folder)).examine(case, torch.full((1, 3, SIDE, SIDE), 0.5))
    assert record["figures"] == {"iou": 0, "box_iou": 0, "t2i_sim_labels": 0}
    assert float(of_sets([record], "matches").mean()) == 0
