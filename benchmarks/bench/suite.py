"""Suites of the bench: the methods and scenes to measure, read from YAML and checked before anything is
sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.bench.judging import FIGURES
from benchmarks.bench.methods import check_method
from benchmarks.bench.scenes import CASES
from layered_core.errors import LayeredError, invalid
from layered_diffusers.models.loading import SAMPLERS

SUITES = Path(__file__).parents[1] / "suites"


_SUITE_KEYS = {
    "title",
    "about",
    "scenes",
    "batch",
    "processes",
    "show",
    "plots",
    "curve",
    "grid",
    "host",
    "sampler",
    "model",
    "methods",
}


COCO = "coco"
"""The scenes that come from COCO's files instead of the storybook."""


_ROW_KEYS = {"name", "method", "parameters", "baseline", "family"}


@dataclass(frozen=True)
class Row:
    """One method of a suite with its parameters."""

    name: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    """Name of the row that it is compared with; None for no comparison."""
    family: str | None = None
    """Name of the line that joins this row with others in the curve; None for a line of its own."""

    @property
    def key(self) -> str:
        """The key of the row's records. It contains the parameters, so that other parameters are measured
        again."""
        return json.dumps([self.method, self.parameters], sort_keys=True)


@dataclass(frozen=True)
class Suite:
    """Methods that are measured together on the same scenes."""

    name: str
    title: str
    about: str
    scenes: str
    rows: tuple[Row, ...]
    show: tuple[str, ...]
    """Figures of the table, see ``judging.FIGURES``."""
    plots: tuple[str, ...] = ()
    curve: dict[str, str] | None = None
    """``x`` and ``y``: two figures that are plotted against each other, a line for each family."""
    grid: tuple[str, ...] = ()
    """Names of the rows whose pictures are shown."""
    batch: int = 8
    processes: int | None = None
    host: str = "diffusers"
    """``diffusers`` or ``comfyui``."""
    sampler: str | None = None
    """Sampler of every method, one of ``layered_diffusers.models.loading.SAMPLERS``, with the same name in
    ComfyUI; None for the model's own (Euler in ComfyUI)."""
    model: str | None = None
    """Model that makes the pictures unless another is chosen; None for the storybook."""

    def only(self, names: Sequence[str]) -> Suite:
        """Return the suite with those rows alone that are called ``names``. A row whose baseline is left out is
        compared with none.

        Raises:
            LayeredError: there is no row of such a name.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise invalid(f"suite {self.name}: method", name, ", ".join(known))
        rows = (row for row in self.rows if row.name in names)
        kept = tuple(row if row.baseline in names else replace(row, baseline=None) for row in rows)
        return replace(self, rows=kept, grid=tuple(name for name in self.grid if name in names))


@dataclass(frozen=True)
class CocoSettings:
    """Settings of the suite ``coco``."""

    annotations: Path
    """Folder with ``captions_*.json`` and ``instances_*.json``."""
    places: str = "masks"
    """What says where the objects are: their ``masks``, or the ``boxes`` around them."""
    detector: Path | None = None
    """Folder of a detector in the transformers layout; None for the storybook's judge."""
    seed: int = 0
    """Seed of the order in which captions are chosen."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run of a suite."""

    count: int
    """Number of scenes."""
    model: Path
    out: Path
    steps: int = 25
    guidance: float = 3.0
    device: str | None = None
    clip: Path | None = None
    processes: int = 2
    fresh: bool = False
    """Rename the old results of the suite and measure everything again."""
    coco: CocoSettings | None = None
    """Settings of the suite ``coco``; None: it cannot be run."""


def coco_settings(settings: Settings) -> CocoSettings:
    """Return the settings of the suite ``coco``, or raise :class:`LayeredError` if there are none."""
    if settings.coco is None:
        raise LayeredError(
            "suite coco needs COCO's captions and instances, which are not shipped. Give their folder with "
            "--annotations DIR"
        )
    return settings.coco


def suite_names() -> list[str]:
    """Return the names of all suites."""
    return sorted(p.stem for p in SUITES.glob("*.yaml"))


def read_suite(name: str, folder: Path = SUITES) -> Suite:
    """Read and check ``<folder>/<name>.yaml``.

    Raises:
        LayeredError: there is no such suite, or it names a method, figure, row or key that does not exist.
    """
    import yaml

    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise invalid(
            "suite",
            name,
            ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none: no suite is installed",
        )
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise LayeredError(f"suite {str(path)!r} is not YAML: {error}") from None
    where = f"suite {name}"
    _check_keys(where, entries, _SUITE_KEYS, {"scenes", "show", "methods"})
    if entries["scenes"] not in (*CASES, COCO):
        raise invalid(f"{where}: scenes", entries["scenes"], ", ".join([*CASES, COCO]))
    host = entries.get("host", "diffusers")
    sampler = entries.get("sampler")
    if sampler is not None and sampler not in SAMPLERS:
        raise invalid(f"{where}: sampler", sampler, ", ".join(SAMPLERS))
    rows = []
    if not isinstance(entries["methods"], list) or not entries["methods"]:
        raise invalid(f"{where}: methods", entries["methods"], "a list of name, method, parameters, baseline")
    for number, entry in enumerate(entries["methods"], 1):
        _check_keys(f"{where}: entry {number}", entry, _ROW_KEYS, {"name", "method"})
        row = Row(**{**entry, "name": str(entry["name"]), "parameters": entry.get("parameters") or {}})
        if not isinstance(row.parameters, dict):
            raise invalid(f"{where}: {row.name!r}: parameters", row.parameters, "a mapping")
        if host == "comfyui":
            from benchmarks.bench.host_methods import check_method as check_host_method

            check_host_method(f"{where}: {row.name!r}", row.method, row.parameters)
        else:
            check_method(f"{where}: {row.name!r}", row.method, row.parameters)
        rows.append(row)
    names = [r.name for r in rows]
    for what in names:
        if names.count(what) > 1:
            raise invalid(f"{where}: name", what, "names that occur once")
    for what in (*[r.baseline for r in rows if r.baseline is not None], *entries.get("grid", ())):
        if what not in names:
            raise invalid(f"{where}: baseline or grid", what, ", ".join(names))
    curve = entries.get("curve")
    for what in (*entries["show"], *entries.get("plots", ()), *(curve.values() if curve else ())):
        if what not in FIGURES:
            raise invalid(f"{where}: figure", what, ", ".join(FIGURES))
    return Suite(
        name, entries.get("title", name), " ".join(entries.get("about", "").split()), entries["scenes"],
        tuple(rows), tuple(entries["show"]),
        tuple(entries.get("plots", ())), curve, tuple(entries.get("grid", ())), entries.get("batch", 8),
        entries.get("processes"), host, sampler, entries.get("model"),
    )  # fmt: skip


def _check_keys(where: str, entry: object, allowed: set[str], needed: set[str]) -> None:
    if not isinstance(entry, dict):
        raise invalid(where, entry, f"a mapping with {', '.join(sorted(needed))}")
    for key in entry:
        if key not in allowed:
            raise invalid(f"{where}: key", key, ", ".join(sorted(allowed)))
    for key in sorted(needed):
        if key not in entry:
            raise LayeredError(f"{where}: {key} is missing")
