"""What the page of ``layered app`` works on, without the page: actions, their history, and whose turn it is."""

import threading

import pytest
import torch

from layered_cli.page import history
from layered_cli.page.editor import BACKGROUND, HARMONISED, Editor
from layered_cli.page.history import MOST_STEPS, History, Step
from layered_cli.page.turn import StoppedError, Turn
from layered_cli.page.view import shown_layers, shown_picture
from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument, Recipe, identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_diffusers.pipeline import LayeredDiffusionPipeline

QUICK = {"steps": 2}
BALL = (16, 20, 24, 24)


@pytest.fixture(scope="module")
def pipeline():
    return LayeredDiffusionPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def begun(pipeline):
    """A document with a background and a ball in its box."""
    editor = Editor()
    editor.make_background(pipeline, "a meadow", 64, 64, **QUICK)
    editor.add(pipeline, "a red ball", BALL, **QUICK)
    return editor.document


@pytest.fixture
def editor(begun):
    return Editor(begun)


def names(editor):
    return [layer.name for layer in editor.document]


def same(a, b, *which):
    """Whether the layers called ``which`` are equal to the bit in two documents."""
    return all(
        identical(LayerDocument(9, 9, (a.layer(x),)), LayerDocument(9, 9, (b.layer(x),))) for x in which
    )


def test_a_background_a_thing_in_a_box_another_one_anew_and_back_to_a_file(pipeline, editor, begun, tmp_path):
    editor.add(pipeline, "a yellow star", (36, 8, 20, 20), **QUICK)
    assert names(editor) == [BACKGROUND, "a red ball", "a yellow star"]
    assert editor.selected.name == "a yellow star"
    with_star = editor.document
    editor.make_anew(pipeline, "a yellow star", "a green tree", **QUICK)
    assert names(editor) == [BACKGROUND, "a red ball", "a green tree"]
    assert editor.selected.prompt == "a green tree"
    assert not torch.equal(editor.selected.image, with_star.layer("a yellow star").image)
    assert same(editor.document, with_star, BACKGROUND, "a red ball")
    assert editor.undo() == "made 'a yellow star' anew"
    assert editor.document is with_star
    file = write_layers(editor.document, tmp_path / "star.psd", bits=8)
    assert [x.prompt for x in read_layers(file).document] == ["a meadow", "a red ball", "a yellow star"]


def test_outside_its_box_a_new_thing_changes_no_pixel(pipeline, editor, begun):
    editor.add(pipeline, "a yellow star", (30, 8, 30, 30), steps=8)
    before, after = composite(begun), composite(editor.document)
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[8:38, 30:60] = False
    assert torch.equal(before[outside], after[outside])
    assert not torch.equal(before, after)


def test_a_thing_without_a_box_finds_its_place_and_keeps_it(pipeline, editor, begun):
    editor.add(pipeline, "a yellow star", **QUICK)
    star = editor.selected
    assert (star.width, star.height) != (64, 64)
    assert star.width * star.height < 64 * 64
    editor.make_anew(pipeline, star.name, "a green tree", **QUICK)
    anew = editor.selected
    assert (anew.x, anew.y, anew.width, anew.height) == (star.x, star.y, star.width, star.height)


def test_another_seed_makes_another_picture_and_the_same_seed_the_same(pipeline, editor):
    pictures = []
    for seed in (1, 2, 1):
        editor.make_anew(pipeline, "a red ball", own_seed=seed, **QUICK)
        pictures.append(editor.selected.image)
    assert not torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])
    assert editor.selected.recipe.seed == 1


def test_another_background_leaves_the_other_layers_as_they_are(pipeline, editor, begun):
    editor.make_background(pipeline, "at night", **QUICK)
    assert names(editor) == [BACKGROUND, "a red ball"]
    assert same(editor.document, begun, "a red ball")
    assert not torch.equal(editor.document.layer(BACKGROUND).image, begun.layer(BACKGROUND).image)
    with pytest.raises(LayeredError, match="size of the background is '32x64'; allowed: 64x64"):
        editor.make_background(pipeline, "at night", 32, **QUICK)


def test_a_background_goes_behind_layers_that_have_none(pipeline):
    editor = Editor(LayerDocument(64, 64, (Layer(BACKGROUND, prompt="x"), Layer("top", torch.ones(8, 8, 4)))))
    editor.remove(BACKGROUND)
    editor.make_background(pipeline, "a meadow", **QUICK)
    assert names(editor) == [BACKGROUND, "top"]


def test_only_the_layer_that_is_asked_for_is_made(pipeline):
    words = LayerDocument(
        64, 64, (Layer("sky", prompt="a meadow"), Layer("tree", prompt="a green tree", width=30, height=30))
    )
    editor = Editor(words)
    editor.add(pipeline, "a red ball", BALL, **QUICK)
    assert [x.image is not None for x in editor.document] == [False, False, True]
    editor.make_missing(pipeline, **QUICK)
    assert all(x.image is not None and x.visible for x in editor.document)
    with pytest.raises(LayeredError, match="has its picture already"):
        editor.make_missing(pipeline, **QUICK)


