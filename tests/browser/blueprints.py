"""Write the blueprints Render Layers and Redo Layers of ``subgraphs``: ``python tests/browser/blueprints.py``. Run it
when one of their nodes gets an input.

A blueprint is a graph of ordinary nodes that looks like one node. Here each is a table of its nodes, from which the
file is made with the schemas of a running ComfyUI.
"""

import json
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Face:
    """A value that is set, or connected, on the blueprint's face."""

    name: str


@dataclass(frozen=True)
class From:
    """A link from an output of another node inside."""

    node: int
    slot: int


@dataclass(frozen=True)
class Blueprint:
    """A graph that looks like one node."""

    name: str
    description: str
    category: str
    face: dict
    """By label on the face, from top to bottom: None for a socket, else the value it begins with."""
    nodes: dict
    """By id: kind, title or None, and what is not at its default: a value, :class:`Face` or :class:`From`. The page
    gives nodes inside other ids if nodes outside have the same, so these ids are high."""
    outputs: dict
    """By label: :class:`From`."""


SAMPLING = {"seed": 1, "steps": 20, "cfg": 7.0, "sampler": "euler", "scheduler": "normal"}
"""As KSampler begins, with the cfg that suits Stable Diffusion 1.5 and XL."""

WORDS = {
    "clip": Face("clip"),
    "layers": Face("layers"),
    "prompt": Face("prompt"),
    "negative": Face("negative"),
    "strength": Face("words' strength"),
    "guidance": Face("words' guidance"),
}
"""Regional Prompt Attention; the guidance is the layers' own."""


def sampler(model, words, latent):
    """Return KSampler on the model of a node and the conditionings of the nodes ``words``."""
    return {
        "model": model,
        "positive": From(words[0], 0),
        "negative": From(words[1], 2),
        "latent_image": latent,
        "seed": Face("seed"),
        "steps": Face("steps"),
        "cfg": Face("cfg"),
        "sampler_name": Face("sampler"),
        "scheduler": Face("scheduler"),
        "denoise": 1.0,
    }


RENDER = Blueprint(
    "Render Layers",
    "Paint one picture of a stack of layers: each layer's words act where the layer is, and each layer's picture "
    "changes as far as its noise says (0 keeps it, 1 paints it anew). Layers that have only words are painted from "
    "noise. Gives the picture, and the stack as it came, for Redo Layers or Save Layers.",
    "layered diffusion",
    {
        "model": None, "clip": None, "vae": None, "layers": None,
        "prompt": "", "negative": "", **SAMPLING,
        "words' strength": 1.0, "words' guidance": 1.0, "flux guidance": 3.5, "freedom outside layers": 1.0,
    },
    {
        101: ("LD_RegionalPromptAttention", "words where the layers are", {"model": Face("model"), **WORDS}),
        102: (
            "LD_PerLayerSDEdit", "how far each layer may change",
            {
                "model": From(101, 0), "vae": Face("vae"), "layers": Face("layers"),
                "background": Face("freedom outside layers"),
            },
        ),
        103: ("FluxGuidance", "for Flux alone", {"conditioning": From(101, 1), "guidance": Face("flux guidance")}),
        104: ("KSampler", None, sampler(From(102, 0), (103, 101), From(102, 1))),
        105: ("VAEDecode", None, {"samples": From(104, 0), "vae": Face("vae")}),
        106: ("LD_PasteBack", "layers of noise 0 keep their pixels", {"image": From(105, 0), "paste": From(102, 3)}),
        107: ("LD_SelectLayers", "the stack, as it came", {"layers": Face("layers"), "which": "*"}),
    },
    {"image": From(106, 0), "layers": From(107, 0)},
)  # fmt: skip

