"""What the readers of the formats hand over: annotations as written, with all that is wrong with them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from locdistill.data.problems import Problem


@dataclass
class Listed:
    """An image as an annotation source lists it; its file has not been looked at.

    Attributes:
        path: The image file.
        image_id: The source's identifier.
        declared: Height and width that the source claims, if it does.
        boxes: ``(n, 4)``, ``x1, y1, x2, y2`` in pixels, or in parts of the image sides.
        categories: ``(n,)`` positions in the source's list of categories.
        ignored: ``(n,)`` crowd or difficult.
        areas: ``(n,)`` or ``None`` where the source gives none.
        where: Names the image in messages.
        quads: ``(n, 4, 2)`` corners of each object in pixels, clockwise on screen, where the source has rotated
            objects; ``boxes`` circumscribe them.
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
        file: For messages.
        categories: Identifier and name of each category, in the order of the labels.
        images: What it lists.
        relative: Whether boxes are in parts of the image sides (YOLO) rather than pixels.
        problems: What is broken in it.
        notes: Harmless oddities, counted.
    """

    file: str
    categories: list[tuple[int, str]]
    images: list[Listed] = field(default_factory=list)
    relative: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def box_arrays(rows: list[tuple[float, float, float, float]]) -> np.ndarray:
    """Boxes as an array ``(n, 4)``, also for none."""
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)
