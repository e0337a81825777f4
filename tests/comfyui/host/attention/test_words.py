"""The texts in locales/ agree with the nodes."""

import json
from pathlib import Path

import pytest

import nodes as comfy_nodes

PACK = Path(__file__).resolve().parents[4]


def schemas():
    return {k: v.GET_SCHEMA() for k, v in comfy_nodes.NODE_CLASS_MAPPINGS.items() if k.startswith("LD_")}


def test_the_english_words_are_those_of_the_nodes(host):
    words = json.loads((PACK / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
    assert set(words) == set(schemas())
    for name, schema in schemas().items():
        assert words[name]["display_name"] == schema.display_name
        assert words[name]["description"] == schema.description
        assert words[name].get("inputs", {}) == {
            i.id: {"name": i.display_name or i.id, "tooltip": i.tooltip} for i in schema.inputs
        }
        assert words[name].get("outputs", {}) == {
            str(n): {"name": o.display_name, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)
        }


@pytest.mark.parametrize("language", ["zh"])
def test_a_translation_has_every_word_and_leaves_no_tooltip_in_english(host, language):
    english, words = (
        json.loads((PACK / f"locales/{k}/nodeDefs.json").read_text(encoding="utf-8"))
        for k in ("en", language)
    )
    assert set(words) == set(english)
    for name in english:
        for group in ("inputs", "outputs"):
            assert set(words[name].get(group, {})) == set(english[name].get(group, {})), name
            for key, entry in english[name].get(group, {}).items():
                assert words[name][group][key]["tooltip"] != entry["tooltip"], f"{name}.{key}"
        assert words[name]["display_name"] != english[name]["display_name"]
