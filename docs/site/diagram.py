"""A flow chart in Mermaid's notation, which GitHub draws, becomes rows of boxes in plain HTML.

They need no script and can be read on a phone. Boxes that import nothing lie lowest.
"""

from __future__ import annotations

import html
import re
from typing import Any

CHART = re.compile(r"^```mermaid\nflowchart BT\n(.*?)^```$", re.M | re.S)
BOX = re.compile(r"(\w+) ?\[\"?([^\]\"]+)\"?\]")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its charts drawn."""
    return CHART.sub(lambda chart: drawn(chart[1]), markdown)


def drawn(chart: str) -> str:
    """Return the HTML of a chart: one group of boxes, with others above it."""
    texts = dict(BOX.findall(chart))
    group: tuple[str, set[str]] = ("", set())
    below: dict[str, list[str]] = {}
    inside = False
    for line in chart.splitlines():
        line = line.strip()
        if line.startswith("subgraph "):
            group, inside = (line.split()[1], set()), True
        elif line == "end":
            inside = False
        elif named := re.match(r"(\w+)", line.replace("direction BT", "")):
            below.setdefault(named[1], [])
            below[named[1]] += [part.split("[")[0].strip() for part in line.split("-->")[1:]]
            if inside:
                group[1].add(named[1])
    below = {name: [x for x in lower if x] for name, lower in below.items()}

    def rank(name: str) -> int:
        return max((rank(lower) + 1 for lower in below.get(name, [])), default=0)

    def rows(names: set[str]) -> str:
        lines = []
        for level in sorted({rank(name) for name in names}, reverse=True):
            boxes = "".join(box(name) for name in below if name in names and rank(name) == level)
            lines.append(f'<div class="row">{boxes}</div>')
        return "".join(lines)

    def box(name: str) -> str:
        head, _, text = texts[name].partition(": ")
        lower = [texts[x].partition(": ")[0] for x in below[name]]
        uses = f"<small>on {html.escape(', '.join(lower))}</small>" if lower else ""
        return f"<div><strong>{html.escape(head)}</strong>{html.escape(text)}{uses}</div>"

    name, members = group
    frame = f'<div class="frame"><p>{html.escape(texts[name])}</p>{rows(members)}</div>'
    return f'<div class="chart">{rows(set(below) - members)}{frame}</div>'
