"""Choices and comments in words, which ComfyUI's page resolves and files do not, are told of."""

import time

import pytest

from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.formats.dynamic_prompts import dynamic_part, dynamic_remark

PARTS = {
    "a {red|blue} ball": "{red|blue}",
    "a {red} ball": "{red}",
    "a {red|{dark|light} blue} ball": "{dark|light}",
    "a {red|blue ball": "{red|blue ball",
    "a ball /* secret */ here": "/* secret */",
    "a ball /* two\nlines */ {a|b}": "/* two\nlines */",
    "a ball // not this\nin a meadow": "// not this",
    "a ball // a /* b */": "// a /* b */",
    "a ball {x|/* y */}": "{x|/* y */}",
    "a (red:1.2) ball, [blue]": "",
    r"a \{red\} ball": "",
    r"a \\{red\\} ball": r"{red\\}",
    "a ball /* open": "",
    "a ball */ and / or": "",
    "": "",
}


@pytest.mark.parametrize(("text", "part"), PARTS.items())
def test_the_first_part_that_the_page_would_resolve_is_found(text, part):
    assert dynamic_part(text) == part


@pytest.mark.parametrize("text", ["/*", "{", "{|", "/*/", "\\{", "/"])
def test_a_million_letters_take_no_second(text):
    begin = time.perf_counter()
    dynamic_part(text * 500_000)
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize("end", [".psd", ".ora", ""])
def test_a_file_with_dynamic_prompts_is_told_of_in_one_line(tmp_path, end):
    layers = (
        Layer("ball", width=4, height=4, prompt="a {red|blue} ball"),
        Layer("star", width=4, height=4, prompt="a star", negative="moon // no"),
        Layer("tree", width=4, height=4, visible=False, prompt="/* a */ tree"),
    )
    file = read_layers(write_layers(LayerDocument(8, 8, layers, prompt="{day|night}"), tmp_path / f"a{end}"))
    assert file.warnings[-1:] == (
        "prompt has '{day|night}', layer 'ball': prompt has '{red|blue}', layer 'star': negative has '// no' and 1 "
        "more: choices in braces and comments are used as they stand, because only the prompt fields of ComfyUI's "
        "page resolve them. Write the words out",
    )
    assert [x.prompt for x in file.document] == [x.prompt for x in layers]


def test_words_without_dynamic_prompts_are_not_told_of(tmp_path):
    document = LayerDocument(
        8, 8, (Layer("ball", width=4, height=4, prompt="a (red:1.2) ball"),), prompt="day"
    )
    assert dynamic_remark(document, document.prompt) == ""
    assert read_layers(write_layers(document, tmp_path / "a.ora")).warnings == ()


def test_a_long_part_is_cut():
    remark = dynamic_remark([], "{" + "red|" * 100 + "}")
    assert remark.startswith("prompt has '{red|red|red|red|red|red|red|red|red|re…': choices")
