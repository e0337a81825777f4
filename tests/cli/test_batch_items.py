"""The items of a batch are read one at a time from documents, folders and lists of any length."""

import json
import subprocess
import sys

import pytest

from layered_cli.batching.items import Shard, items_of
from layered_core.errors import LayeredError


def listed(folder, *lines):
    path = folder / "list.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def names(*sources, way="render", ending=""):
    return [x.name for x in items_of(sources, way, ending)]


def test_every_line_of_a_list_becomes_an_item_with_its_own_way_options_and_name(tmp_path):
    (tmp_path / "a").mkdir()
    path = listed(
        tmp_path,
        {"document": "a.psd", "options": {"strength": 0.2, "per-layer": True, "control": False}},
        {"document": "a", "as": "stage", "name": "of/a"},
        {"prompt": "a ball", "options": {"layer": ["a ball", "a star"], "layers": True, "negative": None}},
        "",
        {"prompt": "a star", "format": "png"},
    )
    picture, stage, layers, star = items_of([path], "render", "")
    assert (picture.document, picture.words) == (tmp_path / "a.psd", ("--strength=0.2", "--per-layer"))
    assert (stage.document, stage.way, stage.name) == (tmp_path / "a" / "document.json", "stage", "of/a.psd")
    assert (layers.way, layers.prompt, layers.name) == ("generate", "a ball", "list-000003.psd")
    assert layers.words == ("--layer=a ball", "--layer=a star", "--layers")
    assert (star.name, star.source) == ("list-000005.png", f"{path} line 5")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "the line is no JSON"),
        ("[" * 100_000, "the line is no JSON"),
        ("7", "allowed: an object with 'document' or 'prompt'"),
        ({"document": "a.psd", "prompt": "a"}, "allowed: an object with 'document' or 'prompt'"),
        ({"document": "a.psd", "strength": 0.2}, "allowed: an object with 'document' or 'prompt'"),
        ({"document": 7}, "document is 7; allowed: a text"),
        ({"document": "a.psd", "as": "generate"}, "allowed: render or stage"),
        ({"document": "a.psd", "as": "bench"}, "allowed: render or stage"),
        ({"prompt": "a", "as": "render"}, "as is 'render'; allowed: generate"),
        ({"prompt": "a", "format": "gif"}, "format is 'gif'; allowed: png, psd, psb, ora"),
        ({"prompt": "a", "options": [1]}, "options is [1]; allowed: an object"),
        ({"prompt": "a", "options": {"--seed": 1}}, "without the dashes"),
        ({"prompt": "a", "options": {"seed": {}}}, "options: seed is {}"),
        ('{"prompt": "' + "a" * 2**20 + '"}', "longer than 1,048,576 bytes"),
        *(
            ({"prompt": "a", "name": name}, "allowed: a path within --out")
            for name in (
                "../a",
                "/a",
                "a/../../b",
                "",
                "a//b",
                ".layered/recipes/a",
                "a\\b",
                "a\0b",
                "\ud800",
            )
        ),
    ],
)
def test_a_bad_line_is_an_item_that_fails_and_the_next_line_counts(tmp_path, line, told):
    bad, good = items_of([listed(tmp_path, line, {"prompt": "a star"})], "render", "")
    assert told in bad.error
    assert (good.error, good.prompt) == ("", "a star")


def test_a_folder_gives_its_documents_in_order_under_their_own_names(tmp_path):
    for path in (
        "b.psd",
        "a.ora",
        "notes.txt",
        ".c.psd",
        "deep/er/x.json",
        "whole/document.json",
        "whole/1.png",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert names(tmp_path) == ["a.png", "b.png", "deep/er/x.png", "whole.png"]
    assert names(tmp_path / "whole", tmp_path / "b.psd", way="stage", ending="ora") == ["whole.ora", "b.ora"]


def test_two_items_of_one_name_are_never_made_over_one_another(tmp_path):
    path = listed(
        tmp_path, {"document": "a.psd"}, {"document": "x/A.ora"}, {"document": "a.ora", "name": "b"}
    )
    first, second, third = items_of([path], "render", "")
    assert "its result would be 'A.png', as of an item before it" in second.error
    assert (first.error, third.error) == ("", "")


def test_what_is_no_document_no_folder_and_no_list_is_refused(tmp_path):
    with pytest.raises(LayeredError, match=r"a\.txt'; allowed: files that end in \.psd"):
        names(tmp_path / "a.txt")
    with pytest.raises(LayeredError, match=r"a\.jsonl' cannot be read: No such file"):
        names(tmp_path / "a.jsonl")
    assert items_of([tmp_path / "a.psd"], "generate", "").__next__().error.startswith("--as is 'generate'")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_every_item_is_in_one_share(count):
    shares = [[x for x in range(10) if Shard(index, count).has(x)] for index in range(count)]
    assert sorted(sum(shares, [])) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["", "1", "3/3", "-1/3", "0/0", "a/b", "1/2/3", " 1/2"])
def test_a_share_that_there_is_not_is_refused(text):
    with pytest.raises(LayeredError, match="--shard is .*; allowed: i/n with i in 0..n-1"):
        Shard.of(text)


READING = """
import gc, sys, tracemalloc
from layered_cli.batching.items import items_of

short, long, count = sys.argv[1:]
assert len(list(items_of([short], "render", ""))) == 1  # what is loaded at first use does not count
gc.collect()
tracemalloc.start()
assert sum(not x.error for x in items_of([long], "render", "")) == int(count)
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize(
    ("count", "most"), [(3_000, 2**19), pytest.param(100_000, 12 * 2**20, marks=pytest.mark.slow)]
)
def test_of_many_documents_only_marks_of_their_names_are_held(tmp_path, count, most):
    path = tmp_path / "list.jsonl"
    with path.open("w") as file:
        for number in range(count):
            file.write(f'{{"document": "folder/{number}.psd", "options": {{"seed": {number}}}}}\n')
    short = tmp_path / "short.jsonl"
    short.write_text('{"document": "a.psd"}\n')
    # In an interpreter of its own: where thousands of tests ran before, Python's table of interned texts may be
    # at the point of growing, by megabytes, and paths put theirs into it.
    command = [sys.executable, "-c", READING, short, path, str(count)]
    peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert peak < most  # as items they take more than five times as much
