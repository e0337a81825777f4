"""What is sampled and what is held when layers of a document are made anew, and what comes back."""

from dataclasses import replace

import pytest
import torch

from layered_core.canvas.compositing import GREY
from layered_core.document import Layer, LayerDocument, Recipe, identical
from layered_core.errors import LayeredError
from layered_core.joint.editing import (
    BLEND,
    STYLE,
    Edit,
    edited,
    frames_to_encode,
    layer_picture,
    plan_layers,
    with_frames,
)

SIDE = 16


def picture(seed, alpha=None):
    pixels = torch.rand(SIDE, SIDE, 4, generator=torch.Generator().manual_seed(seed))
    if alpha is not None:
        pixels[..., 3] = alpha
    return pixels


@pytest.fixture
def document():
    return LayerDocument(
        SIDE, SIDE,
        (
            Layer("sea", picture(0, 1.0), prompt="by the sea"),
            Layer("ball", picture(1), prompt="a red ball"),
            Layer("star", picture(2), prompt="a blue star", opacity=0.5),
            Layer(BLEND, picture(3, 1.0), prompt="all", visible=False),
        ),
        prompt="a red ball and a blue star by the sea",
    )  # fmt: skip


def test_frames_are_the_layers_back_to_front_then_the_background_and_the_blend(document):
    plan = plan_layers(document, {"star": 1.0})
    assert plan.scene.layers == 2
    assert plan.names == ("ball", "star", "sea", BLEND)
    assert plan.words == ("a red ball", "a blue star", "by the sea", document.prompt)
    assert [(float(x.min()), float(x.max())) for x in plan.change] == [(0, 0), (1, 1), (0, 0), (1, 1)]
    assert torch.equal(plan.pictures[0], picture(1).movedim(-1, 0))
    assert torch.equal(plan.pictures[1], picture(2).movedim(-1, 0)), "its opacity stays the layer's own"
    assert torch.equal(plan.pictures[2], picture(0, 1.0).movedim(-1, 0))


def test_a_held_layer_is_seen_with_its_opacity(document):
    held = plan_layers(document, {"ball": 1.0}).pictures[1]
    assert torch.equal(held[3], picture(2)[..., 3] * 0.5)


def test_nothing_free_is_nothing_to_do(document):
    assert plan_layers(document, {}) is None
    assert plan_layers(document, {"ball": 0.0}) is None


def test_the_blend_is_made_anew_unless_it_is_held(document):
    assert float(plan_layers(document, {"ball": 1.0}).change[-1].min()) == 1
    held = plan_layers(document, {"ball": 1.0}, hold_blend=True)
    assert float(held.change[-1].max()) == 0
    assert torch.allclose(frames_to_encode(held)[1], picture(3)[..., :3].movedim(-1, 0))


def test_a_background_colour_is_a_background_that_is_held(document):
    plain = replace(document, layers=document.layers[1:3], background=(0.2, 0.4, 0.6))
    plan = plan_layers(plain, {"ball": 1.0})
    assert plan.names == ("ball", "star", None, None)
    assert plan.words[-2:] == (document.prompt, document.prompt)
    assert float(plan.change[-2].max()) == 0
    assert torch.allclose(plan.pictures[-2, :, 0, 0], torch.tensor([0.2, 0.4, 0.6, 1.0]))


def test_a_layer_without_a_picture_is_made_in_its_box_and_is_empty_around_it(document):
    new = Layer("tree", prompt="a green tree", x=4, y=8, width=8, height=4)
    plan = plan_layers(document.with_layer(new), {})
    assert plan.names[:3] == ("ball", "star", "tree")
    assert float(plan.pictures[2].abs().max()) == 0
    assert float(plan.change[2].sum()) == float(plan.change[2, 8:12, 4:12].sum()) == 32
    made = with_frames(plan, {2: torch.ones(4, SIDE, SIDE)}).layer("tree")
    assert (made.x, made.y, made.width, made.height) == (0, 0, SIDE, SIDE)
    assert float(made.image[..., 3].sum()) == float(made.image[8:12, 4:12, 3].sum()) == 32


