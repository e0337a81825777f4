"""The plan of a layered rendering: which part of the picture has which words, and what is refused."""

from dataclasses import replace

import pytest
import torch

from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_core.rendering.rendering_plan import Rendering, background_of, plan_rendering


def ball(**more):
    return Layer("ball", torch.ones(16, 16, 4), **{"prompt": "a red ball", **more})


def star(**more):
    return Layer("star", torch.ones(16, 16, 4), **{"x": 16, "prompt": "a blue star", **more})


def sky(**more):
    return Layer("sky", torch.ones(32, 32, 4), **{"prompt": "a night sky", **more})


def document(*layers, **more):
    return LayerDocument(32, 32, layers, **{"prompt": "toys in a meadow", "negative": "blurry", **more})


def planned(*layers, prompt="", negative="", rendering=None, **more):
    return plan_rendering(document(*layers, **more), rendering or Rendering(), prompt, negative)


def test_without_an_opaque_background_layer_the_main_prompt_is_the_backgrounds():
    plan = planned(ball(negative="a cube"), star())
    assert [p.words for p in (plan.background, *plan.layers)] == [
        "toys in a meadow",
        "a red ball",
        "a blue star",
    ]
    assert [p.negative for p in (plan.background, *plan.layers)] == ["blurry", "blurry, a cube", "blurry"]
    assert [p.name for p in plan.layers] == ["ball", "star"]
    assert (plan.prompt, plan.negative) == ("toys in a meadow", "blurry")
    assert plan.background.led == 0


def test_words_that_are_given_win_over_the_documents():
    plan = planned(ball(), prompt=" a garden ", negative="dark")
    assert (plan.background.words, plan.prompt, plan.negative) == ("a garden", "a garden", "dark")


def test_an_opaque_layer_behind_all_others_gives_the_background_its_words():
    plan = planned(sky(negative="clouds"), ball())
    assert (plan.background.words, plan.background.negative) == ("a night sky", "blurry, clouds")
    assert [p.name for p in plan.layers] == ["ball"]
    assert plan.prompt == "toys in a meadow"


@pytest.mark.parametrize(
    "behind",
    [
        sky(prompt=""),
        sky(opacity=0.5),
        sky(blend_mode="multiply"),
        replace(sky(), image=torch.cat([torch.ones(32, 32, 3), torch.full((32, 32, 1), 0.9)], 2)),
        replace(sky(), x=1),
    ],
    ids=["no words", "half seen", "blended", "see-through", "a column short"],
)
def test_a_layer_that_does_not_hide_the_canvas_or_has_no_words_is_not_the_background(behind):
    assert background_of(document(behind, ball())) is None
    assert planned(behind, ball()).background.words == "toys in a meadow"


def test_a_layer_alone_is_a_layer_and_not_the_background():
    plan = planned(sky())
    assert [p.name for p in plan.layers] == ["sky"]
    assert plan.background.words == "toys in a meadow"


def test_hidden_layers_and_those_whose_words_do_not_act_belong_to_the_background():
    plan = planned(
        ball(), star(recipe=Recipe(inside=0)), Layer("off", torch.ones(8, 8, 4), prompt="x", visible=False)
    )
    assert [p.name for p in plan.layers] == ["ball"]
    seen = plan.seen(4, 4)
    assert torch.equal(seen.masks[0], 1 - seen.masks[1])


def test_attention_inside_is_how_strongly_a_layer_is_led():
    plan = planned(ball(recipe=Recipe(inside=0.5)), star())
    assert [p.led for p in plan.layers] == [0.5, 1.0]


def test_masks_are_what_is_seen_by_area_and_sum_to_1():
    """The star covers the ball's right half; its mask begins in the middle of a cell."""
    plan = planned(ball(), star(x=6, y=2))
    seen = plan.seen(8, 8)
    assert [p.name for p in seen.parts] == ["", "ball", "star"]
    assert torch.equal(seen.masks.sum(0), torch.ones(8, 8))
    assert seen.masks[2, 0].tolist() == [0, 0.25, 0.5, 0.5, 0.5, 0.25, 0, 0]
    assert seen.masks[2, 2].tolist() == [0, 0.5, 1, 1, 1, 0.5, 0, 0]
    assert seen.masks[1, 0].tolist() == [1, 0.75, 0.5, 0.5, 0, 0, 0, 0]


def test_a_background_that_is_seen_nowhere_is_no_part():
    left, right = (replace(x, width=16, height=32) for x in (ball(), star()))
    seen = planned(left, right).seen(4, 4)
    assert [p.name for p in seen.parts] == ["ball", "star"]


