"""Charts of the distributions predicted at one location: the edges of a box, or an angle."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import INK, MUTED, STUDENT, TEACHER, TRUTH, Colour, hexadecimal


def plot_edges(
    student: Float[Tensor, "e n"],
    teacher: Float[Tensor, "e n"] | None = None,
    *,
    truth: Float[Tensor, " e"] | None = None,
    bins: Bins | None = None,
    coding: Coding = DISTANCES,
    title: str = "",
) -> Image.Image:
    """Draw the edge distributions of one location, one panel per edge; the angle of a rotated box has its own panel.

    Bars are the student's probabilities of each bin; steps are the teacher's. Short marks under the axis are the
    expected positions, which form the predicted box; the vertical line is the true position.

    Args:
        student: Logits by edge and bin.
        teacher: Logits of a teacher at the same location.
        truth: True position of each edge. A position beyond the last bin is marked at the border.
        bins: Positions of the bins; None is one bin per stride.
        coding: Names and units of the panels.
        title: Title above the panels.
    """
    bins = bins or Bins(student.shape[-1] - 1)
    figure = new_figure(240 * len(student), 250)
    panels = np.atleast_1d(figure.subplots(1, len(student), sharey=True))
    places = _plain(bins.positions(student.double()).expand(student.shape))
    ours, means = _plain(student.softmax(-1)), _plain(bins.clamp(bins.expect(student), margin=0))
    theirs = None if teacher is None else _plain(teacher.softmax(-1))
    its_means = None if teacher is None else _plain(bins.clamp(bins.expect(teacher), margin=0))
    true = None if truth is None else _plain(bins.clamp(truth, margin=0))
    for e, axes in enumerate(panels):
        tidy(axes, coding.names[e])
        half = (places[e, 1] - places[e, 0]) / 2
        axes.bar(places[e], ours[e], width=1.72 * half, color=hexadecimal(STUDENT), alpha=0.55)
        _mark(axes, means[e], STUDENT)
        if theirs is not None and its_means is not None:
            edges = np.append(places[e] - half, places[e, -1] + half)
            axes.stairs(theirs[e], edges, color=hexadecimal(TEACHER), linewidth=1.5)
            _mark(axes, its_means[e], TEACHER)
        if true is not None:
            axes.axvline(true[e], color=hexadecimal(TRUTH), linestyle="--", linewidth=1.3)
        axes.set_xlim(places[e, 0] - 1.4 * half, places[e, -1] + 1.4 * half)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=places[e, -1] >= 4))
        axes.set_xlabel(f"in {coding.units[e]}", fontsize=8, color=hexadecimal(MUTED))
    panels[0].set_ylabel("probability", fontsize=8, color=hexadecimal(MUTED))
    panels[0].set_ylim(0, 1.08 * max(ours.max(), 0 if theirs is None else theirs.max()))
    if title:
        figure.suptitle(title, fontsize=11, color=hexadecimal(INK), fontweight="bold", x=0.01, ha="left")
    handles: list[Patch | Line2D] = [Patch(color=hexadecimal(STUDENT), alpha=0.55, label="student")]
    if theirs is not None:
        handles.append(Line2D([], [], color=hexadecimal(TEACHER), label="teacher"))
    if true is not None:
        handles.append(Line2D([], [], color=hexadecimal(TRUTH), linestyle="--", label="truth"))
    handles.append(Line2D([], [], color=hexadecimal(MUTED), marker="^", linestyle="", markersize=5, label="expected"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return to_image(figure)


def _plain(values: Tensor) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.detach().double().cpu().numpy()
    return numbers


def _mark(axes: Axes, place: float, colour: Colour) -> None:
    """Draw a mark under the axis at an expected position."""
    mark = Line2D([place], [0], color=hexadecimal(colour), marker="^", markersize=6, clip_on=False, zorder=5)
    mark.set_transform(axes.get_xaxis_transform())
    axes.add_artist(mark)