def test_layers_that_are_held_come_back_bit_for_bit(document):
    plan = plan_layers(document, {"star": 1.0})
    made = with_frames(plan, {1: torch.full((4, SIDE, SIDE), 0.3), 3: torch.full((4, SIDE, SIDE), 0.4)})
    unchanged = replace(document, layers=document.layers[:2])
    assert identical(replace(made, layers=made.layers[:2]), unchanged)
    assert made.layer("sea") is document.layer("sea")
    star, blend = made.layer("star"), made.layer(BLEND)
    assert torch.equal(star.image, torch.full((SIDE, SIDE, 4), 0.3))
    assert (star.opacity, star.prompt) == (0.5, "a blue star")
    assert (blend.visible, blend.prompt) == (False, document.prompt)


def test_outside_its_mask_a_layer_keeps_every_bit_and_inside_it_is_new(document):
    mask = torch.zeros(SIDE, SIDE)
    mask[:, :4], mask[:, 4] = 1.0, 0.5
    document, free = edited(document, {"ball": Edit("a green ball", mask=mask, amount=0.6)})
    plan = plan_layers(document, free)
    assert torch.equal(plan.change[0], 0.6 * mask)
    new = torch.rand(4, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
    image = with_frames(plan, {0: new}).layer("ball").image
    assert torch.equal(image[:, 5:], picture(1)[:, 5:])
    assert torch.equal(image[:, :4], new.movedim(0, -1)[:, :4])
    a, b = picture(1)[:, 4], new.movedim(0, -1)[:, 4]
    assert torch.allclose(image[:, 4, 3], (a[:, 3] + b[:, 3]) / 2)
    between = (a[:, :3] * a[:, 3:] + b[:, :3] * b[:, 3:]) / (a[:, 3:] + b[:, 3:])
    assert torch.allclose(image[:, 4, :3], between, atol=1e-5)


def test_a_layer_that_was_placed_lies_on_the_whole_canvas_afterwards(document):
    placed = replace(
        document.layer("ball"), x=3.0, y=2.0, width=8, height=8, rotation=30.0, flip_h=True,
        mask=torch.ones(4, 4), recipe=Recipe(noise=0.3),
    )  # fmt: skip
    document = document.with_layer(placed)
    plan = plan_layers(document, {"ball": 0.5})
    shown = layer_picture(placed, document)
    assert torch.equal(plan.pictures[0], shown)
    assert 0 < float(shown[3].sum()) < SIDE * SIDE / 2
    made = with_frames(plan, {0: torch.zeros(4, SIDE, SIDE)}).layer("ball")
    assert (made.x, made.y, made.width, made.height, made.rotation) == (0, 0, SIDE, SIDE, 0)
    assert (made.flip_h, made.mask, made.recipe) == (False, None, placed.recipe)


def test_the_scenes_words_change_with_a_layers(document):
    changed, free = edited(document, {"ball": "a green tree", "star": Edit(style="glass")})
    assert changed.prompt == "a green tree and a blue star, glass by the sea"
    assert [x.prompt for x in changed][1:3] == ["a green tree", "a blue star, glass"]
    assert free == {"ball": 1.0, "star": STYLE}


def test_words_that_the_scene_lacks_are_added_to_its_own(document):
    changed, free = edited(document.with_layer(Layer("tree", prompt="a green tree")), {})
    assert changed.prompt == f"{document.prompt}, a green tree"
    assert free == {}
    again, _ = edited(changed, {})
    assert again.prompt == changed.prompt
    other, _ = edited(replace(document, prompt="a red balloon"), {"ball": "a green tree"})
    assert other.prompt == "a red balloon, a green tree", "part of a word is no word"


def test_a_document_without_words_of_its_own_keeps_those_of_its_layers(document):
    changed, _ = edited(replace(document, prompt=""), {"ball": "a green tree"})
    assert changed.prompt == ""
    assert plan_layers(changed, {"ball": 1.0}).words[-1] == "a blue star, a green tree, by the sea"


def test_a_transparent_picture_is_encoded_over_grey(document):
    clear = replace(
        document, layers=(*document.layers[:3], Layer(BLEND, torch.zeros(4, 4, 4), visible=False))
    )
    blend = frames_to_encode(plan_layers(clear, {"ball": 1.0}, hold_blend=True))[1]
    assert torch.allclose(blend[:, 0, 0], torch.tensor(GREY))


@pytest.mark.parametrize(
    ("edits", "says"),
    [
        ({"moon": "a moon"}, "layer name is 'moon'; allowed: 'sea', 'ball', 'star', 'blend'"),
        ({"ball": " "}, "layer 'ball': prompt is ' '"),
        ({"ball": Edit(amount=1.5)}, "layer 'ball': amount is 1.5; allowed: a number 0..1"),
        ({"ball": Edit(mask=torch.ones(4, 8))}, "layer 'ball': size of the mask is '8x4'; allowed: 16x16"),
        ({"ball": Edit(mask=torch.full((SIDE, SIDE), torch.nan))}, "layer 'ball': values of the mask is"),
    ],
)
def test_an_edit_that_cannot_be_is_told_by_name(document, edits, says):
    with pytest.raises(LayeredError, match=says):
        edited(document, edits)


def no_layers(d):
    return replace(d, layers=d.layers[:1])


def no_background(d):
    return replace(d, layers=d.layers[1:])


def five(d):
    return replace(d, layers=(*d.layers, *(Layer(f"{i}", picture(i)) for i in range(3))))


def without_words(d):
    return d.with_layer(replace(d.layer("ball"), prompt=" "))


def off_the_canvas(d):
    return d.with_layer(Layer("tree", prompt="a tree", x=99, width=4, height=4))


def empty(d):
    return d.with_layer(Layer("tree", prompt="a tree"))


@pytest.mark.parametrize(
    ("change", "free", "says"),
    [
        (None, {"moon": 1.0}, "layer name is 'moon'"),
        (None, {BLEND: 1.0}, "layer 'blend': visible is False; allowed: True. The blend is always made anew"),
        (None, {"ball": -0.1}, "layer 'ball': amount is -0.1"),
        (None, {"ball": torch.zeros(SIDE, SIDE)}, "layer 'ball': mask is '0 everywhere'"),
        (None, {"ball": torch.ones(2, 2)}, "layer 'ball': size of the mask is '2x2'; allowed: 16x16"),
        (without_words, {"ball": 1.0}, "layer 'ball': prompt is ' '"),
        (
            no_layers,
            {"sea": 1.0},
            "visible layers on the background: number is 0; allowed: 1..4. Add a layer",
        ),
        (five, {"ball": 1.0}, "visible layers on the background: number is 5; allowed: 1..4. Hide or merge"),
        (no_background, {"ball": 1.0}, "no background: layer 'ball', which does not cover the canvas"),
        (off_the_canvas, {}, "layer 'tree' is to be made and lies off the canvas"),
        (empty, {"tree": 0.5}, "layer 'tree': amount is 0.5; allowed: 1, everywhere. It has no picture yet"),
    ],
)
def test_a_document_that_cannot_be_sampled_is_told_by_name(document, change, free, says):
    with pytest.raises(LayeredError, match=says):
        plan_layers(document if change is None else change(document), free)


def test_a_blend_that_is_to_be_held_must_be_there(document):
    with pytest.raises(LayeredError, match="no hidden layer 'blend' with a picture"):
        plan_layers(replace(document, layers=document.layers[:3]), {"ball": 1.0}, hold_blend=True)
