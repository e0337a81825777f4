"""What one person makes on the page: a document, its history, the selected layer, and what each action does to them.

>>> from layered_cli.page.editor import Editor
>>> editor = Editor()
>>> editor.make_background(pipeline, "sunset over the mountains")
>>> editor.add(pipeline, "a red ball", box=(20, 50, 40, 40))
>>> editor.make_anew(pipeline, "a red ball", words="a green tree")
>>> editor.undo()
>>> [layer.name for layer in editor.document]
['background', 'a red ball']
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from layered_core.canvas.placement import meet
from layered_core.document import MAX_LAYERS, Layer, LayerDocument, Recipe, short_name, unique_names
from layered_core.errors import LayeredError, check_number, check_whole, invalid
from layered_core.formats.pictures import from_image
from layered_core.noise.change_map import layer_noises
from layered_core.painting.layers_from_pictures import seen_box

from .history import History, Step

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from layered_diffusers.pipeline import LayeredDiffusionPipeline
    from layered_diffusers.stages import Staging

Box = tuple[float, float, float, float]
"""Left edge, top edge, width and height, canvas pixels."""

BACKGROUND = "background"
"""Name of the layer at the back that is made from words."""

HARMONISED = "harmonised"
"""Name of the layer that holds the model's picture of all layers."""

HARMONISING = ("seed", "negative", "steps", "guidance", "progress")
"""Options of a stage that harmonising has as well."""

FEATHER = 8
"""Greatest width of the soft border inside a box, pixels; a small box has a smaller one, or nothing of it would be
left."""

FREEDOM = 0.4
"""How far a layer of the page may change when all are harmonised, until the person says otherwise, 0..1."""


