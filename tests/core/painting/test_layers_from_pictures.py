"""Layers of pictures with alpha: their composite is the original to the bit, also through 8 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument
from layered_core.errors import LayeredError
from layered_core.files import read_layers, write_layers
from layered_core.painting.layers_from_pictures import (
    REST,
    given_names,
    layers_from_pictures,
    on_canvas,
)


def rounded(picture):
    return (picture * 255).round() / 255


def random_batch(seed, count, height, width, soft=0.3, backdrop=True):
    """Return pictures as a model gives them: opaque, empty and soft places, noisy alpha near 0 and 1."""
    random = torch.Generator().manual_seed(seed)
    pictures = torch.rand(count, height, width, 4, generator=random)
    kind = torch.rand(count, height, width, generator=random)
    near_one = 1 - 0.01 * torch.rand(count, height, width, generator=random)
    pictures[..., 3] = torch.where(
        kind < 0.3, 0.003, torch.where(kind > 0.3 + soft, near_one, pictures[..., 3])
    )
    if backdrop:
        pictures[0, ..., 3] = 1
    return pictures


def random_original(seed, height, width, channels=3, eight=True):
    picture = torch.rand(height, width, channels, generator=torch.Generator().manual_seed(seed + 1))
    if channels == 4:
        picture[..., 3] = (2 * picture[..., 3] - 0.5).clamp(0, 1)
        picture = torch.where(picture[..., 3:] > 0, picture, 0.0)
    picture = rounded(picture) if eight else picture
    return torch.where(picture[..., 3:] > 0, picture, 0.0) if channels == 4 else picture


def in_eight_bits(document):
    layers = tuple(Layer(x.name, rounded(x.image), x=x.x, y=x.y, recipe=x.recipe) for x in document)
    return LayerDocument(document.width, document.height, layers)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 4),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    soft=st.sampled_from([0.0, 0.3, 0.7]),
    channels=st.sampled_from([3, 4]),
    eight=st.booleans(),
    backdrop=st.booleans(),
)
def test_the_composite_is_the_original_to_the_bit_and_through_8_bits(
    seed, count, size, soft, channels, eight, backdrop
):
    original = random_original(seed, *size, channels, eight)
    pictures = random_batch(seed, count, *size, soft, backdrop)
    if channels == 4 and not bool((original[..., 3] > 0).any()):
        return
    document = layers_from_pictures(pictures, original=original).document
    together = composite(document)
    assert torch.equal(together[..., :channels], original)
    if channels == 3:
        assert bool((together[..., 3] == 1).all())
    if eight:
        again = composite(in_eight_bits(document))
        assert torch.equal((255 * again[..., :channels]).round(), (255 * original).round())


@pytest.mark.parametrize("scale", [2, 0.5])
def test_pictures_of_another_scale_are_scaled_to_the_original(scale):
    original = random_original(3, 24, 40)
    pictures = random_batch(3, 3, int(24 * scale), int(40 * scale))
    found = layers_from_pictures(pictures, original=original)
    assert (found.document.width, found.document.height) == (40, 24)
    assert torch.equal(composite(found.document)[..., :3], original)


def ball(height=20, width=30):
    """Return a grey background, a red square with a soft rim, and the picture of both."""
    background = torch.full((height, width, 4), 0.4)
    background[..., 3] = 1
    thing = torch.zeros(height, width, 4)
    thing[5:12, 8:17] = torch.tensor([0.8, 0.2, 0.0, 0.6])
    thing[6:11, 9:16, 3] = 0.995
    background, thing = rounded(background), torch.cat([rounded(thing[..., :3]), thing[..., 3:]], -1)
    alpha = torch.where(thing[..., 3:] > 0.99, 1.0, thing[..., 3:])
    return background, thing, rounded(alpha * thing[..., :3] + (1 - alpha) * background[..., :3])


def test_each_layer_is_cropped_to_its_alpha_with_a_margin_of_one_pixel():
    background, thing, picture = ball()
    found = layers_from_pictures(torch.stack([background, thing]), ["sky", "a red ball"], original=picture)
    sky, red = found.document
    assert (sky.x, sky.y, sky.width, sky.height) == (0, 0, 30, 20)
    assert (red.x, red.y, red.width, red.height) == (7, 4, 11, 9)
    assert (red.name, red.prompt, red.recipe.noise) == ("a red ball", "a red ball", 0)
    assert found.slots == (0, 1)


def test_layers_that_were_right_keep_their_colours_and_alpha():
    background, thing, picture = ball()
    found = layers_from_pictures(torch.stack([background, thing]), original=picture)
    sky, red = found.document
    assert float((sky.image - background).abs().max()) < 3 / 255
    soft = red.image[..., 3] < 1
    wanted = thing[4:13, 7:18]
    assert torch.equal(red.image[..., 3][soft], rounded(wanted[..., 3])[soft])
    seen = wanted[..., 3] > 0
    assert float((red.image - wanted)[..., :3][seen].abs().max()) < 3 / 255
    assert found.error < 0.002


def test_a_seen_opaque_layer_has_the_pixels_of_the_original_whatever_the_model_painted():
    background, thing, picture = ball()
    thing[..., :3] = 0.5
    found = layers_from_pictures(torch.stack([background, thing]), original=picture)
    red = found.document.layer("layer 2")
    assert torch.equal(red.image[2:7, 2:9, :3], picture[6:11, 9:16])
    assert torch.equal(composite(found.document)[..., :3], picture)
    hidden = found.document.layer("layer 1").image[6:11, 9:16]
    assert torch.equal(hidden, background[6:11, 9:16])


def test_without_a_background_one_is_added_that_has_a_hole_where_nobody_knows_what_is_behind():
    _, thing, picture = ball()
    found = layers_from_pictures(thing[None], ["a red ball"], original=picture)
    rest, red = found.document
    assert (rest.name, red.name, found.slots) == ("background", "a red ball", (REST, 0))
    assert bool((rest.image[6:11, 9:16, 3] == 0).all())
    assert float(rest.image[..., 3].sum()) == 20 * 30 - 5 * 7
    # What shines through the soft rim is the background, not the ball.
    assert float((rest.image[5, 8:17, :3] - 0.4).abs().max()) < 3 / 255
    assert torch.equal(composite(found.document)[..., :3], picture)
    assert any("background was added" in line for line in found.told)


def test_glass_over_glass_stays_glass():
    """Two soft layers lie over one another: both keep their alpha where the front one's colour can make up."""
    random = torch.Generator().manual_seed(5)
    pictures = 0.3 + 0.4 * torch.rand(3, 12, 12, 4, generator=random)
    pictures[0, ..., 3], pictures[1, ..., 3], pictures[2, ..., 3] = 1, 0.4, 0.6
    pictures = rounded(pictures)
    layers = tuple(Layer(str(i), x) for i, x in enumerate(pictures))
    picture = rounded(composite(LayerDocument(12, 12, layers))[..., :3])
    document = layers_from_pictures(pictures, original=picture).document
    assert torch.equal(composite(document)[..., :3], picture)
    for layer, before in zip(document, pictures, strict=True):
        assert torch.equal(layer.image[..., 3], before[..., 3])
        assert float((layer.image - before).abs().max()) < 3 / 255


