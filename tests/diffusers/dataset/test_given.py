"""Words, masks and depth from files beside pictures; a user's own parts."""

import sys

import pytest
import torch
from PIL import Image

from layered_core.errors import LayeredError
from layered_core.formats.pictures import to_image
from layered_diffusers.dataset.given import AreaDepth, FileCaptions, FileDepth, FileMasks, read_words
from layered_diffusers.dataset.protocols import Caption, Picture, looks
from layered_diffusers.dataset.providers import STORYBOOK, Setting, load_part, load_parts


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "in" / "a" / "cat.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (24, 16)).save(file)
    return Picture(torch.zeros(3, 16, 24), file)


def setting(folder=None, **more):
    return Setting(lambda: None, folder=folder, **more)


def test_a_text_beside_a_picture_is_its_caption(picture, tmp_path):
    captions = FileCaptions(tmp_path / "in")
    with pytest.raises(LayeredError, match=r"cat\.txt was not found"):
        captions.describe(picture)
    text = picture.file.with_suffix(".txt")
    text.write_text(
        "\ufeffa black cat in a garden\n\na black cat\nBackground: a garden\na ball\n", encoding="utf-8"
    )
    assert captions.describe(picture) == Caption(
        "a black cat in a garden", ("a black cat", "a ball"), "a garden"
    )
    assert not looks(captions)
    text.write_text("background: x\n")
    with pytest.raises(LayeredError, match=r"cat\.txt"):
        captions.describe(picture)
    text.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(LayeredError, match="UTF-8"):
        captions.describe(picture)
    text.write_text("x" * 2**17)
    with pytest.raises(LayeredError, match="size of cat.txt"):
        captions.describe(picture)


def test_a_link_out_of_the_folder_is_not_read(picture, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    picture.file.with_suffix(".txt").symlink_to(secret)
    with pytest.raises(LayeredError, match="link out of the folder"):
        FileCaptions(tmp_path / "in").describe(picture)


def test_masks_beside_a_picture_are_named_by_their_files(picture, tmp_path):
    masks = FileMasks(tmp_path / "in")
    with pytest.raises(LayeredError, match=r"cat\.masks was not found"):
        masks.find(picture, ["a cat"])
    folder = picture.file.with_suffix(".masks")
    folder.mkdir()
    white = torch.zeros(16, 24)
    white[4:8] = 1
    to_image(white).save(folder / "a_black_cat_2.png")
    to_image(1 - white).save(folder / "a_black_cat.png")
    (folder / "notes.txt").write_text("no mask")
    found = masks.find(picture, [])
    assert [(x.phrase, x.score) for x in found] == [("a black cat", 1.0), ("a black cat", 1.0)]
    assert torch.equal(found[1].mask, white)
    assert masks.find(Picture(picture.pixels), ["a cat"]) == []
    Image.new("L", (9, 9)).save(folder / "small.png")
    with pytest.raises(
        LayeredError, match="size of mask 'small.png' is '9x9'; allowed: the picture's size, 24x16"
    ):
        masks.find(picture, [])
    (folder / "small.png").unlink()
    Image.new("L", (24, 16)).save(tmp_path / "out.png")
    (folder / "linked.png").symlink_to(tmp_path / "out.png")
    with pytest.raises(LayeredError, match="mask"):
        masks.find(picture, [])


def test_depth_beside_a_picture_and_area_order_masks(picture, tmp_path):
    masks = torch.zeros(3, 16, 24)
    masks[0, :4], masks[1, 4:12], masks[2, 12:14] = 1, 1, 1
    assert list(AreaDepth().order(picture, masks)) == [1, 0, 2]
    near = torch.zeros(16, 24)
    near[:4], near[12:14] = 0.5, 0.2
    depth = FileDepth(tmp_path / "in")
    with pytest.raises(LayeredError, match=r"cat\.depth\.png was not found"):
        depth.order(picture, masks)
    to_image(near).save(picture.file.with_name("cat.depth.png"))
    assert list(depth.order(picture, masks)) == [1, 2, 0]


def test_words_for_a_whole_folder(picture, tmp_path):
    file = tmp_path / "words.jsonl"
    file.write_text('{"file": "a/cat.png", "text": "t", "phrases": ["p"], "background": "b"}\n\n')
    words = read_words(file, tmp_path / "in")
    assert words == {picture.file: Caption("t", ("p",), "b")}
    parts = load_parts(STORYBOOK | {"captioner": "file"}, setting(tmp_path / "in", words=words))
    assert parts.captioner.describe(picture) == Caption("t", ("p",), "b")
    with pytest.raises(LayeredError, match="was not found"):
        parts.captioner.describe(Picture(picture.pixels))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"file": "../secret.png", "text": ""}', r"line 1: file is '\.\./secret\.png'"),
        ('{"file": "a/none.png"}', "line 1: file"),
        ('{"file": "/etc/passwd"}', "line 1: file"),
        ('{"file": 3}', "line 1: file"),
        ('{"file": "a/cat.png", "caption": "x"}', "line 1"),
        ('{"file": "a/cat.png", "phrases": "x"}', "a list of strings"),
        ('{"file": "a/cat.png", "text": "\\ud800"}', "whole letters"),
        ("[1]", "line 1"),
        ("not json", "line 1 is not JSON"),
    ],
)
def test_wrong_words_are_named_with_their_line(picture, tmp_path, line, text):
    file = tmp_path / "words.jsonl"
    file.write_text(line)
    with pytest.raises(LayeredError, match=text):
        read_words(file, tmp_path / "in")


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_parts.py").write_text(
        "class Depth:\n    about = {'model': 'mine'}\n    def order(self, picture, masks):\n"
        "        return range(len(masks))\n"
        "class Other:\n    pass\nnumber = 3\n"
    )
    (tmp_path / "own_broken.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("own_parts", "own_broken"):
        sys.modules.pop(name, None)


def test_a_part_of_ones_own_is_found_by_module_and_class(own_module):
    parts = load_parts(STORYBOOK | {"depth": "own_parts:Depth"}, setting())
    assert list(parts.depth.order(None, torch.zeros(2, 4, 4))) == [0, 1]
    assert parts.about["depth"] == {"name": "own_parts:Depth", "model": "mine"}


@pytest.mark.parametrize(
    ("role", "name", "text"),
    [
        ("depth", "own_parts:Missing", "the name of a class in 'own_parts'"),
        ("depth", "own_parts:number", "a class with a method 'order'"),
        ("depth", "own_parts:Other", "a class with a method 'order'"),
        ("depth", "no_such_module:Depth", "PYTHONPATH"),
        ("depth", "own_parts:", "the name of a class"),
        ("depth", ":Depth", "the name of a class"),
        ("depth", "deep", "depth-anything, area, file; or module:Class"),
        ("depth", "area=3", "area without '='"),
        ("segmenter", "grounded-sam2=one", "needs two"),
    ],
)
def test_a_part_that_is_no_part_is_named(own_module, role, name, text):
    with pytest.raises(LayeredError, match=text):
        load_part(role, name, setting())


def test_a_module_that_lacks_another_says_so_itself(own_module):
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        load_part("depth", "own_broken:Depth", setting())
