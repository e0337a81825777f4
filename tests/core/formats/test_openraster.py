"""OpenRaster files: their structure, their look in other programs, files that other programs made, and our
files after another program edited them."""

import io
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from layered_core.canvas.compositing import composite
from layered_core.document import BLEND_MODES, Control, Layer, LayerDocument, Recipe, identical
from layered_core.files import read_layers, write_layers

RED = (255, 0, 0, 255)
TO_THE_RIGHT = 'x="1"'


def noise(*shape, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 255).round() / 255


def scene():
    """Return a document with a layer of every kind."""
    layers = (
        Layer(
            "sky",
            noise(20, 30, 4, seed=1),
            prompt="a blue sky",
            recipe=Recipe(noise=0.3, seed=5, control=Control("depth", 0.5)),
        ),
        Layer(
            "sun",
            noise(9, 7, 4, seed=2),
            noise(9, 7, seed=3),
            x=-3,
            y=15,
            opacity=1 / 3,
            blend_mode="screen",
            visible=False,
        ),
        Layer(
            "ship",
            noise(6, 8, 4, seed=4),
            x=4.5,
            y=3,
            width=12,
            height=10,
            rotation=20,
            flip_h=True,
            prompt="a ship",
            negative="rust",
        ),
        Layer("later", width=8, height=6, x=2, y=9, prompt="a whale", recipe=Recipe(inside=0.5)),
        Layer("there", mask=noise(5, 5, seed=5), x=20, y=1, rotation=45),
    )
    return LayerDocument(30, 20, layers, (0.1, 0.2, 0.3), "a harbour", "people")


def png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def archive(path, stack, size=(20, 10), **entries):
    """Pack an OpenRaster file by hand; ``stack`` is the inside of the root stack."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("mimetype", "image/openraster")
        xml = (
            stack
            if stack.startswith("<?xml")
            else f'<image w="{size[0]}" h="{size[1]}"><stack>{stack}</stack></image>'
        )
        file.writestr("stack.xml", xml)
        for name, data in {"data_red.png": png(Image.new("RGBA", (4, 3), RED)), **entries}.items():
            file.writestr(name.replace("_", "/", 1), data)
    return path


def repack(path, change):
    """Change the entries of an archive by ``change``, which gets a dict of names and bytes."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def layer(attributes="", name="a", src="data/red.png"):
    return f'<layer name="{name}" src="{src}" {attributes}/>'


# The form


def test_the_form_is_that_of_the_specification(tmp_path):
    path = write_layers(scene(), tmp_path / "a.ora", {"workflow": {}})
    with path.open("rb") as file:
        assert file.read(54)[30:] == b"mimetypeimage/openraster"
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        assert (entries[0].filename, entries[0].compress_type) == ("mimetype", zipfile.ZIP_STORED)
        root = ElementTree.fromstring(file.read("stack.xml"))
        merged = np.asarray(Image.open(file.open("mergedimage.png")), dtype=float)
        thumbnail = Image.open(file.open("Thumbnails/thumbnail.png"))
        layers = root.findall("stack/layer")
        for node in layers:
            with Image.open(file.open(node.get("src"))) as image:
                assert (image.format, image.mode) == ("PNG", "RGBA")
    assert (root.tag, root.get("w"), root.get("h")) == ("image", "30", "20")
    assert [node.get("name") for node in layers] == [
        "there",
        "later: a whale",
        "ship: a ship",
        "sun",
        "sky: a blue sky",
        "background colour",
    ]
    sun = layers[3]
    looks = [sun.get(k) for k in ("x", "y", "visibility", "composite-op")]
    assert looks == ["-3", "15", "hidden", "svg:screen"]
    assert float(sun.get("opacity")) == 1 / 3
    assert np.abs(merged - (composite(scene(), rules="photoshop").numpy() * 255).round()).max() <= 1
    assert thumbnail.size == (30, 20)


def test_the_thumbnail_of_a_large_picture_has_at_most_256_pixels_a_side(tmp_path):
    path = write_layers(LayerDocument(1000, 100, background=(1, 0, 0)), tmp_path / "a.ora")
    with zipfile.ZipFile(path) as file:
        assert Image.open(file.open("Thumbnails/thumbnail.png")).size == (256, 26)


def test_other_programs_see_masks_in_the_alpha_and_turned_layers_in_place(tmp_path):
    """The file's layers, composited without our own data, equal our own composite within two levels of
    255."""
    document = replace(scene(), background=None)
    path = write_layers(document, tmp_path / "a.ora")

    def forget(entries):
        root = ElementTree.fromstring(entries["stack.xml"])
        for node in root.iter():
            for key in [k for k in node.attrib if k.startswith("{")]:
                del node.attrib[key]
        entries["stack.xml"] = ElementTree.tostring(root)
        for name in [n for n in entries if n.startswith("layered-diffusion/")]:
            del entries[name]

    file = read_layers(repack(path, forget))
    assert float((composite(file.document) - composite(document)).abs().max()) < 2.5 / 255
    assert [(x.name, x.prompt) for x in file.document][:3] == [
        ("sky", "a blue sky"),
        ("sun", ""),
        ("ship", "a ship"),
    ]
    assert torch.equal(file.document.layer("sky").image, document.layer("sky").image)
    assert file.document.layer("later").image is None
    assert file.warnings == ("layer 'there' is empty and left out",)


