"""Scenes taken apart by parts that know them come back; each spoilt part shows in its own way."""

from dataclasses import replace

import pytest
import torch
from oracles import Leaves, Misses, Oracle, TooLarge, Twice, drawn, parts_of, silhouettes

from benchmarks.bench.scenes import layout_cases
from demo.world.scenes import random_scene
from layered_core.canvas.compositing import composite
from layered_core.document import identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.metrics.layout_metrics import mask_iou
from layered_core.metrics.picture_metrics import psnr
from layered_diffusers.dataset.filtering import Thresholds
from layered_diffusers.dataset.protocols import Caption, Found
from layered_diffusers.dataset.taking_apart import take_apart


def scene_of(seed, count=2):
    return random_scene(seed, count=count, materials=("solid",))


def covered_scene():
    """Return a scene whose first object is covered by its second, by more than a hundredth and less than 0.3."""
    for seed in range(100):
        scene = scene_of(seed)
        back, front = silhouettes(scene)
        share = float((back * front).sum() / back.sum())
        if 0.1 < share < 0.3 and scene.objects[0].thing != scene.objects[1].thing:
            return scene
    raise AssertionError("no such scene among the first hundred")


def apart_of(oracle, **limits):
    pixels = drawn(oracle.scene).permute(1, 2, 0)
    return take_apart(pixels, parts_of(oracle), Thresholds(**limits)), pixels


def alone(document, index):
    """Return one layer on the canvas, ``[4, H, W]``."""
    return composite(replace(document, layers=(document.layers[index],))).permute(2, 0, 1)


# Not at night: there the dark outline of a thing has the sky's colour, and belongs to either.
@pytest.mark.parametrize("index", [0, 3, 4, 6, 9])
def test_a_scene_comes_back_from_parts_that_know_it(index, tmp_path):
    scene = layout_cases(10)[index].scene
    apart, pixels = apart_of(Oracle(scene))
    assert apart.rejected == ""
    drawn_layers = scene.document()
    wanted = ["background", *(x.prompt.removeprefix("a ") for x in drawn_layers.layers[1:])]
    assert [x.name.rstrip(" 23") for x in apart.document] == wanted
    assert [x.prompt for x in apart.document] == [x.prompt for x in drawn_layers]
    assert apart.document.prompt == scene.caption
    for i, mask in enumerate(silhouettes(scene)):
        assert float(mask_iou(alone(apart.document, i + 1)[3] >= 0.5, mask)) >= 0.97
    assert torch.equal(composite(apart.document)[..., :3], pixels)
    assert apart.record["checks"]["composite_psnr"] >= 40
    path = write_layers(apart.document, tmp_path / "layers")
    again = read_layers(path).document
    assert psnr(float((composite(again)[..., :3] - pixels).square().mean())) >= 40
    assert [x.name for x in again] == [x.name for x in apart.document]


def test_the_hidden_part_of_a_covered_layer_is_as_drawn():
    scene = covered_scene()
    apart, pixels = apart_of(Oracle(scene))
    back, front = silhouettes(scene)
    hidden = (back * front) > 0
    under = hidden & (alone(apart.document, 2)[3] == 1)
    layer = alone(apart.document, 1)
    whole = drawn(replace(scene, objects=scene.objects[:1]))
    assert int(under.sum()) > 0.75 * int(hidden.sum()), "the rest is the edge of the layer in front"
    assert float((layer[3] == 1)[under].float().mean()) > 0.95
    painted = under & (layer[3] == 1)
    assert float((layer[:3] - whole).abs()[:, painted].max()) < 1e-6
    first = apart.record["layers"][0]
    assert first["amodal"] is True
    assert first["covered"] == pytest.approx(float(hidden.sum() / back.sum()), abs=0.06)
    assert torch.equal(composite(apart.document)[..., :3], pixels)


