"""The common output of the format readers: annotations as written, with all their faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from locdistill.annotations.files import stays_inside
from locdistill.annotations.problems import Problem
from locdistill.geometry import rotated

DataFormat: TypeAlias = Literal["coco", "voc", "yolo", "dota", "hrsc", "labelme"]
LIMIT = 1e9
TURN = 2 * np.pi + 1e-6  # no angle in radians is larger


@runtime_checkable
class SourceSettings(Protocol):
    """Settings that readers need: see :class:`locdistill.data.settings.DataSettings`."""

    path: str
    root: str
    format: DataFormat | Literal["auto"]
    train: str | tuple[str, ...] | None
    val: str | tuple[str, ...] | None
    one_based: bool | None


@dataclass
class Listed:
    """An image as listed by an annotation source; its file is not read yet.

    Attributes:
        path: The image file.
        image_id: The source's identifier.
        declared: Height and width according to the source, if given.
        boxes: ``(n, 4)``, ``x1, y1, x2, y2`` in pixels, or as fractions of the image sides.
        categories: ``(n,)`` positions in the source's list of categories.
        ignored: ``(n,)`` crowd or difficult.
        areas: ``(n,)``, or ``None`` if the source has none.
        where: Name of the image in messages.
        quads: ``(n, 4, 2)`` corners of each object in pixels, clockwise on screen; only for rotated objects. ``boxes``
            circumscribe them.
    """

    path: Path
    image_id: int
    declared: tuple[int, int] | None
    boxes: np.ndarray
    categories: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray | None = None
    where: str = ""
    quads: np.ndarray | None = None


@dataclass
class Source:
    """One annotation file or image set.

    Attributes:
        file: Name of the file, for messages.
        categories: Identifier and name of each category, in the order of the labels.
        images: The listed images.
        relative: Whether boxes, areas and quads are fractions of the image sides (YOLO) instead of pixels.
        labelled: Whether the source has annotations; the images of test servers have none.
        problems: Faults of the source.
        notes: Number of harmless oddities of each kind.
    """

    file: str
    categories: list[tuple[int, str]]
    images: list[Listed] = field(default_factory=list)
    relative: bool = False
    labelled: bool = True
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def box_arrays(rows: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Convert boxes to an array ``(n, 4)``, also for n = 0."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def listed_names(file: Path, source: Source) -> list[str]:
    """Read image names from the first column of a list file; a name outside the image folder is a problem."""
    names = []
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        name = line.split()[0] if line.strip() else ""
        if name and stays_inside(name):
            names.append(name)
        elif name:
            remedy = "list names without folders"
            source.problems.append(Problem(str(file), name, "the name leaves the image folder", remedy))
    return names


def parts_between(array: np.ndarray, ends: Sequence[int]) -> list[np.ndarray]:
    """Divide the rows of an array after the given numbers of them; the parts share its memory."""
    return [array[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)] if len(ends) else []


def rotated_fault(box: object) -> tuple[str, str] | None:
    """Return the fault of a rotated box ``cx, cy, w, h, theta``, and the remedy."""
    remedy = "rotated boxes are cx, cy, w, h in pixels and an angle in radians, clockwise on screen"
    numbers = isinstance(box, Sequence) and all(type(value) in (float, int) and abs(value) < LIMIT for value in box)
    if not numbers or len(box) != 5:  # type: ignore[arg-type]  # a sequence, if they are numbers
        return f"rotated box {box!r} is not five numbers of a sensible size", remedy
    if min(box[2:4]) < 0:  # type: ignore[index]
        return f"the rotated box has sides {box[2]} and {box[3]}", remedy  # type: ignore[index]
    if abs(box[4]) > TURN:  # type: ignore[index]
        return f"the rotated box has the angle {box[4]}, more than a full turn: are these degrees?", remedy  # type: ignore[index]
    return None


def rotated_corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Compute the corners ``(n, 4, 2)`` of rotated boxes ``cx, cy, w, h, theta``, also for n = 0."""
    rows = np.asarray(boxes, dtype=np.float64).reshape(-1, 5)
    return rotated.corners(torch.from_numpy(rows)).numpy()


def clockwise(quads: np.ndarray, notes: Counter[str]) -> np.ndarray:
    """Order the corners of quadrilaterals ``(n, 4, 2)`` clockwise on screen, starting with the first one written.

    Counter-clockwise quadrilaterals are reversed. If two sides cross, the corners are sorted by angle around their
    centre (four points with two crossing connections are the corners of one convex quadrilateral). Both cases are
    counted in the notes.
    """
    # quadrilaterals in which two opposite sides cross
    crossed = np.zeros(len(quads), dtype=bool)
    for a, b, c, d in ((0, 1, 2, 3), (1, 2, 3, 0)):
        p, q, r, s = (quads[:, corner] for corner in (a, b, c, d))
        apart = _cross(q - p, r - p) * _cross(q - p, s - p) < 0
        crossed |= apart & (_cross(s - r, p - r) * _cross(s - r, q - r) < 0)
    rays = quads - quads.mean(1, keepdims=True)
    angles = np.arctan2(rays[..., 1], rays[..., 0])
    around = ((angles - angles[:, :1]) % (2 * np.pi)).argsort(axis=1, kind="stable")
    quads = np.where(crossed[:, None, None], np.take_along_axis(quads, around[..., None], axis=1), quads)
    against = signed_areas(quads) < 0
    notes["quadrilaterals whose sides cross, corners put in order"] += int(crossed.sum())
    notes["quadrilaterals written counter-clockwise, turned"] += int(against.sum())
    return np.where(against[:, None, None], quads[:, [0, 3, 2, 1]], quads)


def signed_areas(quads: np.ndarray) -> np.ndarray:
    """Compute the areas ``(n,)`` of quadrilaterals ``(n, 4, 2)``; negative if counter-clockwise on screen."""
    return _cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1]) / 2


def circumscribed(quads: np.ndarray) -> np.ndarray:
    """Compute the axis-aligned boxes ``(n, 4)`` around quadrilaterals ``(n, 4, 2)``."""
    return rotated.polygon_hull(torch.from_numpy(quads)).numpy()


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product: np.ndarray = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return product


def corners(boxes: np.ndarray) -> np.ndarray:
    """Return the corners of axis-aligned boxes, clockwise on screen from the upper left one."""
    return boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
