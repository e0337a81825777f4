"""PSD files: what psd-tools, and so other programs, make of ours; what we make of theirs; what is left after another program's edit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from psd_tools import PSDImage
from psd_tools.constants import BlendMode, ChannelID, Clipping, ColorMode, Resource, Tag
from psd_tools.psd.layer_and_mask import ChannelInfo, MaskFlags, MaskParameters
from psd_tools.psd.tagged_blocks import TaggedBlock

from layered_core.compositing import composite
from layered_core.document import BLEND_MODES, Control, Layer, LayerDocument, Recipe, identical
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.limits import Limits

RED, GREEN = (255, 0, 0, 255), (0, 255, 0, 255)


def noise(*shape, seed=0, top=255):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * top).round() / top


def scene(top=255):
    """A layer of every kind."""
    layers = (
        Layer("sky", noise(20, 30, 4, seed=1, top=top), prompt="a blue sky", recipe=Recipe(noise=0.3, seed=5, control=Control("depth", 0.5))),
        Layer("sun", noise(9, 7, 4, seed=2, top=top), noise(9, 7, seed=3, top=top), x=-3, y=15, opacity=0.4, blend_mode="screen", visible=False),
        Layer("ship", noise(6, 8, 4, seed=4, top=top), x=4.5, y=3, width=12, height=10, rotation=20, flip_h=True, prompt="a ship", negative="rust"),
        Layer("later", width=8, height=6, x=2, y=9, prompt="a whale", recipe=Recipe(inside=0.5)),
        Layer("there", mask=noise(5, 5, seed=5, top=top), x=20, y=1, rotation=45),
    )
    return LayerDocument(30, 20, layers, (0.1, 0.2, 0.3), "a harbour", "people")


def write(tmp_path, document, **options):
    return write_layers(document, tmp_path / "scene.psd", {"workflow": {"nodes": [1]}}, **options)


def stack_of(psd, tmp_path, name="theirs.psd"):
    """Save what psd-tools made and read it."""
    psd.save(tmp_path / name)
    return read_layers(tmp_path / name)


def pixel(document, name, y=0, x=0):
    return [round(v * 255) for v in document.layer(name).image[y, x].tolist()]


# Ours, as others see them


@pytest.mark.parametrize("top", [255, 65535])
def test_psd_tools_sees_every_layer_with_equal_pixels(tmp_path, top):
    document = replace(scene(top), background=None)
    psd = PSDImage.open(write(tmp_path, document))
    assert (psd.size, psd.depth, psd.color_mode) == ((30, 20), 8 if top == 255 else 16, ColorMode.RGB)
    assert [layer.name for layer in psd] == ["sky: a blue sky", "sun", "ship: a ship", "later: a whale", "there"]
    sky, sun, ship, later, there = psd
    for theirs, ours in ((sky, document.layer("sky")), (sun, document.layer("sun"))):
        assert np.array_equal((theirs.numpy() * top).round(), (ours.image.numpy() * top).round())
        assert theirs.offset == (ours.x, ours.y)
    assert np.array_equal((sun.numpy("mask")[..., 0] * top).round(), (document.layer("sun").mask.numpy() * top).round())
    assert sun.mask.bbox == sun.bbox
    assert (sun.opacity, sun.blend_mode, sun.visible) == (102, BlendMode.SCREEN, False)
    assert ship.width > 12  # turned
    assert not later.numpy()[..., 3].any()
    assert there.has_mask()


def test_turned_and_scaled_layers_look_right_elsewhere(tmp_path):
    """What psd-tools reads, laid over each other by us, is our own composite to a step or two of 255."""
    document = replace(scene(), background=None)
    psd = PSDImage.open(write(tmp_path, document))
    plain = [Layer(x.name, torch.from_numpy(x.numpy()), None, x=x.left, y=x.top, visible=x.visible) for x in psd if x.kind == "pixel" and not x.mask]
    ours = composite(replace(document, layers=tuple(x for x in document if x.image is not None and x.mask is None)))
    assert float((composite(LayerDocument(30, 20, tuple(plain))) - ours).abs().max()) < 1.5 / 255


def test_the_composite_and_the_thumbnail_are_in_the_file(tmp_path):
    gradient = torch.linspace(0, 1, 30).expand(20, 30)
    document = replace(scene(), layers=(Layer("a", torch.stack([gradient, 1 - gradient, gradient, gradient / 2 + 0.5], -1)),))
    psd = PSDImage.open(write(tmp_path, document))
    ours = (composite(document, rules="photoshop").numpy() * 255).round()
    assert np.abs(np.asarray(psd.topil().convert("RGBA"), dtype=float) - ours).max() <= 1
    thumbnail = psd.thumbnail()
    assert thumbnail.size == (30, 20)
    assert np.abs(np.asarray(thumbnail.convert("RGB"), dtype=float) - ours[..., :3]).mean() < 4


def test_a_transparent_composite_is_over_white_with_its_alpha(tmp_path):
    document = LayerDocument(4, 4, (Layer("a", torch.tensor([1.0, 0.0, 0.0, 0.5]).mul(255).round().div(255).expand(4, 4, 4)),))
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
            new = psd.create_pixel_layer(Image.new("RGBA", old.size, RED), name=old.name, left=old.left, top=old.top)
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
    assert not composite(replace(document, layers=document.layers[1:]))[..., 3][composite(LayerDocument(30, 20, (base,)))[..., 3] == 0].any()


def test_a_mask_that_hides_nothing_keeps_the_original_of_a_turned_layer(tmp_path):
    def change(psd, layers):
        layers["ship"].create_mask(Image.new("L", layers["ship"].size, 255))

    assert identical(edited(tmp_path, change).document, scene())


def test_a_new_layer_beside_ours_is_a_layer_with_the_prompt_of_its_name(tmp_path):
    file = edited(tmp_path, lambda psd, layers: psd.create_pixel_layer(Image.new("RGBA", (3, 3), GREEN), name="gull: a white gull", left=1, top=2))
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
        psd.create_pixel_layer(Image.new("RGBA", (3, 3), GREEN), name="gull").tagged_blocks.set_data(Tag.LAYER_ID, identity)

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
    assert [(x.name, x.prompt) for x in document][1:4] == [("sky", "a blue sky"), ("sun", ""), ("ship", "a ship")]
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
    assert "layer 'ship': the program that saved the file last left out its original pixels; the placed ones are used" in file.warnings
    assert file.document.layer("ship").recipe == scene().layer("ship").recipe
    assert file.document.layer("ship").rotation == 0


def test_a_program_that_cuts_layers_to_what_is_seen_and_spoils_hidden_colours_keeps_originals(tmp_path):
    """As Krita and Photoshop do."""
    image = torch.zeros(8, 8, 4)
    image[2:5, 3:6] = noise(3, 3, 4, seed=7).clamp_min(1 / 255)
    document = LayerDocument(20, 20, (Layer("ship", image, x=1, y=1, width=16, height=16, prompt="a ship"), Layer("box", width=5, height=5, x=3)))

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


# Made by another program


def new(mode="RGBA", size=(20, 10), **options):
    return PSDImage.new(mode, size, **options)


def test_names_places_and_looks_are_read(tmp_path):
    psd = new()
    shown = psd.create_pixel_layer(Image.new("RGBA", (4, 3), RED), left=-2, top=5, opacity=128, blend_mode=BlendMode.VIVID_LIGHT)
    hidden = psd.create_pixel_layer(Image.new("RGBA", (2, 2), GREEN))
    shown.name = hidden.name = "Über: ein ❤"
    hidden.visible = False
    first, second = stack_of(psd, tmp_path).document
    assert (first.name, first.prompt, first.x, first.y, first.width, first.height) == ("Über", "ein ❤", -2, 5, 4, 3)
    assert (first.opacity, first.blend_mode, first.visible) == (128 / 255, "vivid-light", True)
    assert (second.name, second.visible) == ("Über 2", False)


def test_groups_are_flattened_with_their_opacity_and_visibility(tmp_path):
    psd = new()
    inner = [psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name=n, opacity=128) for n in ("a", "b")]
    deep = psd.create_group(inner, name="deep", opacity=128)
    outside = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="c")
    hidden = psd.create_group([deep, outside], name="hidden")
    hidden.visible = False
    psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="d")
    document = stack_of(psd, tmp_path).document
    assert [(x.name, round(x.opacity, 4), x.visible) for x in document] == [
        ("a", round((128 / 255) ** 2, 4), False), ("b", round((128 / 255) ** 2, 4), False), ("c", 1, False), ("d", 1, True),
    ]  # fmt: skip


def test_a_blend_mode_of_a_group_is_told_of(tmp_path):
    psd = new()
    psd.create_group([psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")], name="g", blend_mode=BlendMode.MULTIPLY)
    assert stack_of(psd, tmp_path).warnings == ("group 'g': a document has no groups; its blend mode is left out",)


def test_an_artboard_is_told_of(tmp_path):
    psd = new()
    board = psd.create_group([psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")], name="g")
    board.tagged_blocks[Tag.ARTBOARD_DATA1] = TaggedBlock(key=Tag.ARTBOARD_DATA1, data=b"")
    assert stack_of(psd, tmp_path).warnings == ("group 'g' is an artboard: its colour is left out, and its layers are not cut at its edges",)


def test_a_mask_of_another_box_is_brought_to_the_layers_own(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (6, 4), RED), name="a", left=2, top=1)
    values = Image.fromarray(np.arange(0, 120, 20, dtype=np.uint8).reshape(2, 3))
    layer.create_mask(values)
    layer._record.mask_data.left, layer._record.mask_data.right = 6, 9
    layer._record.mask_data.top, layer._record.mask_data.bottom = 0, 2
    for outside in (0, 255):
        layer._record.mask_data.background_color = outside
        mask = (stack_of(psd, tmp_path).document.layer("a").mask * 255).round().int()
        expected = torch.full((4, 6), outside)
        expected[0, 4:6] = torch.tensor([60, 80])
        assert torch.equal(mask, expected.int())


def test_density_counts_and_a_switched_off_mask_is_told_of(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")
    layer.create_mask(Image.new("L", (4, 4), 0))
    data = layer._record.mask_data
    data.flags = MaskFlags(parameters_applied=True)
    data.parameters = MaskParameters(user_mask_density=51, user_mask_feather=3.0)
    file = stack_of(psd, tmp_path)
    assert torch.allclose(file.document.layer("a").mask, torch.full((4, 4), 0.8))
    assert file.warnings == ("layer 'a': the mask's feather is left out",)
    data.flags.mask_disabled = True
    file = stack_of(psd, tmp_path)
    assert file.document.layer("a").mask is None
    assert file.warnings == ("layer 'a': the mask is switched off and left out",)


def with_vector_mask(psd, pixel, product, alpha=255, **parameters):
    """A layer of 4 x 4 with a vector mask, and, unless None, a pixel mask, as Photoshop stores them: the product of both is rendered."""
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), (*RED[:3], alpha)), name="a")
    layer.create_mask(Image.fromarray(np.array(product, dtype=np.uint8)))
    record = layer._record
    record.tagged_blocks[Tag.VECTOR_MASK_SETTING1] = TaggedBlock(key=Tag.VECTOR_MASK_SETTING1, data=b"")
    record.mask_data.flags = MaskFlags(user_mask_from_render=True, parameters_applied=bool(parameters))
    record.mask_data.parameters = MaskParameters(**parameters) if parameters else None
    if pixel is not None:
        donor = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="donor")
        donor.create_mask(Image.fromarray(np.array(pixel, dtype=np.uint8)))
        at = [info.id for info in donor._record.channel_info].index(ChannelID.USER_LAYER_MASK)
        record.channel_info.append(ChannelInfo(ChannelID.REAL_USER_LAYER_MASK, donor._record.channel_info[at].length))
        layer._channels.append(donor._channels[at])
        box = {"real_left": 0, "real_top": 0, "real_right": 4, "real_bottom": 4}
        for key, value in {"real_flags": MaskFlags(), "real_background_color": 255, **box}.items():
            setattr(record.mask_data, key, value)
        donor.delete_layer()
    return layer


PIXEL, VECTOR = np.full((4, 4), 204), np.array([[255, 255, 0, 0]] * 4)


@pytest.mark.parametrize("densities", [(255, 255), (51, 255), (255, 51), (102, 51)])
def test_a_pixel_mask_and_a_vector_mask_multiply_each_with_its_density(tmp_path, densities):
    psd = new()
    pixel, vector = densities
    with_vector_mask(psd, PIXEL, PIXEL * VECTOR // 255, user_mask_density=pixel, vector_mask_density=vector)
    file = stack_of(psd, tmp_path)
    inside = 1 - pixel / 255 * (1 - 204 / 255)
    expected = torch.tensor([inside, inside, inside * (1 - vector / 255), inside * (1 - vector / 255)]).expand(4, 4)
    mask = file.document.layer("a").mask
    assert torch.allclose(mask, expected, atol=1e-6)
    assert file.warnings == ()


def test_a_vector_mask_alone_has_its_own_density(tmp_path):
    psd = new()
    with_vector_mask(psd, None, VECTOR, vector_mask_density=102)
    file = stack_of(psd, tmp_path)
    assert torch.allclose(file.document.layer("a").mask, torch.tensor([1, 1, 0.6, 0.6]).expand(4, 4))
    assert file.warnings == ()


def test_beside_a_pixel_mask_that_is_switched_off_the_vector_mask_counts(tmp_path):
    psd = new()
    layer = with_vector_mask(psd, PIXEL, VECTOR)
    layer._record.mask_data.real_flags.mask_disabled = True
    file = stack_of(psd, tmp_path)
    assert torch.equal(file.document.layer("a").mask, torch.tensor([1.0, 1, 0, 0]).expand(4, 4))
    assert file.warnings == ("layer 'a': the mask is switched off and left out",)


def test_the_soft_edge_of_a_shape_is_not_cut_twice(tmp_path):
    """Photoshop stores a shape's pixels as they look."""
    psd = new()
    layer = with_vector_mask(psd, None, np.full((4, 4), 128), alpha=128)
    layer.tagged_blocks[Tag.SOLID_COLOR_SHEET_SETTING] = TaggedBlock(key=Tag.SOLID_COLOR_SHEET_SETTING, data=b"")
    file = stack_of(psd, tmp_path)
    assert (file.document.layer("a").mask, file.warnings) == (None, ())
    assert pixel(file.document, "a") == [255, 0, 0, 128]