class Editor:
    """A document that is made action by action, each of which can be undone. An action that fails, or that is
    stopped, leaves everything as it was.

    ``how`` are options of :class:`layered_diffusers.stages.Staging`.
    """

    def __init__(self, document: LayerDocument | None = None) -> None:
        self.history = History(Step(document, _frontmost(document)))

    @property
    def document(self) -> LayerDocument | None:
        """The present document, or None before there is one."""
        return self.history.now.document

    @property
    def selected(self) -> Layer | None:
        """The selected layer, or None."""
        name = self.history.now.selected
        return None if name is None or self.document is None else self.document.layer(name)

    def select(self, name: str | None) -> None:
        """Select a layer, or none.

        Raises:
            LayeredError: there is no such layer.
        """
        self.history.keep_selected(None if name is None else self.there().layer(name).name)

    def undo(self) -> str:
        """Go one step back; return what was undone. Errors as :meth:`History.undo`."""
        return self.history.undo()

    def redo(self) -> str:
        """Go one step forth again; return what was done again. Errors as :meth:`History.redo`."""
        return self.history.redo()

    def clear(self) -> None:
        """Begin an empty page, as a step that can be undone."""
        self.history.put(Step(action="a new page"))

    def open(self, document: LayerDocument, name: str) -> None:
        """Put a document from a file called ``name`` in the place of this one."""
        self.history.put(Step(document, _frontmost(document), f"opened {name!r}"))

    def make_background(
        self,
        pipeline: LayeredDiffusionPipeline,
        words: str,
        width: int | None = None,
        height: int | None = None,
        **how: Unpack[Staging],
    ) -> None:
        """Make the background from words: of a new page with a canvas of ``width`` x ``height`` pixels (None: the
        model's own size), or behind the layers that there are, which stay as they are.

        Raises:
            LayeredError: there are no words, or the canvas has another size already.
        """
        words = _said(words, "the background")
        now, name = self.document, BACKGROUND
        layer = Layer(name, prompt=words, negative=how.get("negative", ""), recipe=Recipe(noise=FREEDOM))
        if now is None:
            now = LayerDocument(width or pipeline.side, height or pipeline.side)
        elif (width or now.width, height or now.height) != (now.width, now.height):
            raise invalid(
                "size of the background",
                f"{width or now.width}x{height or now.height}",
                f"{now.width}x{now.height}, that of the picture",
                "Begin a new page for another size",
            )
        if now.layers and now.layers[0].name == name:
            layer = replace(now.layers[0], prompt=words, negative=layer.negative, image=None)
            others = now.layers[1:]
        else:
            layer, others = replace(layer, name=_free_name(now, name)), now.layers
        made = _made(pipeline, replace(now, layers=(layer, *others)), [layer.name], how)
        self._put(made, layer.name, f"made the background of {words!r}")

    def add(
        self,
        pipeline: LayeredDiffusionPipeline,
        words: str,
        box: Box | None = None,
        **how: Unpack[Staging],
    ) -> None:
        """Paint something of words in front of all layers, as a layer of its own: in its box, outside which no pixel
        changes, or, without one, where the model puts it.

        Raises:
            LayeredError: there are no words or no background, or the box is off the canvas.
        """
        words = _said(words, "the new thing")
        now = self._room()
        layer = Layer(
            _free_name(now, words),
            prompt=words,
            negative=how.get("negative", ""),
            recipe=Recipe(noise=FREEDOM),
            **({} if box is None else _placed(now, box)),
        )
        made = _made(pipeline, replace(now, layers=(*now.layers, layer)), [layer.name], how)
        if box is None:
            made = made.with_layer(_cut_to_seen(made.layer(layer.name)))
        self._put(made, layer.name, f"added {words!r}")

    def add_picture(
        self,
        pixels: Tensor,
        name: str,
        words: str = "",
        box: Box | None = None,
        side: int = 512,
    ) -> None:
        """Lay a picture in front of all layers.

        Args:
            pixels: RGBA float32 ``[H, W, 4]``, straight alpha, 0..1.
            name: the layer's name where it has no words.
            words: what the picture shows. Neutral: empty.
            box: it is scaled to fit into this box, in its middle. None: a cut-out fits into half of the canvas, an
                opaque picture into all of it.
            side: sides of the canvas, pixels, if there is none yet.

        Raises:
            LayeredError: the picture has no pixel that is seen, or the box is off the canvas.
        """
        now = LayerDocument(side, side) if self.document is None else self._room()
        seen = seen_box(pixels[..., 3])
        if seen is None:
            raise LayeredError(f"picture {name!r} is wholly transparent. Take one of which something is seen")
        pixels = pixels[seen[1] : seen[3], seen[0] : seen[2]].clone()
        height, width = pixels.shape[:2]
        if box is None:
            share = 1.0 if bool((pixels[..., 3] >= 1).all()) else 0.5
            room = now.width * share, now.height * share
            box = ((now.width - room[0]) / 2, (now.height - room[1]) / 2, *room)
        else:
            _placed(now, box)
        scale = min(box[2] / width, box[3] / height)
        fit = max(1, round(width * scale)), max(1, round(height * scale))
        x, y = box[0] + (box[2] - fit[0]) / 2, box[1] + (box[3] - fit[1]) / 2
        layer = Layer(
            _free_name(now, words or name),
            pixels,
            prompt=" ".join(words.split()),
            x=round(x),
            y=round(y),
            width=fit[0],
            height=fit[1],
            recipe=Recipe(noise=FREEDOM),
        )
        self._put(replace(now, layers=(*now.layers, layer)), layer.name, f"added the picture {layer.name!r}")

    def make_anew(
        self,
        pipeline: LayeredDiffusionPipeline,
        name: str,
        words: str | None = None,
        own_seed: int | None = None,
        **how: Unpack[Staging],
    ) -> None:
        """Make one layer anew in its place, of other words or with another seed of its own (None: as before). All
        other layers keep every bit. A layer that is called by its words is then called by the new ones.

        Raises:
            LayeredError: there is no such layer, it has no words, or it is hidden.
        """
        now = self.there()
        layer = now.layer(name)
        said = _said(layer.prompt if words is None else words, f"layer {name!r}")
        how.setdefault("feather", _feather(layer))
        if own_seed is not None:
            layer = replace(layer, recipe=replace(layer.recipe, seed=own_seed))
        layer = replace(layer, negative=how.get("negative", "") or layer.negative)
        made = _hiding(
            now.with_layer(layer),
            {x.name for x in _missing(now) if x.name != name},
            lambda document: pipeline.replace_layer(document, name, prompt=said, **how),
        )
        renamed = name
        if name == short_name(layer.prompt) and said != layer.prompt:  # the name was made of its words
            renamed = _free_name(made, said)
            layers = (replace(x, name=renamed) if x.name == name else x for x in made)
            made = replace(made, layers=tuple(layers))
        self._put(made, renamed, f"made {name!r} anew")

    def make_missing(self, pipeline: LayeredDiffusionPipeline, **how: Unpack[Staging]) -> None:
        """Make every visible layer that has words and no picture yet, back to front.

        Raises:
            LayeredError: there is none.
        """
        now = self.there()
        names = [x.name for x in _missing(now) if x.prompt.strip()]
        if not names:
            raise LayeredError("every visible layer with words has its picture already. Add another one")
        made = _made(pipeline, now, names, how)
        self._put(made, names[-1], f"made {', '.join(repr(name) for name in names)}")

    def harmonise(
        self, pipeline: LayeredDiffusionPipeline, background: float = FREEDOM, **how: Unpack[Staging]
    ) -> None:
        """Let the model redraw all layers as one picture, in which each changes as far as its freedom says: a layer in
        front of them, in place of an earlier one. ``background`` is the freedom of what no layer covers, 0..1.

        Raises:
            LayeredError: there is nothing to harmonise.
        """
        now = self.there()
        layers = tuple(x for x in now if x.name != HARMONISED)
        if not any(x.visible for x in layers):
            raise LayeredError("there is no visible layer to harmonise. Add one, or show one")
        if len(layers) >= MAX_LAYERS:
            raise invalid("number of layers", len(layers), f"at most {MAX_LAYERS - 1} beside the new one")
        bare = replace(now, layers=layers)
        sampling: Any = {key: value for key, value in how.items() if key in HARMONISING}
        picture = from_image(pipeline.harmonize(bare, background=background, **sampling))
        layer = Layer(HARMONISED, picture, prompt="", recipe=Recipe(noise=FREEDOM))
        self._put(replace(bare, layers=(*layers, layer)), HARMONISED, "harmonised all layers")

    def place(self, name: str, box: Box) -> None:
        """Move a layer and scale it to a box.

        Raises:
            LayeredError: there is no such layer, or the box is off the canvas.
        """
        now = self.there()
        layer = replace(now.layer(name), **_placed(now, box, whole=True))
        self._put(now.with_layer(layer), name, f"placed {name!r}")

    def describe(self, name: str, words: str, freedom: float) -> None:
        """Give a layer other words and another freedom, 0..1, without making it anew.

        Raises:
            LayeredError: there is no such layer, or ``freedom`` is out of range.
        """
        check_number(f"layer {name!r}: freedom", freedom, 0, 1)
        now = self.there()
        layer = now.layer(name)
        recipe = replace(layer.recipe, noise=float(freedom))
        layer = replace(layer, prompt=" ".join(words.split()), recipe=recipe)
        self._put(now.with_layer(layer), name, f"described {name!r}", shows_other=False)

    def show(self, name: str, visible: bool) -> None:
        """Show or hide a layer; errors as :meth:`LayerDocument.layer`."""
        now = self.there()
        layer = replace(now.layer(name), visible=visible)
        self._put(now.with_layer(layer), name, f"{'showed' if visible else 'hid'} {name!r}")

    def remove(self, name: str) -> None:
        """Take a layer away; errors as :meth:`LayerDocument.layer`."""
        now = self.there()
        index = now.layers.index(now.layer(name))
        rest = replace(now, layers=(*now.layers[:index], *now.layers[index + 1 :]))
        next_name = rest.layers[max(0, index - 1)].name if rest.layers else None
        self._put(rest, next_name, f"removed {name!r}", changed=index)

    def bring(self, name: str, by: int) -> None:
        """Move a layer ``by`` layers to the front; negative: to the back. At an end it stays.

        Raises:
            LayeredError: there is no such layer, or ``by`` is no whole number.
        """
        check_whole("number of layers", by, -MAX_LAYERS, MAX_LAYERS)
        now = self.there()
        index = now.layers.index(now.layer(name))
        others = [x for x in now if x.name != name]
        place = min(max(index + by, 0), len(others))
        if place == index:
            return
        layers = (*others[:place], now.layers[index], *others[place:])
        moved = "to the front" if by > 0 else "to the back"
        self._put(replace(now, layers=layers), name, f"moved {name!r} {moved}", changed=min(index, place))

    def there(self) -> LayerDocument:
        """Return the document.

        Raises:
            LayeredError: there is none yet.
        """
        if self.document is None:
            raise LayeredError(
                "there is no picture yet. Make a background, add a picture or open a file first"
            )
        return self.document

    def _room(self) -> LayerDocument:
        """Return the document, if it has room for one more layer; errors as :meth:`there`."""
        now = self.there()
        if len(now) >= MAX_LAYERS:
            raise invalid("number of layers", len(now) + 1, f"at most {MAX_LAYERS}", "Remove one first")
        return now

    def _put(
        self,
        document: LayerDocument,
        selected: str | None,
        action: str,
        shows_other: bool = True,
        changed: int | None = None,
    ) -> None:
        """Make ``document`` the present one. If what is seen of a layer behind the harmonised picture changes, that is
        hidden, since it shows the layers as they were. ``changed`` is the index of the change, None: of
        ``selected``."""
        names = [x.name for x in document]
        if changed is None:
            changed = names.index(selected) if selected in names else len(names)
        if shows_other and HARMONISED in names and changed < names.index(HARMONISED):
            document = document.with_layer(replace(document.layer(HARMONISED), visible=False))
        self.history.put(Step(document, selected, action))


