"""Charts of an evaluation: precision and recall by class, confusion of classes, types of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image

from locdistill.viz.figures import new_figure, shortened, tidy, to_image, without_content
from locdistill.viz.style import INK, LINES, MUTED, hexadecimal

_EXTREMES = 4
"""Number of best and of worst classes that are named where there are too many for a colour each."""
_CELLS, _NUMBERED = 80, 12
"""Number of classes up to which a confusion matrix shows all of them, and writes numbers in the cells."""
_NAME = 18  # letters of a class name that are shown
_GRID = np.linspace(0, 1, 201)


class ScoreCurve(NamedTuple):
    """Precision and recall of one class over the score.

    Attributes:
        scores: Descending.
        precision: Precision of the detections with at least this score.
        recall: Recall of these.
        ap: AP50; None if there is no object to find.
        threshold: Score with the best F1; None if no detection is true.
    """

    scores: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    ap: float | None
    threshold: float | None

    def over_score(self) -> dict[str, NDArray[np.float64]]:
        """Return precision, recall and F1 at scores from 0 to 1; precision is NaN where nothing is detected."""
        last = np.searchsorted(-self.scores, -_GRID, side="right") - 1
        precision = np.where(last < 0, np.nan, np.append(self.precision, np.nan)[last])
        recall = np.where(last < 0, 0.0, np.append(self.recall, 0.0)[last])
        both = precision + recall
        f1 = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1.0), 0.0)
        return {"precision": precision, "recall": recall, "f1": f1}


def plot_class_curves(curves: Mapping[str, ScoreCurve]) -> Image.Image:
    """Draw precision over recall, and F1, precision and recall over the score, a line per class and their mean.

    Classes without objects are left out. Where there are more than eight, the others are grey, and the best and the
    worst by AP50 have a colour and a name.

    Args:
        curves: By class name.
    """
    there = {name: curve for name, curve in curves.items() if curve.ap is not None}
    figure = new_figure(1100, 880)
    axes = figure.subplots(2, 2)
    if not there:
        for side, title in zip(axes.flat, ("Precision over recall", "F1", "Precision", "Recall"), strict=True):
            without_content(tidy(side, title), "no objects")
        return to_image(figure)
    named = list(there)
    if len(named) > len(LINES):
        ranked = sorted(named, key=lambda name: -(there[name].ap or 0.0))
        named = [*ranked[:_EXTREMES], *ranked[-_EXTREMES:]]
    colours = dict(zip(named, LINES, strict=False))
    means = [curve.ap for curve in there.values() if curve.ap is not None]
    _unit(tidy(axes[0, 0], f"Precision over recall (AP50 {100 * sum(means) / len(means):.1f})"), "recall", "precision")
    for name in [*(name for name in there if name not in colours), *colours]:  # named ones on top
        curve, (colour, width) = there[name], (colours.get(name, "#c8ccd1"), 1.6 if name in colours else 0.7)
        label = f"{shortened(name, _NAME)}  AP50 {100 * (curve.ap or 0):.1f}" if name in colours else None
        if label and curve.threshold is not None:
            label += f", best F1 at {curve.threshold:.2f}"
        recall, precision = np.append(0.0, curve.recall), np.append([*curve.precision[:1], 0.0][0], curve.precision)
        axes[0, 0].plot(recall, precision, color=colour, linewidth=width, label=label)
        values = curve.over_score()
        for side, what in zip(axes.flat[1:], ("f1", "precision", "recall"), strict=True):
            side.plot(_GRID, values[what], color=colour, linewidth=width)
        if curve.threshold is not None and name in colours:
            place = int(np.searchsorted(_GRID, curve.threshold, side="right")) - 1
            axes[0, 1].plot([curve.threshold], [values["f1"][place]], "o", color=colour, markersize=5)
    _plot_means(axes, there)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return to_image(figure)


def _plot_means(axes: NDArray[np.object_], curves: Mapping[str, ScoreCurve]) -> None:
    """Draw the means over the classes against the score, and title their panels."""
    every = [curve.over_score() for curve in curves.values()]
    titles = {"f1": "F1 over the lowest score that is kept", "precision": "Precision", "recall": "Recall"}
    for side, (what, title) in zip(axes.flat[1:], titles.items(), strict=True):
        columns = np.array([values[what] for values in every])
        known = ~np.isnan(columns)
        counts = known.sum(0)
        mean = np.where(known, columns, 0.0).sum(0) / np.maximum(counts, 1)
        mean[counts == 0] = np.nan
        if len(every) > 1:
            side.plot(_GRID, mean, color=hexadecimal(INK), linewidth=2.2)
        best = int(np.nanargmax(mean)) if counts.any() else 0
        word = f" (best {'mean ' if len(every) > 1 else ''}{mean[best]:.2f} at {_GRID[best]:.2f})"
        _unit(tidy(side, title + word if what == "f1" else title), "score", "F1" if what == "f1" else what)
    if len(every) > 1:
        axes[0, 0].plot([], [], color=hexadecimal(INK), linewidth=2.2, label="mean of the classes")


def plot_confusion(matrix: NDArray[np.integer], classes: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix, coloured by the share of each row.

    Args:
        matrix: ``(classes + 1, classes + 1)`` counts by class of the object (row) and of the detection (column);
            background comes last.
        classes: Names. Of more than 80, those with the most confusions are shown.
    """
    title, kept = "Confusion of classes at IoU 0.5", np.arange(len(classes))
    if len(classes) > _CELLS:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        kept = np.sort(np.argsort(-wrong[:-1], kind="stable")[:_CELLS])
        title += f": the {_CELLS} of {len(classes)} with the most errors"
    places = np.append(kept, len(classes))
    counts = matrix[np.ix_(places, places)]
    shares = counts / np.maximum(matrix[places].sum(1), 1)[:, None]
    size = len(places)
    cell = max(14, min(70, 900 // size))
    figure = new_figure(max(480, 190 + cell * size), max(360, 150 + cell * size))
    axes = tidy(figure.subplots(), title)
    axes.grid(visible=False)
    axes.imshow(shares, cmap=colormaps["Blues"], vmin=0, vmax=1, aspect="auto")
    names = [shortened(classes[i], _NAME) for i in kept.tolist()]
    small = 8 if size <= 40 else 6
    axes.tick_params(labelcolor=hexadecimal(INK))
    axes.set_xticks(range(size), [*names, "missed"], rotation=90 if size > 6 else 0, fontsize=small)
    axes.set_yticks(range(size), [*names, "background"], fontsize=small)
    axes.set_xlabel("detected as (colour: share of the row)", fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel("truth", fontsize=8, color=hexadecimal(MUTED))
    for line in (axes.axhline, axes.axvline):
        line(size - 1.5, color=hexadecimal(MUTED), linewidth=0.8)
    if len(kept) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[row, column] > 0.6 else hexadecimal(INK)
                axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=ink)
    return to_image(figure)


def plot_errors(costs: Mapping[str, float], counts: Mapping[str, int], ap: float | None) -> Image.Image:
    """Draw the AP50 that each type of error costs.

    Args:
        costs: AP50 that fixing a type alone would gain, between 0 and 1.
        counts: Number of errors of each type.
        ap: AP50 as it is; None if there is no object to find.
    """
    figure = new_figure(760, 90 + 42 * len(costs))
    title = "no objects" if ap is None else f"AP50 is {100 * ap:.1f}; what fixing one type of error alone would add"
    axes = tidy(figure.subplots(), title)
    axes.grid(visible=False)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    values = [100 * cost for cost in costs.values()]
    axes.barh(range(len(values)), values, height=0.7, color=LINES[: len(values)])
    right = max([*values, 1.0])
    for row, (name, value) in enumerate(zip(costs, values, strict=True)):
        text = f" {value:+.1f}   {counts[name]} {'objects' if name == 'missed' else 'detections'}"
        axes.text(max(value, 0), row, text, va="center", fontsize=8, color=hexadecimal(INK))
    axes.set_xlim(min([*values, 0.0]), 1.3 * right)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_yticks(range(len(values)), list(costs), fontsize=9)
    axes.tick_params(axis="y", labelsize=9, colors=hexadecimal(INK), length=0)
    axes.set_xlabel("AP50", fontsize=8, color=hexadecimal(MUTED))
    return to_image(figure)


def _unit(axes: Axes, across: str, up: str) -> None:
    """Limit both axes to 0 to 1, and name them."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(across, fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel(up, fontsize=8, color=hexadecimal(MUTED))
