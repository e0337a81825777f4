"""What happens when somebody uses the page: which action of the editor a part starts, and what is shown then."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from layered_core.errors import LayeredError
from layered_core.files import shown_otherwise

from .editor import Box, Editor, freedom
from .files import read_pictures, read_uploaded, write_file
from .parts import BEGIN, MODES, TABS, ModelWords, Parts
from .turn import StoppedError, Turn
from .view import shown_layers, shown_picture

if TYPE_CHECKING:
    from layered_core.document import LayerDocument
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    from .settings import Settings

Updates = dict[Any, Any]
"""A change for each part that changes."""

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that are done at once."""

CANCELLED = "cancelled: nothing was changed"

TAKE = """(file) => {
    const link = document.createElement("a");
    [link.href, link.download] = [file.url, file.orig_name];
    link.click();
}"""
"""Lets the browser save a file."""

STOPPING = """() => ({__type__: "update", text: "Stopping …", bad: false})"""
"""Shown by the page itself: an answer of the server could come after that of the run, and stay."""

TO_FIELDS = "(box) => box?.length ? box : [null, null, null, null]"
"""The box drawn on the board, for its fields. The page does it alone, for a press that comes at once to find it."""

TO_BOARD = "(...box) => [box.some((number) => number == null) ? [] : box]"
"""The box of the fields, for the board."""


class SelectedSinceError(Exception):
    """Another layer was selected than the one that the page showed."""


