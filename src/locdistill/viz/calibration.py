"""Charts of the calibration of edge distributions, and of the terms' shares in the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image

from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import INK, MUTED, STUDENT, TEACHER, hexadecimal

Points = Sequence[tuple[float, float]]
"""Points of predicted standard deviation and actual error of groups of edges, in bins."""

# The mean absolute value of a normal variable is this times its standard deviation.
_NORMAL = math.sqrt(2 / math.pi)
_COLOURS = {"teacher": TEACHER, "student": STUDENT}
_OTHERS = ("#8a6d00", "#0089a8", "#7a5cc7")
_TERMS = ("#1f6fd2", "#d95f02", "#1a8c50", "#c2308e", "#7a5cc7", "#8a6d00", "#0089a8", "#5c6670")


def plot_reliability(
    curves: Mapping[str, Points], *, title: str = "Does the spread of an edge predict its error?"
) -> Image.Image:
    """Draw actual over predicted error, a line per detector.

    The dashed line is a calibrated detector with normal errors: a mean absolute error of 0.80 standard deviations.
    Above it the detector is overconfident, below it underconfident; a level line means that the spread does not predict
    the error.

    Args:
        curves: By detector, the mean absolute error of edges over their predicted standard deviation.
        title: Title of the chart.
    """
    figure = new_figure(640, 440)
    axes = tidy(figure.subplots(), title)
    points = [point for curve in curves.values() for point in curve if all(map(math.isfinite, point))]
    right, top = (1.06 * max((point[axis] for point in points), default=1.0) for axis in (0, 1))
    axes.plot([0, right], [0, _NORMAL * right], color=hexadecimal(MUTED), linestyle="--", linewidth=1.2)
    for i, (name, curve) in enumerate(curves.items()):
        colour = hexadecimal(_COLOURS[name]) if name in _COLOURS else _OTHERS[i % len(_OTHERS)]
        axes.plot(*zip(*curve, strict=True) if curve else ([], []), color=colour, marker="o", markersize=4, label=name)
    axes.plot([], [], color=hexadecimal(MUTED), linestyle="--", linewidth=1.2, label="calibrated")
    axes.set_xlim(0, right)
    axes.set_ylim(0, max(top, _NORMAL * right * 0.5))
    axes.set_xlabel("predicted standard deviation of an edge, in bins", fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel("mean absolute error, in bins", fontsize=8, color=hexadecimal(MUTED))
    if not points:
        axes.text(0.5, 0.5, "no edges", ha="center", color=hexadecimal(MUTED), transform=axes.transAxes)
    figure.legend(loc="outside lower center", ncols=len(curves) + 1, fontsize=8, frameon=False)
    return to_image(figure)


def plot_shares(
    bars: Mapping[str, Mapping[str, float]], *, title: str = "Share of each term in the gradient"
) -> Image.Image:
    """Draw stacked bars of the terms' shares.

    Args:
        bars: By bar, from the top, the share of each term; a bar with NaN shares is empty and marked as such.
        title: Title of the chart.
    """
    terms = list(dict.fromkeys(term for shares in bars.values() for term in shares))
    figure = new_figure(760, 110 + 34 * max(1, len(bars)))
    axes = tidy(figure.subplots(), title)
    axes.grid(visible=False)
    for row, shares in enumerate(bars.values()):
        start = 0.0
        for term, share in shares.items():
            if not math.isfinite(share):
                continue
            colour = _TERMS[terms.index(term) % len(_TERMS)]
            axes.barh(row, share, left=start, height=0.7, color=colour, edgecolor="white", linewidth=0.8)
            if share >= 0.06:
                text = f"{100 * share:.0f}"
                axes.text(start + share / 2, row, text, ha="center", va="center", fontsize=8, color="white")
            start += share
        if not start:
            axes.text(0.01, row, "no gradient", va="center", fontsize=8, color=hexadecimal(MUTED))
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(axis="y", labelsize=9, colors=hexadecimal(INK), length=0)
    handles = [axes.barh(0, 0, color=_TERMS[i % len(_TERMS)], label=term) for i, term in enumerate(terms)]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False
        )
    return to_image(figure)
