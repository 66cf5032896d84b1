"""Charts of a run over the optimiser steps: losses by term, AP, and agreement with the teacher."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from locdistill.errors import RunError
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import INK, LINES, MUTED, STUDENT, TEACHER, hexadecimal, save_picture

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

_NOTHING: Curve = (np.zeros(0), np.zeros(0))
_SHOWN_METRICS = ("AP", "AP50", "AP75", "AP90")
_EDGE_KL, _BOX_IOU, _BALANCE = "agree/edge_kl", "agree/box_iou", "balance/"


def read_metrics(path: str | Path) -> dict[str, Curve]:
    """Read a run's ``metrics.csv``: by column, the steps at which it has a value, and the values.

    Cells that are blank, not a number or not finite are left out, and so are lines without a step: the log of a killed
    run may end with half a line.

    Raises:
        RunError: The file is absent or has no column ``step``.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            rows = list(csv.DictReader(line.replace("\0", "") for line in file))
            columns = list(rows[0]) if rows else ["step"]
    except OSError as error:
        raise RunError(
            f"{path}: the log of the run cannot be read ({error.strerror}); is this a run folder?"
        ) from error
    if "step" not in columns:
        raise RunError(f"{path}: expected a column 'step', found {', '.join(map(str, columns))[:200]}")
    curves = {}
    for name in columns:
        if name and name != "step":
            points = [(_number(row.get("step")), _number(row.get(name))) for row in rows]
            kept = np.array([p for p in points if not math.isnan(sum(p))], np.float64).reshape(-1, 2)
            kept = kept[np.argsort(kept[:, 0], kind="stable")]
            curves[name] = kept[:, 0], kept[:, 1]
    return curves


def _number(cell: object) -> float:
    """Return the finite number in a cell; NaN for anything else."""
    try:
        value = float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def plot_run(metrics: str | Path, picture: str | Path | None = None) -> Path:
    """Draw losses (by term, smoothed, on a logarithmic scale), AP, and agreement with the teacher of a run.

    Args:
        metrics: The run's ``metrics.csv``: ``step``, ``train/<term>``, ``val/<metric>``, with a teacher also
            ``agree/edge_kl`` and ``agree/box_iou``, with ``balance: pareto`` also ``balance/<group>_cosine`` and
            ``balance/<group>_labels``; missing values are blank.
        picture: PNG to write; None: ``curves.png`` beside the log.

    Returns:
        The path of the picture.

    Raises:
        RunError: The log is absent or of another form.
    """
    curves = read_metrics(metrics)
    picture = Path(metrics).parent / "curves.png" if picture is None else Path(picture)
    losses = {name.removeprefix("train/"): curve for name, curve in curves.items() if name.startswith("train/")}
    scores = {name: curves.get(f"val/{name}", _NOTHING) for name in _SHOWN_METRICS}
    taught = _EDGE_KL in curves and _BOX_IOU in curves
    weighted = {name.removeprefix(_BALANCE): curve for name, curve in curves.items() if name.startswith(_BALANCE)}
    panels = 2 + taught + bool(weighted)
    figure = new_figure(550 * panels, 420)
    axes = figure.subplots(1, panels)
    _plot_losses(tidy(axes[0], "Losses by term, weighted"), losses)
    tidy(axes[1], "AP on the validation images (%)")
    for i, (name, (steps, values)) in enumerate(scores.items()):
        if len(steps):
            label = f"{name} {100 * values[-1]:.1f} (best {100 * values.max():.1f})"
            axes[1].plot(steps, 100 * values, color=LINES[i], linewidth=1.6, marker="o", markersize=3, label=label)
    if axes[1].lines:
        axes[1].set_ylim(bottom=0)
    _finish(axes[1], columns=2)
    if taught:
        _plot_agreement(tidy(axes[2], "Agreement with the teacher at positives"), curves[_EDGE_KL], curves[_BOX_IOU])
    if weighted:
        _plot_balance(tidy(axes[-1], "Cosine of both gradients, and share of the labels"), weighted)
    return save_picture(to_image(figure), picture)


def compare_runs(runs: Mapping[str, str | Path], picture: str | Path, *, metric: str = "AP") -> Path:
    """Draw one metric of several runs over their steps, to compare a student with and without its teacher.

    Args:
        runs: By name, each run's ``metrics.csv``. Names that differ only in a suffix `` (...)`` share a colour, which
            groups the seeds of a setting.
        picture: PNG to write.
        metric: A validation metric, such as ``AP75``.
    """
    figure = new_figure(720, 420)
    axes = tidy(figure.subplots(), f"{metric} on the validation images (%)")
    groups: dict[str, str] = {}
    for name, path in runs.items():
        group = name.split(" (")[0]
        label = None if group in groups else group
        colour = groups.setdefault(group, LINES[len(groups) % len(LINES)])
        steps, values = read_metrics(path).get(f"val/{metric}", _NOTHING)
        axes.plot(steps, 100 * values, color=colour, linewidth=1.6, marker="o", markersize=3, label=label)
    _finish(axes, columns=2)
    return save_picture(to_image(figure), picture)


