"""A learnt word's files are whole or absent, other programs read the embedding, and odd names are refused."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from layered_core.errors import LayeredError
from layered_core.learning import word_files
from layered_core.learning.word_files import LearntWord, check_free, values_of, write_word
from layered_core.learning.word_values import WordValues


def learnt(name="krk", values=True, seed=1):
    make = torch.Generator().manual_seed(seed)
    blocks = [tuple(torch.randn(2, w, generator=make) for w in (4, 6)) for _ in range(2)]
    vectors = {name: torch.randn(1, 8, generator=make)}
    return LearntWord(name, vectors, WordValues("ball", *blocks) if values else None, {"layer": "the ball"})


def test_the_embedding_has_one_tensor_and_says_what_it_is(tmp_path):
    word = learnt()
    paths = write_word(word, tmp_path)
    assert [p.name for p in paths] == ["krk.safetensors", "krk.values.safetensors"]
    with safe_open(paths[0], "pt") as file:
        assert list(file.keys()) == ["krk"]
        assert torch.equal(file.get_tensor("krk"), word.vectors["krk"])
        assert file.metadata() == {"layer": "the ball"}


def test_values_come_back_as_they_were_written(tmp_path):
    word = learnt()
    back = values_of(write_word(word, tmp_path)[0])
    assert back.noun == "ball"
    for a, b in zip(word.values.keys + word.values.values, back.keys + back.values, strict=True):
        assert torch.equal(a, b)


def test_an_embedding_alone_has_no_values(tmp_path):
    assert values_of(write_word(learnt(values=False), tmp_path)[0]) is None


def test_nothing_is_written_over_unless_that_is_allowed(tmp_path):
    write_word(learnt(), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(LayeredError, match=r"'krk.safetensors' exists already"):
        write_word(learnt(seed=2), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_word(learnt(seed=2), tmp_path, overwrite=True)
    assert all(before[p.name] != p.read_bytes() for p in tmp_path.iterdir())


def test_values_of_an_earlier_word_do_not_stay_beside_a_new_one(tmp_path):
    write_word(learnt(), tmp_path)
    write_word(learnt(values=False), tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["krk.safetensors"]


def test_values_of_another_word_are_not_used(tmp_path):
    file, _ = write_word(learnt(), tmp_path)
    save_file(dict(learnt(seed=2).vectors), file)
    with pytest.raises(LayeredError, match=r"'krk.values.safetensors' belongs to another word"):
        values_of(file)


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    def full(path):
        if "values" in path.name:
            raise OSError(28, "No space left on device")
        return before(path)

    before = word_files.part_file
    monkeypatch.setattr(word_files, "part_file", full)
    with pytest.raises(LayeredError, match="'krk' cannot be written to .*No space left"):
        write_word(learnt(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a b", "a.values", "ö", "a" * 65, None])
def test_odd_names_are_refused(tmp_path, name):
    with pytest.raises(LayeredError, match="name is .*letters a to z, digits"):
        write_word(learnt(name), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_named_before_anything_is_learnt(tmp_path):
    with pytest.raises(LayeredError, match="folder of learnt words"):
        check_free("layer 'a'", tmp_path / "none", "krk", False)


def test_broken_values_are_named(tmp_path):
    file, values = write_word(learnt(), tmp_path)
    whole = values.read_bytes()
    values.write_bytes(whole[:-10])
    with pytest.raises(LayeredError, match=r"'krk.values.safetensors' cannot be read"):
        values_of(file)
    values.write_bytes(whole)
    facts = {"format": "layered-diffusion values 1", "word_sha256": word_files.fingerprint(learnt().vectors)}
    save_file({"blocks.1.dk": torch.zeros(2, 4), "blocks.1.dv": torch.zeros(2, 4)}, values, facts)
    with pytest.raises(LayeredError, match=r"tensors of 'krk.values.safetensors'"):
        values_of(file)
    save_file({"blocks.0.dk": torch.full((2, 4), torch.nan)}, values, facts)
    with pytest.raises(LayeredError, match="not finite"):
        values_of(file)
