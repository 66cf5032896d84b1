"""The page of a comparison: verdicts, tables, all seeds, intervals, and training curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from locdistill.evaluation.paired import Paired
from locdistill.study.arms import environment
from locdistill.study.charts import SEEDS, SeedColumn, block, seed_chart
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

_INTERVALS = (
    "Difference of AP from the first recipe. Thick: 95 % interval over images alone; thin: over seeds and images (it "
    "needs two seeds); small dots: each seed. An interval that contains 0 shows nothing."
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
    sections = [
        report.Section("What was seen", [verdicts, block(summary_table(result)), *conditions]),
        report.Section("Seed by seed", [report.Picture(_seeds(result), SEEDS, density=2)]),
        report.Section(
            "Differences", [report.Picture(_forest(result), _INTERVALS, density=2), block(difference_table(result))]
        ),
        *pictures,
        report.Section("By class", [block(class_table(result))]),
        report.Section("What differs", [block(settings_table(result))]),
        *_curves(result),
        report.Section("Every run", [block(runs_table(result))]),
    ]
    return report.write_page(result.out / "report.html", heading(result), sections, subtitle=result.about)


def _seeds(result: Comparison) -> Image.Image:
    """Draw all runs, those with a teacher in its colour."""
    taught = {arm.name: arm.recipe(arm.seeds[0]).distils for arm in result.arms}
    columns = [
        SeedColumn(
            textwrap.fill(label, max(30 // len(result.labels), 8), max_lines=4),
            {m.run.seed: m.run.metrics for m in result.runs[name]},
            taught=taught.get(name, taught[result.first.name]),
        )
        for name, label in result.labels.items()
    ]
    return seed_chart(columns)


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
    logs = {name: path for name, path in logs.items() if path.is_file() and _evaluations(path) > 1}
    if not logs:
        return []
    picture = compare_runs(logs, result.out / "curves.png")
    return [
        report.Section(
            "Curves", [report.Picture(picture, "One line for each run, one colour for each recipe.", density=2)]
        )
    ]


def _evaluations(log: Path) -> int:
    """Count the evaluations of a run."""
    steps, _ = read_metrics(log).get("val/AP", ((), ()))
    return len(steps)