def test_every_blend_mode_comes_back_and_the_standard_ones_have_their_names(tmp_path):
    layers = tuple(Layer(mode, noise(2, 2, 4), blend_mode=mode) for mode in BLEND_MODES)
    path = write_layers(LayerDocument(2, 2, layers), tmp_path / "a.ora")
    assert [x.blend_mode for x in read_layers(path).document] == list(BLEND_MODES)
    with zipfile.ZipFile(path) as file:
        written = {
            n.get("name"): n.get("composite-op")
            for n in ElementTree.fromstring(file.read("stack.xml")).iter("layer")
        }
    assert (written["normal"], written["linear-dodge"], written["luminosity"]) == (
        "svg:src-over",
        "svg:plus",
        "svg:luminosity",
    )
    assert (written["linear-light"], written["grain-merge"]) == ("krita:linear light", "krita:grain_merge")
    assert sum(operator.startswith("svg:") for operator in written.values()) == 16


# Edited by another program, or by hand


def test_moved_reordered_renamed_and_hidden_layers_keep_their_recipes(tmp_path):
    def change(entries):
        root = ElementTree.fromstring(entries["stack.xml"])
        stack = root.find("stack")
        nodes = {node.get("name").split(":")[0]: node for node in stack}
        nodes["sky"].set("name", "sea: dark waves")
        nodes["ship"].set("x", str(int(nodes["ship"].get("x")) + 5))
        nodes["there"].set("visibility", "hidden")
        stack.remove(nodes["later"])
        stack.remove(nodes["sun"])
        stack.insert(0, nodes["sun"])
        entries["stack.xml"] = ElementTree.tostring(root)

    document, before = (
        read_layers(repack(write_layers(scene(), tmp_path / "a.ora", {"prompt": {}}), change)).document,
        scene(),
    )
    assert [x.name for x in document] == ["sea", "ship", "there", "sun"]
    assert (document.layer("sea").prompt, document.layer("sea").recipe) == (
        "dark waves",
        before.layer("sky").recipe,
    )
    assert identical(
        LayerDocument(1, 1, (document.layer("ship"),)),
        LayerDocument(1, 1, (replace(before.layer("ship"), x=9.5),)),
    )
    assert not document.layer("there").visible
    assert torch.equal(document.layer("sun").mask, before.layer("sun").mask)
    assert document.background == before.background


def test_painted_pixels_win_and_the_recipe_stays(tmp_path):
    def change(entries):
        root = ElementTree.fromstring(entries["stack.xml"])
        for node in root.iter("layer"):
            if node.get("name").startswith(("ship", "sky", "later", "sun")):
                size = Image.open(io.BytesIO(entries[node.get("src")])).size
                entries[node.get("src")] = png(Image.new("RGBA", size, RED))

    document, before = (
        read_layers(repack(write_layers(scene(), tmp_path / "a.ora"), change)).document,
        scene(),
    )
    for name in ("ship", "sky", "later", "sun"):
        assert document.layer(name).recipe == before.layer(name).recipe
        assert document.layer(name).image[0, 0].tolist() == [1, 0, 0, 1]
        assert document.layer(name).mask is None
    assert document.layer("ship").rotation == 0


def test_without_the_originals_the_placed_pixels_are_used_and_that_is_told(tmp_path):
    def change(entries):
        for name in [n for n in entries if n.startswith("layered-diffusion/")]:
            del entries[name]

    file = read_layers(repack(write_layers(scene(), tmp_path / "a.ora"), change))
    assert (
        "layer 'ship': the program that saved the file last left out its original pixels; the placed ones are used"
        in file.warnings
    )
    assert file.document.layer("ship").recipe == scene().layer("ship").recipe


# Made by another program


def test_defaults_are_those_of_the_specification(tmp_path):
    (only,) = read_layers(archive(tmp_path / "a.ora", layer())).document
    assert (only.x, only.y, only.width, only.height, only.opacity, only.blend_mode, only.visible) == (
        0,
        0,
        4,
        3,
        1,
        "normal",
        True,
    )
    assert bool((only.image == torch.tensor([1.0, 0, 0, 1])).all())


