"""Hint pictures."""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from layered_core.control.hints import canny, document_hint, load_preprocessor, segment_colour, spread
from layered_core.document import Control, Layer, LayerDocument, Recipe
from layered_core.errors import LayeredError


def layer(name, image, hint, **values):
    return Layer(name, image, recipe=Recipe(control=Control(hint=hint)), **values)


def square(size=24, inner=(8, 16)):
    """Draw a white square on black, opaque, RGBA."""
    image = torch.zeros(size, size, 4)
    image[..., 3] = 1
    image[inner[0] : inner[1], inner[0] : inner[1], :3] = 1
    return image


def test_canny_draws_one_thin_closed_line_round_a_square():
    edges = canny(square()[..., :3].permute(2, 0, 1))
    ys, xs = edges.nonzero(as_tuple=True)
    assert {int(ys.min()), int(xs.min())} <= {7, 8}
    assert {int(ys.max()), int(xs.max())} <= {15, 16}
    assert 24 <= int(edges.sum()) <= 36
    assert not edges[10:14, 10:14].any()


def test_canny_finds_weak_edges_only_where_they_touch_strong_ones():
    ramp = torch.zeros(1, 16, 32)
    ramp[..., 8:] = 40 / 255
    picture = ramp.expand(3, -1, -1).clone()
    assert not canny(picture).any()
    picture[:, :6, 8:] = 1
    assert canny(picture)[:12].any(1).all(), "the weak edge continues the strong one"


def test_canny_agrees_with_opencv(skip_suite):
    cv2 = pytest.importorskip("cv2")
    picture = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.avg_pool2d(picture, 5, 1, 2)
    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    theirs = torch.from_numpy(cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 60, 120) > 0)
    ours = canny(picture, 60, 120)
    assert float((ours == theirs).float().mean()) > 0.99


def test_a_cut_out_has_no_edge_unless_the_outline_is_asked_for():
    image = torch.ones(16, 16, 4)
    image[:4, :, 3] = 0
    document = LayerDocument(32, 32, (layer("cut", image, "canny", x=8, y=8),))
    assert not document_hint(document).any()
    outlined = document_hint(document, outline=True)
    assert outlined.any()
    assert not outlined[:, :10].any()


def test_each_layers_hint_shows_where_the_layer_does():
    back = layer("back", square(), "picture")
    front = layer("front", torch.ones(12, 24, 4), "segmentation")
    hint = document_hint(LayerDocument(24, 24, (back, front, layer("free", square(), "none"))))
    assert not hint.any(), "the layer in front hides them both"
    hint = document_hint(LayerDocument(24, 24, (back, front)))
    torch.testing.assert_close(hint[:, :12], torch.tensor(segment_colour(1))[:, None, None].expand(3, 12, 24))
    assert torch.equal(hint[:, 12:], square()[12:, :, :3].permute(2, 0, 1))


def test_colours_spread_into_holes_of_any_size():
    picture = torch.rand(3, 13, 9)
    alpha = torch.zeros(13, 9)
    alpha[5, 4] = 1
    torch.testing.assert_close(spread(picture, alpha), picture[:, 5:6, 4:5].expand(3, 13, 9))
    assert not spread(picture, torch.zeros(13, 9)).any(), "where nothing is there is nothing to spread"


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    box = layer("box", None, "canny", width=4, height=4)
    with pytest.raises(LayeredError, match="layer 'box': control hint 'canny' needs a picture"):
        document_hint(LayerDocument(8, 8, (box,)))
    with pytest.raises(
        LayeredError, match="layer 'p': control hint is 'depth'; allowed: picture, canny, segmentation"
    ):
        document_hint(LayerDocument(24, 24, (layer("p", square(), "depth"),)))
    monkeypatch.setitem(sys.modules, "controlnet_aux", None)
    with pytest.raises(LayeredError, match="pip install controlnet-aux"):
        load_preprocessor("depth", tmp_path)
    monkeypatch.setitem(sys.modules, "controlnet_aux", pytest)
    with pytest.raises(LayeredError, match=r"dpt_hybrid-midas-501f0c75\.pt of lllyasviel/Annotators"):
        load_preprocessor("depth", tmp_path)


class Runs:
    """What a pickle of it does when it is opened: it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Detector:
    """As a detector of controlnet_aux opens its checkpoint."""

    @staticmethod
    def from_pretrained(folder):
        return torch.load(f"{folder}/dpt_hybrid-midas-501f0c75.pt", weights_only=False)


def test_code_in_a_preprocessors_checkpoint_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "controlnet_aux", SimpleNamespace(MidasDetector=Detector))
    torch.save({"weights": Runs(tmp_path / "ran")}, tmp_path / "dpt_hybrid-midas-501f0c75.pt")
    before = dict(os.environ)
    with pytest.raises(
        LayeredError, match=r"control hint 'depth': the checkpoint dpt_hybrid.* cannot be read"
    ):
        load_preprocessor("depth", tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save({"weights": torch.ones(2)}, tmp_path / "dpt_hybrid-midas-501f0c75.pt")
    load_preprocessor("depth", tmp_path)
    assert dict(os.environ) == before


def test_brightness_is_red_green_and_blue_as_opencv_weighs_them():
    """A step from black: 0.299, 0.587 and 0.114 of 255, four times that in the gradient; 200 makes an edge."""
    for channel, edge in ((0, True), (1, True), (2, False)):
        picture = torch.zeros(3, 12, 12)
        picture[channel, :, 6:] = 1
        assert bool(canny(picture).any()) == edge, channel


def test_the_hint_of_a_faint_layer_is_that_of_the_full_one_as_faint():
    full, faint = (
        document_hint(LayerDocument(24, 24, (replace(layer("a", square(), "canny"), opacity=x),)))
        for x in (1.0, 0.4)
    )
    assert bool(full.any())
    torch.testing.assert_close(faint, 0.4 * full)
