"""The layers and groups of a file before they are decoded: decide which of them are read, as a document holds few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import invalid


@dataclass
class Node:
    """A layer or group of a file."""

    source: Any
    """What the format's reader decodes."""
    visible: bool = True
    """Whether it is shown, apart from the groups around it."""
    items: list[Node] | None = None
    """Layers and groups in a group, back to front; None for a layer."""
    counts: bool = True
    """Whether it becomes a layer; adjustments, for instance, do not."""
    read: bool = field(default=True, init=False)
    """Whether there is room for it."""
    merge: bool = field(default=False, init=False)
    """Whether it must become one layer to make room."""


def leaves(nodes: Sequence[Node], shown: bool = True) -> Iterator[tuple[Node, bool]]:
    """Yield the layers that count, back to front, and whether each is shown, with the groups around it."""
    for node in nodes:
        if node.items is not None:
            yield from leaves(node.items, shown and node.visible)
        elif node.counts:
            yield node, shown and node.visible


def make_room(nodes: Sequence[Node], most: int, groups: str, warnings: list[str]) -> None:
    """Decide which layers are read, and which groups are merged, so that there are at most ``most`` layers.

    If there are more, hidden ones are left out. If that is not enough, groups are merged (``auto``), the deepest
    first, and of equally deep ones the smallest.

    Raises:
        LayeredError: there are still more.
    """
    if groups == "merged":
        _leave_out([(node, node.visible) for node in nodes if _units(node)], most, warnings)
        return
    found = list(leaves(nodes))
    if groups == "auto" and sum(shown for _, shown in found) > most:
        _merge(nodes, most)
        found = [(node, shown) for node, shown in _unmerged(nodes, True)]
    _leave_out(found, most, warnings)


def _leave_out(found: Sequence[tuple[Node, bool]], most: int, warnings: list[str]) -> None:
    """Leave out hidden nodes if there are more than ``most``."""
    if len(found) <= most:
        return
    count = sum(shown for _, shown in found)
    if count > most:
        what = "number of layers" if count == len(found) else "number of visible layers"
        raise invalid(what, count, f"at most {most}", "Merge some of them, or put them into groups")
    warnings.append(
        f"{len(found) - count} hidden layers are left out: with them there are {len(found)}, and at most {most} are "
        f"read"
    )
    for node, shown in found:
        node.read = shown


def _merge(nodes: Sequence[Node], most: int) -> None:
    """Mark groups for merging until there are at most ``most`` visible layers, or no groups left."""
    count = sum(_units(node) for node in nodes if node.visible)
    for _, _, group in sorted(_groups(nodes, 1), key=lambda item: item[:2]):
        inside = _units(group)
        if count > most and inside > 1:
            count -= inside - 1
            group.merge = True


def _groups(nodes: Sequence[Node], depth: int) -> Iterator[tuple[int, int, Node]]:
    """Yield the visible groups, each with minus its depth and the number of its layers."""
    for node in nodes:
        if node.items is not None and node.visible:
            yield -depth, sum(1 for _ in leaves(node.items)), node
            yield from _groups(node.items, depth + 1)


def _units(node: Node) -> int:
    """Return how many visible layers a node becomes, if it is visible itself."""
    if node.items is None:
        return int(node.counts)
    inside = sum(_units(inner) for inner in node.items if inner.visible)
    return min(inside, 1) if node.merge else inside


def _unmerged(nodes: Sequence[Node], shown: bool) -> Iterator[tuple[Node, bool]]:
    """Yield the layers, and the groups that are merged."""
    for node in nodes:
        if node.merge or (node.items is None and node.counts):
            yield node, shown and node.visible
        elif node.items is not None:
            yield from _unmerged(node.items, shown and node.visible)