def test_a_layer_that_is_covered_too_far_keeps_what_is_seen_and_says_so():
    scene = covered_scene()
    apart, _ = apart_of(Oracle(scene), covered=0.05)
    assert apart.record["layers"][0]["amodal"] is False
    back, front = silhouettes(scene)
    assert float(alone(apart.document, 1)[3][(back * front > 0)].mean()) < 0.35
    assert apart.record["layers"][1]["amodal"] is True


def test_a_missed_object_makes_one_layer_less_and_no_error():
    apart, pixels = apart_of(Misses(scene_of(2, 3)))
    assert apart.rejected == ""
    assert len(apart.document) == 3
    assert torch.equal(composite(apart.document)[..., :3], pixels)


def test_a_thing_named_and_found_twice_is_one_layer():
    scene = scene_of(1)
    twice, once = (apart_of(x(scene))[0] for x in (Twice, Oracle))
    assert identical(twice.document, once.document)
    assert [x["reason"] for x in twice.record["dropped"]] == ["duplicate", "duplicate"]


def test_a_mask_of_nine_tenths_of_the_picture_rejects_it():
    apart, _ = apart_of(TooLarge(scene_of(1)))
    assert (apart.document, apart.rejected) == (None, "area")
    assert apart.record["dropped"][0]["area"] == pytest.approx(0.9, abs=0.01)


def test_an_inpainter_that_leaves_the_object_rejects_the_picture():
    apart, _ = apart_of(Leaves(scene_of(1)))
    assert "still there" in apart.rejected
    assert max(apart.record["checks"]["still_there"].values()) > 0.9


def test_a_layer_that_its_own_caption_does_not_name_rejects_the_picture():
    scene = scene_of(1)

    class Renames(Oracle):
        def describe(self, picture):
            if self.is_source(picture):
                return super().describe(picture)
            return Caption("an empty place")

    apart, _ = apart_of(Renames(scene))
    assert apart.rejected == "caption"
    assert set(apart.record["checks"]["captions"].values()) == {"an empty place"}


def test_a_picture_in_which_nothing_is_found_is_rejected():
    class Blind(Oracle):
        def find(self, picture, phrases):
            return []

    apart, _ = apart_of(Blind(scene_of(1)))
    assert (apart.document, apart.rejected) == (None, "nothing found")


@pytest.mark.parametrize(
    ("method", "answer", "text"),
    [
        ("order", lambda *_: [0, 0], "order of the depth"),
        ("fill", lambda *_: torch.zeros(3, 4, 4), "shape of what the inpainter made"),
        ("fill", lambda picture, *_: picture.pixels * float("nan"), "values of what the inpainter made"),
        ("find", lambda *_: [Found("a ball", torch.full((8, 8), 2.0), 1.0)], "mask of 'a ball': values"),
        ("find", lambda *_: [Found("a ball", torch.ones(1, 8, 8), 1.0)], "mask of 'a ball': shape"),
        ("find", lambda *_: [Found("a ball", torch.ones(8, 8), 1.5)], "score of 'a ball'"),
    ],
)
def test_values_of_a_wrong_kind_are_named(method, answer, text):
    oracle = Oracle(scene_of(1))
    setattr(oracle, method, answer)
    with pytest.raises(LayeredError, match=text):
        apart_of(oracle)


def test_transparent_pixels_of_a_picture_stay_transparent():
    scene = scene_of(1)
    oracle = Oracle(scene)
    pixels = torch.cat([drawn(scene), torch.ones(1, scene.size, scene.size)]).permute(1, 2, 0).contiguous()
    pixels[:9, :9] = 0
    oracle.is_source = lambda picture: True
    apart = take_apart(pixels, parts_of(oracle, captioner=Silent(oracle)), Thresholds(still_there=1))
    assert torch.equal(composite(apart.document), pixels)


class Silent:
    """A captioner that reads and does not look."""

    looks = False

    def __init__(self, oracle):
        self.describe = oracle.describe