def masked_group(psd, members, value=255, **options):
    """A group with a mask of ``value`` over 3 x 4 pixels and nothing elsewhere."""
    group = psd.create_group(members, **options)
    donor = psd.create_pixel_layer(Image.new("RGBA", (3, 4), RED), name="donor")
    donor.create_mask(Image.new("L", (3, 4), value))
    group._record.mask_data = donor._record.mask_data
    at = [info.id for info in donor._record.channel_info].index(ChannelID.USER_LAYER_MASK)
    group._record.channel_info.append(donor._record.channel_info[at])
    group._channels = type(group._channels)([*group._channels, donor._channels[at]])  # psd-tools shares the list with the group's other end
    donor.delete_layer()
    return group


def test_a_groups_mask_goes_into_its_layers(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a", left=1)
    layer.create_mask(Image.new("L", (4, 4), 128))
    masked_group(psd, [layer], name="g")
    mask = (stack_of(psd, tmp_path).document.layer("a").mask * 255).round().int()
    assert torch.equal(mask, torch.tensor([128, 128, 0, 0]).int().expand(4, 4))


def test_a_clipped_layer_is_cut_by_the_one_below(tmp_path):
    psd = new()
    base = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    base.putpixel((1, 1), (0, 0, 0, 128))
    psd.create_pixel_layer(base, name="base", left=2, top=2, opacity=51)
    top = psd.create_pixel_layer(Image.new("RGBA", (9, 9), RED), name="top")
    top._record.clipping = Clipping.NON_BASE
    layer = stack_of(psd, tmp_path).document.layer("top")
    expected = torch.zeros(9, 9)
    expected[3, 3] = 128 / 255
    assert torch.equal(layer.mask, expected)
    assert layer.opacity == pytest.approx(0.2)


def test_what_is_clipped_to_a_hidden_layer_or_in_a_hidden_group_needs_no_room(tmp_path):
    psd = new()
    layers = {n: psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name=n) for n in ("a", "base", "clipped", "in", "b")}
    layers["base"].visible = False
    layers["clipped"]._record.clipping = Clipping.NON_BASE
    psd.create_group([layers["in"]], name="g").visible = False
    psd.save(tmp_path / "a.psd")
    file = read_layers(tmp_path / "a.psd", Limits(max_layers=3))
    assert [layer.name for layer in file.document] == ["a", "b"]
    assert file.warnings == ("2 hidden layers are left out: with them there are 5, and at most 3 are read",)


