"""The prompts of ``soak.py``: which template is run next and how, and what is changed in it for that."""

import copy
import json
from collections import Counter
from dataclasses import dataclass

from comfy_server import PACK
from test_http import FOR_OWN_FILES

TEMPLATES = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((PACK / "workflows" / "api").glob("*.json"))
    if path.stem not in FOR_OWN_FILES
}
"""The shipped workflows that run with what comes along, as API prompts."""

STEPS = 3
"""Steps of a sampler, or of what learns from a layer."""

MORE_STEPS = {"34_demo_decompose": 12}
"""Steps of templates that go on with what is seen in a sampled picture."""

LESS = {
    "LD_LayerPreview": {"size": 256},
    "LD_AttentionPreview": {"size": 256},
    "LD_TransparentDecode": {"augmentations": "2"},
    "LD_GenerateLayers": {"augmentations": "2"},
    "LD_LearnWords": {"batch": 1},
    "LD_LayerTrainingData": {"count": 2},
}
"""Inputs with which nodes take less time, by class."""

STEPS_TO_INTERRUPT = 60

BAD = {
    "LD_RegionalPromptAttention": {"mode": "paint with words", "prompt": "nothing of that", "append": False},
    "LD_SelectLayers": {"which": "nobody"},
    "LD_GenerateLayers": {"keep": "nobody"},
    "LD_AddLayerByPrompt": {"prompt": " "},
    "LD_FillBehindLayers": {"layer": "nobody"},
    "LD_MaskedControlNetApply": {"start_percent": 0.9, "end_percent": 0.1},
    "LD_LearnWords": {"which": "nobody"},
    "LD_LayerTrainingData": {"layer": "nobody"},
    "LD_LoadLayers": {"file": "broken.psd"},
}
"""Inputs that are refused while the prompt runs, by class."""

BROKEN_FILE = b"8BPS\0\1" + bytes(20)
"""A PSD file that ends in its header: ``broken.psd`` in the input folder."""

NOT_RUN = {"2:204"}
"""Nodes that take steps in a branch of 21_make_then_redo that its switch leaves out."""

LOADERS = {"LD_LoadDemoModel": "SoakModels", "LD_LoadDemoControlNet": "SoakControlNet"}

UNSEEDED = {"TrainLoraNode"}
"""Nodes of ComfyUI whose results depend on the prompts before: whatever its seed is, TrainLoraNode draws a LoRA's
first weights from the random numbers at which the last sampling ended."""

FAULTS = ("interrupted", "broken", "failing", "refused", "deleted")


@dataclass(frozen=True)
class Turn:
    """One prompt of a soak."""

    template: str

    kind: str
    """``plain``: as a user runs it. ``anew``: with models that all such prompts share, and all that depends on a model
    is computed. One of ``FAULTS``: ``interrupted`` in the middle of a node, ``broken`` in the middle of sampling,
    ``failing`` since an input is wrong, ``refused`` before it runs, ``deleted`` from the queue. All but ``broken`` with
    the models of ``anew``: when two patchers, one cloned from the other, end in the cycle of an error's traceback,
    ComfyUI 0.33.0 warns of a memory leak at each load while their weights live, and the soak keeps them alive."""

    variant: int = 0
    """Prompts with another variant have other seeds."""


def _stepping(template):
    """Return the ids of nodes that sample or learn."""
    return [key for key, node in template.items() if "steps" in node["inputs"] and key not in NOT_RUN]


def _sampling(template):
    """Return the ids of nodes that sample."""
    return [key for key in _stepping(template) if "cfg" in template[key]["inputs"]]


def _failing(template):
    """Return the ids of the nodes that get a bad input: those of the first class of ``BAD`` that there is."""
    classes = {key: node["class_type"] for key, node in template.items()}
    bad = next((name for name in BAD if name in classes.values()), None)
    return [key for key, name in classes.items() if name == bad]


def fitting(name, kind):
    """Return whether a template can have its turn in this way."""
    template = TEMPLATES[name]
    ways = {
        "interrupted": _stepping,
        "broken": _sampling,
        "failing": _failing,
        "refused": _stepping,
    }
    return kind not in ways or bool(ways[kind](template))


def repeatable(prompt):
    """Return the ids of the nodes whose results depend on nothing but their prompt."""
    unseeded = {key for key, node in prompt.items() if node["class_type"] in UNSEEDED}
    reached = True
    while reached:
        reached = {
            key
            for key, node in prompt.items()
            if key not in unseeded
            and any(isinstance(x, list) and x and x[0] in unseeded for x in node["inputs"].values())
        }
        unseeded |= reached
    return set(prompt) - unseeded


def prompt_of(turn, number, choose):
    """Return the API prompt of a turn, and for one to interrupt the id of the node in which. ``number`` tells it from
    the other prompts; ``choose`` is a ``random.Random``."""
    prompt = copy.deepcopy(TEMPLATES[turn.template])
    stepping = _stepping(prompt)
    for node in prompt.values():
        node["inputs"].update(LESS.get(node["class_type"], {}))
    for key in stepping:
        steps = MORE_STEPS.get(turn.template, STEPS)
        prompt[key]["inputs"]["steps"] = min(steps, prompt[key]["inputs"]["steps"])
    for key in {*stepping, *(k for k, n in prompt.items() if n["class_type"] == "LD_StageSeed")}:
        if isinstance(prompt[key]["inputs"].get("seed"), int):
            prompt[key]["inputs"]["seed"] += 1000 * turn.variant
    if turn.kind not in ("plain", "broken"):
        for node in prompt.values():
            if node["class_type"] in LOADERS:
                node["class_type"] = LOADERS[node["class_type"]]
                node["inputs"]["number"] = number
    target = None
    if turn.kind == "interrupted":
        target = choose.choice(stepping)
        prompt[target]["inputs"]["steps"] = STEPS_TO_INTERRUPT
    elif turn.kind == "broken":
        key = choose.choice(_sampling(prompt))
        prompt["soak"] = {"class_type": "SoakBreak", "inputs": {"model": prompt[key]["inputs"]["model"]}}
        prompt[key]["inputs"]["model"] = ["soak", 0]
    elif turn.kind == "failing":
        key = choose.choice(_failing(prompt))
        prompt[key]["inputs"].update(BAD[prompt[key]["class_type"]])
    elif turn.kind == "refused":
        for key in stepping:
            prompt[key]["inputs"]["steps"] = 0
    return prompt, target


def first_turns(names):
    """Yield one turn of every template, then each fault once. After a fault the same template is made anew."""
    for name in names:
        yield Turn(name, "plain")
    for kind in FAULTS:
        for name in [name for name in names if fitting(name, kind)][:1]:
            yield Turn(name, kind)
            yield Turn(name, "anew")


def more_turns(names, choose):
    """Yield turns without end, in an order that ``choose`` mixes: of every template as often as of the others, with a
    fault in every third."""
    used = Counter()
    while True:
        deck = list(names)
        choose.shuffle(deck)
        for name in deck:
            if choose.random() < 1 / 3:
                kind = min((k for k in FAULTS if fitting(name, k)), key=lambda k: used[k])
                used[kind] += 1
                yield Turn(name, kind, choose.randrange(2))
                yield Turn(name, "anew")
            else:
                yield Turn(name, choose.choice(["plain", "anew"]), choose.randrange(2))