def test_empty_pictures_are_left_out_and_told_and_the_others_keep_their_names():
    background, thing, picture = ball()
    pictures = torch.stack([background, torch.zeros_like(thing), thing])
    found = layers_from_pictures(pictures, ["sky", "ghost", "ball"], original=picture)
    assert [x.name for x in found.document] == ["sky", "ball"]
    assert found.slots == (0, 2)
    assert found.told == ("Picture 2, 'ghost', is empty and was left out.",)


def test_names_are_made_unique_and_those_left_over_are_told():
    background, thing, _ = ball()
    found = layers_from_pictures(torch.stack([background, thing, thing]), ["ball", "ball"])
    assert [x.name for x in found.document] == ["ball", "ball 2", "layer 3"]
    found = layers_from_pictures(thing[None], ["ball", "tree", "sun"])
    assert found.told == ("There are 1 pictures, so these names are not used: 'tree', 'sun'.",)
    assert given_names(" sky \n\n a ball\n") == ["sky", "a ball"]


def test_the_whole_picture_in_front_is_compared_with_and_left_out():
    background, thing, picture = ball()
    whole = torch.cat([picture, torch.ones_like(picture[..., :1])], -1)
    found = layers_from_pictures(torch.stack([whole, background, thing]), whole=True)
    assert found.slots == (1, 2)
    assert [x.name for x in found.document] == ["layer 1", "layer 2"]
    assert found.error < 0.005
    dark = layers_from_pictures(torch.stack([torch.zeros_like(whole), background, thing]), whole=True)
    assert dark.error > 0.05