def freedom(document: LayerDocument, name: str) -> float:
    """Return how far a layer may change, 0..1, whether its recipe says it or not."""
    return layer_noises(document)[[x.name for x in document].index(name)]


def _said(words: str, whose: str) -> str:
    """Return words on one line.

    Raises:
        LayeredError: there are none.
    """
    line = " ".join(words.split())
    if not line:
        raise LayeredError(f"{whose} has no words. Write what is to be seen, such as 'a red ball'")
    return line


def _frontmost(document: LayerDocument | None) -> str | None:
    return document.layers[-1].name if document is not None and document.layers else None


def _free_name(document: LayerDocument, words: str) -> str:
    """Return a name made of words that no layer has yet."""
    return unique_names([*document.layers, Layer(short_name(words) or "picture")])[-1].name


def _placed(document: LayerDocument, box: Box, whole: bool = False) -> dict[str, Any]:
    """Return the fields of a layer in a box, in whole pixels, cut to the canvas unless it is kept ``whole``.

    Raises:
        LayeredError: no pixel of the box is on the canvas.
    """
    left, top = round(box[0]), round(box[1])
    wanted = left, top, round(box[0] + box[2]), round(box[1] + box[3])
    seen = meet(wanted, (0, 0, document.width, document.height))
    if seen is None:
        raise invalid(
            "box",
            f"x {box[0]:g}, y {box[1]:g}, {box[2]:g} wide, {box[3]:g} high",
            f"at least one pixel on the canvas of {document.width}x{document.height}",
            "Draw it on the picture",
        )
    x, y, right, bottom = wanted if whole else seen
    return {"x": x, "y": y, "width": right - x, "height": bottom - y}