def test_cut_outs_keep_their_shape_and_only_what_is_seen_of_them():
    editor = Editor(LayerDocument(100, 50))
    cut_out = torch.zeros(40, 60, 4)
    cut_out[11:21, 11:31] = 1
    editor.add_picture(cut_out, "duck.png", "a duck", (20, 10, 44, 44))
    duck = editor.selected
    assert (duck.name, duck.prompt, tuple(duck.image.shape)) == ("a duck", "a duck", (12, 22, 4))
    # 22 x 12 pixels fit into the box, which is 44 x 40 on the canvas, in its middle.
    assert (duck.x, duck.y, duck.width, duck.height) == (20, 20, 44, 24)
    with pytest.raises(LayeredError, match=r"picture 'empty.png' is wholly transparent"):
        editor.add_picture(torch.zeros(4, 4, 4), "empty.png")


def test_without_a_box_a_cut_out_takes_half_of_the_canvas_and_a_picture_all_of_it():
    editor = Editor()
    editor.add_picture(torch.ones(20, 40, 4), "photo.jpg", side=80)
    assert (editor.document.width, editor.document.height) == (80, 80)
    assert (editor.selected.x, editor.selected.y, editor.selected.width, editor.selected.height) == (
        0,
        20,
        80,
        40,
    )
    editor.add_picture(torch.full((10, 10, 4), 0.5), "glass.png")
    assert (editor.selected.x, editor.selected.y, editor.selected.width) == (20, 20, 40)


def test_harmonising_obeys_each_layers_freedom(pipeline, editor, begun):
    editor.describe("a red ball", "a red ball", 0.0)
    editor.describe(BACKGROUND, "a meadow", 1.0)
    editor.harmonise(pipeline, **QUICK)
    assert names(editor) == [BACKGROUND, "a red ball", HARMONISED]
    before, after = composite(begun), composite(editor.document)
    kept = begun.layer("a red ball").image[..., 3] >= 1
    inside = (slice(20, 44), slice(16, 40))
    if kept.any():
        assert ((before[inside] - after[inside]).abs()[kept].max()) <= 1 / 255
    assert (before - after).abs().max() > 0.1
    editor.harmonise(pipeline, **QUICK)
    assert names(editor) == [BACKGROUND, "a red ball", HARMONISED]


def test_a_harmonised_picture_is_hidden_when_what_is_behind_it_changes(pipeline, editor):
    editor.harmonise(pipeline, **QUICK)
    editor.add_picture(torch.ones(4, 4, 4), "in front")
    assert editor.document.layer(HARMONISED).visible
    editor.place("in front", (0, 0, 8, 8))
    editor.describe("a red ball", "a blue ball", 0.2)
    assert editor.document.layer(HARMONISED).visible
    editor.place("a red ball", (0, 0, 8, 8))
    assert not editor.document.layer(HARMONISED).visible


def test_layers_are_moved_hidden_reordered_and_removed(editor):
    editor.place("a red ball", (-4, 2, 10, 12))
    ball = editor.selected
    assert (ball.x, ball.y, ball.width, ball.height) == (-4, 2, 10, 12)
    editor.show("a red ball", False)
    assert not editor.selected.visible
    editor.bring("a red ball", -1)
    assert names(editor) == ["a red ball", BACKGROUND]
    editor.bring("a red ball", -5)
    assert editor.undo() == "moved 'a red ball' to the back"
    editor.remove("a red ball")
    assert (names(editor), editor.selected.name) == ([BACKGROUND], BACKGROUND)
    editor.remove(BACKGROUND)
    assert (editor.document.layers, editor.selected) == ((), None)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda e, p: e.add(p, "  "), "the new thing has no words"),
        (
            lambda e, p: e.add(p, "a ball", (70, 0, 9, 9)),
            "allowed: at least one pixel on the canvas of 64x64",
        ),
        (
            lambda e, p: e.make_anew(p, "nobody"),
            "layer name is 'nobody'; allowed: 'background', 'a red ball'",
        ),
        (lambda e, p: e.make_anew(p, "a red ball", steps=0), "steps is 0; allowed: a whole number 1..1000"),
        (lambda e, p: e.describe("a red ball", "x", 2), "layer 'a red ball': freedom is 2; allowed"),
        (lambda e, p: e.place("a red ball", (99, 99, 5, 5)), "allowed: at least one pixel on the canvas"),
        (lambda e, p: e.undo(), "there is nothing to undo"),
        (lambda e, p: e.redo(), "there is nothing to do again"),
        (lambda e, p: e.select("nobody"), "layer name is 'nobody'"),
    ],
)
def test_an_action_that_fails_says_why_and_changes_nothing(pipeline, editor, begun, act, told):
    with pytest.raises(LayeredError) as error:
        act(editor, pipeline)
    assert told in str(error.value)
    assert editor.document is begun
    assert not editor.history.can_undo


def test_on_an_empty_page_an_action_says_where_to_begin(pipeline):
    editor = Editor()
    for act in (
        lambda: editor.add(pipeline, "a ball"),
        lambda: editor.make_missing(pipeline),
        lambda: editor.harmonise(pipeline),
    ):
        with pytest.raises(LayeredError, match="there is no picture yet. Make a background"):
            act()