def compare_agreement(runs: Mapping[str, str | Path], picture: str | Path) -> Path:
    """Draw the agreement of several students with their teachers over their steps.

    Args:
        runs: By name, each run's ``metrics.csv``.
        picture: PNG to write.
    """
    figure = new_figure(1100, 420)
    axes = figure.subplots(1, 2)
    panels = ((_EDGE_KL, "Divergence of edge distributions (nats)"), (_BOX_IOU, "IoU of student's and teacher's boxes"))
    for side, (column, title) in zip(axes, panels, strict=True):
        tidy(side, title)
        for i, (name, path) in enumerate(runs.items()):
            steps, values = read_metrics(path).get(column, _NOTHING)
            if len(steps):
                colour, smooth = LINES[i % len(LINES)], _smooth(values)
                side.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
                side.plot(steps, smooth, color=colour, linewidth=1.6, label=f"{name} {smooth[-1]:.3g}")
        _finish(side, columns=3)
    return save_picture(to_image(figure), picture)


def _plot_losses(axes: Axes, losses: Mapping[str, Curve]) -> None:
    """Plot each term, and their ``total`` in black, as measured (faint) and smoothed.

    The scale is logarithmic, as terms differ by orders of magnitude; values of 0 and below are not shown.
    """
    terms = [name for name in losses if name != "total"]
    for name, (steps, values) in losses.items():
        drawn = values > 0
        if drawn.any():
            i = terms.index(name) if name in terms else 0
            colour, style = LINES[i % len(LINES)], ("-", "--", ":")[i // len(LINES) % 3]
            colour = colour if name in terms else hexadecimal(INK)
            smooth = _smooth(values[drawn])
            axes.plot(steps[drawn], values[drawn], color=colour, linewidth=0.7, alpha=0.3)
            axes.plot(
                steps[drawn], smooth, color=colour, linestyle=style, linewidth=1.6, label=f"{name} {smooth[-1]:.3g}"
            )
    if axes.lines:
        axes.set_yscale("log")
    _finish(axes, columns=4)


def _plot_agreement(axes: Axes, divergence: Curve, overlap: Curve) -> None:
    """Plot edge divergence and box IoU, each with its own scale; with better agreement the former falls, IoU rises."""
    right = axes.twinx()
    sides = ((axes, divergence, STUDENT, "edge KL in nats"), (right, overlap, TEACHER, "box IoU"))
    for side, (steps, values), colour, name in sides:
        if len(steps):
            smooth, tint = _smooth(values), hexadecimal(colour)
            side.plot(steps, values, color=tint, linewidth=0.7, alpha=0.3)
            side.plot(steps, smooth, color=tint, linewidth=1.6, label=f"{name} {smooth[0]:.3g} to {smooth[-1]:.3g}")
        else:
            side.set_yticks([])
        side.tick_params(axis="y", labelsize=8, colors=hexadecimal(colour), length=3)
    axes.set_ylim(bottom=0)
    right.spines[["top", "left", "right", "bottom"]].set_visible(False)
    # The left side has the legend, for the lines of both sides, and the note on an empty chart.
    for line in right.lines[1:]:
        axes.plot([], [], color=line.get_color(), linewidth=1.6, label=line.get_label())
    _finish(axes, columns=2)


def _plot_balance(axes: Axes, weighted: Mapping[str, Curve]) -> None:
    """Plot the cosine (dashed) and the share of the labels (solid) of each group of terms in a colour of its own."""
    groups = list(dict.fromkeys(name.rpartition("_")[0] for name in weighted))
    for name, (steps, values) in weighted.items():
        group, _, what = name.rpartition("_")
        colour, style = LINES[groups.index(group) % len(LINES)], "--" if what == "cosine" else "-"
        if len(steps):
            label = f"{group}: {what} {values[-1]:.2f}"
            axes.plot(steps, values, color=colour, linestyle=style, linewidth=1.6, label=label)
    _finish(axes, columns=2)


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute a moving average over about a tenth of the curve; the window is truncated at the ends."""
    half = len(values) // 20
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half, len(values) - 1)
    means: NDArray[np.float64] = (sums[last + 1] - sums[first]) / (last + 1 - first)
    return means


def _finish(axes: Axes, *, columns: int) -> None:
    """Label the step axis and put the legend below it, where it covers nothing; mark an empty chart as such."""
    axes.set_xlabel("optimiser steps", fontsize=8, color=hexadecimal(MUTED))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if any(np.size(line.get_xdata()) for line in axes.lines):
        legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=columns, fontsize=8)
        legend.set_frame_on(False)
    else:
        axes.text(0.5, 0.5, "nothing logged", ha="center", color=hexadecimal(MUTED), transform=axes.transAxes)
        axes.set_yticks([])