def _feather(layer: Layer) -> int:
    """Return the width of the soft border inside a layer's box, pixels."""
    return max(1, min(FEATHER, layer.width // 6, layer.height // 6))


def _missing(document: LayerDocument) -> list[Layer]:
    """Return the visible layers that have no picture yet."""
    return [x for x in document if x.visible and x.image is None]


def _made(
    pipeline: LayeredDiffusionPipeline, document: LayerDocument, names: Collection[str], how: Staging
) -> LayerDocument:
    """Return the document with the layers called ``names`` made, and no other."""
    how.setdefault("feather", min(_feather(document.layer(name)) for name in names))
    others = {x.name for x in _missing(document) if x.name not in names}
    return _hiding(document, others, lambda shown: pipeline.generate_layers(shown, **how))


def _hiding(
    document: LayerDocument, names: Collection[str], make: Callable[[LayerDocument], LayerDocument]
) -> LayerDocument:
    """Return what ``make`` makes of a document in which the layers called ``names`` are hidden; they are shown in the
    result."""

    def visible(shown: LayerDocument, value: bool) -> LayerDocument:
        layers = (replace(x, visible=value) if x.name in names else x for x in shown)
        return replace(shown, layers=tuple(layers))

    return visible(make(visible(document, False)), True)


def _cut_to_seen(layer: Layer) -> Layer:
    """Return a layer whose picture lies pixel by pixel on the canvas, cut to where it is seen."""
    assert layer.image is not None
    box = seen_box(layer.image[..., 3])
    if box is None:
        return layer
    left, top, right, bottom = box
    image = layer.image[top:bottom, left:right].clone()
    return replace(
        layer, image=image, x=layer.x + left, y=layer.y + top, width=right - left, height=bottom - top
    )