@dataclass
class Work:
    """What one open page works on."""

    editor: Editor = field(default_factory=Editor)
    turn: Turn = field(default_factory=Turn)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held by an action that is done at once: the next one begins with what it left."""
    answers: int = 0
    """Number of answers to the page so far. It asks again if an older one comes after a newer one."""


def build(
    pipeline: LayeredDiffusionPipeline, document: LayerDocument | None, settings: Settings, model: ModelWords
) -> gr.Blocks:
    """Return the page, not yet served. Each browser tab has its own :class:`Work`, which begins with ``document``."""
    # Files that were taken home or not used are deleted after an hour.
    with gr.Blocks(title="Layered Diffusion", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        page = _Page(pipeline, document, settings, Parts(settings, model))
        page.connect(blocks)
    return blocks


class _Page:
    """The parts and what they do."""

    def __init__(
        self,
        pipeline: LayeredDiffusionPipeline,
        document: LayerDocument | None,
        settings: Settings,
        parts: Parts,
    ) -> None:
        self.pipeline, self.document, self.settings, self.parts = pipeline, document, settings, parts

    def connect(self, blocks: gr.Blocks) -> None:
        """Say what each part does."""
        parts = self.parts
        blocks.load(self._begin, None, [parts.work, *parts.shown], **QUICK)
        self._connect_runs()
        self._connect_actions()
        self._connect_board()
        for name in TABS:
            mode = MODES.get(name, "look")
            tab = getattr(parts, f"{name}_tab")
            tab.select(lambda mode=mode: gr.update(mode=mode), None, parts.board, **QUICK)
        for kind, button in parts.take.items():
            written = button.click(
                lambda work, kind=kind: self._take(work, kind), parts.work, [parts.file, parts.says], **QUICK
            )
            written.success(None, parts.file, None, js=TAKE, **QUICK)

    def _connect_runs(self) -> None:
        parts, pipeline = self.parts, self.pipeline

        def background(
            editor: Editor, how: Any, words: str, width: float | None, height: float | None
        ) -> None:
            editor.make_background(pipeline, words, _whole(width), _whole(height), **how)

        def add(editor: Editor, how: Any, words: str, *box: float | None) -> None:
            editor.add(pipeline, words, _box(box), **how)

        def anew(editor: Editor, how: Any, of: str, words: str) -> None:
            editor.make_anew(pipeline, _shown(of), words, **how)

        def another(editor: Editor, how: Any, of: str, words: str) -> None:
            tried = editor.there().layer(_shown(of)).recipe.seed
            editor.make_anew(pipeline, of, words, (how["seed"] if tried is None else tried) + 1, **how)

        def harmonise(editor: Editor, how: Any, rest: float) -> None:
            editor.harmonise(pipeline, rest, **how)

        def missing(editor: Editor, how: Any) -> None:
            editor.make_missing(pipeline, **how)

        background_inputs = [parts.background, parts.width, parts.height]
        self._run(
            [parts.make_background.click, parts.background.submit], background, background_inputs, "add"
        )
        self._run([parts.add.click, parts.words.submit], add, [parts.words, *parts.box], "add", [parts.words])
        self._run([parts.anew.click, parts.layer_words.submit], anew, [parts.of, parts.layer_words])
        self._run([parts.another.click], another, [parts.of, parts.layer_words])
        self._run([parts.harmonise.click], harmonise, [parts.rest])
        self._run([parts.missing.click], missing, [])
        stopping = parts.cancel.click(None, None, parts.says, js=STOPPING, **QUICK)
        stopping.then(self._stop, parts.work, parts.shown, **QUICK)

    def _connect_actions(self) -> None:
        parts, settings = self.parts, self.settings

        def describe(editor: Editor, of: str, words: str, freedom: float) -> None:
            editor.describe(_selected(editor, of), words, freedom)

        def add_pictures(editor: Editor, paths: list[str] | None, words: str, *box: float | None) -> None:
            pictures = read_pictures(paths or [], settings.limits)
            for name, pixels in pictures:
                editor.add_picture(
                    pixels, name, words if len(pictures) == 1 else "", _box(box), self.pipeline.side
                )

        def open_file(editor: Editor, paths: list[str] | None) -> str:
            name, read = read_uploaded(paths or [], settings.limits, settings.groups)
            editor.open(read.document, name)
            return ". ".join([f"opened {name!r}", *read.warnings])

        self._quick(parts.undo.click, lambda editor: f"undone: {editor.undo()}")
        self._quick(parts.redo.click, lambda editor: f"done again: {editor.redo()}")
        self._quick(parts.clear.click, lambda editor: editor.clear(), tab="background")
        self._quick(
            parts.pictures.upload, add_pictures, [parts.pictures, parts.words, *parts.box], tab="layer",
            clears=[parts.pictures, parts.words],
        )  # fmt: skip
        self._quick(parts.opened.upload, open_file, [parts.opened], tab="layer", clears=[parts.opened])
        words_and_freedom = [parts.of, parts.layer_words, parts.freedom]
        self._quick(parts.freedom.release, describe, words_and_freedom)
        self._quick(parts.keep_words.click, describe, words_and_freedom)
        placed = _on_selected(lambda editor, name, *box: editor.place(name, _given(box)))
        self._quick(parts.put.click, placed, [parts.of, *parts.place])
        for button, act in (
            (parts.remove, Editor.remove),
            (parts.to_front, lambda editor, name: editor.bring(name, 1)),
            (parts.to_back, lambda editor, name: editor.bring(name, -1)),
        ):
            self._quick(button.click, _on_selected(act), [parts.of])

    def _connect_board(self) -> None:
        parts = self.parts

        def dragged(editor: Editor, event: gr.EventData) -> None:
            assert editor.document is not None
            editor.place(_selected(editor, event.layer), _pixels(editor.document, event.box))

        def tapped(editor: Editor, event: gr.EventData) -> str:
            editor.select(_at(editor.document, event.at))
            return ""

        def picked(editor: Editor, event: gr.EventData) -> str:
            editor.select(event.layer)
            return ""

        def switched(editor: Editor, event: gr.EventData) -> None:
            assert editor.document is not None
            editor.show(event.layer, not editor.document.layer(event.layer).visible)

        parts.board.input(None, parts.board, parts.box, js=TO_FIELDS, **QUICK)
        for number in parts.box:
            number.input(None, parts.box, parts.board, js=TO_BOARD, **QUICK)
        nothing = "() => [[], null, null, null, null]"
        parts.no_box.click(None, None, [parts.board, *parts.box], js=nothing, **QUICK)
        parts.board.outdated(self._show_again, parts.work, parts.shown, **QUICK)
        self._quick_event(parts.board.edit, dragged)
        self._quick_event(parts.board.select, tapped, works_in_a_run=True)
        self._quick_event(parts.layers.select, picked, "layer", works_in_a_run=True)
        self._quick_event(parts.layers.input, switched)

    def _quick(
        self,
        event: Callable[..., Any],
        act: Callable[..., str | None],
        inputs: Sequence[Any] = (),
        tab: str | None = None,
        clears: Sequence[Any] = (),
    ) -> None:
        """Let ``event`` start an action that needs no model. ``act`` gets the editor and the values of ``inputs``, and
        may return what is said of it; then ``tab`` is shown and ``clears`` are emptied."""

        def handle(work: Work | None, *values: Any) -> Updates:
            return self._acted(work, lambda editor: act(editor, *values), tab, clears)

        event(handle, [self.parts.work, *inputs], self.parts.shown, **QUICK)

    def _quick_event(
        self,
        event: Callable[..., Any],
        act: Callable[[Editor, gr.EventData], str | None],
        tab: str | None = None,
        works_in_a_run: bool = False,
    ) -> None:
        """As :meth:`_quick`, of an event of the board or the list, which ``act`` gets."""

        def handle(work: Work | None, event: gr.EventData) -> Updates:
            return self._acted(work, lambda editor: act(editor, event), tab, (), works_in_a_run)

        event(handle, self.parts.work, self.parts.shown, **QUICK)

    def _acted(
        self,
        work: Work | None,
        act: Callable[[Editor], str | None],
        tab: str | None,
        clears: Sequence[Any],
        works_in_a_run: bool = False,
    ) -> Updates:
        def go() -> Updates:
            there = _there(work)
            with there.lock:
                if there.turn.is_taken and not works_in_a_run:
                    raise LayeredError("a picture is being made. Wait for it, or press Cancel")
                said = act(there.editor)
                said = there.editor.history.now.action if said is None else said
                return self._show(there, said, tab=tab) | dict.fromkeys(clears)

        return self._told(work, go)

    def _run(
        self,
        events: Sequence[Any],
        act: Callable[..., None],
        inputs: Sequence[Any],
        tab: str | None = None,
        clears: Sequence[Any] = (),
    ) -> None:
        """Let each of ``events`` start a run of the model. ``act`` gets the editor, the options of the run, and the
        values of ``inputs``; then ``tab`` is shown and ``clears`` are emptied."""
        parts, settings = self.parts, self.settings

        def handle(
            work: Work | None,
            ticket: int,
            negative: str,
            seed: float | None,
            steps: float | None,
            guidance: float | None,
            alpha: str,
            *values: Any,
            progress: gr.Progress = gr.Progress(),  # noqa: B008  (so Gradio finds it)
        ) -> Updates:
            def report(done: int, total: int) -> None:
                progress((done, total), desc="Making it", unit="steps")

            def go() -> Updates:
                there = _there(work)
                with there.turn.running(int(ticket), report) as step:
                    how = {
                        "negative": negative, "seed": _whole(seed) or 0, "steps": _whole(steps) or settings.steps,
                        "guidance": guidance, "alpha": alpha, "file": settings.file, "decoder": settings.decoder,
                        "progress": step,
                    }  # fmt: skip
                    act(there.editor, how, *values)
                return self._show(there, there.editor.history.now.action, tab=tab) | dict.fromkeys(clears, "")

            return self._told(work, go)

        taken = gr.on(events, self._take_turn, parts.work, [parts.ticket, *parts.shown], **QUICK)
        taken.success(
            handle,
            [parts.work, parts.ticket, *parts.how, *inputs],
            parts.shown,
            show_progress="full",
            show_progress_on=parts.board,
            concurrency_id="model",
            concurrency_limit=1,
            api_visibility="private",
        )

    def _take_turn(self, work: Work | None) -> Updates:
        """Ask for a run; the page shows that it waits for it."""
        parts = self.parts
        there = _there(work)
        try:
            with there.lock:
                ticket = there.turn.take()
                there.answers += 1
                answer = there.answers
        except LayeredError as error:
            raise gr.Error(_sentence(str(error)), print_exception=False) from None
        off = gr.update(interactive=False)
        return {
            parts.ticket: ticket,
            parts.board: gr.update(answer=answer),
            parts.says: gr.update(text="Making it …", bad=False),
            parts.cancel: gr.update(interactive=True),
            **dict.fromkeys([*parts.runs, parts.undo, parts.redo], off),
        }

    def _show_again(self, work: Work | None) -> Updates:
        """Show what there is to a page that shows an older answer."""
        there = _there(work)
        said = "Making it …" if there.turn.is_taken else there.editor.history.now.action
        return self._show(there, said)

    def _stop(self, work: Work | None) -> Updates:
        """Stop the run, or forget it if it has not begun."""
        there = _there(work)
        stopped = there.turn.stop()
        if stopped == "made":
            return {self.parts.says: gr.skip()}  # the run itself says how it ended
        return self._show(there, CANCELLED if stopped == "asked for" else there.editor.history.now.action)

    def _told(self, work: Work | None, go: Callable[[], Updates]) -> Updates:
        """Return what ``go`` returns, or what went wrong in it, which leaves the document as it was."""
        try:
            return go()
        except StoppedError:
            there = _there(work)
            return {self.parts.says: gr.skip()} if there.turn.is_taken else self._show(there, CANCELLED)
        except SelectedSinceError as error:
            return self._show(_there(work), str(error))
        except LayeredError as error:
            said = str(error)
        except Exception as error:  # nobody shall lose a picture for a fault of the page or the machine
            traceback.print_exc()
            said = f"it failed ({str(error) or type(error).__name__}), and nothing was changed. Try it in another way"
        return self._show(_there(work), said, bad=True)

    def _show(self, work: Work, said: str, tab: str | None = None, bad: bool = False) -> Updates:
        """Return what shows the present step, a line about it, and ``tab``, if one is given."""
        with work.lock:
            work.answers += 1
            return self._shown_now(work, said, tab, bad)

    def _shown_now(self, work: Work, said: str, tab: str | None, bad: bool) -> Updates:
        parts, editor, busy = self.parts, work.editor, work.turn.is_taken
        document, layer, layers = editor.document, editor.selected, shown_layers(editor.document)
        name = None if layer is None else layer.name
        board: dict[str, Any] = {
            "picture": shown_picture(document),
            "layers": layers,
            "selected": name or "",
            "hint": BEGIN,
            "answer": work.answers,
        }
        if document is not None:
            board |= {"width": document.width, "height": document.height}
        if tab is not None:
            board["mode"] = MODES.get(tab, "look")
        updates = {
            parts.layers: gr.update(layers=layers, selected=name or ""),
            parts.says: gr.update(text=_sentence(said), bad=bad),
            parts.undo: gr.update(interactive=editor.history.can_undo and not busy),
            parts.redo: gr.update(interactive=editor.history.can_redo and not busy),
            parts.cancel: gr.update(interactive=busy),
            **dict.fromkeys(parts.runs, gr.update(interactive=not busy)),
        }
        if not bad:  # after an error the words and the box are still there, to be put right
            place = [None] * 4 if layer is None else [layer.x, layer.y, layer.width, layer.height]
            board["value"] = []
            updates |= dict.fromkeys(parts.box) | dict(zip(parts.place, place))
            updates[parts.of] = name or ""
            updates[parts.layer_words] = "" if layer is None else layer.prompt
            if document is not None and name is not None:
                updates[parts.freedom] = freedom(document, name)
        if tab is not None:
            updates[parts.tabs] = gr.update(selected=tab)
        return updates | {parts.board: gr.update(**board)}

    def _begin(self) -> Updates:
        work = Work(Editor(self.document))
        return {self.parts.work: work} | self._show(work, "", None if self.document is None else "layer")

    def _take(self, work: Work | None, kind: str) -> list[Any]:
        """Write a file to be taken home, and say what other programs show otherwise of it."""
        try:
            document = _there(work).editor.there()
            path = write_file(document, Path(self.parts.file.GRADIO_CACHE), kind)
        except LayeredError as error:
            raise gr.Error(_sentence(str(error)), print_exception=False) from None
        said = ". ".join(shown_otherwise(document, path)) or f"{path.name} is among your downloads"
        return [str(path), gr.update(text=_sentence(said), bad=False)]


def _there(work: Work | None) -> Work:
    if work is None:
        said = "The program was started again and has forgotten this page. Load the page again."
        raise gr.Error(said, print_exception=False)
    return work


def _shown(of: str) -> str:
    """Return the name of the layer that the fields show.

    Raises:
        LayeredError: they show none.
    """
    if not of:
        raise LayeredError("no layer is selected. Select one in the list of layers")
    return of


def _selected(editor: Editor, of: str) -> str:
    """Return the name of the selected layer, which is the one that the page shows.

    Raises:
        LayeredError: none is selected.
        SelectedSinceError: it is another one.
    """
    if editor.selected is not None and editor.selected.name != of:
        raise SelectedSinceError(
            f"nothing was changed, as {editor.selected.name!r} was selected just now. Look at it, and do it again"
        )
    return _shown(of if editor.selected is not None else "")


def _on_selected(act: Callable[..., None]) -> Callable[..., None]:
    """Let ``act(editor, name, *values)`` act on the selected layer, whose name the page gives first."""
    return lambda editor, of, *values: act(editor, _selected(editor, of), *values)


def _at(document: LayerDocument | None, at: Sequence[float]) -> str | None:
    """Return the name of the frontmost visible layer whose box holds a place, hundredths of the canvas; or None."""
    for layer in shown_layers(document):
        left, top, width, height = layer["box"]
        if layer["visible"] and left <= at[0] <= left + width and top <= at[1] <= top + height:
            return str(layer["name"])
    return None


def _pixels(document: LayerDocument, box: Sequence[float]) -> Box:
    """Return a box in hundredths of the canvas as one in pixels."""
    x, y, width, height = box
    across, down = document.width / 100, document.height / 100
    return x * across, y * down, width * across, height * down


def _box(values: Sequence[float | None]) -> Box | None:
    """Return the box of four fields, or None if all are empty."""
    return None if all(value is None for value in values) else _given(values)


def _given(values: Sequence[float | None]) -> Box:
    """Return the box of four fields.

    Raises:
        LayeredError: one is empty.
    """
    left, top, width, height = values
    if left is None or top is None or width is None or height is None:
        raise LayeredError(
            "the box lacks a number. Fill in its left and top edge, width and height, or none of them"
        )
    return left, top, width, height


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    text = text.strip()
    return text if not text else text[0].upper() + text[1:] + ("" if text[-1] in ".!?…" else ".")