REDO = Blueprint(
    "Redo Layers",
    "Paint the marked layers of a picture anew, and change no pixel anywhere else. Connect Layer Board's output "
    "marked, or write names, one a line. With no name the picture comes out as it is and nothing is sampled. Gives "
    "the picture, and the stack as it came.",
    "layered diffusion",
    {
        "model": None, "clip": None, "vae": None, "layers": None, "image": None,
        "marked": "", "prompt": "", "negative": "", **SAMPLING,
        "freedom": 1.0, "words' strength": 1.0, "words' guidance": 1.0, "flux guidance": 3.5,
        "grow": 4, "feather": 8, "size": 0,
    },
    {
        101: (
            "LD_RegenerateLayers", "only the marked layers may change",
            {
                "model": Face("model"), "vae": Face("vae"), "names": Face("marked"), "noise": Face("freedom"),
                "grow": Face("grow"), "feather": Face("feather"), "size": Face("size"), "layers": Face("layers"),
                "image": Face("image"),
            },
        ),
        102: ("LD_RegionalPromptAttention", "words where the layers are", {"model": From(101, 0), **WORDS}),
        103: ("FluxGuidance", "for Flux alone", {"conditioning": From(102, 1), "guidance": Face("flux guidance")}),
        104: ("KSampler", None, sampler(From(102, 0), (103, 102), From(101, 1))),
        105: ("VAEDecode", None, {"samples": From(104, 0), "vae": Face("vae")}),
        106: ("LD_PasteBack", "all else stays as it was", {"image": From(105, 0), "paste": From(101, 2)}),
        107: ("RegexMatch", "is a layer marked?", {"string": Face("marked"), "regex_pattern": r"\S"}),
        108: (
            "ComfySwitchNode", "if none is, the picture as it came",
            {"switch": From(107, 0), "on_false": Face("image"), "on_true": From(106, 0)},
        ),
        109: ("LD_SelectLayers", "the stack, as it came", {"layers": Face("layers"), "which": "*"}),
    },
    {"image": From(108, 0), "layers": From(109, 0)},
)  # fmt: skip

ANY = "COMFY_MATCHTYPE_V3"
"""The type of a socket that takes the type of what is connected; in a graph it is written as a star."""


def inputs_of(info):
    """Yield name, type, default, and whether it is a widget, of every input of a node."""
    for group in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(group, {}).items():
            options = options[0] if options else {}
            choices = kind if isinstance(kind, list) else options.get("options", [None])
            kind = "COMBO" if isinstance(kind, list) else "*" if kind == ANY else kind
            is_widget = kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and not options.get(
                "forceInput"
            )
            plain = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False, "COMBO": choices[0]}
            yield name, kind, options.get("default", plain.get(kind)), is_widget


