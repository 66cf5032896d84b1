"""Boxes around masks of COCO: polygons and run lengths."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from locdistill.annotations.sources import LIMIT

CODE_START = 48  # the character of value 0 in compressed run lengths
MOST_BITS = 60


def box_around(segmentation: object) -> tuple[float, float, float, float] | None:
    """Compute the box ``x, y, w, h`` around a mask; None if it is empty or no mask.

    Polygons are lists of coordinates ``x, y, x, y, ...``, also grouped in pairs. Run lengths have ``size`` (height and
    width) and ``counts``, as a list or compressed to text.
    """
    if isinstance(segmentation, dict):
        return _around_runs(segmentation.get("size"), segmentation.get("counts"))
    values: list[Any] = segmentation if isinstance(segmentation, list) else []
    while values and all(isinstance(value, list) for value in values):
        if any(len(value) % 2 and not isinstance(value[0], list) for value in values):
            return None
        values = list(chain.from_iterable(values))
    numbers = all(type(value) in (int, float) and -LIMIT < value < LIMIT for value in values)
    if not values or len(values) % 2 or not numbers:
        return None
    points = np.asarray(values, dtype=np.float64).reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(0).tolist(), points.max(0).tolist()
    return x1, y1, x2 - x1, y2 - y1


def _around_runs(size: object, counts: object) -> tuple[float, float, float, float] | None:
    """Compute the box around run lengths: numbers of pixels outside, inside, outside, ..., column by column."""
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and 0 < side < LIMIT for side in size):
        return None
    runs = decompressed(counts) if isinstance(counts, str) else counts
    height, width = size
    if not isinstance(runs, list) or not all(type(run) is int and 0 <= run <= height * width for run in runs):
        return None
    if sum(runs) != height * width:
        return None
    ends = np.cumsum(np.asarray(runs, dtype=np.int64))
    first, last = ends[:-1:2], ends[1::2] - 1
    first, last = first[first <= last], last[first <= last]
    if not len(first):
        return None
    x1, x2 = int(first[0]) // height, int(last[-1]) // height
    y1, y2 = int((first % height).min()), int((last % height).max())
    if (first // height < last // height).any():  # a run that goes on in the next column
        y1, y2 = 0, height - 1
    return float(x1), float(y1), float(x2 - x1 + 1), float(y2 - y1 + 1)


def decompressed(text: str) -> list[int] | None:
    """Decompress run lengths of COCO; None if the text is none.

    A character has five bits of a number, lowest first, and a sixth that says whether more follow; the fifth bit of the
    last one is the sign. From the fourth on, numbers are differences to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - CODE_START
        if not 0 <= code < 64 or shift > MOST_BITS:
            return None
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs if not shift else None
