"""Our PSD files: how psd-tools, and so other programs, read them, and what remains after another program
edited them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode, Clipping, ColorMode, Tag

from layered_core.canvas.compositing import composite
from layered_core.document import BLEND_MODES, Control, Layer, LayerDocument, Recipe, identical
from layered_core.files import read_layers, write_layers

RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


def noise(*shape, seed=0, top=255):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * top).round() / top


def scene(top=255):
    """Return a document with a layer of every kind."""
    layers = (
        Layer(
            "sky",
            noise(20, 30, 4, seed=1, top=top),
            prompt="a blue sky",
            recipe=Recipe(noise=0.3, seed=5, control=Control("depth", 0.5)),
        ),
        Layer(
            "sun",
            noise(9, 7, 4, seed=2, top=top),
            noise(9, 7, seed=3, top=top),
            x=-3,
            y=15,
            opacity=0.4,
            blend_mode="screen",
            visible=False,
        ),
        Layer(
            "ship",
            noise(6, 8, 4, seed=4, top=top),
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
        Layer("there", mask=noise(5, 5, seed=5, top=top), x=20, y=1, rotation=45),
    )
    return LayerDocument(30, 20, layers, (0.1, 0.2, 0.3), "a harbour", "people")


def write(tmp_path, document, **options):
    return write_layers(document, tmp_path / "scene.psd", {"workflow": {"nodes": [1]}}, **options)


def stack_of(psd, tmp_path, name="theirs.psd", groups="auto"):
    """Save a file of psd-tools and read it."""
    psd.save(tmp_path / name)
    return read_layers(tmp_path / name, groups=groups)


def pixel(document, name, y=0, x=0):
    return [round(v * 255) for v in document.layer(name).image[y, x].tolist()]


# Our files in other programs


@pytest.mark.parametrize("top", [255, 65535])
def test_psd_tools_sees_every_layer_with_equal_pixels(tmp_path, top):
    document = replace(scene(top), background=None)
    psd = PSDImage.open(write(tmp_path, document))
    assert (psd.size, psd.depth, psd.color_mode) == ((30, 20), 8 if top == 255 else 16, ColorMode.RGB)
    assert [layer.name for layer in psd] == [
        "sky: a blue sky",
        "sun",
        "ship: a ship",
        "later: a whale",
        "there",
    ]
    sky, sun, ship, later, there = psd
    for theirs, ours in ((sky, document.layer("sky")), (sun, document.layer("sun"))):
        assert np.array_equal((theirs.numpy() * top).round(), (ours.image.numpy() * top).round())
        assert theirs.offset == (ours.x, ours.y)
    assert np.array_equal(
        (sun.numpy("mask")[..., 0] * top).round(), (document.layer("sun").mask.numpy() * top).round()
    )
    assert sun.mask.bbox == sun.bbox
    assert (sun.opacity, sun.blend_mode, sun.visible) == (102, BlendMode.SCREEN, False)
    assert ship.width > 12  # turned
    assert not later.numpy()[..., 3].any()
    assert there.has_mask()


def test_turned_and_scaled_layers_look_right_elsewhere(tmp_path):
    """The layers that psd-tools reads, composited by us, equal our own composite within two levels of 255."""
    document = replace(scene(), background=None)
    psd = PSDImage.open(write(tmp_path, document))
    plain = [
        Layer(x.name, torch.from_numpy(x.numpy()), None, x=x.left, y=x.top, visible=x.visible)
        for x in psd
        if x.kind == "pixel" and not x.mask
    ]
    ours = composite(
        replace(document, layers=tuple(x for x in document if x.image is not None and x.mask is None))
    )
    assert float((composite(LayerDocument(30, 20, tuple(plain))) - ours).abs().max()) < 1.5 / 255


def test_the_composite_and_the_thumbnail_are_in_the_file(tmp_path):
    gradient = torch.linspace(0, 1, 30).expand(20, 30)
    document = replace(
        scene(), layers=(Layer("a", torch.stack([gradient, 1 - gradient, gradient, gradient / 2 + 0.5], -1)),)
    )
    psd = PSDImage.open(write(tmp_path, document))
    ours = (composite(document, rules="photoshop").numpy() * 255).round()
    assert np.abs(np.asarray(psd.topil().convert("RGBA"), dtype=float) - ours).max() <= 1
    thumbnail = psd.thumbnail()
    assert thumbnail.size == (30, 20)
    assert np.abs(np.asarray(thumbnail.convert("RGB"), dtype=float) - ours[..., :3]).mean() < 4


def test_a_transparent_composite_is_over_white_with_its_alpha(tmp_path):
    document = LayerDocument(
        4, 4, (Layer("a", torch.tensor([1.0, 0.0, 0.0, 0.5]).mul(255).round().div(255).expand(4, 4, 4)),)
    )
    record = PSDImage.open(write(tmp_path, document))._record
    red, green, blue, alpha = record.image_data.get_data(record.header)
    assert (red[0], green[0], blue[0], alpha[0]) == (255, 127, 127, 128)
    assert record.layer_and_mask_information.layer_info.layer_count == -1


def test_every_blend_mode_comes_back_and_photoshop_has_nearly_all(tmp_path):
    layers = tuple(Layer(mode, noise(2, 2, 4), blend_mode=mode) for mode in BLEND_MODES)
    path = write(tmp_path, LayerDocument(2, 2, layers))
    assert [layer.blend_mode for layer in read_layers(path).document] == list(BLEND_MODES)
    theirs = {layer.name: layer.blend_mode for layer in PSDImage.open(path)}
    assert theirs["grain-extract"] == BlendMode.SUBTRACT
    assert theirs["grain-merge"] == BlendMode.LINEAR_LIGHT
    assert len(set(theirs.values())) == 24


# Edited by another program


def edited(tmp_path, change, document=None):
    path = write(tmp_path, document or scene())
    psd = PSDImage.open(path)
    change(psd, {layer.name.split(":")[0]: layer for layer in psd})
    return stack_of(psd, tmp_path)


def test_saved_again_unchanged_it_is_the_same_document(tmp_path):
    file = edited(tmp_path, lambda psd, layers: None)
    assert identical(file.document, scene())
    assert file.workflow == {"workflow": {"nodes": [1]}}


def test_moved_reordered_renamed_and_hidden_layers_keep_their_recipes(tmp_path):
    def change(psd, layers):
        layers["sky"].name = "sea: dark waves"
        layers["ship"].name = "boat"
        layers["ship"].left += 5
        layers["ship"].top -= 2
        layers["there"].visible = False
        layers["sun"].opacity = 255
        layers["sun"].blend_mode = BlendMode.MULTIPLY
        layers["later"].delete_layer()
        layers["sky"].move_up(2)

    document, before = edited(tmp_path, change).document, scene()
    assert [layer.name for layer in document] == ["sun", "boat", "sea", "there"]
    assert document.background == before.background
    assert document.layer("sea").recipe == before.layer("sky").recipe
    assert document.layer("sea").prompt == "dark waves"
    boat, ship = document.layer("boat"), before.layer("ship")
    assert (boat.prompt, boat.negative, boat.recipe) == (ship.prompt, ship.negative, ship.recipe)
    assert (boat.x, boat.y, boat.rotation, boat.flip_h) == (ship.x + 5, ship.y - 2, 20, True)
    assert torch.equal(boat.image, ship.image)
    assert not document.layer("there").visible
    assert (document.layer("sun").opacity, document.layer("sun").blend_mode) == (1, "multiply")
    assert torch.equal(document.layer("sun").mask, before.layer("sun").mask)


def test_painted_pixels_win_and_the_recipe_stays(tmp_path):
    def change(psd, layers):
        for name in ("ship", "sky", "later"):
            old = layers[name]
            new = psd.create_pixel_layer(
                Image.new("RGBA", old.size, RED), name=old.name, left=old.left, top=old.top
            )
            new.move_to(psd, index=psd.index(old))
            old.delete_layer()

    file, before = edited(tmp_path, change), scene()
    document = file.document
    assert [layer.name for layer in document] == [layer.name for layer in before]
    for name in ("ship", "sky", "later"):
        assert document.layer(name).recipe == before.layer(name).recipe
        assert document.layer(name).prompt == before.layer(name).prompt
        assert pixel(document, name) == list(RED)
    assert document.layer("ship").rotation == 0
    assert (document.layer("later").x, document.layer("later").width) == (2, 8)


def test_a_mask_given_to_a_turned_layer_hides_what_it_hides_there(tmp_path):
    def change(psd, layers):
        ship = layers["ship"]
        hidden = Image.new("L", ship.size, 0)
        hidden.paste(255, (0, 0, ship.width // 2, ship.height))
        ship.create_mask(hidden)

    before = replace(scene(), background=None, layers=(scene().layer("ship"),))
    document = edited(tmp_path, change, before).document
    ship = document.layer("ship")
    assert (ship.prompt, ship.recipe, ship.rotation) == ("a ship", before.layer("ship").recipe, 0)
    middle = ship.x + ship.width // 2
    assert not composite(document)[:, middle:, 3].any()
    assert torch.allclose(composite(document)[:, :middle], composite(before)[:, :middle], atol=1.01 / 255)


def test_a_turned_layer_that_is_clipped_elsewhere_is_cut(tmp_path):
    def change(psd, layers):
        layers["ship"]._record.clipping = Clipping.NON_BASE

    base = Layer("base", torch.ones(3, 3, 4), x=9, y=7)
    document = edited(tmp_path, change, LayerDocument(30, 20, (base, scene().layer("ship")))).document
    assert not composite(replace(document, layers=document.layers[1:]))[..., 3][
        composite(LayerDocument(30, 20, (base,)))[..., 3] == 0
    ].any()


def test_a_mask_that_hides_nothing_keeps_the_original_of_a_turned_layer(tmp_path):
    def change(psd, layers):
        layers["ship"].create_mask(Image.new("L", layers["ship"].size, 255))

    assert identical(edited(tmp_path, change).document, scene())


def test_a_new_layer_beside_ours_is_a_layer_with_the_prompt_of_its_name(tmp_path):
    file = edited(
        tmp_path,
        lambda psd, layers: psd.create_pixel_layer(
            Image.new("RGBA", (3, 3), GREEN), name="gull: a white gull", left=1, top=2
        ),
    )
    gull = file.document.layers[-1]
    assert (gull.name, gull.prompt, gull.x, gull.y, gull.recipe) == ("gull", "a white gull", 1, 2, Recipe())
    assert identical(replace(file.document, layers=file.document.layers[:-1]), scene())


def test_a_duplicate_gets_a_name_of_its_own(tmp_path):
    def change(psd, layers):
        psd.create_pixel_layer(layers["sky"].topil(), name=layers["sky"].name)

    document = edited(tmp_path, change).document
    assert sorted(layer.name for layer in document) == ["later", "ship", "sky", "sky 2", "sun", "there"]
    assert document.layer("sky").recipe != Recipe()


def test_a_new_layer_with_the_id_of_one_that_is_gone_gets_nothing_of_it(tmp_path):
    def change(psd, layers):
        identity = layers["ship"].tagged_blocks.get_data(Tag.LAYER_ID)
        layers["ship"].delete_layer()
        psd.create_pixel_layer(Image.new("RGBA", (3, 3), GREEN), name="gull").tagged_blocks.set_data(
            Tag.LAYER_ID, identity
        )

    gull = edited(tmp_path, change).document.layer("gull")
    assert (gull.prompt, gull.negative, gull.recipe, gull.width) == ("", "", Recipe(), 3)


def test_a_renamed_layer_without_a_picture_keeps_its_prompt_and_recipe(tmp_path):
    def change(psd, layers):
        for name in ("later", "there"):
            layers[name].name = f"new {name}"

    document, before = edited(tmp_path, change).document, scene()
    for name in ("later", "there"):
        new, old = document.layer(f"new {name}"), before.layer(name)
        assert identical(LayerDocument(1, 1, (replace(new, name=name),)), LayerDocument(1, 1, (old,)))


def test_a_painted_background_is_a_layer_and_a_refilled_one_the_new_colour(tmp_path):
    def paint(colour, dot):
        image = Image.new("RGBA", (30, 20), colour)
        if dot:
            image.putpixel((3, 3), GREEN)

        def change(psd, layers):
            old = layers["background colour"]
            psd.create_pixel_layer(image, name=old.name).move_to(psd, index=0)
            old.delete_layer()

        return change

    refilled = edited(tmp_path, paint(RED, False)).document
    assert (refilled.background, len(refilled)) == ((1, 0, 0), 5)
    painted = edited(tmp_path, paint(RED, True)).document
    assert (painted.background, painted.layers[0].name) == (None, "background colour")


def test_a_program_that_drops_what_it_does_not_know_leaves_names_prompts_and_pixels(tmp_path):
    def change(psd, layers):
        for key in [*psd.image_resources]:
            del psd.image_resources[key]
        for layer in layers.values():
            for tag in [*layer.tagged_blocks]:
                if tag != Tag.UNICODE_LAYER_NAME:
                    del layer.tagged_blocks[tag]

    file, before = edited(tmp_path, change), scene()
    document = file.document
    assert [(x.name, x.prompt) for x in document][1:4] == [
        ("sky", "a blue sky"),
        ("sun", ""),
        ("ship", "a ship"),
    ]
    assert torch.equal(document.layer("sky").image, before.layer("sky").image)
    assert torch.equal(document.layer("sun").mask, before.layer("sun").mask)
    assert document.layer("later").image is None
    assert (document.layer("later").prompt, document.layer("later").width) == ("a whale", 8)
    assert document.layer("there").image is None
    assert file.workflow == {}
    assert float((composite(document) - composite(before)).abs().max()) < 2.5 / 255


def test_a_program_that_keeps_the_xmp_but_not_the_originals_is_told_of(tmp_path):
    def change(psd, layers):
        for key in [k for k in psd.image_resources if isinstance(k, int) and 4000 <= k < 5000]:
            del psd.image_resources[key]

    file = edited(tmp_path, change)
    assert (
        "layer 'ship': the program that saved the file last left out its original pixels; the placed ones "
        "are used" in file.warnings
    )
    assert file.document.layer("ship").recipe == scene().layer("ship").recipe
    assert file.document.layer("ship").rotation == 0


def test_a_program_that_cuts_layers_to_what_is_seen_and_spoils_hidden_colours_keeps_originals(tmp_path):
    """As Krita and Photoshop do."""
    image = torch.zeros(8, 8, 4)
    image[2:5, 3:6] = noise(3, 3, 4, seed=7).clamp_min(1 / 255)
    document = LayerDocument(
        20,
        20,
        (
            Layer("ship", image, x=1, y=1, width=16, height=16, prompt="a ship"),
            Layer("box", width=5, height=5, x=3),
        ),
    )

    def change(psd, layers):
        old = layers["ship"]
        picture = old.topil()
        box = picture.getchannel("A").getbbox()
        spoiled = Image.new("RGBA", picture.size, (9, 8, 7, 0))
        spoiled.paste(picture, mask=picture.getchannel("A").point(lambda a: 255 * (a > 0)))
        psd.create_pixel_layer(spoiled.crop(box), name=old.name, left=old.left + box[0], top=old.top + box[1])
        old.delete_layer()
        record = layers["box"]._record
        record.left = record.top = record.right = record.bottom = 0
        for channel in layers["box"]._channels:
            channel.data = b""

    file = edited(tmp_path, change, document)
    ours = {layer.name: layer for layer in document}
    for layer in file.document:
        assert identical(LayerDocument(1, 1, (layer,)), LayerDocument(1, 1, (ours[layer.name],)))


def test_a_flattened_picture_is_one_layer(tmp_path):
    psd = PSDImage.frompil(Image.new("RGB", (5, 4), RED[:3]))
    document = stack_of(psd, tmp_path, "holiday.psd").document
    assert (document.width, document.height) == (5, 4)
    assert [layer.name for layer in document] == ["holiday"]
    assert pixel(document, "holiday") == list(RED)
