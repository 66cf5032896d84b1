"""The page of a comparison: verdicts, tables, all seeds, intervals, and training curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from locdistill.evaluation.paired import Paired
from locdistill.study.arms import METRICS, environment
from locdistill.study.charts import block
from locdistill.study.compare.result import (
    Comparison,
    class_table,
    difference_table,
    explanation,
    heading,
    runs_table,
    settings_table,
    summary_table,
)
from locdistill.viz import report
from locdistill.viz.curves import compare_runs, read_metrics
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import INK, MUTED, STUDENT, TEACHER, hexadecimal

_SEEDS = (
    "A dot is a run, a line joins the runs of one seed, a bar is the mean. If all lines rise, or all fall, this is "
    "better evidence than the distance between the bars."
)
_INTERVALS = (
    "Difference of AP from the first recipe. Thick: 95 % interval over images alone; thin: over seeds and images (it "
    "needs two seeds); small dots: each seed. An interval that contains 0 shows no difference."
)


def write_page(result: Comparison, pictures: Sequence[report.Section] = ()) -> Path:
    """Write ``report.html``, a self-contained file, and return its path.

    Args:
        result: Result of the comparison.
        pictures: Sections with pictures from the detectors.
    """
    about = "; ".join(f"{key}: {value}" for key, value in environment().items())
    conditions: list[report.Block] = [
        report.Text(note, note=True) for note in (*result.notes, explanation(result), about)
    ]
    if result.command:
        conditions.append(report.Preformatted(result.command))
    verdicts = report.Text("\n\n".join(result.verdicts.values()))
    forest = [report.Picture(_forest(result), _INTERVALS, density=2)] if result.others else []
    differences = [report.Section("Differences", [*forest, block(difference_table(result))])] if forest else []
    sections = [
        report.Section("What was seen", [verdicts, block(summary_table(result)), *conditions]),
        report.Section("Seed by seed", [report.Picture(_seeds(result), _SEEDS, density=2)]),
        *differences,
        *pictures,
        report.Section("By class", [block(class_table(result))]),
        *([report.Section("What differs", [block(settings_table(result))])] if result.others else []),
        *_curves(result),
        report.Section("Every run", [block(runs_table(result))]),
    ]
    return report.write_page(result.out / "report.html", heading(result), sections, subtitle=result.about)


def _seeds(result: Comparison) -> Image.Image:
    """Draw a dot for each run, a bar for the mean of each arm, and a line between runs of a seed, by metric.

    Each metric has a panel. Up to four arms, the panels are in one row, otherwise in two. With more than eight, labels
    are vertical. Arms with a teacher have its colour.
    """
    metrics = {name: {m.run.seed: m.run.metrics for m in result.runs[name]} for name in result.labels}
    taught = {arm.name: arm.base.distils for arm in result.arms}
    labels = [textwrap.fill(label, max(30 // len(metrics), 8), max_lines=4) for label in result.labels.values()]
    rows, upright = 1 if len(metrics) <= 4 else 2, len(metrics) > 8
    figure = new_figure(1000, (400 if upright else 320) * rows)
    panels = figure.subplots(rows, 4 // rows).flatten()
    seeds = sorted({seed for by_seed in metrics.values() for seed in by_seed})
    for panel, metric in zip(panels, METRICS, strict=True):
        axes = tidy(panel, f"{metric} (%)")
        for seed in seeds:
            points = [(x, of[seed][metric]) for x, of in enumerate(metrics.values()) if seed in of]
            axes.plot(*zip(*points, strict=True), color=hexadecimal(MUTED), linewidth=0.8, alpha=0.6, zorder=1)
        for x, (name, of) in enumerate(metrics.items()):
            values = [numbers[metric] for numbers in of.values()]
            colour = hexadecimal(TEACHER if taught.get(name, taught[result.first.name]) else STUDENT)
            axes.scatter([x] * len(values), values, color=colour, s=22, zorder=3)
            axes.hlines(sum(values) / len(values), x - 0.25, x + 0.25, color=hexadecimal(INK), linewidth=1.6, zorder=2)
        axes.set_xticks(range(len(labels)), labels, rotation=90 if upright else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    return to_image(figure)


def _forest(result: Comparison) -> Image.Image:
    """Draw the difference of AP of each recipe from the first, with its intervals."""
    rows: list[tuple[str, Paired]] = []
    for arm in result.others:
        rows.append((arm.label, result.difference(arm.name)))
        if arm.name in result.equal_time:
            rows.append((f"{arm.label},\nat equal time", result.difference(arm.name, equal_time=True)))
    figure = new_figure(760, 110 + 46 * len(rows))
    axes = tidy(figure.subplots(), f"AP less that of {result.first.label}, in percentage points")
    axes.grid(axis="y", visible=False)
    axes.axvline(0, color=hexadecimal(MUTED), linewidth=1)
    for y, (_, pair) in enumerate(rows):
        if math.isfinite(pair.low):
            axes.hlines(y, pair.low, pair.high, color=hexadecimal(TEACHER), linewidth=1.4, zorder=2)
        if pair.images is not None:
            axes.hlines(
                y, pair.images.low, pair.images.high, color=hexadecimal(STUDENT), linewidth=5, zorder=1, alpha=0.5
            )
        axes.scatter(pair.differences, [y] * len(pair.differences), color=hexadecimal(MUTED), s=10, zorder=3)
        axes.scatter([pair.mean], [y], color=hexadecimal(INK), s=34, zorder=4)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return to_image(figure)


def _curves(result: Comparison) -> list[report.Section]:
    """Plot AP over the steps for runs with intermediate evaluations."""
    logs = {
        f"{label} (seed {m.run.seed})": m.run.folder / "metrics.csv"
        for name, label in result.labels.items()
        for m in result.runs[name]
    }
    for name, path in list(logs.items()):
        steps, _ = read_metrics(path).get("val/AP", ((), ())) if path.is_file() else ((), ())
        if len(steps) < 2:
            del logs[name]
    if not logs:
        return []
    picture = compare_runs(logs, result.out / "curves.png")
    return [
        report.Section(
            "Curves", [report.Picture(picture, "One line for each run, one colour for each recipe.", density=2)]
        )
    ]
