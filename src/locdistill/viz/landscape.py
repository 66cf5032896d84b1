"""Chart of the AP of mixtures of two detectors over the two weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from locdistill.types import Doubles
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import MUTED, STUDENT, hexadecimal

_METRIC = "AP (%)"


def plot_landscape(
    gamma1: Sequence[float],
    gamma2: Sequence[float],
    values: npt.ArrayLike,
    *,
    title: str = "",
    names: tuple[str, str] = ("the first detector", "the second detector"),
) -> Image.Image:
    """Draw AP, in percent, over two weights: contours, or a line where only one of the weights varies.

    Each measured point is labelled with its value, the best in bold. On the dashed line both weights sum to 1: the
    interpolation between the detectors.

    Args:
        gamma1: Weights of the first detector, rising.
        gamma2: Weights of the second, rising.
        values: AP for each pair of weights, ``[i, j]`` for ``gamma1[i], gamma2[j]``; NaN if not measured.
        title: Title of the chart.
        names: Names of the detectors.
    """
    first, second = (np.asarray(values, np.float64) for values in (gamma1, gamma2))
    table = np.asarray(values, np.float64).reshape(len(first), len(second))
    if min(table.shape) < 2:
        return _line(first, second, table, title=title, names=names)
    figure = new_figure(600, 520)
    axes = tidy(figure.subplots(), title)
    axes.grid(visible=False)
    finite = table[np.isfinite(table)]
    if len(finite) and finite.max() > finite.min():
        levels = np.linspace(finite.min(), finite.max(), 13)
        shown = np.ma.masked_invalid(table.T)
        filled = axes.contourf(first, second, shown, levels=levels, cmap="YlGnBu")
        axes.contour(first, second, shown, levels=levels, colors="white", linewidths=0.5)
        bar = figure.colorbar(filled, ax=axes, format="%.1f", shrink=0.9)
        bar.ax.set_title(_METRIC, fontsize=8, color=hexadecimal(MUTED))
        bar.ax.tick_params(labelsize=8, colors=hexadecimal(MUTED))
        bar.outline.set_visible(False)
    axes.plot([0, 1], [1, 0], color="white", linestyle="--", linewidth=1.4)
    # the value at each measured point, on a small white plate
    size = 8 if max(table.shape) <= 7 else 6
    plate = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    best = np.nanmax(table) if np.isfinite(table).any() else np.nan
    for i, j in np.ndindex(*table.shape):
        if np.isfinite(table[i, j]):
            weight = "bold" if table[i, j] == best else "normal"
            place, text = (float(first[i]), float(second[j])), f"{table[i, j]:.1f}"
            axes.text(*place, text, ha="center", va="center", fontsize=size, fontweight=weight, bbox=plate)
    for limits, weights in ((axes.set_xlim, first), (axes.set_ylim, second)):
        margin = 0.06 * (weights[-1] - weights[0])
        limits(weights[0] - margin, weights[-1] + margin)
    axes.set_xlabel(f"gamma1: weight of the features of {names[0]}", fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel(f"gamma2: weight of the features of {names[1]}", fontsize=8, color=hexadecimal(MUTED))
    return to_image(figure)


def _line(first: Doubles, second: Doubles, table: Doubles, *, title: str, names: tuple[str, str]) -> Image.Image:
    one = int(len(first) == 1)  # the weight that varies
    varies, fixed = (first, second)[one], (second, first)[one]
    figure = new_figure(600, 400)
    axes = tidy(figure.subplots(), title)
    axes.plot(varies, table.ravel(), color=hexadecimal(STUDENT), marker="o", markersize=4)
    label = f"weight of the features of {names[one]} (that of {names[1 - one]}: {fixed[0]:g})"
    axes.set_xlabel(label, fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel(_METRIC, fontsize=8, color=hexadecimal(MUTED))
    return to_image(figure)
