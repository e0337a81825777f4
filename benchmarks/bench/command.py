"""``layered bench``: run suites, write their reports, print tables or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from benchmarks.bench.report import Summary, write_report
from benchmarks.bench.running import run_suite
from benchmarks.bench.suite import Settings, read_suite, suite_names
from benchmarks.hosts.find import find_host, require_host


def bench(names: Sequence[str], settings: Settings, as_json: bool) -> None:
    """Run the suites called ``names``, or all for ``["all"]``.

    Prints each table; with ``as_json`` a last line ``{method: {metric: {mean, low, high, n}}}``, by suite
    where there are several.

    Raises:
        LayeredError: what is wrong with a suite, a results file or the model; before anything is sampled
            where it can be known.
    """
    suites = [read_suite(name) for name in (suite_names() if list(names) == ["all"] else names)]
    if any(s.host == "comfyui" for s in suites):
        if list(names) == ["all"] and isinstance(missing := find_host(), str):
            sys.stderr.write(f"layered: {missing}: its suites are left out\n")
            suites = [s for s in suites if s.host != "comfyui"]
        else:
            require_host()
    figures = {}
    for suite in suites:
        summary = Summary(suite, settings, run_suite(suite, settings))
        files = write_report(summary)
        figures[suite.name] = summary.as_json()
        sys.stdout.write(f"## {suite.title}\n\n{summary.markdown()}\n")
        sys.stdout.write(f"Written: {', '.join(str(f) for f in files)}\n\n")
    if as_json:
        sys.stdout.write(
            json.dumps(next(iter(figures.values())) if len(figures) == 1 else figures, allow_nan=False) + "\n"
        )
