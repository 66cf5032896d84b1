"""A chart of the objects of a data set: classes, sizes and places."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from locdistill.viz.figures import new_figure, shortened, tidy, to_image, without_content
from locdistill.viz.style import INK, MUTED, STUDENT, hexadecimal

SHOWN = 80
"""Number of classes that have a bar."""
_TALL = 36  # classes beyond which sizes and places stand one below the other


def plot_labels(
    counts: Mapping[str, int], sides: NDArray[np.floating], centres: NDArray[np.floating], images: int
) -> Image.Image:
    """Draw the number of objects by class, their sizes, and their places in the image.

    Args:
        counts: Objects by class name. Of more than 80 classes the most frequent have a bar, and a note counts the rest.
        sides: ``(n, 2)`` width and height in pixels of the image files.
        centres: ``(n, 2)`` centres, as a fraction of width and height of the image.
        images: Number of images.
    """
    rows = min(len(counts), SHOWN)
    if rows > _TALL:
        figure = new_figure(1000, max(900, 100 + 14 * rows))
        panels = figure.subplot_mosaic([["classes", "sizes"], ["classes", "places"]])
    else:
        figure = new_figure(1300, max(380, 100 + 14 * rows))
        panels = figure.subplot_mosaic([["classes", "sizes", "places"]], width_ratios=[1.2, 1, 1])
    left, *others = panels.values()
    title = f"{sum(counts.values())} objects in {images} images"
    _plot_counts(tidy(left, title), counts)
    for axes, name in zip(others, ("Width and height in pixels", "Centres within the image"), strict=True):
        tidy(axes, name).set_box_aspect(1)
        axes.set_anchor("N")
    sizes, places = others
    kept = (sides > 0).all(1)
    if not kept.any():
        for axes in others:
            without_content(axes, "no objects")
        return to_image(figure)
    _plot_sizes(sizes, sides[kept])
    ramp = colormaps["Blues"]
    _shaded(places, centres[kept], np.linspace(0, 1, _cells(int(kept.sum())) + 1))
    places.set_xlim(0, 1)
    places.set_ylim(1, 0)
    places.set_facecolor(ramp(0.0))
    places.set_xlabel("x / width of the image", fontsize=8, color=hexadecimal(MUTED))
    places.set_ylabel("y / height of the image", fontsize=8, color=hexadecimal(MUTED))
    return to_image(figure)


def _plot_counts(axes: Axes, counts: Mapping[str, int]) -> None:
    """Draw a bar per class: in the order of the classes, or the most frequent ones first where not all are shown."""
    names = list(counts)
    if len(names) > SHOWN:
        names = sorted(names, key=lambda name: -counts[name])[:SHOWN]
        rest = [counts[name] for name in counts if name not in set(names)]
        axes.set_xlabel(
            f"and {len(rest)} classes with {sum(rest)} objects, at most {max(rest)} each",
            fontsize=8,
            color=hexadecimal(MUTED),
        )
    axes.grid(visible=False)
    values = [counts[name] for name in names]
    axes.barh(range(len(values)), values, height=0.75, color=hexadecimal(STUDENT))
    right = max([*values, 1])
    for row, value in enumerate(values):
        axes.text(value + 0.01 * right, row, str(value), va="center", fontsize=7, color=hexadecimal(MUTED))
    axes.set_xlim(0, 1.15 * right)
    axes.set_ylim(len(values) - 0.3, -0.7)
    axes.set_yticks(range(len(values)), [shortened(name, 22) for name in names])
    axes.tick_params(axis="y", labelsize=8, colors=hexadecimal(INK), length=0)


def _plot_sizes(axes: Axes, sides: NDArray[np.floating]) -> None:
    """Draw how frequent each width and height is, on logarithmic scales with the same limits."""
    low = 2.0 ** np.floor(np.log2(max(sides.min(), 1.0)))
    high = max(2.0 ** np.ceil(np.log2(sides.max())), 2 * low)
    _shaded(axes, np.clip(sides, low, high), np.geomspace(low, high, _cells(len(sides)) + 1))
    octaves = round(np.log2(high / low))
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_locator(FixedLocator([low * 2.0**i for i in range(0, octaves + 1, 1 + octaves // 8)]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.plot([low, high], [low, high], color=hexadecimal(MUTED), linewidth=0.8, linestyle="--")
    for side in (32.0, 96.0):  # COCO's limits of small and medium: areas of 32 x 32 and 96 x 96 pixels
        if low < side < high:
            across = np.geomspace(low, high, 100)
            axes.plot(across, side**2 / across, color=hexadecimal(MUTED), linewidth=0.8)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    middle = np.sqrt(sides.prod(1))
    words = f"the middle half of sqrt(area) is {np.quantile(middle, 0.25):.0f} to {np.quantile(middle, 0.75):.0f}"
    axes.set_xlabel(f"width; {words}; lines: areas of 32² and 96²", fontsize=8, color=hexadecimal(MUTED))
    axes.set_ylabel("height", fontsize=8, color=hexadecimal(MUTED))


def _cells(points: int) -> int:
    """Choose the number of cells along an axis: few where there are few points, as single ones show no pattern."""
    return int(np.clip(round(points**0.5 / 2), 8, 48))


def _shaded(axes: Axes, points: NDArray[np.floating], edges: NDArray[np.floating]) -> None:
    """Shade cells of a grid by the number of points in them; the square root keeps rare ones visible."""
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=[edges, edges])
    shade = np.sqrt(counts.T)
    axes.grid(visible=False)
    axes.pcolormesh(edges, edges, np.ma.masked_equal(shade, 0), cmap=colormaps["Blues"], vmin=-0.25 * shade.max())