def test_the_first_layer_is_on_top_and_stacks_are_flattened(tmp_path):
    deeper = f'<stack opacity="0.5">{layer(name="deeper")}</stack>'
    inside = layer(TO_THE_RIGHT, "deep") + deeper
    inner = f'<stack name="g" opacity="0.5" x="2" y="1" visibility="hidden">{inside}</stack>'
    document = read_layers(
        archive(tmp_path / "a.ora", layer(name="top") + inner + layer(name="bottom: grass"))
    ).document
    assert [(x.name, x.x, x.y, x.opacity, x.visible) for x in document] == [
        ("bottom", 0, 0, 1, True), ("deeper", 2, 1, 0.25, False), ("deep", 3, 1, 0.5, False), ("top", 0, 0, 1, True),
    ]  # fmt: skip
    assert document.layer("bottom").prompt == "grass"


def test_what_a_document_cannot_hold_is_told_of(tmp_path):
    stack = f'<stack name="g" composite-op="svg:dst-out">{layer()}</stack><text>hello</text>'
    file = read_layers(archive(tmp_path / "a.ora", stack))
    assert file.warnings == (
        "a <text> is left out",
        "group 'g': 'svg:dst-out' cuts the layers below, which is left out; the group is hidden",
    )


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 51, (0.2, 0.2, 0.2, 1)), ("P", 0, (0, 0, 0, 1)), ("I;16", 65535, (1, 1, 1, 1))],
)
def test_any_kind_of_png_is_read(tmp_path, mode, value, expected):
    path = archive(tmp_path / "a.ora", layer(), **{"data_red.png": png(Image.new(mode, (2, 2), value))})
    torch.testing.assert_close(
        read_layers(path).document.layers[0].image,
        torch.tensor(expected, dtype=torch.float32).expand(2, 2, 4),
    )


def test_the_names_of_other_programs_for_blend_modes_are_known(tmp_path):
    operators = {
        "svg:exclusion": "exclusion",
        "svg:add": "linear-dodge",
        "krita:linear_dodge": "linear-dodge",
        "krita:hard mix": "hard-mix",
    }
    stack = "".join(layer(f'composite-op="{o}"', name=f"l{i}") for i, o in enumerate(operators))
    document = read_layers(archive(tmp_path / "a.ora", stack)).document
    assert [x.blend_mode for x in reversed(document.layers)] == list(operators.values())


def test_blend_modes_that_are_not_known_are_read_as_normal_and_told_of(tmp_path):
    """MyPaint 2 gives every layer the mode ``mypaint:spectral-wgm``."""
    stack = "".join(layer(f'composite-op="{o}"', name=o) for o in ("svg:dst-over", "mypaint:spectral-wgm"))
    file = read_layers(archive(tmp_path / "a.ora", stack))
    assert [(x.blend_mode, x.visible) for x in file.document] == [("normal", True)] * 2
    assert file.warnings == tuple(
        f"layer {o!r}: blend mode {o!r} is read as normal" for o in ("mypaint:spectral-wgm", "svg:dst-over")
    )


@pytest.mark.parametrize("operator", ["svg:dst-in", "svg:dst-out"])
def test_a_layer_that_only_cuts_those_below_covers_nothing(tmp_path, operator):
    file = read_layers(
        archive(tmp_path / "a.ora", layer(f'composite-op="{operator}"', name="cut") + layer(name="below"))
    )
    assert [(x.name, x.blend_mode, x.visible) for x in file.document] == [
        ("below", "normal", True),
        ("cut", "normal", False),
    ]
    assert file.warnings == (
        f"layer 'cut': {operator!r} cuts the layers below, which is left out; the layer is hidden",
    )


def test_kritas_hard_mix_is_told_of_and_photoshops_is_not(tmp_path):
    """Krita's is ``cfHardMix`` of its KoCompositeOpFunctions.h: dodge over a light backdrop, burn over a dark one."""
    operators = ("krita:hard mix", "krita:hard_mix_photoshop")
    stack = "".join(layer(f'composite-op="{o}"', name=o) for o in operators)
    file = read_layers(archive(tmp_path / "a.ora", stack))
    assert [x.blend_mode for x in file.document] == ["hard-mix"] * 2
    assert file.warnings == (
        "layer 'krita:hard mix': blend mode 'krita:hard mix' is read as Photoshop's hard mix, which mixes colours "
        "otherwise",
    )


def test_photoshops_hard_mix_that_we_wrote_by_kritas_name_stays_itself(tmp_path):
    document = LayerDocument(2, 2, (Layer("a", noise(2, 2, 4), blend_mode="hard-mix"),))
    path = write_layers(document, tmp_path / "a.ora")

    def change(entries):
        entries["stack.xml"] = entries["stack.xml"].replace(b"krita:hard_mix_photoshop", b"krita:hard mix")

    file = read_layers(repack(path, change))
    assert file.warnings == ()
    assert identical(file.document, document)
