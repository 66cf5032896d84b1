"""Chart of AP against each setting of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.style import MUTED, STUDENT, TEACHER, hexadecimal

_COLUMNS = 3
_MANY = 200  # a logarithmic range wider than this has ticks at powers of ten only
_LINES = (":", "--")


@dataclass(frozen=True)
class SettingAxis:
    """The values of a setting over the trials.

    Attributes:
        label: Name of the setting.
        values: Value in each trial: a number, a choice, or None if the trial has none.
        log: Whether the axis is logarithmic.
        choices: All choices, in order; empty for numbers.
    """

    label: str
    values: Sequence[float | str | None]
    log: bool = False
    choices: Sequence[str] = ()


def plot_search(settings: Sequence[SettingAxis], ap: Sequence[float], lines: Mapping[str, float]) -> Image.Image:
    """Draw a panel per setting, with a point per trial and the best trial highlighted.

    Args:
        settings: The searched settings.
        ap: AP of each trial, in percent.
        lines: AP of baselines by name, drawn as horizontal lines.
    """
    columns = 2 if len(settings) == 4 else min(_COLUMNS, len(settings))
    rows = math.ceil(len(settings) / columns)
    figure = new_figure(90 + 270 * columns, 70 + 240 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    best = max(range(len(ap)), key=lambda i: ap[i])
    for axes, setting in zip(panels, settings, strict=False):
        _panel(tidy(axes, setting.label), setting, ap, best)
        for style, (name, value) in zip(_LINES, lines.items(), strict=False):
            axes.axhline(value, color=hexadecimal(MUTED), linestyle=style, linewidth=1.2, label=f"{name} {value:.1f}")
    for axes in panels[::columns]:
        axes.set_ylabel("AP (%)", fontsize=8, color=hexadecimal(MUTED))
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[0]))
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=8, frameon=False)
    return to_image(figure)


def _panel(axes: Axes, setting: SettingAxis, ap: Sequence[float], best: int) -> None:
    choices = list(setting.choices)
    known = [(i, value) for i, value in enumerate(setting.values) if value is not None]
    places = {i: float(choices.index(str(value)) if choices else value) for i, value in known}
    others = [i for i in places if i != best]
    at, height = [places[i] for i in others], [ap[i] for i in others]
    axes.scatter(at, height, s=22, color=hexadecimal(STUDENT), alpha=0.75, label="trial")
    if best in places:
        at, height = [places[best]], [ap[best]]
        axes.scatter(at, height, s=52, color=hexadecimal(TEACHER), zorder=3, label=f"best {ap[best]:.1f}")
    if choices:
        axes.set_xticks(range(len(choices)), [c if len(c) < 20 else f"{c[:18]}..." for c in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif setting.log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _MANY * low else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
