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
        assert {key: entry["tooltip"] for key, entry in words[name].get("inputs", {}).items()} == {
            i.id: i.tooltip for i in schema.inputs
        }
        assert words[name].get("outputs", {}) == {
            str(n): {"name": o.display_name, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)
        }


def test_inputs_have_labels_in_the_locales_alone_because_one_in_the_schema_hides_the_translation(host):
    inputs = [i for schema in schemas().values() for item in schema.inputs for i in item.get_all()]
    assert [i.id for i in inputs if i.display_name] == []


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