def test_a_clipped_layer_in_a_group_has_the_groups_opacity_and_mask_once(tmp_path):
    psd = new()
    base = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="base", opacity=204)
    top = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="top")
    masked_group(psd, [base, top], 128, name="g", opacity=51)
    top._record.clipping = Clipping.NON_BASE
    below, above = stack_of(psd, tmp_path).document
    assert torch.equal(above.mask, below.mask)
    assert torch.allclose(above.mask, torch.tensor([128 / 255] * 3 + [0]).expand(4, 4))
    assert above.opacity == below.opacity == pytest.approx(0.2 * 0.8)


def test_every_layer_of_a_clipped_group_is_cut(tmp_path):
    psd = new()
    psd.create_pixel_layer(Image.new("RGBA", (9, 9), RED), name="bottom")
    psd.create_pixel_layer(Image.new("RGBA", (2, 2), RED), name="base", left=1, top=1)
    first = psd.create_pixel_layer(Image.new("RGBA", (4, 4), GREEN), name="first")
    inner = psd.create_pixel_layer(Image.new("RGBA", (2, 9), GREEN), name="inner")
    clipped = psd.create_pixel_layer(Image.new("RGBA", (9, 9), GREEN), name="clipped")
    group = psd.create_group([first, psd.create_group([inner, clipped], name="deep")], name="g")
    above = psd.create_pixel_layer(Image.new("RGBA", (9, 9), GREEN), name="above")
    for layer in (group, clipped, above):
        layer._record.clipping = Clipping.NON_BASE
    file = stack_of(psd, tmp_path)
    cut = torch.zeros(9, 9)
    cut[1:3, 1:3] = 1
    masks = {layer.name: layer.mask for layer in file.document}
    assert [*masks] == ["bottom", "base", "first", "inner", "clipped", "above"]
    assert (masks["bottom"], masks["base"]) == (None, None)
    assert torch.equal(masks["first"], cut[:4, :4])
    assert torch.equal(masks["inner"], cut[:, :2])
    assert torch.equal(masks["above"], cut)
    cut[:, 2:] = 0
    assert torch.equal(masks["clipped"], cut)
    assert file.warnings == ()


