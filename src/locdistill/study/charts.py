"""Charts and tables shared by the pages of several studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from locdistill.evaluation.tables import Table
from locdistill.study.arms import METRICS
from locdistill.viz import report
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import INK, MUTED, STUDENT, TEACHER, hexadecimal

SEEDS = (
    "A dot is a run, a line joins the runs of one seed, a bar is the mean. Lines that all rise or all fall say more "
    "than the distance between the bars."
)


def block(table: Table) -> report.TableBlock:
    """Convert a table of results to a block of a page."""
    return report.TableBlock(table.header, table.rows, caption=table.title, emphasis=table.emphasis)


@dataclass(frozen=True)
class SeedColumn:
    """The runs of one arm in a chart.

    Attributes:
        label: Label below the column; may have several lines.
        metrics: Metrics by seed.
        taught: Whether the runs had a teacher; determines the colour.
    """

    label: str
    metrics: Mapping[int, Mapping[str, float]]
    taught: bool


def seed_chart(columns: Sequence[SeedColumn]) -> Image.Image:
    """Draw a dot for each run, a bar for the mean of each column, and a line between runs of a seed, by metric.

    Each metric has a panel. Up to four columns, the panels are in one row, otherwise in two. With more than eight,
    labels are vertical.
    """
    rows, upright = 1 if len(columns) <= 4 else 2, len(columns) > 8
    figure = new_figure(1000, (400 if upright else 320) * rows)
    panels = figure.subplots(rows, 4 // rows).flatten()
    seeds = sorted({seed for column in columns for seed in column.metrics})
    for panel, metric in zip(panels, METRICS, strict=True):
        axes = tidy(panel, f"{metric} (%)")
        for seed in seeds:
            points = [(x, column.metrics[seed][metric]) for x, column in enumerate(columns) if seed in column.metrics]
            axes.plot(*zip(*points, strict=True), color=hexadecimal(MUTED), linewidth=0.8, alpha=0.6, zorder=1)
        for x, column in enumerate(columns):
            values = [numbers[metric] for numbers in column.metrics.values()]
            colour = hexadecimal(TEACHER if column.taught else STUDENT)
            axes.scatter([x] * len(values), values, color=colour, s=22, zorder=3)
            axes.hlines(sum(values) / len(values), x - 0.25, x + 0.25, color=hexadecimal(INK), linewidth=1.6, zorder=2)
        axes.set_xticks(range(len(columns)), [column.label for column in columns], rotation=90 if upright else 0)
        axes.set_xlim(-0.5, len(columns) - 0.5)
    return to_image(figure)
