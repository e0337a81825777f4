"""Whatever document can be made is shown, measured and saved: no case ends in an error, and nothing is lost."""

import shutil
from contextlib import nullcontext

import pytest
import torch
from any_documents import ALL, FILES, documents
from hypothesis import given

from layered_core.canvas.compositing import composite, flat
from layered_core.canvas.masks import document_masks
from layered_core.control.hints import canny, document_hint
from layered_core.document import identical
from layered_core.editing.arrangement import arrange, read_arrangement
from layered_core.editing.layer_picture import thumbnail
from layered_core.editing.selection import select_layers
from layered_core.editing.stack_preview import outlined
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.noise.change_map import noise_map

FROM_A_BOX = ("none", "segmentation")
"""Kinds of hint that need no picture."""


def edges(picture):
    """Stand for a preprocessor of controlnet_aux."""
    return canny(picture).float().expand(3, -1, -1)


def in_range(pixels, *shape):
    return pixels.shape == shape and bool(((pixels >= 0) & (pixels <= 1)).all())


@pytest.mark.parametrize("rules", ["comfyui", "photoshop"])
def test_it_is_composited_by_the_rules_of_either_program(rules):
    @FILES
    @given(documents())
    def check(document):
        assert in_range(composite(document, rules=rules), document.height, document.width, 4)
        assert in_range(flat(document), 3, document.height, document.width)

    check()


@FILES
@given(documents())
def test_its_masks_share_every_pixel_out_and_its_change_map_is_a_share(document):
    shown, rest = document_masks(document)
    torch.testing.assert_close(shown.sum(0) + rest, torch.ones(document.height, document.width))
    assert in_range(noise_map(document), document.height, document.width)


@FILES
@given(documents())
def test_it_is_drawn_and_its_hints_need_nothing_but_pictures_and_preprocessors(document):
    drawn = outlined(document, 64)
    assert in_range(drawn, *drawn.shape[:2], 3)
    for layer in document:
        small = thumbnail(layer, 8)
        assert (small is None) == (layer.image is None and layer.mask is None)
        assert small is None or in_range(small, *small.shape)
    bare = [x for x in document if x.visible and x.image is None and x.recipe.control.hint not in FROM_A_BOX]
    with pytest.raises(LayeredError, match="needs a picture") if bare else nullcontext():
        hint = document_hint(document, preprocess=lambda kind: edges)
        assert in_range(hint, 3, document.height, document.width)


@FILES
@given(documents())
def test_it_is_arranged_and_selected_from_without_a_change(document):
    same, remarks = arrange(document, read_arrangement("{}"))
    assert identical(same, document)
    assert remarks == ()
    names = [layer.name for layer in document]
    if "*" in names:  # a layer's exact name comes before any other meaning
        assert [layer.name for layer in select_layers(document, "*")[0]] == ["*"]
    elif names:
        assert identical(select_layers(document, "*")[0], document)


@FILES
@given(documents(exact=255))
def test_it_goes_through_all_formats_one_after_another_and_looks_the_same(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("all")
    looks = [composite(document, rules=rules) for rules in ("comfyui", "photoshop")]
    back = document
    for name in ("a.psd", "a.ora", "a", "a.psb"):
        back = read_layers(write_layers(back, folder / name, bits=8), ALL).document
        assert identical(back, document), name
    again = [composite(back, rules=rules) for rules in ("comfyui", "photoshop")]
    assert all(torch.equal(x, y) for x, y in zip(looks, again, strict=True))
    shutil.rmtree(folder)