@pytest.mark.parametrize(("alpha", "opacity", "told"), [(255, 255, False), (128, 255, True), (255, 128, True), (255, 0, False)])
def test_a_base_that_shines_through_what_is_clipped_to_it_is_told_of(tmp_path, alpha, opacity, told):
    psd = new()
    ball = Image.new("RGBA", (8, 8), (*RED[:3], alpha))
    ball.paste((0, 0, 0, 0), (0, 0, 8, 2))
    ball.paste((*RED[:3], alpha // 2), (0, 2, 8, 3))  # an edge is no matter
    psd.create_pixel_layer(ball, name="base", opacity=opacity)
    psd.create_pixel_layer(Image.new("RGBA", (9, 9), GREEN), name="top")._record.clipping = Clipping.NON_BASE
    warning = "layer 'top' is clipped to 'base', which shines through it where it is translucent"
    assert stack_of(psd, tmp_path).warnings == ((warning,) if told else ())


def test_fill_opacity_counts(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a", opacity=128)
    layer.tagged_blocks.set_data(Tag.BLEND_FILL_OPACITY, 51)
    assert stack_of(psd, tmp_path).document.layer("a").opacity == pytest.approx(128 / 255 * 0.2)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_8_and_16_bits_in_colour_and_grey_are_read(tmp_path, depth, mode):
    psd = PSDImage.new(mode, (6, 4), depth=depth)
    shape = (4, 6) if mode == "L" else (4, 6, 3)
    picture = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    psd.create_pixel_layer(Image.fromarray(picture), name="a")
    image = stack_of(psd, tmp_path).document.layer("a").image
    expected = torch.from_numpy(picture.copy()).float() / 255
    assert torch.allclose(image[..., :3], expected[..., None].expand(4, 6, 3) if mode == "L" else expected, atol=1 / 65535)
    assert bool((image[..., 3] == 1).all())


@pytest.mark.parametrize("mode", [ColorMode.CMYK, ColorMode.LAB, ColorMode.INDEXED, ColorMode.BITMAP, ColorMode.DUOTONE, ColorMode.MULTICHANNEL])
def test_other_colour_modes_are_refused_with_what_to_do(tmp_path, mode):
    psd = new()
    psd._record.header.color_mode = mode
    with pytest.raises(LayeredError, match=f"colour mode is '{mode.name}'; allowed: RGB, GRAYSCALE. In Photoshop: Image > Mode > RGB Color"):
        stack_of(psd, tmp_path)


def test_32_bits_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(LayeredError, match=r"bits a channel is 32; allowed: 8, 16\. In Photoshop"):
        stack_of(PSDImage.new("RGB", (4, 4), depth=32), tmp_path)


def test_modes_that_a_document_lacks_are_read_as_similar_ones_and_told_of(tmp_path):
    psd = new()
    for mode in (BlendMode.DISSOLVE, BlendMode.DARKER_COLOR, BlendMode.LIGHTER_COLOR):
        psd.create_pixel_layer(Image.new("RGBA", (2, 2), RED), name=mode.name, blend_mode=mode)
    file = stack_of(psd, tmp_path)
    assert [layer.blend_mode for layer in file.document] == ["normal", "darken", "lighten"]
    assert "layer 'DISSOLVE': blend mode dissolve is read as normal" in file.warnings


def test_an_empty_layer_with_a_mask_is_a_place_to_be_generated(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (6, 4), (0, 0, 0, 0)), name="ball: a red ball", left=3, top=2)
    layer.create_mask(Image.new("L", (6, 4), 255))
    psd.create_pixel_layer(Image.new("RGBA", (6, 4), (0, 0, 0, 0)), name="nothing")
    file = stack_of(psd, tmp_path)
    (ball,) = file.document
    assert (ball.image, ball.prompt, ball.x, ball.y, ball.width, ball.height) == (None, "a red ball", 3, 2, 6, 4)
    assert bool((ball.mask == 1).all())
    assert file.warnings == ("layer 'nothing' is empty and left out",)


def test_what_a_document_cannot_hold_is_told_of(tmp_path):
    psd = new()
    layer = psd.create_pixel_layer(Image.new("RGBA", (4, 4), RED), name="a")
    layer.tagged_blocks[Tag.VECTOR_MASK_SETTING1] = TaggedBlock(key=Tag.VECTOR_MASK_SETTING1, data=b"")
    layer.tagged_blocks[Tag.EFFECTS_LAYER] = TaggedBlock(key=Tag.EFFECTS_LAYER, data=b"")
    levels = psd.create_pixel_layer(Image.new("RGBA", (1, 1)), name="levels")
    levels._record.right = levels._record.bottom = 0
    levels.tagged_blocks[Tag.LEVELS] = TaggedBlock(key=Tag.LEVELS, data=b"")
    psd.image_resources[Resource.ICC_PROFILE] = type(psd.image_resources[Resource.VERSION_INFO])(key=Resource.ICC_PROFILE, data=b"Adobe RGB")
    warnings = " / ".join(stack_of(psd, tmp_path).warnings)
    assert "layer 'a' has layer effects, which are left out" in warnings
    assert "layer 'a' has a vector mask, which is left out" in warnings
    assert "layer 'levels' is an adjustment or fill layer and is left out" in warnings
    assert "the colour profile is not sRGB" in warnings


def test_layer_data_of_a_newer_version_is_refused(tmp_path):
    path = write(tmp_path, scene())
    path.write_bytes(path.read_bytes().replace(b'{"version": 1,', b'{"version": 2,'))
    with pytest.raises(LayeredError, match="version of the layer data is 2; allowed: 1.*update"):
        read_layers(path)
