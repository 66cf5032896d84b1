"""Average precision as Pascal VOC defines it, at ten overlaps, for any boxes with a given overlap.

A detection is assigned to the object of its class and image that it overlaps most, even if a better detection is
already matched to that object. It is true if that overlap reaches the threshold and the object is still unmatched,
ignored if the object is difficult, else false. Detections are processed in descending order of score, equal scores in
the given order.

There are two differences from the reference implementation, both in rounding: thresholds are 0.50, 0.55, ... 0.95 and
not a running sum (whose third is 0.6000000000000001), and sorting is stable, so that results do not depend on the
machine. One property is kept, because published 11-point numbers depend on it: recall levels are multiples of the float
0.1, so that a recall of exactly 3/10, 6/10 or 7/10 is slightly below its level (0.30000000000000004 and so on).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Dataset
from locdistill.evaluation.arrays import Rows, found
from locdistill.evaluation.tables import Table, percent
from locdistill.types import Detections

# Same precision as the overlaps, so that a quotient of exactly 7/10 reaches 0.7.
THRESHOLDS = (np.arange(50, 100, 5) / 100).astype(np.float32)
NAMES = tuple(f"AP{p}" for p in range(50, 100, 5))
RECALL_LEVELS = np.arange(11) * 0.1
_TINY = np.float32(1e-6)  # smallest union of two boxes, in square pixels

Floats: TypeAlias = NDArray[np.floating]


Nearest: TypeAlias = Callable[[Rows, Rows], tuple[NDArray[np.int64], Floats]]
"""Function from detections and objects of one class to the object in its image that each detection overlaps most, the
first of equals, and the overlap. If it overlaps none, or its image has none, the result is any object, and 0."""


@dataclass(frozen=True)
class Rules:
    """Rules of matching detections to objects; all else is the same for all kinds of boxes.

    Attributes:
        name: Name of the metrics.
        thresholds: Required overlaps at 0.50, 0.55, ... 0.95, in the precision of the overlaps.
        nearest: Function that finds the object each detection is compared with.
    """

    name: str
    thresholds: Floats
    nearest: Nearest


@dataclass(frozen=True)
class VocResult:
    """VOC metrics of one set of detections, by class and threshold; NaN where a class has no object to find.

    Attributes:
        classes: Class names.
        ap: AP, ``(thresholds, classes)``.
        recall: Recall of all detections, ``(thresholds, classes)``.
        objects: Number of objects to find by class, without difficult ones.
        reported: Number of detections by class.
        eleven_point: Whether AP samples precision at eleven recalls (VOC 2007) or is the area under it (from 2010).
        name: Name of the rules.
    """

    classes: tuple[str, ...]
    ap: NDArray[np.float64]
    recall: NDArray[np.float64]
    objects: NDArray[np.int64]
    reported: NDArray[np.int64]
    eleven_point: bool
    name: str = "VOC"

    @property
    def stats(self) -> dict[str, float | None]:
        """AP (mean of the ten), AP50 ... AP95, and mAP, the usual name of AP50 for VOC; None without objects."""
        some = self.objects > 0
        means = dict(zip(NAMES, (float(v) for v in self.ap[:, some].mean(1)), strict=True)) if some.any() else {}
        mean = sum(means.values()) / len(means) if means else None
        return {"AP": mean} | {name: means.get(name) for name in NAMES} | {"mAP": means.get("AP50")}

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log: ``stats``, NaN if there are no objects."""
        return {name: math.nan if value is None else value for name, value in self.stats.items()}

    def tables(self) -> tuple[Table, ...]:
        """Return a table of the means at each threshold, and one of AP by class at each threshold."""
        kind = "11-point" if self.eleven_point else "area"
        stats = self.stats
        summary = Table(f"{self.name} metrics (%, {kind})", tuple(stats), (tuple(percent(v) for v in stats.values()),))
        rows = []
        for c, name in enumerate(self.classes):
            defined = (None if math.isnan(v) else float(v) for v in self.ap[:, c])
            rows.append((name, str(self.objects[c]), str(self.reported[c]), *map(percent, defined)))
        means = (percent(stats[name]) for name in NAMES)
        rows.append(("mean", str(self.objects.sum()), str(self.reported.sum()), *means))
        header = ("class", "objects", "found", *NAMES)
        return summary, Table("By class and overlap", header, tuple(rows), emphasis=(len(rows) - 1,))