def test_a_covered_layer_is_no_part_and_one_without_a_cell_is_told():
    dot = Layer("dot", torch.ones(1, 1, 4), x=20, y=20, prompt="a dot")
    under = Layer("under", torch.ones(8, 8, 4), prompt="a stone")
    plan = planned(under, ball(), dot)
    assert [p.name for p in plan.layers] == ["ball", "dot"]
    assert plan.seen(8, 8).missed == []
    gone = plan.seen(8, 8, cut=lambda masks: torch.nn.functional.pad(masks[:, :16, :16], (0, 0, 0, 0)))
    assert gone.missed == ["dot"]
    assert [p.name for p in gone.parts] == ["ball"]


def test_places_are_cut_as_the_picture_is():
    seen = planned(ball(), star()).seen(4, 4, cut=lambda masks: masks[:, :16, 8:24])
    assert [p.name for p in seen.parts] == ["ball", "star"]
    assert torch.equal(seen.masks[0], torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(4, 4))


def test_embeddings_stand_before_their_layers_words():
    made = plan_rendering(
        document(ball(recipe=Recipe(embedding="krk"))), Rendering(), embedding_prefix="embedding:"
    )
    assert made.layers[0].words == "embedding:krk a red ball"


# --- steps


@pytest.mark.parametrize(
    ("share", "acting"),
    [
        (0.0, []),
        (0.3, [1.0, 0.75]),
        (0.5, [1.0, 0.75]),
        (0.75, [1.0, 0.75, 0.5]),
        (1.0, [1.0, 0.75, 0.5, 0.25, 0.0]),
    ],
)
def test_the_share_is_a_range_of_noise_levels(share, acting):
    levels = [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [x for x in levels if Rendering(share=share).acts(x, 1.0)] == acting


def test_the_share_is_of_the_run_that_is_left():
    assert [x for x in (0.4, 0.3, 0.2, 0.1) if Rendering(share=0.5).acts(x, 0.4)] == [0.4, 0.3]


def test_the_models_or_the_vaes_colours_are_asked_for_only_if_something_is_planted():
    asked = {
        c: (Rendering(colour=c).asks_model, Rendering(colour=c).asks_vae)
        for c in ("words", "noise", "picture", "constant")
    }
    assert asked == {
        "words": (True, False), "noise": (True, False), "picture": (False, True), "constant": (False, True),
    }  # fmt: skip
    none = [Rendering(colour=c, strength=0) for c in asked]
    assert not any(r.asks_model or r.asks_vae for r in none)


# --- refusals


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "a"])
@pytest.mark.parametrize("name", ["share", "strength"])
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(LayeredError, match=f"^{name} is .*; allowed: a number 0..1"):
        Rendering(**{name: value})


@pytest.mark.parametrize(
    ("name", "allowed"), [("colour", "words, picture"), ("form", "denoised"), ("preset", "faith")]
)
def test_unknown_choices_are_named(name, allowed):
    with pytest.raises(LayeredError, match=f"{name} is 'red'; allowed: {allowed}"):
        Rendering(**{name: "red"})


def test_a_constant_colour_has_three_numbers_in_range():
    with pytest.raises(LayeredError, match=r"constant is \(1.0, 1.0\); allowed: three numbers"):
        Rendering(constant=(1.0, 1.0))
    with pytest.raises(LayeredError, match="constant is 255; allowed: a number 0..1"):
        Rendering(constant=(255, 0, 0))


def test_a_document_in_which_no_layer_has_words_that_act_is_refused():
    for layers in ((), (ball(prompt=" "),), (ball(recipe=Recipe(inside=0)),), (sky(), ball(prompt=""))):
        with pytest.raises(
            LayeredError, match="layers: none has words of its own that act in front of the back"
        ):
            planned(*layers)


def test_layers_of_which_none_is_seen_are_named():
    with pytest.raises(LayeredError, match="layers 'ball', 'star': none of them is seen on the canvas"):
        planned(ball(x=100), star(opacity=0))


def test_a_layer_without_the_picture_that_gives_its_colour_is_named():
    box = Layer("box", width=8, height=8, y=20, prompt="a box")
    with pytest.raises(
        LayeredError, match="layer 'box': the picture that gives its colour is None; .* 'words'"
    ):
        planned(ball(), box, rendering=Rendering(colour="picture"))
    planned(ball(), box, rendering=Rendering(colour="picture", strength=0))
    planned(ball(), replace(box, x=100), rendering=Rendering(colour="picture"))


def test_nan_in_a_picture_is_named():
    picture = torch.ones(16, 16, 4)
    picture[3, 4, 0] = float("nan")
    with pytest.raises(LayeredError, match="layer 'ball': .*NaN"):
        planned(replace(ball(), image=picture), rendering=Rendering(colour="picture"))
