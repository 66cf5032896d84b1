"""Logs of a run: a table on disk, and the terminal."""

from __future__ import annotations

import csv
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from locdistill.files import replacing

logger = logging.getLogger("locdistill.engine")

Row = dict[str, float]
SECONDS_BETWEEN_LINES = 10.0


class MetricsFile:
    """``metrics.csv``: one row per logged step and per evaluation; a cell is empty where a row has no value.

    Columns: ``step`` (optimiser steps done), ``epoch`` (passes done, with fraction), ``seconds`` (of training), ``lr``,
    ``images_per_second``, ``train/<term>``, ``train/total``, the quantities monitored in training (with a teacher
    ``agree/edge_kl`` and ``agree/box_iou``), and ``val/<metric>``. Numbers are written with full precision, so that
    equal runs give equal text.

    Args:
        path: The file; it is written at once.
        steps: Steps of an earlier part of the run, whose rows are kept.
    """

    def __init__(self, path: Path, steps: int) -> None:
        self.path = path
        rows = [row for row in read_metrics(path) if row["step"] <= steps] if steps and path.exists() else []
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._rewrite(rows)

    def write(self, row: Row) -> None:
        """Append a row immediately; a new column rewrites the file."""
        new = [name for name in row if name not in self._columns]
        if new:
            rows = read_metrics(self.path)
            self._columns += new
            self._rewrite([*rows, row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(_text(row))

    def _rewrite(self, rows: list[Row]) -> None:
        with replacing(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(_text(row) for row in rows)


def read_metrics(path: Path) -> list[Row]:
    """Read the rows of a ``metrics.csv``, without empty cells and without a last line truncated by a crash."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    if not lines:
        return []
    header = lines[0]
    rows = [
        {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell != ""}
        for cells in lines[1:]
        if len(cells) == len(header)
    ]
    return [row for row in rows if "step" in row]


def _text(row: Mapping[str, float]) -> dict[str, str]:
    return {name: str(int(value)) if name == "step" else repr(float(value)) for name, value in row.items()}


def duration(seconds: float) -> str:
    """Write a duration in the two units that matter: ``45 s``, ``12 min``, ``2 h 10 min``, ``3 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, days = minutes // 60, minutes // 1440
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


@dataclass(slots=True)
class Terminal:
    """A progress bar on a terminal, occasional lines elsewhere (stderr); every line also goes to the package's log.

    Attributes:
        total: Optimiser steps of the whole run.
        show: Whether to write to the terminal at all.
    """

    total: int
    show: bool
    _bar: Progress | None = None
    _task: TaskID | None = None
    _started: tuple[float, int] | None = None
    _last_line: float = -math.inf

    def start(self, steps: int) -> None:
        """Start the display of a run that has done this many steps."""
        self._started = (time.monotonic(), steps)
        if not (self.show and sys.stderr.isatty()):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task("training", total=self.total, completed=steps, losses="")
        self._bar.start()

    def advance(self, steps: int) -> None:
        """Advance the bar to this many steps."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=steps)

    def losses(self, row: Row) -> None:
        """Show a row of the log."""
        parts = [f"{name.rpartition('/')[2]} {value:.4g}" for name, value in row.items() if "/" in name]
        text = "  ".join([*parts, f"lr {row['lr']:.3g}"])
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"epoch {row['epoch']:.1f}", losses=text)
            return
        now = time.monotonic()
        step = int(row["step"])
        if now - self._last_line < SECONDS_BETWEEN_LINES and step < self.total:
            return
        self._last_line, left = now, ""
        if self._started is not None and step > self._started[1]:
            begun, steps = self._started
            seconds = int((now - begun) / (step - steps) * (self.total - step))
            left = f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
        self.line(f"step {step}/{self.total}  epoch {row['epoch']:.2f}  {text}  {left}")

    def line(self, text: str) -> None:
        """Write one line."""
        logger.info(text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self.show:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Stop the display and restore the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
