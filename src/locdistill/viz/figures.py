"""Charts without a display or global state."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from locdistill.images import open_picture
from locdistill.viz.style import INK, MUTED, hexadecimal


def new_figure(width_px: int, height_px: int, *, scale: float = 2.0) -> Figure:
    """Create a figure of the given size on the page, at ``scale`` times the resolution, without pyplot or a display."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)  # inches; margin at the border, for dark pages
    figure = Figure(figsize=(width_px / 100, height_px / 100), dpi=100 * scale, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: Axes, title: str) -> Axes:
    """Give a chart the house style: title at the left, faint grid behind, no box."""
    axes.set_title(title, loc="left", fontsize=10, color=hexadecimal(INK), fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c8ccd1")
    axes.tick_params(labelsize=8, colors=hexadecimal(MUTED), length=3)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def without_content(axes: Axes, note: str) -> None:
    """Write a note into an empty chart, in place of ticks."""
    axes.text(0.5, 0.5, note, ha="center", color=hexadecimal(MUTED), transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def shortened(name: str, length: int) -> str:
    """Shorten a long name."""
    return name if len(name) <= length else name[: length - 3] + "..."


def to_image(figure: Figure) -> Image.Image:
    """Render a chart to an RGB picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with open_picture(buffer, "the chart") as picture:
        return picture.convert("RGB")
