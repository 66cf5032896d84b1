"""Precision and recall of each class over the score at IoU 0.5, and the score with the best F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locdistill.evaluation.matching import Matches
from locdistill.evaluation.voc import ap_of_counts

DEFAULT_SCORE = 0.3
"""Minimum score to show where no better one is known."""

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassCurve:
    """Precision and recall of one class, if detections below a score are left out.

    Attributes:
        name: Name of the class.
        objects: Number of objects to find.
        scores: ``(n,)`` the scores at which something changes, descending.
        precision: ``(n,)`` share of true detections among those with at least this score.
        recall: ``(n,)`` share of objects that they find; NaN if there is none to find.
        ap: AP50; None if there is no object to find.
    """

    name: str
    objects: int
    scores: Floats64
    precision: Floats64
    recall: Floats64
    ap: float | None

    @property
    def f1(self) -> Floats64:
        """Harmonic mean of precision and recall at each score."""
        both = self.precision + self.recall
        return np.divide(2 * self.precision * self.recall, both, out=np.zeros_like(both), where=both > 0)

    @property
    def best(self) -> int | None:
        """Index of the best F1, the highest score of equals; None if no detection is true."""
        f1 = self.f1
        return int(f1.argmax()) if f1.size and f1.max() > 0 else None

    @property
    def threshold(self) -> float | None:
        """Score with the best F1; None if no detection is true."""
        return None if self.best is None else float(self.scores[self.best])

    def at_best(self) -> dict[str, float | None]:
        """Return threshold, precision, recall and F1 at the best score; None for each if no detection is true."""
        names, i = ("threshold", "precision", "recall", "f1"), self.best
        if i is None:
            return dict.fromkeys(names)
        values = (self.scores[i], self.precision[i], self.recall[i], self.f1[i])
        return dict(zip(names, map(float, values), strict=True))


def class_curves(matches: Matches) -> tuple[ClassCurve, ...]:
    """Compute the curves of each class; ignored detections take no part."""
    curves = []
    counts = np.bincount(matches.objects.labels[matches.to_find], minlength=len(matches.classes))
    for c, name in enumerate(matches.classes):
        mine = np.flatnonzero((matches.reported.labels == c) & matches.counted)
        mine = mine[np.argsort(-matches.reported.values[mine], kind="stable")]
        true, scores = matches.true[mine], matches.reported.values[mine].astype(np.float64)
        objects = int(counts[c])
        # A score keeps all detections that have it, so that a value is that of the last of equals.
        last = np.flatnonzero(np.diff(scores, append=-np.inf))
        hits = np.cumsum(true)[last]
        recall = hits / objects if objects else np.full(len(last), np.nan)
        ap = average(true, objects, matches.levels)
        curves.append(ClassCurve(name, objects, scores[last], hits / (last + 1), recall, ap))
    return tuple(curves)


def average(true: NDArray[np.bool_], objects: int, levels: NDArray[np.floating] | None) -> float | None:
    """Compute AP of detections, best first; None if there is no object to find.

    Args:
        true: Whether each detection is true.
        objects: Number of objects to find.
        levels: Recalls at which precision is sampled; None for the area under its envelope.
    """
    if not objects:
        return None
    hits = np.cumsum(true, dtype=np.int64)
    return ap_of_counts(hits, np.arange(1, len(true) + 1) - hits, objects, levels)


def thresholds(curves: Sequence[ClassCurve]) -> dict[str, float]:
    """Return the score with the best F1 by class name, for classes that have one."""
    return {curve.name: curve.threshold for curve in curves if curve.threshold is not None}


def minimum_scores(classes: Sequence[str], best: dict[str, float], default: float = DEFAULT_SCORE) -> Floats64:
    """Return the minimum score of each class: its best one, else the default."""
    return np.array([best.get(name, default) for name in classes], np.float64)