def test_a_new_page_and_an_opened_file_can_be_undone(editor, begun):
    editor.clear()
    assert editor.document is None
    editor.open(LayerDocument(8, 8, (Layer("a", torch.ones(8, 8, 4)),)), "a.psd")
    assert editor.selected.name == "a"
    assert [editor.undo(), editor.undo()] == ["opened 'a.psd'", "a new page"]
    assert editor.document is begun


def test_history_keeps_twenty_steps_and_forgets_what_was_undone():
    history = History(Step())
    for number in range(30):
        history.put(Step(action=str(number)))
    undone = []
    while history.can_undo:
        undone.append(history.undo())
    assert undone == [str(n) for n in range(29, 9, -1)]
    assert len(undone) == MOST_STEPS
    assert history.redo() == "10"
    history.put(Step(action="other"))
    assert not history.can_redo


def test_history_forgets_early_steps_whose_pixels_take_too_much_memory(monkeypatch):
    monkeypatch.setattr(history, "MOST_BYTES", 3 * 16 * 100)
    kept = History(Step())
    shared = Layer("shared", torch.ones(10, 10, 4))
    for number in range(5):
        layers = (shared, Layer("own", torch.ones(10, 10, 4)))
        kept.put(Step(LayerDocument(10, 10, layers), action=str(number)))
    undone = []
    while kept.can_undo:
        undone.append(kept.undo())
    assert undone == ["4"]  # shared pixels count once, so two steps hold three pictures


def test_a_run_that_is_stopped_leaves_everything_as_it_was_and_the_next_one_runs(pipeline, editor, begun):
    turn, seen = Turn(), []

    def report(done, total):
        seen.append((done, total))
        if done == 3:
            turn.stop()

    with pytest.raises(StoppedError), turn.running(turn.take(), report) as progress:
        editor.add(pipeline, "a yellow star", BALL, steps=8, progress=progress)
    assert seen == [(1, 8), (2, 8), (3, 8)]
    assert editor.document is begun
    with turn.running(turn.take(), lambda *_: None) as progress:
        editor.add(pipeline, "a yellow star", BALL, steps=2, progress=progress)
    fresh = Editor(begun)
    fresh.add(pipeline, "a yellow star", BALL, steps=2)
    assert identical(editor.document, fresh.document)


def test_two_runs_of_one_person_do_not_overlap():
    turn = Turn()
    turn.take()
    with pytest.raises(LayeredError, match="the last run is not done yet. Wait for it, or press Cancel"):
        turn.take()


def test_a_run_that_is_stopped_before_it_begins_never_does():
    turn = Turn()
    assert turn.stop() == "none"
    old = turn.take()
    assert turn.stop() == "asked for"
    assert not turn.is_taken
    new = turn.take()
    with pytest.raises(StoppedError), turn.running(old, print):
        raise AssertionError("it ran")
    with turn.running(new, print):
        assert turn.is_taken
        assert turn.stop() == "made"
    assert not turn.is_taken


def test_one_run_at_a_time_uses_the_model_and_one_that_waits_can_be_stopped():
    first, second = Turn(), Turn()
    entered, ended = threading.Event(), []

    def wait():
        try:
            with second.running(second.take(), print):
                entered.set()
        except StoppedError:
            ended.append("stopped")

    with first.running(first.take(), print):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.3)
        second.stop()
        thread.join(5)
        assert ended == ["stopped"]
        assert not entered.is_set()
    with second.running(second.take(), print):
        pass


def test_work_of_the_core_between_the_steps_is_stopped_too():
    turn = Turn()
    document = LayerDocument(400, 400, tuple(Layer(str(i), torch.ones(400, 400, 4)) for i in range(3)))

    def work():
        with turn.running(turn.take(), lambda *_: None):
            turn.stop()
            composite(document)

    with pytest.raises(StoppedError):
        work()
    assert not turn.is_taken


def test_the_view_shows_layers_front_to_back_with_boxes_in_hundredths(editor):
    ball, background = shown_layers(editor.document)
    assert (ball["name"], ball["words"], ball["box"]) == ("a red ball", "a red ball", [25, 31.25, 37.5, 37.5])
    assert background["box"] == [0, 0, 100, 100]
    assert ball["made"]
    assert ball["freedom"] == 0.4
    assert all(x["picture"].startswith("data:image/png;base64,") for x in (ball, background))
    assert shown_picture(editor.document).startswith("data:image/png;base64,")
    assert (shown_layers(None), shown_picture(None)) == ([], "")


def test_a_layer_without_a_recipe_shows_the_freedom_that_it_has():
    words = LayerDocument(
        8, 8, (Layer("a", prompt="x"), Layer("b", torch.ones(8, 8, 4), recipe=Recipe(noise=0.2)))
    )
    assert [x["freedom"] for x in shown_layers(words)] == [0.2, 1.0]
    assert shown_layers(words)[1]["picture"] == ""
