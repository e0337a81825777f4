"""Let the conditionings of Regional Prompt Attention act on a sampler whose MODEL does not come from it.

ComfyUI lets a conditioning bring wrappers of a sampling run along, as hooks. But where a sampler is given a
conditioning with hooks, it also loads the model's weights in another, costlier way, which is needed for hooks that
change weights. Ours change none, so they show only once the sampler has made its own copy of the conditioning, and
they are taken off again before the run looks at hooks. A run with both, the node's MODEL and its conditionings, is
therefore the same as one in which they bring nothing along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.hooks
import comfy.patcher_extension

from .conditionings import KEY


class Carrying(dict[str, Any]):
    """The options of a conditioning, which gets hooks when a sampler gives it a uuid, unless it has some by then:
    those of other nodes may change weights, and are left as they are."""

    def __init__(self, options: Mapping[str, Any], hooks: comfy.hooks.HookGroup) -> None:
        super().__init__(options)
        self._carried = hooks

    def copy(self) -> Carrying:
        """Return a copy that carries the same hooks; nodes that change a conditioning make one."""
        return Carrying(self, self._carried)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "uuid" and key not in self:  # a run may give it another one later
            self.setdefault("hooks", self._carried)
        super().__setitem__(key, value)


def carrying(wrapper: Any, *conditionings: Sequence[tuple[Any, dict[str, Any]]]) -> list[list[list[Any]]]:
    """Return the conditionings so that they wrap the sampling runs that they are used in.

    Args:
        wrapper: as ComfyUI's wrappers of kind OUTER_SAMPLE; it is called once more if the model has it too.
        conditionings: as ComfyUI's nodes give them.
    """
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    hook = comfy.hooks.TransformerOptionsHook({"wrappers": {kind: {KEY: [wrapper]}}})
    hook.hook_id = KEY
    hooks = comfy.hooks.HookGroup()
    hooks.add(hook)
    return [[[words, Carrying(options, hooks)] for words, options in entries] for entries in conditionings]


def take_off(entries: Sequence[dict[str, Any]]) -> None:
    """Take the hooks of :func:`carrying` off a run's conditionings, so that they are batched as without; other
    hooks stay."""
    rest: dict[int, comfy.hooks.HookGroup] = {}
    for entry in entries:
        hooks = entry.get("hooks")
        if hooks is None or all(hook.hook_id != KEY for hook in hooks.hooks):
            continue
        others = rest.setdefault(id(hooks), comfy.hooks.HookGroup())
        if not len(others):
            for hook in hooks.hooks:
                if hook.hook_id != KEY:
                    others.add(hook)
        if len(others):
            entry["hooks"] = others
        else:
            del entry["hooks"]
