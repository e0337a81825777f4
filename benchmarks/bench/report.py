"""Report the figures of a suite: as JSON, a Markdown table, plots and a grid of pictures."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from benchmarks.bench.intervals import Interval, mean_interval, paired_interval, set_interval
from benchmarks.bench.judging import FIGURES, Examiner, reference_features
from benchmarks.bench.records import SHOWN, measured_at, picture_path, weights_checksum
from benchmarks.bench.suite import COCO, Row, Settings, Suite, coco_settings
from layered_core.errors import LayeredError
from layered_core.formats.pictures import write_whole
from layered_core.metrics.layout_metrics import Matches, average_precision
from layered_core.metrics.picture_metrics import frechet_distance
from layered_diffusers.models.loading import find_model

_SHARES = {
    "iou", "any_iou", "box_iou", "ap50", "ap", "box_ap50", "box_ap", "t2i_sim_clip",
    "object", "colour", "both", "leak_object", "leak_colour",
    "background", "exact", "native", "edges",
    "pink_inside", "pink_outside", "striped_inside", "striped_outside", "colour_inside", "colour_outside",
    "changed_right", "kept_right", "neighbour", "object_right", "alpha_iou",
}  # fmt: skip
"""Figures in 0..1, which are shown with two digits."""

_OF_CLIP = ("clip_score", "t2i_sim_clip")
"""Figures that a CLIP model gives."""


class Summary:
    """All figures of a suite, by method."""

    def __init__(self, suite: Suite, settings: Settings, records: Sequence[dict[str, Any]]) -> None:
        self.suite, self.settings = suite, settings
        self.records = {row.name: [r for r in records if r["name"] == row.name] for row in suite.rows}
        self.reference = None
        if "frechet" in suite.show:
            self.reference = reference_features(Examiner(find_model(settings.model)))
        self.drawn: dict[tuple[str, str], np.ndarray] = {}
        self.figures: dict[str, dict[str, Interval]] = {row.name: self._figures(row) for row in suite.rows}
        self.differences: dict[str, dict[str, Interval]] = {
            row.name: self._differences(row) for row in suite.rows if row.baseline is not None
        }

    def as_json(self) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """Return ``{method: {metric: {mean, low, high, n}}}``; null where there is no value."""
        return {
            name: {figure: _plain(x) for figure, x in figures.items()}
            for name, figures in self.figures.items()
        }

    def table(self) -> str:
        """Return a Markdown table of the figures with their 95 % intervals; bold where the interval of the
        paired difference to the baseline excludes zero."""
        names = self._shown(self.figures)
        lines = [
            "| | " + " | ".join(f"{n} {_arrow(n)}".strip() for n in names) + " |",
            "| --- |" + " --- |" * len(names),
        ]
        for row in self.suite.rows:
            cells = []
            for name in names:
                figure = self.figures[row.name].get(name)
                if figure is None or figure.n == 0:
                    cells.append("–")
                    continue
                mean, low, high = (_number(name, x) for x in (figure.mean, figure.low, figure.high))
                text = f"{mean} <sub>{low}–{high}</sub>"
                difference = self.differences.get(row.name, {}).get(name)
                sure = (
                    difference is not None
                    and difference.n > 1
                    and (difference.low > 0 or difference.high < 0)
                )
                cells.append(f"**{text}**" if sure else text)
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def difference_table(self) -> str:
        """Return a Markdown table of the paired differences to each row's baseline; empty without
        baselines."""
        if not self.differences:
            return ""
        names = self._shown(self.differences)
        lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
        for row in self.suite.rows:
            if row.name in self.differences:
                cells = [_signed(n, self.differences[row.name].get(n)) for n in names]
                lines.append(f"| {row.name} − {row.baseline} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def provenance(self) -> str:
        """Return the command, commit and settings that made the figures."""
        s = self.settings
        sampler = self.suite.sampler or "the model's own sampler"
        where = "" if self.suite.host == "diffusers" else f", host {self.suite.host}"
        return (
            f"`layered bench {self.suite.name} -n {s.count}{self._options()}`, "
            f"commit {measured_at(self.suite, s)}, weights {weights_checksum(s.model)}, "
            f"{sampler}, {s.steps} steps, guidance {s.guidance:g}{where}"
        )

    def _options(self) -> str:
        """Return the options of the suite ``coco`` as they were given; empty for other suites."""
        if self.suite.scenes != COCO:
            return ""
        coco = coco_settings(self.settings)
        detector = "" if coco.detector is None else f" --detector {coco.detector}"
        return f" --annotations {coco.annotations} --{coco.places}{detector} --seed {coco.seed}"

    def markdown(self) -> str:
        """Return the whole report in Markdown, without title and pictures."""
        legend = "; ".join(f"*{f}* {FIGURES[f][0]}" for f in self._shown(self.figures))
        parts = [self.suite.about, self.table(), legend + "."]
        if table := self.difference_table():
            parts += [
                "Paired differences to the baseline, scene by scene (bold above: the interval leaves out zero):",
                table,
            ]
        parts.append(f"{self.provenance()}; bootstrap 95 % intervals over scenes.")
        return "\n\n".join(parts) + "\n"

    def _shown(self, figures: Mapping[str, Mapping[str, Interval]]) -> list[str]:
        """Return the figures of the tables: those that the suite shows, and CLIP's wherever there is a CLIP."""
        names = [*self.suite.show, *(f for f in _OF_CLIP if f not in self.suite.show)]
        return [name for name in names if any(name in of_row for of_row in figures.values())]

    def _figures(self, row: Row) -> dict[str, Interval]:
        records = self.records[row.name]
        names = list(dict.fromkeys(k for r in records for k in r["figures"]))
        figures = {name: mean_interval(_values(records, name)) for name in names}
        for name, figure in self._of_sets(records).items():
            most = math.inf if name == "frechet" else 1.0
            figures[name], self.drawn[row.name, name] = set_interval(figure, len(records), most=most)
        figures["seconds"] = mean_interval([r["seconds"] for r in records])
        baseline = self.records[row.baseline] if row.baseline is not None else records
        ratios = _ratios(records, baseline)
        if math.isfinite(ratios(range(len(records)))):
            figures["time"], self.drawn[row.name, "time"] = set_interval(ratios, len(records))
        return figures

    def _differences(self, row: Row) -> dict[str, Interval]:
        assert row.baseline is not None
        mine, theirs = self.records[row.name], self.records[row.baseline]
        both = [f for f in mine[0]["figures"] if f in theirs[0]["figures"]]
        differences = {f: paired_interval(_values(mine, f), _values(theirs, f)) for f in both}
        for name in self._of_sets(mine):
            drawn = self.drawn[row.name, name] - self.drawn[row.baseline, name]
            low, high = np.percentile(drawn, [2.5, 97.5])
            mean = self.figures[row.name][name].mean - self.figures[row.baseline][name].mean
            differences[name] = Interval(mean, float(low), float(high), len(mine))
        return differences

    def _of_sets(self, records: Sequence[dict[str, Any]]) -> dict[str, Callable[[Sequence[int]], float]]:
        """Return functions that compute the figures of a set of scenes as a whole."""
        features = [torch.tensor(r["features"]) for r in records]
        out: dict[str, Callable[[Sequence[int]], float]] = {}
        for name, key in (("ap", "matches"), ("box_ap", "box_matches")):
            if name in self.suite.show and all(r[key] is not None for r in records):
                precision = _precision([_matches(r[key]) for r in records])
                out[f"{name}50"] = partial(_of_thresholds, precision, 1)
                out[name] = partial(_of_thresholds, precision, None)
        reference = self.reference
        if reference is not None:
            out["frechet"] = lambda scenes: frechet_distance(
                torch.cat([features[i] for i in scenes]), reference
            )
        return out


