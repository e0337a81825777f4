"""LoRAs of layers: their weights in a network, and the masked sum."""

import itertools

import pytest
import torch
from torch.nn import functional

from layered_core.attention.layer_loras import LoraPlaces, plan_loras
from layered_core.attention.lora_sum import Adapted, LowRank, Pixels, Reach, Rows
from layered_core.attention.parts import Part
from layered_core.attention.regional_plan import Settings, plan_regions
from layered_core.attention.spans import Spans
from layered_core.attention.words import Token
from layered_core.canvas.masks import grown_masks
from layered_core.document import Layer, LayerDocument, Lora, Recipe

INK, WOOL = Lora("ink"), Lora("wool", 0.5)


def layer(name, *loras, x=0, width=32, **more):
    return Layer(name, x=x, width=width, height=64, recipe=Recipe(loras=loras), **more)


def document(*layers):
    return LayerDocument(64, 64, layers)


def places(*layers):
    return LoraPlaces(plan_loras(document(*layers)))


def test_hidden_covered_and_neutral_loras_are_not_planned():
    planned = plan_loras(
        document(
            layer("covered", INK),
            layer("hidden", INK, visible=False),
            layer("neutral", Lora("ink", 0.0), x=32),
            layer("plain"),
            layer("seen", Lora("ink", 0.0), WOOL),
        )
    )
    assert [(x.layer, x.loras) for x in planned] == [("seen", (WOOL,))]


def test_one_lora_of_two_layers_is_one_with_both_masks_and_one_of_two_strengths_is_two():
    both = places(layer("a", INK), layer("b", INK, WOOL, x=32))
    assert both.loras == (INK, WOOL)
    cells = both.cells((2, 2))
    assert torch.equal(cells[0], torch.ones(2, 2))
    assert torch.equal(cells[1], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert places(layer("a", INK), layer("b", Lora("ink", 2.0), x=32)).loras == (INK, Lora("ink", 2.0))


def test_weights_are_the_mean_of_the_mask_in_each_cell():
    mine = places(layer("a", INK, x=0, width=24))
    assert torch.allclose(mine.cells((1, 4))[0, 0], torch.tensor([1.0, 0.5, 0.0, 0.0]))
    assert torch.allclose(mine.cells((4, 4), patch=2)[0, 0], torch.tensor([0.75, 0.0]))


def test_while_the_layout_is_forming_masks_are_grown_as_those_of_the_words_are():
    stack = document(layer("a", INK, x=16, width=16))
    masks = torch.zeros(1, 64, 64)
    masks[..., 16:32] = 1
    mine = LoraPlaces(plan_loras(stack, growth=0.125))
    assert torch.equal(mine.cells((64, 64)), masks)
    assert torch.equal(mine.cells((64, 64), forming=True), grown_masks(masks, 8))
    assert mine.placeless().tolist() == [0.0]
    half = LoraPlaces(plan_loras(stack, growth=0.125), cut=lambda masks: masks[..., 32:])
    assert torch.equal(half.cells((64, 32), forming=True), grown_masks(masks, 8)[..., 32:])
    still = LoraPlaces(plan_loras(stack))
    assert torch.equal(still.cells((64, 64), forming=True), masks)


def test_what_has_no_place_takes_part_only_if_the_layer_covers_the_whole_picture():
    assert places(layer("a", INK)).placeless().tolist() == [0.0]
    assert places(layer("a", INK, width=64)).placeless().tolist() == [1.0]
    half = places(layer("a", INK), layer("b", WOOL, x=32))
    assert half.placeless(Part(0, 8, 0, 4, 8, 8)).tolist() == [1.0, 0.0]  # the tile shows the first alone
    assert half.placeless(half.alone("b")).tolist() == [0.0, 1.0]
    assert half.placeless(half.alone("nobody's")).tolist() == [0.0, 0.0]
    assert torch.equal(half.cells((2, 2), half.alone("b"))[1], torch.ones(2, 2))


def test_a_sequence_of_tokens_gets_places_own_words_and_nothing_else():
    half = places(layer("a", INK), layer("b", WOOL, x=32))
    spans = Spans(12, range(2), (range(2, 4), range(4, 6)), range(8, 12), (1, 4), range(6, 8))
    weights = half.sequence(spans, ["b", "other"], half.cells((1, 4)))
    assert weights.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1],
    ]
    whole = places(layer("a", INK, width=64))
    assert whole.sequence(spans, ["a", "a"], whole.cells((1, 4))).tolist() == [[1.0] * 12]


def low_rank(generator, inputs=6, outputs=5, rank=2):
    return LowRank(
        torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    )