def average_precision(
    dataset: Dataset, detections: Mapping[int, Detections], rules: Rules, *, eleven_point: bool
) -> VocResult:
    """Compute AP by class at overlaps 0.50, 0.55, ... 0.95, ignoring difficult objects (``Record.ignored``).

    Overlaps are computed with continuous coordinates: no pixel is added to a width (the VOC devkit of 2007 adds one).

    Args:
        dataset: Images, ground truth and class names.
        detections: By image identifier, in pixels of the original image. An image without an entry has none.
        rules: Rules of matching, ``VOC`` or those of rotated boxes.
        eleven_point: Whether AP is the mean of the best precision at recalls 0, 0.1, ... 1 (VOC 2007), instead of the
            area under the decreasing envelope of precision over recall.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    found_by_image = found(dataset, detections)
    objects, reported = Rows.objects(dataset.records), Rows.detections([*found_by_image.values()])
    shape = (len(rules.thresholds), len(dataset.classes))
    ap, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    to_find = np.bincount(objects.labels[~objects.values], minlength=shape[1])
    levels = RECALL_LEVELS if eleven_point else None
    for c in np.flatnonzero(to_find).tolist():
        mine = reported.of_class(c)
        target, counted = match_class(mine, objects.of_class(c), rules)
        true = target != -1
        best_first = np.argsort(-mine.values, kind="stable")
        hits = np.cumsum(true[:, best_first], 1)
        misses = np.cumsum((counted & ~true)[:, best_first], 1)
        ap[:, c] = [ap_of_counts(h, m, int(to_find[c]), levels) for h, m in zip(hits, misses, strict=True)]
        recall[:, c] = true.sum(1) / to_find[c]
    found_of_class = np.bincount(reported.labels, minlength=shape[1])
    return VocResult(dataset.classes, ap, recall, to_find, found_of_class, eleven_point, rules.name)


def match_class(reported: Rows, objects: Rows, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Match the detections of a class, best first per image, to its objects.

    Returns:
        ``(thresholds, k)`` index of the object that makes a detection true, else -1; and whether a detection is true or
        false: that of a difficult object is neither.
    """
    target = np.full((len(rules.thresholds), len(reported.images)), -1)
    if not len(objects.images):
        return target, np.ones(target.shape, bool)
    # Among equal overlaps the first object wins; those to find come before the difficult ones.
    order = np.lexsort((objects.values, objects.images))
    nearest, overlap = rules.nearest(reported, objects.taken(order))
    nearest = order[nearest]
    reached = overlap >= rules.thresholds[:, None]
    counts = ~(reached & objects.values[nearest])
    # Best first, so the first detection of each object has it; the later ones are false.
    threshold, detection = np.nonzero(reached & counts)
    first = np.unique(threshold * len(objects.images) + nearest[detection], return_index=True)[1]
    target[threshold[first], detection[first]] = nearest[detection[first]]
    return target, counts


def _nearest(reported: Rows, objects: Rows) -> tuple[NDArray[np.int64], Floats]:
    """Find the nearest object by IoU, in the precision of the boxes; only images with an object are processed."""
    target, overlap = np.zeros(len(reported.images), np.int64), np.zeros(len(reported.images), np.float32)
    truth = objects.by_image()
    for image, mine in reported.by_image().items():
        if (here := truth.get(image)) is not None:
            a, b = reported.boxes[mine], objects.boxes[here]
            low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
            shared = (high - low).clip(min=0).prod(-1)
            areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None]
            overlaps = shared / np.maximum(areas - shared, _TINY)
            target[mine] = here.start + overlaps.argmax(1)
            overlap[mine] = overlaps.max(1)
    return target, overlap


VOC = Rules("VOC", THRESHOLDS, _nearest)


def ap_of_counts(
    hits: NDArray[np.int64], misses: NDArray[np.int64], objects: int, levels: NDArray[np.floating] | None
) -> float:
    """Compute AP from the running counts of true and false detections.

    Args:
        hits: ``(k,)`` number of true detections up to each.
        misses: ``(k,)`` number of false ones.
        objects: Number of objects to find.
        levels: Recalls at which precision is sampled; None for the area under its envelope.
    """
    # Ignored detections at the start have no true or false ones before them: precision 0, at recall 0.
    precision = hits / np.maximum(hits + misses, 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    if levels is not None:
        places = np.searchsorted(hits / objects, levels)  # the first position at which each level is reached
        return float(np.append(best_from_here, 0.0)[places].sum() / len(levels))
    gained = np.diff(hits, prepend=0)
    return float((best_from_here * gained).sum() / objects)
