"""Run suites for ``layered bench``, write their reports, and print tables and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.bench.report import Summary, write_report
from benchmarks.bench.running import run_suite
from benchmarks.bench.suite import COCO, Settings, Suite, coco_settings, read_suite, suite_names
from benchmarks.hosts.find import find_host, require_host
from layered_core.errors import LayeredError
from layered_diffusers.models.loading import STORYBOOK, find_model


def of_suite(settings: Settings, suite: Suite) -> Settings:
    """Return the settings with the suite's own model, unless a model was chosen."""
    if suite.model is None or settings.model != STORYBOOK:
        return settings
    return replace(settings, model=find_model(suite.model))


def bench(
    names: Sequence[str], settings: Settings, as_json: bool, methods: Sequence[str] | None = None
) -> None:
    """Run the suites called ``names``, or all for ``["all"]``, and print each table.

    ``methods``: names of the rows to measure; None for all.

    With ``as_json`` a last line follows: ``{method: {metric: {mean, low, high, n}}}``, and around it the
    names of the suites if there are several.

    Raises:
        LayeredError: a suite, a results file or the model is missing or broken; raised before anything is
            sampled where that can be known.
    """
    suites = [read_suite(name) for name in (suite_names() if list(names) == ["all"] else names)]
    if any(s.host == "comfyui" for s in suites):
        if list(names) == ["all"] and isinstance(missing := find_host(), str):
            sys.stderr.write(f"layered: {missing}. The suites that need ComfyUI are left out\n")
            suites = [s for s in suites if s.host != "comfyui"]
        else:
            require_host()
    if settings.coco is None and any(s.scenes == COCO for s in suites):
        if list(names) != ["all"]:
            coco_settings(settings)
        sys.stderr.write("layered: no --annotations were given. The suite coco is left out\n")
        suites = [s for s in suites if s.scenes != COCO]
    if settings.coco is not None and not any(s.scenes == COCO for s in suites):
        raise LayeredError(
            "--annotations is for the suite coco, which is not among the suites. Add coco to them"
        )
    if methods is not None:
        suites = [suite.only(methods) for suite in suites]
    figures = {}
    for suite in suites:
        chosen = of_suite(settings, suite)
        summary = Summary(suite, chosen, run_suite(suite, chosen))
        files = write_report(summary)
        figures[suite.name] = summary.as_json()
        sys.stdout.write(f"## {suite.title}\n\n{summary.markdown()}\n")
        sys.stdout.write(f"Written: {', '.join(str(f) for f in files)}\n\n")
    if as_json:
        sys.stdout.write(
            json.dumps(next(iter(figures.values())) if len(figures) == 1 else figures, allow_nan=False) + "\n"
        )
