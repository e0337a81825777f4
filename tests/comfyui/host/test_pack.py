"""The pack as ComfyUI sees it."""

import re

import nodes as comfy_nodes

PREFIX = "LD_"


def ours():
    return {k: v for k, v in comfy_nodes.NODE_CLASS_MAPPINGS.items() if k.startswith(PREFIX)}


def test_every_node_loads_under_a_prefixed_id_and_a_plain_name(host):
    assert {
        "LD_LoadLayer",
        "LD_LayerFromImage",
        "LD_LayerComposite",
        "LD_LayerPreview",
        "LD_LoadDemoModel",
        "LD_StorybookPicture",
    } <= set(ours())
    for node_id, node in ours().items():
        schema = node.GET_SCHEMA()
        assert (
            node.__name__ == node_id.removeprefix(PREFIX)
            or node.__name__ == f"{node_id.removeprefix(PREFIX)}Clone"
        )
        assert schema.display_name
        assert not schema.display_name.startswith(PREFIX)
        assert schema.category.startswith("layered diffusion/")
        assert schema.search_aliases, node_id
        assert schema.description, node_id


def test_every_input_has_a_tooltip_and_every_widget_names_its_neutral_value(host):
    for node_id, node in ours().items():
        schema = node.GET_SCHEMA()
        for item in schema.inputs:
            assert item.tooltip, f"{node_id}.{item.id}"
            if (
                type(item).__module__.endswith("_io")
                and item.get_io_type() in ("INT", "FLOAT", "BOOLEAN")
                and item.id != "size"
            ):
                assert "Neutral" in item.tooltip, f"{node_id}.{item.id}"
        for item in schema.outputs:
            assert item.tooltip, f"{node_id} output {item.display_name}"


def test_a_default_that_is_not_the_neutral_value_says_why(host):
    silent = []
    for node_id, node in ours().items():
        for item in node.GET_SCHEMA().inputs:
            default = getattr(item, "default", None)
            stated = re.search(r"Neutral: ([\w-]+(?:\.\d+)?)", item.tooltip)
            values = {"on": True, "off": False}
            if stated is None or default is None or item.get_io_type() == "STRING":
                continue
            neutral = values.get(stated[1], stated[1])
            try:
                is_neutral = float(neutral) == float(default)
            except ValueError:  # names: of a choice, or words such as "none", where there is no neutral value
                is_neutral = neutral == default or neutral not in (getattr(item, "options", None) or ())
            if not is_neutral and "The default is" not in item.tooltip:
                silent.append(f"{node_id}.{item.id}: {item.tooltip}")
    assert silent == []


def test_every_field_of_a_prompt_resolves_choices_and_comments_in_the_page(host):
    dull = []
    for node_id, node in ours().items():
        info = node.INPUT_TYPES()
        for name, spec in (
            (k, v) for group in ("required", "optional") for k, v in info.get(group, {}).items()
        ):
            if name in ("prompt", "negative") and spec[0] != "CONDITIONING":
                inner = [
                    s for o in spec[1].get("options", []) for s in o["inputs"].get("required", {}).values()
                ]
                dull += [f"{node_id}.{name}" for s in inner or [spec] if not s[1].get("dynamicPrompts")]
    assert dull == []


def test_every_mask_socket_says_what_1_means(host):
    for node_id, node in ours().items():
        schema = node.GET_SCHEMA()
        for item in [*schema.inputs, *schema.outputs]:
            if item.get_io_type() == "MASK":
                assert re.search(r"\b1 (is|where|means)", item.tooltip), (
                    f"{node_id}.{item.id}: {item.tooltip}"
                )
