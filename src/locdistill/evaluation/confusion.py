"""Confusion of classes at a minimum score, and a score for each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locdistill.evaluation.matching import FOREGROUND, Matches


def confusion_matrix(matches: Matches, scores: NDArray[np.floating]) -> NDArray[np.int64]:
    """Count detections by the class of the object (row) and by their own (column), ``(classes + 1, classes + 1)``.

    The true detections of AP50 are the diagonal. Of the others, those with an IoU of at least 0.5 with an object of
    another class that is not found are confusions, each object and each detection once, by IoU. What
    is left are false detections (last row: background) and missed objects (last column). Ignored detections and objects
    are left out.

    Args:
        matches: Detections matched to objects.
        scores: ``(classes,)`` minimum score of each class.
    """
    shown = shown_detections(matches, scores)
    background = len(matches.classes)
    row_of = np.full(len(matches.reported.images), background)
    hit = shown & matches.true
    row_of[hit] = matches.reported.labels[hit]
    found = np.zeros(len(matches.objects.images), bool)
    found[matches.target[hit]] = True
    pairs = matches.pairs.chosen((matches.pairs.overlap >= FOREGROUND) & (shown & ~hit)[matches.pairs.detection])
    taken = ~shown | hit
    for i in np.lexsort((pairs.object, pairs.detection, -pairs.overlap)).tolist():
        d, o = pairs.detection[i], pairs.object[i]
        if not taken[d] and not found[o] and matches.objects.labels[o] != matches.reported.labels[d]:
            taken[d] = found[o] = True
            row_of[d] = matches.objects.labels[o]
    matrix = np.zeros((background + 1, background + 1), np.int64)
    np.add.at(matrix, (row_of[shown], matches.reported.labels[shown]), 1)
    missed = matches.objects.labels[matches.to_find & ~found]
    matrix[:background, background] = np.bincount(missed, minlength=background)
    return matrix


def shown_detections(matches: Matches, scores: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the mask of the counted detections with at least the minimum score of their class."""
    return matches.counted & (matches.reported.values >= scores[matches.reported.labels])


@dataclass(frozen=True)
class ImageScore:
    """Detections of one image at the minimum scores.

    Attributes:
        image_id: Identifier of the image.
        found: Number of objects found.
        missed: Number of objects missed.
        false: Number of false detections.
    """

    image_id: int
    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """Twice the found objects over all objects and detections; 1 if there is neither."""
        everything = 2 * self.found + self.missed + self.false
        return 2 * self.found / everything if everything else 1.0


def image_scores(matches: Matches, scores: NDArray[np.floating]) -> tuple[ImageScore, ...]:
    """Score each image at the minimum scores of the classes, worst first.

    The score is F1. Of equals, images with more errors are worse, and images with more found objects better.
    """
    count = len(matches.images)
    shown = shown_detections(matches, scores)
    found = np.bincount(matches.reported.images[shown & matches.true], minlength=count)
    false = np.bincount(matches.reported.images[shown & ~matches.true], minlength=count)
    objects = np.bincount(matches.objects.images[matches.to_find], minlength=count)
    rows = zip(matches.images, found.tolist(), (objects - found).tolist(), false.tolist(), strict=True)
    every = [ImageScore(*row) for row in rows]
    return tuple(sorted(every, key=lambda one: (one.f1, -(one.missed + one.false), one.found)))
