"""Where a detector believes the four edges of one box to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from locdistill.viz.style import INK, MUTED, STUDENT, TEACHER, TRUTH, hexadecimal, new_figure, tidy, to_image

EDGES = ("left", "top", "right", "bottom")


def plot_edges(
    student: Float[Tensor, "e n"],
    teacher: Float[Tensor, "e n"] | None = None,
    *,
    truth: Float[Tensor, " e"] | None = None,
    names: Sequence[str] = EDGES,
    title: str = "",
) -> Image.Image:
    """Draw the edge distributions of one location, an edge to a panel.

    Bars are the student's probabilities of each bin; steps are the teacher's; short marks under the axis are the
    expected positions, which is what the box is made of; the vertical line is the true position.

    Args:
        student: Logits by edge and bin.
        teacher: Logits of a teacher at the same location.
        truth: True distance of each edge, in bins (strides). A position beyond the last bin is marked at the border.
        names: Of the edges.
        title: Above the panels.
    """
    figure = new_figure(240 * len(names), 250)
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    ours = _probabilities(student)
    theirs = None if teacher is None else _probabilities(teacher)
    true = None if truth is None else truth.detach().double().cpu().numpy()
    for e, (axes, name) in enumerate(zip(panels, names, strict=True)):
        _panel(tidy(axes, name), ours[e], None if theirs is None else theirs[e], None if true is None else true[e])
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


def _probabilities(logits: Float[Tensor, "e n"]) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = logits.detach().double().softmax(-1).cpu().numpy()
    return probabilities


def _panel(axes: Axes, ours: NDArray[np.float64], theirs: NDArray[np.float64] | None, true: float | None) -> None:
    bins = np.arange(len(ours))
    axes.bar(bins, ours, width=0.86, color=hexadecimal(STUDENT), alpha=0.55)
    if theirs is not None:
        edges = np.arange(len(ours) + 1) - 0.5
        axes.stairs(theirs, edges, color=hexadecimal(TEACHER), linewidth=1.5)
    if true is not None:
        axes.axvline(min(max(true, -0.5), len(ours) - 0.5), color=hexadecimal(TRUTH), linestyle="--", linewidth=1.3)
    for probabilities, colour in ((ours, STUDENT), (theirs, TEACHER)):
        if probabilities is not None:
            place, colour_name = [float(probabilities @ bins)], hexadecimal(colour)
            mark = Line2D(place, [0], color=colour_name, marker="^", markersize=6, clip_on=False, zorder=5)
            mark.set_transform(axes.get_xaxis_transform())
            axes.add_artist(mark)
    axes.set_xlim(-0.7, len(ours) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("distance in strides", fontsize=8, color=hexadecimal(MUTED))