def identity(*parts):
    """Return the same id for the same parts every time."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, " ".join(("layered-diffusion", *map(str, parts)))))


def graph_of(blueprint, infos):
    """Return the file of a blueprint."""
    links, places, nodes, faces, ends = [], {}, [], {}, {}
    for column, (number, (kind, title, values)) in enumerate(blueprint.nodes.items()):
        info, inputs, kept = infos[kind], [], {}
        for name, type_, default, is_widget in inputs_of(info):
            value = values.get(name, default)
            entry = {"localized_name": name, "name": name, "type": type_, "link": None}
            if is_widget:
                entry["widget"] = {"name": name}
                kept[name] = value
            if isinstance(value, (Face, From)):
                places[number, name] = value, type_
                if is_widget:
                    kept[name] = blueprint.face[value.name] if isinstance(value, Face) else default
            inputs.append((is_widget, entry))
            if name == "seed":
                kept["control_after_generate"] = "fixed"
        inputs = [
            entry for _, entry in sorted(inputs, key=lambda pair: pair[0])
        ]  # sockets first, as the page does
        for slot, entry in enumerate(inputs):
            value, type_ = places.get((number, entry["name"]), (None, None))
            if value is None:
                continue
            link = {"id": len(links) + 1, "target_id": number, "target_slot": slot, "type": type_}
            if isinstance(value, Face):
                faces.setdefault(value.name, []).append((link["id"], type_, entry["name"], "widget" in entry))
                link |= {"origin_id": -10, "origin_slot": list(blueprint.face).index(value.name)}
            else:
                link |= {"origin_id": value.node, "origin_slot": value.slot}
                ends.setdefault((value.node, value.slot), []).append(link["id"])
            entry["link"] = link["id"]
            links.append(link)
        node = {
            "id": number, "type": kind, "pos": [360 * column, 60], "size": [320, 60 + 26 * len(inputs)],
            "flags": {}, "order": column, "mode": 0, "inputs": inputs,
            "properties": {"Node name for S&R": kind}, "widgets_values": list(kept.values()),
        }  # fmt: skip
        nodes.append(node | ({"title": title} if title else {}))
    types = {(n, s): "*" if t == ANY else t for n, (k, _, _) in blueprint.nodes.items()
             for s, t in enumerate(infos[k]["output"])}  # fmt: skip
    outputs = []
    for slot, (label, end) in enumerate(blueprint.outputs.items()):
        type_ = {"image": "IMAGE", "layers": "LAYERS"}[label]
        link = {"id": len(links) + 1, "origin_id": end.node, "origin_slot": end.slot, "target_id": -20,
                "target_slot": slot, "type": type_}  # fmt: skip
        links.append(link)
        ends.setdefault((end.node, end.slot), []).append(link["id"])
        outputs.append({"id": identity(blueprint.name, "out", label), "name": label, "type": type_,
                        "linkIds": [link["id"]], "localized_name": label})  # fmt: skip
    for node in nodes:
        names = infos[node["type"]]["output_name"]
        node["outputs"] = [
            {"localized_name": name, "name": name, "type": types[node["id"], slot],
             "links": ends.get((node["id"], slot), [])}
            for slot, name in enumerate(names)
        ]  # fmt: skip
    key = identity(blueprint.name)
    inner = {
        "id": key, "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(blueprint.nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0, "config": {}, "name": blueprint.name,
        "inputNode": {"id": -10, "bounding": [-320, 60, 180, 40 + 20 * len(faces)]},
        "outputNode": {"id": -20, "bounding": [360 * len(nodes), 60, 120, 80]},
        "inputs": [
            {"id": identity(blueprint.name, "in", label), "name": label, "type": faces[label][0][1],
             "linkIds": [link for link, *_ in faces[label]], "localized_name": label}
            for label in blueprint.face
        ],
        "outputs": outputs, "widgets": [], "nodes": nodes, "groups": [], "links": links, "extra": {},
        "category": blueprint.category, "description": blueprint.description,
    }  # fmt: skip
    values = {label: value for label, value in blueprint.face.items() if value is not None}
    sampling = next(n["id"] for n in nodes if n["type"] == "KSampler")
    shown = {"name": "$$canvas-image-preview", "sourceNodeId": str(sampling)}
    outer = {
        "id": 1, "type": key, "pos": [100, 100], "size": [340, 560], "flags": {}, "order": 0, "mode": 0,
        "showAdvanced": True,  # the face of a blueprint has no button for it
        "inputs": [
            {"localized_name": label, "name": label, "type": faces[label][0][1], "link": None}
            | ({"widget": {"name": label}} if label in values else {})
            for label in blueprint.face
        ],
        "outputs": [{"localized_name": o["name"], "name": o["name"], "type": o["type"]} for o in outputs],
        "properties": {"previewExposures": [shown | {"sourcePreviewName": "$$canvas-image-preview"}]},
        "widgets_values": list(values.values()), "title": blueprint.name,
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [inner]}, "extra": {},
    }  # fmt: skip


def prompt_of(blueprint, infos, **values):
    """Return the API prompt of a blueprint's nodes, with ``values`` on its face: constants or links."""
    face = {**blueprint.face, **values}
    prompt = {}
    for number, (kind, _, given) in blueprint.nodes.items():
        inputs = {}
        for name, _, default, _ in inputs_of(infos[kind]):
            value = given.get(name, default)
            if isinstance(value, From):
                value = [str(value.node), value.slot]
            inputs[name] = face[value.name] if isinstance(value, Face) else value
        given = {name: value for name, value in inputs.items() if value is not None}
        prompt[str(number)] = {"class_type": kind, "inputs": given, "_meta": {}}
    return prompt


def main():
    sys.path[:0] = [str(PACK / "tests/comfyui"), str(PACK)]
    from comfy_server import Server

    from benchmarks.hosts.find import find_host

    with tempfile.TemporaryDirectory() as folder:
        server = Server(*find_host(), Path(folder) / "base")
        try:
            infos = server.get("/object_info")
        finally:
            server.stop()
    for blueprint in (RENDER, REDO):
        text = json.dumps(graph_of(blueprint, infos), indent=2, ensure_ascii=False)
        (PACK / f"subgraphs/{blueprint.name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
