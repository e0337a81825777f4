"""How large a canvas is that nobody has given a size, and what lies on it without a size of its own."""

import pytest
from graph import from_image, load, node, per_layer_sdedit
from PIL import Image
from sampling import LOADER
from server import PromptServer


@pytest.fixture(autouse=True)
def pictures(host):
    for name, size in (("photo.png", (256, 192)), ("apple.png", (600, 700)), ("small.png", (40, 30))):
        Image.new("RGBA", size, (200, 30, 40, 255)).save(host.input / name)


@pytest.fixture
def read(host, pack):
    """Run a prompt and return the document that a node of it gives."""
    host.fresh()
    return lambda prompt, node_id: pack("nodes.layers.socket").read_stack(host.value(prompt, node_id))


@pytest.fixture
def told(monkeypatch):
    """What nodes show under themselves while they run."""
    texts = []
    monkeypatch.setattr(PromptServer.instance, "send_progress_text", lambda text, node_id: texts.append(text))
    return texts


def test_the_first_picture_sets_the_canvas_and_a_larger_one_is_scaled_down_to_it_and_told(read, told):
    document = read({"1": load("photo.png"), "2": load("apple.png", layers=["1", 0])}, "2")
    assert (document.width, document.height) == (256, 192)
    apple = document.layer("apple")
    assert (apple.x, apple.y, apple.width, apple.height) == (0, 0, 165, 192)
    (text,) = told
    assert "layer 'apple'" in text
    assert "600x700" in text
    assert "256x192" in text
    assert "165x192" in text


def test_a_size_that_was_given_counts_and_what_is_cut_off_is_told(read, told):
    document = read(
        {"1": load("photo.png"), "2": load("apple.png", layers=["1", 0], width=600, height=700)}, "2"
    )
    assert (document.width, document.height) == (256, 192)
    assert (document.layer("apple").width, document.layer("apple").height) == (600, 700)
    assert told == ["layer 'apple': what lies off the canvas of 256x192 is cut off"]


def test_a_picture_that_fits_keeps_its_pixels_and_nothing_is_told(read, told):
    prompt = {"1": load("photo.png"), "2": load("small.png", x=216, y=162, layers=["1", 0])}
    assert (read(prompt, "2").layer("small").width, told) == (40, [])


def test_a_canvas_size_that_was_given_counts(read, told):
    prompt = {
        "1": load("photo.png", canvas_width=300, canvas_height=200),
        "2": load("small.png", layers=["1", 0], canvas_width=280),
    }
    document = read(prompt, "2")
    assert (document.width, document.height) == (280, 200)
    assert told == []


def test_a_turned_first_picture_is_not_scaled(read):
    document = read({"1": load("photo.png", rotation=90.0)}, "1")
    assert (document.layers[0].width, document.layers[0].height) == (256, 192)


def test_boxes_before_the_first_picture_widen_the_canvas_and_those_after_it_do_not(read):
    boxes = {
        "1": from_image(name="left", x=10, width=90, height=100),
        "2": from_image(name="right", x=300, width=100, height=100, layers=["1", 0]),
        "3": load("photo.png", layers=["2", 0]),
        "4": from_image(name="wide", width=1000, height=100, layers=["3", 0]),
    }
    sizes = [(d.width, d.height) for d in (read(boxes, n) for n in ("1", "2", "3", "4"))]
    assert sizes == [(100, 100), (400, 100), (400, 192), (400, 192)]


def test_a_picture_behind_which_core_laid_layers_does_not_widen_their_canvas(read):
    prompt = {
        "1": node("LoadImage", image="photo.png"),
        "2": node("AddLayer", image=["1", 0], name="photo"),
        "3": load("apple.png", layers=["2", 0]),
    }
    document = read(prompt, "3")
    assert (document.width, document.height, document.layer("apple").height) == (256, 192, 192)


def test_a_layer_without_picture_and_size_is_the_whole_canvas(read):
    prompt = {
        "1": from_image(prompt="a meadow"),
        "2": from_image(prompt="a ball", x=50, width=20, height=20, layers=["1", 0]),
        "3": load("photo.png", layers=["2", 0]),
    }
    assert [(x.width, x.height) for x in read(prompt, "3")] == [(256, 192), (20, 20), (256, 192)]
    assert [(x.width, x.height) for x in read(prompt, "2")] == [(70, 20), (20, 20)]
    assert [(x.width, x.height) for x in read(prompt, "1")] == [(512, 512)]


def test_an_unnamed_layer_is_called_by_its_words(read):
    prompt = {
        "1": from_image(prompt="a red ball on a very long table in a kitchen", width=64, height=64),
        "2": from_image(prompt="a red ball on a very long table in a kitchen", layers=["1", 0]),
        "3": from_image(layers=["2", 0]),
    }
    assert [x.name for x in read(prompt, "3")] == [
        "a red ball on a very long table in a",
        "a red ball on a very long table in a 2",
        "layer",
    ]


def test_a_backdrop_keeps_its_pixels_by_default_and_is_told(host, told):
    prompt = {
        **LOADER,
        "1": load("photo.png"),
        "2": load("small.png", x=48, y=24, layers=["1", 0]),
        "it": per_layer_sdedit("2"),
    }
    change = host.value(prompt, "it", 2)[0, ..., 0]
    assert float(change[100, 10]) == 0
    assert float(change[30, 60]) == pytest.approx(0.8)
    (text,) = told
    assert text.startswith("layer 'photo' has no words and fills the canvas")


@pytest.mark.parametrize(
    ("own", "noise"), [({"noise": 0.6}, 0.6), ({"keep_backdrop": False}, 0.8), ({"prompt": "a meadow"}, 0.8)]
)
def test_a_noise_that_was_set_counts_for_a_backdrop_too(host, told, own, noise):
    prompt = {
        **LOADER,
        "1": load("photo.png", **own),
        "2": load("small.png", x=48, y=24, layers=["1", 0]),
        "it": per_layer_sdedit("2"),
    }
    change = host.value(prompt, "it", 2)[0, ..., 0]
    assert float(change[100, 10]) == pytest.approx(noise)
    assert told == []
