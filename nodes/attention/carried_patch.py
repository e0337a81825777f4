"""Let conditionings act on a sampler whose MODEL does not come from the node that made them.

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


class Carrying(dict[str, Any]):
    """The options of a conditioning, which gets hooks when a sampler gives it a uuid, unless it has some by then:
    those of other nodes may change weights, and are left as they are."""

    def __init__(self, options: Mapping[str, Any], hooks: comfy.hooks.HookGroup) -> None:
        super().__init__(options)
        self.carried = hooks

    def copy(self) -> Carrying:
        """Return a copy that carries the same hooks; nodes that change a conditioning make one."""
        return Carrying(self, self.carried)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "uuid" and key not in self:  # a run may give it another one later
            self.setdefault("hooks", self.carried)
        super().__setitem__(key, value)


def carrying(
    key: str, wrapper: Any, *conditionings: Sequence[tuple[Any, dict[str, Any]]]
) -> list[list[list[Any]]]:
    """Return the conditionings so that they wrap the sampling runs that they are used in.

    Args:
        key: names the wrapper; what a conditioning carries under another key, it still carries.
        wrapper: as ComfyUI's wrappers of kind OUTER_SAMPLE; it is called once more if the model has it too.
        conditionings: as ComfyUI's nodes give them.
    """
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    hook = comfy.hooks.TransformerOptionsHook({"wrappers": {kind: {key: [wrapper]}}})
    hook.hook_id = key
    groups: dict[int, comfy.hooks.HookGroup] = {}

    def carried(options: dict[str, Any]) -> Carrying:
        before = options.carried if isinstance(options, Carrying) else comfy.hooks.HookGroup()
        number = id(before) if len(before) else 0
        if number not in groups:
            groups[number] = without(before, key)
            groups[number].add(hook)
        return Carrying(options, groups[number])

    return [[[words, carried(options)] for words, options in entries] for entries in conditionings]


def without(hooks: comfy.hooks.HookGroup, key: str) -> comfy.hooks.HookGroup:
    """Return a group of the hooks that :func:`carrying` did not make with this key."""
    rest = comfy.hooks.HookGroup()
    for hook in hooks.hooks:
        if hook.hook_id != key:
            rest.add(hook)
    return rest


def take_off(entries: Sequence[dict[str, Any]], key: str) -> None:
    """Take the hooks of :func:`carrying` with this key off a run's conditionings, so that they are batched as
    without; other hooks stay."""
    rest: dict[int, comfy.hooks.HookGroup] = {}
    for entry in entries:
        hooks = entry.get("hooks")
        if hooks is None or all(hook.hook_id != key for hook in hooks.hooks):
            continue
        others = rest.setdefault(id(hooks), without(hooks, key))
        if len(others):
            entry["hooks"] = others
        else:
            del entry["hooks"]
