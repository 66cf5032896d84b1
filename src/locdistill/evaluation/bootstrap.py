"""Bootstrap over images: AP on resamples of the images, to measure its dependence on them.

A resample draws as many images as there are, with replacement. Whether a detection is true is decided within its image
and does not depend on other images, so matching is done once; a resample only changes the weight of each image. AP is
then a sum over the true detections of a class, with integer weights, for many resamples at once.

The rules are those of :mod:`locdistill.evaluation.coco` and :mod:`locdistill.evaluation.voc`: if every image has weight
1, AP is theirs, and if an image has weight 2, it is AP on data that include the image twice (except for the order of
equal scores: copies of a detection follow each other here). Matching for COCO is implemented here, since
``faster-coco-eval`` does not expose its matches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.arrays import Rows, found
from locdistill.evaluation.coco import OVERLAPS
from locdistill.evaluation.greedy import budget_of, match_greedily, pairwise_overlaps
from locdistill.evaluation.voc import RECALL_LEVELS, VOC, Rules, match_class
from locdistill.types import Detections

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_LEVELS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO samples precision."""
_AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
_CHUNK = 2_000_000  # numbers in memory at once


@dataclass(frozen=True, eq=False)
class Ranked:
    """The detections of one class in all images, by descending score, with their matches at each overlap.

    Detections without effect on AP are left out.

    Attributes:
        image: ``(n,)`` index of the image.
        true: ``(t, n)``, whether each is true at each overlap.
        counted: ``(t, n)``: whether each is true or false, as opposed to ignored.
        objects: ``(images,)`` number of objects to find.
    """

    image: NDArray[np.int64]
    true: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Numbers:
    """AP on each of several resamples, between 0 and 1; NaN where a resample has no object to find.

    Attributes:
        means: Means of AP, AP50, AP75, AP90 over the classes with objects; for COCO also APs, APm and APl.
        classes: AP by class name.
    """

    means: dict[str, NDArray[np.float64]]
    classes: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Matches of a data set's detections, from which AP on any weighting of its images follows.

    Attributes:
        images: Identifiers, ascending; the columns of the weights.
        classes: Names of the classes.
        ranked: Detections of each class, by size (``""`` is all; ``s``, ``m``, ``l`` for COCO).
        levels: Recalls at which precision is sampled; None for the area under its envelope.
    """

    images: tuple[int, ...]
    classes: tuple[str, ...]
    ranked: dict[str, tuple[Ranked, ...]]
    levels: NDArray[np.floating] | None

    def numbers(self, weights: NDArray[np.integer] | None = None) -> Numbers:
        """Compute AP on resamples.

        Args:
            weights: ``(resamples, images)``, weight of each image; 1 by default.
        """
        if weights is None:
            weights = np.ones((1, len(self.images)), np.int64)
        by_size = {}  # AP by resample, overlap and class
        for size, of_class in self.ranked.items():
            by_size[size] = np.full((len(weights), len(_THRESHOLDS), len(self.classes)), np.nan)
            for c, ranked in enumerate(of_class):
                rows = max(1, _CHUNK // max(1, len(ranked.image)))
                for first in range(0, len(weights), rows):
                    chunk = slice(first, first + rows)
                    by_size[size][chunk, :, c] = _average_precision(ranked, weights[chunk], self.levels)
        ap = by_size[""]
        means = {"AP": _mean(ap.mean(1))} | {f"AP{name}": _mean(ap[:, i]) for name, i in OVERLAPS.items()}
        means |= {f"AP{size}": _mean(values.mean(1)) for size, values in by_size.items() if size}
        return Numbers(means, {name: ap[:, :, c].mean(1) for c, name in enumerate(self.classes)})


def image_weights(images: int, resamples: int, *, seed: int = 0) -> NDArray[np.int32]:
    """Draw the weight of each image: ``(resamples, images)``, with rows that sum to the number of images."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / max(images, 1)), size=resamples).astype(np.int32)


