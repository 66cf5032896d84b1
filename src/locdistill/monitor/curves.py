"""Curves of a run from its ``metrics.csv``: only what is new, in bounded memory however long the file is."""

from __future__ import annotations

import csv
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from locdistill.monitor.reading import open_plain

CURVES = "metrics.csv"
POINTS = 600
"""Points of a curve that are sent at once, at most."""
_LINE, _TAIL, _BEFORE = 1 << 16, 1 << 15, 256
"""Bytes of the longest line, of the end of the file, and of the text before a position by which it is recognised."""
Columns: TypeAlias = dict[str, tuple[list[float], list[float]]]
"""By column, the steps at which it has a value, and the values."""


@dataclass(frozen=True)
class NewRows:
    """Rows that were added since the last reading.

    Attributes:
        columns: By column, steps and values, thinned to :data:`POINTS`; the first and the last point always stay.
        mark: Where to go on reading.
        fresh: Whether these are all rows of the file, as it is new or was replaced, in place of those read before.
    """

    columns: Columns
    mark: str
    fresh: bool


def read_rows(folder: Path, mark: str = "") -> NewRows:
    """Read the rows of a run after a mark; all of them if the mark is of another file, or of rows that are gone.

    A last line without its end is half written and left for the next reading. Cells that are not finite numbers are
    left out.
    """
    try:
        with open_plain(folder / CURVES) as file:
            head = file.readline(_LINE)
            try:
                start = int(mark.split(".")[1], 16)
            except (IndexError, ValueError):
                start = 0
            inside = len(head) <= start <= os.fstat(file.fileno()).st_size
            fresh = not inside or mark != _mark(file, start)
            if fresh:
                start = len(head)
            columns, end = _parse(file, head, start)
            return NewRows(columns, _mark(file, end), fresh)
    except OSError:
        return NewRows({}, "", fresh=True)


def last_rows(folder: Path) -> Columns:
    """Read the last rows of a run, whatever the length of its file."""
    try:
        with open_plain(folder / CURVES) as file:
            head = file.readline(_LINE)
            start = os.fstat(file.fileno()).st_size - _TAIL
            if start > len(head):  # the first line is a part of one
                file.seek(start)
                start += len(file.readline(_LINE))
            return _parse(file, head, max(start, len(head)))[0]
    except OSError:
        return {}


def _mark(file: BinaryIO, end: int) -> str:
    """Identify a file and a position in it by the file's number and the bytes before the position."""
    start = max(end - _BEFORE, 0)
    file.seek(start)
    return f"{os.fstat(file.fileno()).st_ino:x}.{end:x}.{zlib.crc32(file.read(end - start)):x}"


def _parse(file: BinaryIO, head: bytes, start: int) -> tuple[Columns, int]:
    """Parse whole lines from a position on; return the columns and the end of the last whole line."""
    curves: dict[str, _Curve] = {}
    names, end = _cells(head), start
    file.seek(start)
    while (line := file.readline(_LINE)).endswith(b"\n"):
        end += len(line)
        row = {name: _number(cell) for name, cell in zip(names, _cells(line), strict=False)}
        step = row.pop("step", math.nan)
        for name, value in row.items():
            if math.isfinite(step) and math.isfinite(value):
                curves.setdefault(name, _Curve()).add(step, value)
    return {name: curve.points() for name, curve in curves.items()}, end


def _cells(line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8", "replace")]), [])
    except csv.Error:
        return []


def _number(cell: str) -> float:
    """Return the number in a cell; NaN for anything else."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


class _Curve:
    """A curve of bounded length: whenever it is too long, every second point goes, and of new ones twice as many."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, float]] = []
        self._every, self._seen = 1, 0
        self._last = (math.nan, math.nan)

    def add(self, step: float, value: float) -> None:
        """Append a point."""
        self._last = step, value
        if self._seen % self._every == 0:
            self._kept.append(self._last)
            if len(self._kept) == POINTS:
                del self._kept[1::2]
                self._every *= 2
        self._seen += 1

    def points(self) -> tuple[list[float], list[float]]:
        """Return steps and values, the last point included."""
        kept = self._kept if self._kept[-1] == self._last else [*self._kept, self._last]
        return [step for step, _ in kept], [value for _, value in kept]