def write_report(summary: Summary) -> list[Path]:
    """Write JSON, Markdown, plots and grid into the results folder and return the files."""
    suite, out = summary.suite, summary.settings.out
    files = [out / f"{suite.name}.json", out / f"{suite.name}.md"]
    details = {
        "suite": suite.name, "provenance": summary.provenance(), "figures": summary.as_json(),
        "differences": {n: {f: _plain(x) for f, x in d.items()} for n, d in summary.differences.items()},
    }  # fmt: skip
    write_whole(files[0], lambda file: file.write(json.dumps(details, indent=1, allow_nan=False).encode()))
    write_whole(files[1], lambda file: file.write(f"# {suite.title}\n\n{summary.markdown()}".encode()))
    return files + _plots(summary) + ([_grid(summary)] if suite.grid else [])


def _plots(summary: Summary) -> list[Path]:
    """Draw the intervals of the plotted figures by method, and the curve, as PNG and SVG. Return the files;
    none without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "layered",
            "svg.fonttype": "none",
        }
    )
    suite = summary.suite
    return (_dots(summary) if suite.plots else []) + (
        _curve(summary, suite.curve["x"], suite.curve["y"]) if suite.curve else []
    )


def _dots(summary: Summary) -> list[Path]:
    """Draw a panel for each figure with a line for each method."""
    from matplotlib import pyplot

    suite = summary.suite
    names = [f for f in suite.plots if any(f in figures for figures in summary.figures.values())]
    figure, axes = pyplot.subplots(
        1,
        len(names),
        figsize=(2.6 * len(names) + 1.6, 0.32 * len(suite.rows) + 1),
        sharey=True,
        squeeze=False,
    )
    for axis, name in zip(axes[0], names, strict=True):
        for height, row in enumerate(reversed(suite.rows)):
            value = summary.figures[row.name].get(name)
            if value is not None and value.n:
                axis.plot(
                    [value.low, value.high],
                    [height, height],
                    color="#7a8699",
                    linewidth=2,
                    solid_capstyle="round",
                )
                axis.plot(
                    [value.mean], [height], "o", color="#1f6feb" if row.baseline else "#444444", markersize=5
                )
        axis.set_title(f"{name} {_arrow(name)}", fontsize=9)
        axis.grid(axis="x", alpha=0.25)
    axes[0][0].set_yticks(range(len(suite.rows)), [r.name for r in reversed(suite.rows)])
    return _save(figure, summary.settings.out / suite.name)


def _curve(summary: Summary, x: str, y: str) -> list[Path]:
    """Draw one figure against another with a line for each family."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.6, 4.2))
    families: dict[str, list[Row]] = {}
    for row in summary.suite.rows:
        families.setdefault(row.family or row.name, []).append(row)
    for family, rows in families.items():
        points = [(r, summary.figures[r.name][x], summary.figures[r.name][y]) for r in rows]
        # A picture equal to the wanted one has an infinite PSNR, which cannot be drawn.
        points = [p for p in points if p[1].n and p[2].n and p[1].mean < 60]
        if not points:
            continue
        errors = [_lengths([p[1] for p in points]), _lengths([p[2] for p in points])]
        kind = "o-" if len(points) > 1 else "s"
        xs, ys = [p[1].mean for p in points], [p[2].mean for p in points]
        axis.errorbar(
            xs, ys, xerr=errors[0], yerr=errors[1], fmt=kind, markersize=5, label=family, alpha=0.85
        )
        for row, across, up in points if len(points) > 1 else []:
            axis.annotate(
                row.name.rsplit(" ", 1)[-1],
                (across.mean, up.mean),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=8,
            )
    axis.set_xlabel(f"{x}: {FIGURES[x][0]}")
    axis.set_ylabel(f"{y}: {FIGURES[y][0]}")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    return _save(figure, summary.settings.out / f"{summary.suite.name}_curve")


