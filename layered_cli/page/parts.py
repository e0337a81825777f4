"""The parts of the page: its fields, buttons and pictures, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from .editor import FREEDOM
from .files import KINDS
from .settings import Settings

HERE = Path(__file__).parent

BOARD = """<div class="ld-frame"><img class="ld-picture" alt="the picture so far" draggable="false" hidden>
<div class="ld-overlay"></div><p class="ld-hint"></p></div>"""
"""The picture's elements. Gradio runs what stands in a template, so no text of a person ever comes into one: scripts
put texts into the page, as text. An update leaves out what is None, so no property is ever None."""

LAYERS = """<ul class="ld-layers" aria-label="Layers, front to back"></ul>"""

LINE = """<p class="ld-line" role="status" aria-live="polite"></p>"""

SAY = """const line = element.querySelector(".ld-line");
function draw() { line.textContent = props.text; line.classList.toggle("ld-bad", props.bad); }
watch(Object.keys(props), draw);
draw();"""

BEGIN = "Begin with a background: say what is to be seen, and press “Make the background”."

TABS = ("background", "add", "layer", "harmonise", "files")

MODES = {"add": "draw", "layer": "move"}
"""What a drag on the picture does in a tab; in the others nothing."""


@dataclass(frozen=True)
class ModelWords:
    """What the page says of its model."""

    backgrounds: str | None = None
    """Which backgrounds it knows, a sentence; None: any."""
    things: str = ""
    """Which things it knows, sentences; empty: any."""
    alpha: str = "difference"
    """Where a new layer is opaque at first, see :class:`layered_diffusers.stages.Staging`."""
    has_transparency: bool = False
    """Whether it can make layers alone."""


class Parts:
    """The components of the page, laid out in the Blocks around. A part's name says what it is for."""

    def __init__(self, settings: Settings, model: ModelWords) -> None:
        self.work = gr.State(None, time_to_live=24 * 3600)
        self.ticket = gr.Number(visible=False, precision=0)
        self.file = gr.File(visible=False)
        self.of = gr.Textbox(visible=False)
        """Name of the layer whose words, freedom and place the fields show: what was selected may have changed on its
        way to the page."""
        gr.HTML(HEAD, apply_default_css=False, js_on_load=None, elem_id="ld-head")
        with gr.Row(elem_id="ld-page", equal_height=False):
            with gr.Column(scale=6, min_width=320):
                self.board = gr.HTML(
                    [], html_template=BOARD, js_on_load=_script("board.js"), apply_default_css=False,
                    elem_id="ld-board", picture="", layers=[], selected="", mode="look", width=1, height=1, answer=0,
                    hint="Loading …",
                )  # fmt: skip
                with gr.Row(elem_id="ld-tools"):
                    self.undo = gr.Button(
                        "↶ Undo", size="sm", min_width=70, interactive=False, elem_id="ld-undo"
                    )
                    self.redo = gr.Button(
                        "↷ Redo", size="sm", min_width=70, interactive=False, elem_id="ld-redo"
                    )
                    self.cancel = gr.Button(
                        "Cancel",
                        size="sm",
                        min_width=70,
                        variant="stop",
                        interactive=False,
                        elem_id="ld-cancel",
                    )
                self.says = gr.HTML(
                    html_template=LINE,
                    js_on_load=SAY,
                    apply_default_css=False,
                    elem_id="ld-says",
                    text="",
                    bad=False,
                )
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs(elem_id="ld-tabs") as self.tabs:
                    self._background(model)
                    self._add(model)
                    self._layer()
                    self._harmonise()
                    self._files()
                self.layers = gr.HTML(
                    html_template=LAYERS, js_on_load=_script("layers.js"), apply_default_css=False,
                    elem_id="ld-layers", layers=[], selected="",
                )  # fmt: skip
                self._advanced(settings, model)
        self.runs = [
            self.make_background, self.add, self.anew, self.another, self.harmonise, self.missing,
        ]  # fmt: skip
        for button in self.runs:
            button.interactive = False  # until the page has begun, or a press would be lost
        self.how = [self.negative, self.seed, self.steps, self.guidance, self.alpha]

    def _background(self, model: ModelWords) -> None:
        with gr.Tab("Background", id="background") as self.background_tab:
            self.background = gr.Textbox(
                label="What is behind everything?", placeholder="sunset over the mountains", info=model.backgrounds,
                elem_id="ld-background",
            )  # fmt: skip
            self.make_background = gr.Button("Make the background", variant="primary", elem_id="ld-make")
            with gr.Accordion("Size of a new picture", open=False), gr.Row():
                self.width = gr.Number(None, label="Width", precision=0, minimum=1, min_width=120)
                self.height = gr.Number(None, label="Height", precision=0, minimum=1, min_width=120)

    def _add(self, model: ModelWords) -> None:
        with gr.Tab("Add", id="add") as self.add_tab:
            self.words = gr.Textbox(
                label="What is to be added?", placeholder="a red ball", elem_id="ld-words",
                info=f"Draw a box for it on the picture; without one it finds its own place. {model.things}",
            )  # fmt: skip
            self.add = gr.Button("Add", variant="primary", elem_id="ld-add")
            with gr.Accordion("The box in numbers", open=False):
                self.box = _box("box")
                self.no_box = gr.Button("No box", size="sm")
            self.pictures = gr.File(
                label="Or drop pictures of your own", file_count="multiple", file_types=["image"], height=120,
                elem_id="ld-pictures",
            )  # fmt: skip

    def _layer(self) -> None:
        with gr.Tab("Layer", id="layer") as self.layer_tab:
            self.layer_words = gr.Textbox(
                label="What the selected layer shows", elem_id="ld-layer-words",
                info="Select a layer in the list, or tap it on the picture; drag it to move it.",
            )  # fmt: skip
            with gr.Row():
                self.anew = gr.Button("Make it anew", variant="primary", min_width=120, elem_id="ld-anew")
                self.another = gr.Button("Another try", min_width=120, elem_id="ld-another")
            self.freedom = gr.Slider(
                0, 1, FREEDOM, step=0.05, label="Freedom", elem_id="ld-freedom",
                info="How far Harmonise may change it: 0 keeps it, 1 makes it anew.",
            )  # fmt: skip
            with gr.Row():
                self.keep_words = gr.Button("Keep the words", size="sm", min_width=100)
                self.to_front = gr.Button("To the front", size="sm", min_width=100)
                self.to_back = gr.Button("To the back", size="sm", min_width=100)
                self.remove = gr.Button("Remove", size="sm", min_width=100, elem_id="ld-remove")
            with gr.Accordion("Its place in numbers", open=False):
                self.place = _box("place")
                self.put = gr.Button("Put it there", size="sm")

    def _harmonise(self) -> None:
        with gr.Tab("Harmonise", id="harmonise") as self.harmonise_tab:
            gr.HTML(
                "<p>The model redraws all layers as one picture, so that they belong together. Each changes as far as "
                "its <i>freedom</i> says.</p>",
                js_on_load=None,
            )
            self.rest = gr.Slider(0, 1, FREEDOM, step=0.05, label="Freedom of what no layer covers")
            self.harmonise = gr.Button("Harmonise", variant="primary", elem_id="ld-harmonise")

    def _files(self) -> None:
        with gr.Tab("Files", id="files") as self.files_tab:
            with gr.Row():
                self.take = {
                    kind: gr.Button(kind.upper(), min_width=80, elem_id=f"ld-take-{kind}") for kind in KINDS
                }
            self.opened = gr.File(
                label="Open a PSD, ORA or JSON document", file_count="multiple", height=120, elem_id="ld-open",
                file_types=[".psd", ".psb", ".ora", ".json", ".png"],
            )  # fmt: skip
            with gr.Row():
                self.missing = gr.Button("Make what has no picture yet", min_width=120)
                self.clear = gr.Button("New page", min_width=120)

    def _advanced(self, settings: Settings, model: ModelWords) -> None:
        with gr.Accordion("Advanced", open=False):
            self.negative = gr.Textbox(settings.negative, label="What must not be seen (negative prompt)")
            with gr.Row():
                self.seed = gr.Number(settings.seed, label="Seed", precision=0, minimum=0, min_width=100)
                self.steps = gr.Number(
                    settings.steps,
                    label="Steps",
                    precision=0,
                    minimum=1,
                    maximum=1000,
                    min_width=100,
                    elem_id="ld-steps",
                )
                self.guidance = gr.Number(
                    settings.guidance, label="Guidance", minimum=0, maximum=50, min_width=100,
                    placeholder="the model's own",
                )  # fmt: skip
            self.alpha = gr.Radio(
                [("made alone, with alpha of their own", "transparent"), ("painted into the picture", "difference")],
                value=model.alpha, label="New things are", visible=model.has_transparency, elem_id="ld-alpha",
            )  # fmt: skip

    @property
    def shown(self) -> list[gr.components.Component]:
        """The parts that show what there is; every action may change any of them."""
        return [
            self.board, self.layers, self.says, self.undo, self.redo, self.cancel, self.tabs, self.words, *self.box,
            self.of, self.layer_words, self.freedom, *self.place, self.pictures, self.opened, *self.runs,
        ]  # fmt: skip


HEAD = """<h1 class="ld-title">Layered Diffusion</h1>"""


def _box(name: str) -> list[gr.Number]:
    """Return fields for a box called ``name``: its left and top edge, width and height, canvas pixels."""
    with gr.Row():
        return [
            gr.Number(None, label=label, precision=0, min_width=70, elem_id=f"ld-{name}-{index}")
            for index, label in enumerate(("Left", "Top", "Width", "Height"))
        ]


def _script(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