def judge_coco(dataset: Dataset, detections: Mapping[int, Detections]) -> Judgement:
    """Match detections to objects as COCO does, over all objects and by size.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    collected = _Collected(dataset, tuple(_AREAS))
    here, budget = found(dataset, detections), budget_of(collected.records)
    for i, record in enumerate(collected.records):
        mine = here[record.image_id]
        for c in np.union1d(mine.labels, record.labels).tolist():
            # indices of the detections of this class in this image
            own = np.flatnonzero(mine.labels == c)
            chosen, of_class = own[np.argsort(-mine.scores[own], kind="stable")][:budget], record.labels == c
            boxes = mine.boxes[chosen].astype(np.float64)
            crowd, areas = record.ignored[of_class], record.areas[of_class].astype(np.float64)
            overlaps = pairwise_overlaps(boxes, record.boxes[of_class], crowd)
            own_areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            for size, (low, high) in _AREAS.items():
                ignored = crowd | (areas < low) | (areas > high)
                target, forgiven = match_greedily(overlaps, crowd, ignored, _THRESHOLDS)
                true = target != -1
                beside = (own_areas < low) | (own_areas > high)  # used only where there is no match
                counted = ~forgiven & (true | ~beside)
                collected.objects[size, c][i] = int((~ignored).sum())
                collected.parts[size, c].append((np.full(len(chosen), i), mine.scores[chosen], true, counted))
    return collected.judgement(COCO_LEVELS)


def judge_voc(
    dataset: Dataset, detections: Mapping[int, Detections], *, eleven_point: bool, rules: Rules = VOC
) -> Judgement:
    """Match detections to objects as VOC does, or by other rules of its kind.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    collected = _Collected(dataset, ("",))
    here = found(dataset, detections)
    objects = Rows.objects(collected.records)
    reported = Rows.detections([here[record.image_id] for record in collected.records])
    for c in range(len(dataset.classes)):
        mine, truth = reported.of_class(c), objects.of_class(c)
        target, counted = match_class(mine, truth, rules)
        collected.objects["", c] += np.bincount(truth.images[~truth.values], minlength=len(collected.records))
        collected.parts["", c].append((mine.images, mine.values, target != -1, counted))
    return collected.judgement(RECALL_LEVELS if eleven_point else None)


class _Collected:
    """Collector of matched detections, image by image."""

    def __init__(self, dataset: Dataset, sizes: tuple[str, ...]) -> None:
        # COCO ranks equal scores by image identifier, and VOC's identifiers are the positions of the images.
        self.records: list[Record] = sorted(dataset.records, key=lambda record: record.image_id)
        self.classes = dataset.classes
        places = [(size, c) for size in sizes for c in range(len(dataset.classes))]
        self.objects = {place: np.zeros(len(self.records), np.int64) for place in places}
        self.parts: dict[tuple[str, int], list[tuple[NDArray[np.generic], ...]]] = {place: [] for place in places}

    def judgement(self, levels: NDArray[np.floating] | None) -> Judgement:
        """Return all matches, ranked by score."""
        ranked: dict[str, list[Ranked]] = {}
        nothing = np.zeros((len(_THRESHOLDS), 0), bool)
        for (size, c), some in self.parts.items():
            parts = [(np.zeros(0, np.int64), np.zeros(0, np.float32), nothing, nothing), *some]
            image, scores, true, counted = (np.concatenate(part, -1) for part in zip(*parts, strict=True))
            order = np.argsort(-scores, kind="stable")
            # Detections that are never counted, or follow the last true detection, change no precision that is used.
            last = np.flatnonzero(true[:, order].any(0))[-1:]
            order = order[: int(last[0]) + 1 if last.size else 0]
            order = order[counted[:, order].any(0)]
            one = Ranked(image[order], true[:, order], counted[:, order], self.objects[size, c])
            ranked.setdefault(size, []).append(one)
        images = tuple(record.image_id for record in self.records)
        return Judgement(images, self.classes, {size: tuple(of_class) for size, of_class in ranked.items()}, levels)


def _average_precision(
    ranked: Ranked, weights: NDArray[np.integer], levels: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    """Compute AP by resample and overlap.

    Precision is needed only at the true detections: its decreasing envelope and recall change nowhere else.
    """
    some_objects = np.flatnonzero(ranked.objects)  # most classes have objects in few images
    total = weights[:, some_objects] @ ranked.objects[some_objects]
    drawn = weights[:, ranked.image]
    ap = np.zeros((len(weights), len(ranked.true)))
    always = np.asarray(ranked.counted.all(0))
    seen_always = _running(drawn, always)
    for t in range(ap.shape[1]):
        true, some = ranked.true[t], ranked.counted[t] & ~always
        places = np.flatnonzero(true)
        hits = _running(drawn, true)[:, 1:]
        seen = seen_always[:, np.cumsum(always)[places]]
        if some.any():
            seen = seen + _running(drawn, some)[:, np.cumsum(some)[places]]
        precision = hits / np.maximum(seen, 1)
        best_from_here = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        recall = hits / np.maximum(total, 1)[:, None]
        # Width of the recall axis that belongs to each true detection.
        if levels is None:
            share = np.diff(recall, prepend=0.0)
        else:
            share = np.diff(np.searchsorted(levels, recall, side="right"), prepend=0) / len(levels)
        ap[:, t] = (best_from_here * share).sum(1)
    ap[total == 0] = np.nan
    return ap


def _running(drawn: NDArray[np.integer], columns: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Compute sums of the first 0, 1, 2, ... of the chosen columns."""
    sums = np.zeros((len(drawn), int(columns.sum()) + 1), drawn.dtype)
    np.cumsum(drawn[:, columns], 1, out=sums[:, 1:])
    return sums


def _mean(by_class: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the mean over the classes with objects; NaN where there is none."""
    defined = ~np.isnan(by_class)
    count = defined.sum(1)
    mean: NDArray[np.float64] = np.where(defined, by_class, 0.0).sum(1) / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)
