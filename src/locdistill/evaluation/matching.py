"""Detections matched to objects at IoU 0.5, by the rules of the data set's evaluator, and what else they overlap.

Curves, thresholds, the confusion matrix and the types of errors are computed from these matches, so that all of them
agree with AP50.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Dataset
from locdistill.evaluation.arrays import Rows, found
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.greedy import budget_of, match_greedily, pairwise_overlaps
from locdistill.evaluation.rotated import rotated_overlaps
from locdistill.evaluation.voc import match_class
from locdistill.types import Detections

FOREGROUND, BACKGROUND = 0.5, 0.1
"""IoU from which a detection may be of an object, and below which it is of none."""
_HALF = np.array([FOREGROUND])
_NONE = -1

Indices = NDArray[np.int64]


class OverlapPairs(NamedTuple):
    """Pairs of a detection and an object of one image, of any classes, with an IoU of at least ``BACKGROUND``.

    Attributes:
        detection: Index of the detection.
        object: Index of the object.
        overlap: IoU.
    """

    detection: Indices
    object: Indices
    overlap: NDArray[np.float64]

    def chosen(self, which: NDArray[np.bool_] | Indices) -> OverlapPairs:
        """Return some of the pairs, by a mask or by indices."""
        return OverlapPairs(self.detection[which], self.object[which], self.overlap[which])

    def best(self, detections: int) -> tuple[Indices, NDArray[np.float64]]:
        """Return the object that each detection overlaps most (the first of equals), else -1, and the IoU, else 0."""
        by_overlap = np.lexsort((self.object, -self.overlap, self.detection))
        mine, first = np.unique(self.detection[by_overlap], return_index=True)
        target, overlap = np.full(detections, _NONE), np.zeros(detections)
        target[mine], overlap[mine] = self.object[by_overlap[first]], self.overlap[by_overlap[first]]
        return target, overlap


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections and objects of a data set, matched at IoU 0.5.

    Attributes:
        classes: Names of the classes.
        images: Identifiers of the images; rows have indices into them.
        objects: Objects, ignored ones too.
        reported: Detections.
        target: ``(k,)`` index of the object that makes a detection true, else -1.
        counted: ``(k,)`` whether a detection is true or false, as opposed to ignored.
        pairs: Overlaps of counted detections with objects to find.
        levels: Recalls at which AP samples precision; None for the area under its envelope.
    """

    classes: tuple[str, ...]
    images: tuple[int, ...]
    objects: Rows
    reported: Rows
    target: Indices
    counted: NDArray[np.bool_]
    pairs: OverlapPairs
    levels: NDArray[np.floating] | None

    @property
    def true(self) -> NDArray[np.bool_]:
        """Mask of the true detections."""
        mask: NDArray[np.bool_] = self.target != _NONE
        return mask

    @property
    def to_find(self) -> NDArray[np.bool_]:
        """Mask of the objects to find: all that are not ignored."""
        mask: NDArray[np.bool_] = ~self.objects.values.astype(bool)
        return mask


def match(dataset: Dataset, detections: Mapping[int, Detections], *, eleven_point: bool | None = None) -> Matches:
    """Match the detections of a data set to its objects at IoU 0.5, as its evaluator does for AP50.

    Crowd regions and difficult objects need not be found; a detection that the evaluator matches to one is ignored.

    Args:
        dataset: Images, ground truth and class names.
        detections: By image identifier, in pixels of the original image. An image without an entry has none.
        eleven_point: As for :class:`Evaluator`.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    evaluator = Evaluator(dataset, eleven_point)
    here = found(dataset, detections)
    # Equal scores are ranked by the identifiers of their images in COCO, and in the given order elsewhere.
    records = dataset.records
    if evaluator.rules is None:
        records = tuple(sorted(records, key=lambda record: record.image_id))
    objects, reported = Rows.objects(records), Rows.detections([here[record.image_id] for record in records])
    target, counted = np.full(len(reported.images), _NONE), np.ones(len(reported.images), bool)
    for c in np.unique(reported.labels).tolist():
        mine, truth = (slice(*np.searchsorted(rows.labels, (c, c + 1))) for rows in (reported, objects))
        parts = (reported.taken(mine), objects.taken(truth))
        if evaluator.rules is None:
            own, counted[mine] = _as_coco(*parts, budget_of(records))
        else:
            at_half = replace(evaluator.rules, thresholds=evaluator.rules.thresholds[:1])
            (own,), (counted[mine],) = match_class(*parts, at_half)
        target[mine] = np.where(own == _NONE, _NONE, own + truth.start)
    pairs = _overlaps(reported, objects, oriented=dataset.oriented)
    pairs = pairs.chosen(counted[pairs.detection] & ~objects.values.astype(bool)[pairs.object])
    images = tuple(record.image_id for record in records)
    return Matches(dataset.classes, images, objects, reported, target, counted, pairs, evaluator.levels)


def _as_coco(reported: Rows, objects: Rows, budget: int) -> tuple[Indices, NDArray[np.bool_]]:
    """Match the detections of one class as COCO does; return the target, and whether each is counted."""
    target, counted = np.full(len(reported.images), _NONE), np.ones(len(reported.images), bool)
    truth = objects.by_image()
    for image, rows in reported.by_image().items():
        counted[rows.start + budget : rows.stop] = False
        if (here := truth.get(image)) is None:
            continue
        crowd, best = objects.values[here].astype(bool), slice(rows.start, min(rows.start + budget, rows.stop))
        overlaps = pairwise_overlaps(reported.boxes[best], objects.boxes[here], crowd)
        (own,), (forgiven,) = match_greedily(overlaps, crowd, crowd, _HALF)
        target[best] = np.where(own == _NONE, _NONE, own + here.start)
        counted[best] = ~forgiven
    return target, counted


def _overlaps(reported: Rows, objects: Rows, *, oriented: bool) -> OverlapPairs:
    """Compute the overlaps of detections and objects of the same image, whatever their classes."""
    if not len(reported.images) or not len(objects.images):
        return OverlapPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    if oriented:
        detection, target, overlap = rotated_overlaps(reported, objects)
        pairs = OverlapPairs(detection, target, overlap.astype(np.float64))
        return pairs.chosen(pairs.overlap >= BACKGROUND)
    orders = [np.argsort(rows.images, kind="stable") for rows in (reported, objects)]
    (mine, theirs) = (rows.taken(order).by_image() for rows, order in zip((reported, objects), orders, strict=True))
    parts = []
    for image in mine.keys() & theirs.keys():
        d, o = orders[0][mine[image]], orders[1][theirs[image]]
        overlaps = pairwise_overlaps(reported.boxes[d], objects.boxes[o])
        i, j = np.nonzero(overlaps >= BACKGROUND)
        parts.append((d[i], o[j], overlaps[i, j]))
    if not parts:
        return OverlapPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return OverlapPairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))