def _lengths(values: Sequence[Interval]) -> list[list[float]]:
    """Return how far the intervals reach below and above the means."""
    return [[max(v.mean - v.low, 0.0) for v in values], [max(v.high - v.mean, 0.0) for v in values]]


def _save(figure: Any, path: Path) -> list[Path]:
    from matplotlib import pyplot

    files = []
    for ending in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format=ending,
            dpi=150,
            bbox_inches="tight",
            metadata={"Date": None} if ending == "svg" else {"Software": None},
        )
        files.append(path.with_suffix(f".{ending}"))
        data = buffer.getvalue()
        write_whole(files[-1], partial(_write, data))
    pyplot.close(figure)
    return files


def _write(data: bytes, file: BinaryIO) -> None:
    file.write(data)


def _grid(summary: Summary, side: int = 128) -> Path:
    """Draw a grid of pictures with a row for each of the first scenes and a column for each method."""
    suite, out = summary.suite, summary.settings.out
    rows = [next(r for r in suite.rows if r.name == name) for name in suite.grid]
    count = min(SHOWN, summary.settings.count)
    head = 18
    sheet = Image.new("RGB", ((side + 4) * len(rows), head + (side + 4) * count), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for x, row in enumerate(rows):
        pen.text((x * (side + 4) + 2, 2), row.name, fill="black", font=font)
        for y in range(count):
            path = picture_path(out, suite, row, y)
            try:
                with Image.open(path) as picture:
                    sheet.paste(_flat(picture).resize((side, side)), (x * (side + 4), head + y * (side + 4)))
            except OSError as error:
                raise LayeredError(
                    f"picture {str(path)!r} of the results cannot be read: {error}. Measure again with --fresh"
                ) from None
    path = out / f"{suite.name}_grid.jpg"
    write_whole(path, lambda file: sheet.save(file, "JPEG", quality=90))
    return path


def _flat(picture: Image.Image) -> Image.Image:
    """Return a picture without alpha; transparent ones are composited over a checkerboard."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    rows, columns = np.indices(picture.size[::-1]) // 16
    board = np.where((rows + columns) % 2, 140, 115).astype(np.uint8)
    return Image.alpha_composite(Image.fromarray(board).convert("RGBA"), picture).convert("RGB")


def _values(records: Sequence[dict[str, Any]], name: str) -> list[float]:
    values = [r["figures"].get(name) for r in records]
    return [math.nan if v is None else float(v) for v in values]


def _matches(entry: list[Any]) -> Matches:
    scores, labels, hits, wanted = entry
    return Matches(
        torch.tensor(scores),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(hits, dtype=torch.bool).view(len(hits), -1),
        torch.tensor(wanted),
    )


def _precision(matches: Sequence[Matches]) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Return a function that computes the average precision of some scenes at each threshold, once for the same
    scenes."""
    return functools.cache(lambda scenes: average_precision([matches[i] for i in scenes]))


def _of_thresholds(
    precision: Callable[[tuple[int, ...]], torch.Tensor], count: int | None, scenes: Sequence[int]
) -> float:
    """Return the mean average precision of some scenes at the first ``count`` thresholds; None for all."""
    return float(precision(tuple(scenes))[:count].mean())


def _ratios(
    records: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]
) -> Callable[[Sequence[int]], float]:
    """Return a function that divides the seconds of some scenes by the baseline's."""
    mine, theirs = np.array([r["seconds"] for r in records]), np.array([r["seconds"] for r in baseline])

    def ratio(scenes: Sequence[int]) -> float:
        chosen = list(scenes)
        below = float(theirs[chosen].sum())
        return float(mine[chosen].sum()) / below if below > 0 else math.nan

    return ratio


def _plain(x: Interval) -> dict[str, float | int | None]:
    return {
        k: (None if isinstance(v, float) and not math.isfinite(v) else round(v, 5))
        for k, v in x._asdict().items()
    }


def _arrow(name: str) -> str:
    more = FIGURES[name][1]
    return "" if more is None else "↑" if more else "↓"


def _number(name: str, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if name in _SHARES:
        return f"{value:.2f}".removeprefix("0") if value < 0.995 else "1"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _signed(name: str, x: Interval | None) -> str:
    if x is None or x.n == 0 or not math.isfinite(x.mean):
        return "–"
    return f"{x.mean:+.3g} <sub>{x.low:+.3g} to {x.high:+.3g}</sub>"