def test_without_an_original_the_pictures_keep_their_pixels():
    background, thing, _ = ball()
    found = layers_from_pictures(torch.stack([background, thing]))
    assert found.error is None
    assert torch.equal(found.document.layer("layer 2").image, thing[4:13, 7:18])


def test_scaling_lets_no_colour_of_transparent_pixels_bleed_in():
    picture = torch.zeros(8, 8, 4)
    picture[..., :3] = torch.tensor([0.0, 1.0, 0.0])
    picture[2:6, 2:6] = torch.tensor([1.0, 0.0, 0.0, 1.0])
    scaled = on_canvas(picture, 16, 16)
    assert float(scaled[..., 1].max()) < 1e-6
    assert float(scaled[8, 8, 0]) == 1


def glow(colour, multiplied):
    """Return a soft disc of one colour."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    alpha = (1.5 - 1.5 * (x**2 + y**2).sqrt()).clamp(0, 1)
    colours = torch.tensor(colour).expand(32, 32, 3) * (alpha[..., None] if multiplied else 1)
    return torch.cat([colours, alpha[..., None]], -1)


def test_premultiplied_colours_are_told_and_straight_ones_are_not():
    for colour in ([0.9, 0.3, 0.1], [1.0, 1.0, 1.0]):
        (line,) = layers_from_pictures(glow(colour, True)[None], ["a glow"]).told
        assert line.startswith("Picture 'a glow': its colours look multiplied by its alpha")
        assert layers_from_pictures(glow(colour, False)[None]).told == ()
    assert layers_from_pictures(glow([0.02, 0.02, 0.02], False)[None]).told == ()


@pytest.mark.parametrize("format", ["psd", "ora"])
def test_a_file_of_the_layers_is_the_original(format, tmp_path):
    original = random_original(9, 18, 22)
    document = layers_from_pictures(random_batch(9, 3, 18, 22), original=original).document
    write_layers(document, tmp_path / f"a.{format}")
    again = read_layers(tmp_path / f"a.{format}")
    again = getattr(again, "document", again)
    assert torch.equal((255 * composite(again)[..., :3]).round(), (255 * original).round())


@pytest.mark.parametrize(
    ("pictures", "options", "text"),
    [
        (torch.rand(3, 8, 8, 3), {}, r"image: number of channels is 3; allowed: 4, RGBA\. Decode with"),
        (torch.rand(51, 4, 4, 4), {}, r"image: number of layers is 51; allowed: 1\.\.50\. A model's layers"),
        (torch.rand(1, 4, 4, 4), {"whole": True}, r"image: number of layers is 0; allowed: 1\.\.50"),
        (
            torch.rand(2, 64, 64, 4), {"original": torch.rand(96, 64, 3)},
            "image: size is '64x64'; allowed: the original's shape, 64x96 at any scale. Connect the picture",
        ),
        (torch.zeros(2, 4, 4, 4), {}, "image: every picture is empty. Take more steps, or another seed"),
        (torch.full((1, 4, 4, 4), float("nan")), {}, "image: values is 'NaN or infinite'; allowed: 0..1"),
        (
            torch.rand(1, 4, 4, 4), {"original": torch.full((4, 4, 3), float("inf"))},
            "original: values is 'NaN or infinite'; allowed: 0..1",
        ),
        (
            torch.full((50, 4, 4, 4), 0.5), {"original": torch.rand(4, 4, 3)},
            "number of layers is 51; allowed: at most 50, with the background that is added",
        ),
    ],
)  # fmt: skip
def test_what_cannot_become_layers_is_named(pictures, options, text):
    with pytest.raises(LayeredError, match=text):
        layers_from_pictures(pictures, **options)