@pytest.mark.parametrize("together", [True, False])
def test_rows_get_the_masked_sum(together, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        "layered_core.attention.lora_sum._CALL", {"cpu": 1e12 if together else 0.0, "cuda": 0.0}
    )
    x, y = torch.randn(2, 4, 6, generator=generator), torch.randn(2, 4, 5, generator=generator)
    loras = [low_rank(generator), low_rank(generator, rank=3)]
    weights = torch.tensor([[0, 0.5, 1, 0, 0, 0, 0.25, 0], [0, 0.5, 0, 1, 0, 0, 0, 0]])
    got = Adapted(list(enumerate(loras))).to_rows(y, x, Rows.of(weights))
    want = y + sum(w.view(2, 4, 1) * (x @ d.down.T @ d.up.T) for w, d in zip(weights, loras, strict=True))
    assert torch.allclose(got, want, atol=1e-5)


def test_rows_without_weight_keep_their_bits_and_the_given_output_is_not_written():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 6, generator=generator), torch.randn(8, 5, generator=generator)
    adapted, before = Adapted([(0, low_rank(generator))]), y.clone()
    assert adapted.to_rows(y, x, Rows.of(torch.zeros(1, 8))) is y
    got = adapted.to_rows(y, x, Rows.of(torch.tensor([[0.0, 1, 0, 0, 0, 0.5, 0, 0]])))
    assert torch.equal(y, before)
    assert torch.equal(got[[0, 2, 3, 4, 6, 7]], y[[0, 2, 3, 4, 6, 7]])
    ones = adapted.to_rows(y, x, Rows.of(torch.ones(1, 8)))
    assert torch.equal(ones, y + adapted.deltas[0][1](x, y))


GEOMETRIES = [
    (kernel, stride, padding, dilation, size)
    for kernel, stride, padding, dilation, size in itertools.product(
        (1, 3, 4), (1, 2), (0, 1, 2), (1, 2), ((9, 12), (8, 7))
    )
    if padding < kernel
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_in_a_box_equals_the_whole_one(geometry):
    kernel, stride, padding, dilation, size = geometry
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, *size, generator=generator)
    weight = torch.randn(4, 3, kernel, kernel, generator=generator)

    def delta(x, y):
        added = functional.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
        return added - y  # as adapters that need the module's own output

    own = torch.randn(4, 3, kernel, kernel, generator=generator)
    y = functional.conv2d(x, own, stride=stride, padding=padding, dilation=dilation)
    reach = Reach((kernel,) * 2, (stride,) * 2, (padding,) * 2, (dilation,) * 2)
    height, width = y.shape[2:]
    boxes = itertools.product(range(height), range(height), range(width), range(width))
    for top, bottom, left, right in list(boxes)[:: max(1, (height * width) ** 2 // 60)]:
        if top > bottom or left > right:
            continue
        weights = torch.zeros(1, 2, height, width)
        weights[0, 1, top : bottom + 1, left : right + 1] = 0.5
        got = Adapted([(0, delta)], reach).to_pixels(y, x, Pixels.of(weights))
        want = y + weights[0][:, None] * delta(x, y)
        assert torch.allclose(got, want, atol=1e-5)
        assert torch.equal(got[0], y[0])


def test_pixels_without_weight_give_the_very_output_and_full_ones_the_whole_sum():
    x, y = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)
    added = torch.randn(1, 3, 4, 4)
    adapted = Adapted([(0, lambda x, y: added)], Reach())
    assert adapted.to_pixels(y, x, Pixels.of(torch.zeros(1, 1, 4, 4))) is y
    assert torch.equal(adapted.to_pixels(y, x, Pixels.of(torch.ones(1, 1, 4, 4))), y + added)


def test_layers_with_loras_have_the_negative_as_a_text_of_their_own_on_unets():
    """LoRAs act on a layer's own words, and guidance compares these with the negative's."""
    stack = document(
        layer("wordless", INK, x=32, width=16),
        layer("ball", INK, prompt="a red ball"),
        layer("star", x=48, width=16, prompt="a blue star"),
    )

    def negatives(negative, mode="regions", unet=True):
        settings, prompt = Settings(mode), "a red ball and a blue star"
        plan = plan_regions(stack, settings, prompt, negative, as_words, cross_attention=unet)
        return [(region.name, region.text) for region in plan.uncond]

    assert negatives("dark") == [("ball", "dark")]
    assert negatives("") == [("ball", " ")]
    assert negatives("dark", unet=False) == negatives("dark", "collage") == []


def as_words(text):
    return [Token(word, place + 1) for place, word in enumerate(text.split())]
