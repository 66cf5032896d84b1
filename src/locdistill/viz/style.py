"""What all pictures share: colours, type, and a way to draw charts without a display or global state."""

from __future__ import annotations

import colorsys
import io
from functools import cache
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image, ImageFont

from locdistill.images import open_picture

Colour = tuple[int, int, int]

INK: Colour = (31, 35, 40)
MUTED: Colour = (110, 118, 129)
PAPER: Colour = (255, 255, 255)
STUDENT: Colour = (31, 111, 210)
TEACHER: Colour = (217, 95, 2)
TRUTH: Colour = (26, 140, 80)

# Told apart at a glance, also in small boxes on photographs; by hue first, by lightness where hues come close.
_PALETTE: tuple[Colour, ...] = (
    (255, 75, 62),
    (28, 140, 255),
    (255, 196, 0),
    (20, 184, 96),
    (217, 70, 239),
    (0, 205, 220),
    (255, 130, 20),
    (124, 92, 255),
    (160, 214, 20),
    (255, 110, 170),
    (0, 128, 128),
    (176, 112, 48),
)
_GOLDEN_TURN = 0.618033988749895


def class_colour(label: int) -> Colour:
    """The colour of a class: the same in every picture; a dozen chosen ones, then hues a golden angle apart."""
    if label < len(_PALETTE):
        return _PALETTE[label]
    extra = label - len(_PALETTE)
    lightness, saturation = ((0.76, 0.8), (0.58, 0.75), (0.44, 0.85))[extra % 3]
    r, g, b = colorsys.hls_to_rgb((0.89 + extra * _GOLDEN_TURN) % 1.0, lightness, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def ink_on(background: Colour) -> Colour:
    """Near-black or white, whichever is easier to read on a colour (relative luminance of WCAG 2)."""
    linear = [(v / 255 / 12.92) if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return INK if luminance > 0.19 else PAPER


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, so that pictures look the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / name, size)


def hexadecimal(colour: Colour) -> str:
    """A colour as charts and pages want it: ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def new_figure(width_px: int, height_px: int, *, scale: float = 2.0) -> Figure:
    """A chart of that size on the page, drawn ``scale`` times finer; it owes nothing to pyplot or to a display."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)  # inches; room at the border, for dark pages
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


def to_image(figure: Figure) -> Image.Image:
    """Render a chart to an RGB picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with open_picture(buffer, "the chart") as picture:
        return picture.convert("RGB")


def save_picture(picture: Image.Image, path: str | Path) -> Path:
    """Save a picture, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path
