"""Comparison of detections with the objects that they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from locdistill.data.records import Dataset
from locdistill.geometry.boxes import pairwise_iou
from locdistill.geometry.kinds import kind_of
from locdistill.types import Detections

SCORE = 0.1
"""Minimum score of the detections that are compared."""
SAME, NEAR = 0.5, 0.1
"""Overlap from which a detection is of an object, and from which it is beside it."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Detections against objects, both by their axis-aligned boxes.

    Attributes:
        objects: Number of objects.
        detections: Number of detections.
        placed: Objects with a detection of any class in their place.
        named: Objects with a detection of their class in their place.
        beside: Objects with a detection of any class beside them only.
        shift: Median of the distances from object to detection, in ``x`` and ``y``, of the objects in ``beside``, in
            pixels.
        growth: Median of the detections' sides as multiples of the objects', likewise.
        mistaken: Numbers of objects by their class and the class of the best detection in their place, if another.
    """

    objects: int = 0
    detections: int = 0
    placed: int = 0
    named: int = 0
    beside: int = 0
    shift: tuple[float, float] = (0.0, 0.0)
    growth: float = 1.0
    mistaken: Mapping[tuple[int, int], int] = field(default_factory=dict)


def compare(dataset: Dataset, detections: Mapping[int, Detections]) -> Compared:
    """Match the detections of a data set with its objects; ignored objects do not count."""
    counts: Counter[str] = Counter()
    mistaken: Counter[tuple[int, int]] = Counter()
    shifts: list[Tensor] = []
    for record in dataset.records:
        boxes, labels = (torch.from_numpy(of[~record.ignored]) for of in (record.boxes, record.labels))
        counts["objects"] += len(boxes)
        found = detections.get(record.image_id)
        if found is None:
            continue
        kept = found.scores >= SCORE
        others, names = kind_of(found.boxes).hull(found.boxes[kept]), found.labels[kept]
        counts["detections"] += len(others)
        if not len(others) or not len(boxes):
            continue
        overlaps = pairwise_iou(boxes, others)
        same = overlaps >= SAME
        placed, right = same.any(1), (same & (names == labels[:, None])).any(1)
        best = (same * found.scores[kept]).argmax(1)  # of any class
        wrong = placed & (names[best] != labels)
        mistaken.update(zip(labels[wrong].tolist(), names[best][wrong].tolist(), strict=True))
        near = ~placed & (overlaps.amax(1) >= NEAR)
        here, there = boxes[near], others[overlaps.argmax(1)][near]
        apart = (there[:, :2] + there[:, 2:] - here[:, :2] - here[:, 2:]) / 2  # between the centres
        side, other = ((b[:, 2:] - b[:, :2]).clamp(min=1e-3).prod(-1).sqrt() for b in (here, there))
        shifts.append(torch.cat((apart, (other / side)[:, None]), 1))
        counts.update(placed=int(placed.sum()), named=int(right.sum()), beside=int(near.sum()))
    all_shifts = torch.cat(shifts) if shifts else torch.zeros(0, 3)
    dx, dy, growth = all_shifts.median(0).values.tolist() if len(all_shifts) else (0.0, 0.0, 1.0)
    return Compared(**counts, shift=(dx, dy), growth=growth, mistaken=mistaken)
