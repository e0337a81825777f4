"""``render`` puts each layer's words where the layer is, keeps pictures, and paints layers that have only words."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from demo.gallery import STAGES, collage_document
from demo.world.judge import Judge
from demo.world.vocabulary import CANVAS
from layered_core.document import Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError
from layered_diffusers.pipeline import LayeredDiffusionPipeline


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


def pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def seen(image):
    """What the judge finds: each object's words and where its middle lies, in shares of the picture."""
    found = Judge.load().look(pixels(image)[None])[0].objects
    return [(" ".join(f.thing), *(f.mask.nonzero().float().mean(0) / len(f.mask)).tolist()) for f in found]


def test_words_of_boxes_end_where_the_boxes_are(pipeline):
    """The tree's box is on the left and the house's on the right; without places both ended on the other side."""
    found = seen(pipeline.render(LayerDocument(CANVAS, CANVAS, STAGES)))
    trees = [x for thing, _, x in found if thing == "green tree"]
    houses = [x for thing, _, x in found if thing == "white house"]
    assert trees
    assert houses
    assert max(trees) < 0.5 < min(houses)


def test_the_collage_of_the_demo_keeps_every_cut_out_in_its_place(pipeline):
    document = collage_document()
    found = seen(pipeline.render(document))
    places = {
        layer.prompt.split("glowing ")[-1].removeprefix("a "): (
            (layer.y + layer.height / 2) / document.height,
            (layer.x + layer.width / 2) / document.width,
        )
        for layer in document.layers[1:]
    }
    assert sorted(thing for thing, *_ in found) == sorted(places)
    for thing, *middle in found:
        assert middle == pytest.approx(places[thing], abs=0.12), thing


def backdrop(**more):
    image = torch.cat(
        [torch.rand(64, 96, 3, generator=torch.Generator().manual_seed(0)), torch.ones(64, 96, 1)], -1
    )
    return Layer("backdrop", image, prompt="in a meadow", **more)


BALL = Layer("ball", prompt="a red ball", x=32, y=16, width=32, height=32)


@pytest.mark.parametrize("recipe", [Recipe(noise=0.0), Recipe(noise=1.0)])
def test_at_strength_0_pictures_keep_every_pixel_and_a_layer_of_words_is_painted(pipeline, recipe):
    document = LayerDocument(96, 64, (backdrop(), replace(BALL, recipe=recipe)))
    before, after = pipeline.flat(document)[0], pixels(pipeline.render(document, strength=0, steps=4))
    changed = ((before - after).abs() > 1 / 255).any(0)
    assert not bool(changed[:16].any() | changed[48:].any() | changed[:, :32].any() | changed[:, 64:].any())
    assert float(changed[16:48, 32:64].float().mean()) > 0.9


def test_with_layers_that_change_per_recipe_a_layer_of_words_is_painted_too(pipeline):
    document = LayerDocument(
        96, 64, (backdrop(recipe=Recipe(noise=0.0)), replace(BALL, recipe=Recipe(noise=0.0)))
    )
    before, after = pipeline.flat(document)[0], pixels(pipeline.harmonize(document, steps=4))
    changed = ((before - after).abs() > 1 / 255).any(0)
    assert float(changed[16:48, 32:64].float().mean()) > 0.9
    assert not bool(changed[:, :32].any())


def test_what_is_behind_a_layer_of_words_does_not_matter(pipeline):
    pictures = []
    for colour in (0.1, 0.9):
        whole = Layer(
            "whole", torch.full((64, 96, 4), colour).index_fill(2, torch.tensor(3), 1.0), prompt="at night"
        )
        words = Layer("words", prompt="a red ball", width=96, height=64)
        pictures.append(pixels(pipeline.render(LayerDocument(96, 64, (whole, words)), strength=0.2, steps=3)))
    assert torch.equal(*pictures)


def test_where_nothing_lies_the_model_paints_and_a_background_colour_is_kept(pipeline):
    layer = replace(backdrop(), width=48)
    for background, is_kept in ((None, False), ((0.9, 0.1, 0.1), True)):
        document = LayerDocument(96, 64, (layer,), background)
        picture = pixels(pipeline.render(document, strength=0, steps=4))
        kept = (picture - pipeline.flat(document)[0])[..., 50:].abs().amax() < 1 / 255
        assert bool(kept) == is_kept


def test_pictures_alone_are_a_plain_redraw_to_the_bit(pipeline):
    document = collage_document()
    for strength in (0.4, 1.0):
        plain = pipeline.generate(
            [document.words], seeds=[3], start=pipeline.flat(document), strength=strength, steps=4
        )
        rendered = pipeline.render(document, seed=3, strength=strength, attention=None, steps=4)
        assert torch.equal(pixels(rendered), (plain[0] * 255).round() / 255)


def test_a_document_without_words_renders(pipeline):
    document = LayerDocument(96, 64, (replace(backdrop(), prompt=""),))
    picture = pipeline.render(document, steps=3)
    assert picture.tobytes() == pipeline.render(document, steps=3, attention=None).tobytes()
    assert float((pixels(picture) - pipeline.flat(document)[0]).abs().mean()) > 0.01


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_out_of_range_is_named(pipeline, strength):
    with pytest.raises(LayeredError, match="strength is .*; allowed"):
        pipeline.render(collage_document(), strength=strength)
