"""COCO's matching of the detections of one image and class to its objects, and the overlaps that it is based on."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Record

BUDGET = 100
"""Detections per image and class that COCO evaluates."""


def budget_of(records: Iterable[Record]) -> int:
    """Return the detections per image and class to evaluate: COCO's 100, or hundreds that suffice for all objects."""
    most = max((int(np.bincount(r.labels[~r.ignored]).max(initial=0)) for r in records), default=0)
    return max(BUDGET, math.ceil(most / BUDGET) * BUDGET)


def pairwise_overlaps(
    boxes: NDArray[np.floating], truth: NDArray[np.floating], crowd: NDArray[np.bool_] | bool = False
) -> NDArray[np.float64]:
    """Compute the IoU of upright boxes ``(k, 4)`` and ``(n, 4)``; for a crowd, the fraction of the box inside it."""
    a, b = boxes.astype(np.float64), truth.astype(np.float64)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    own, theirs = ((c[:, 2:] - c[:, :2]).prod(-1) for c in (a, b))
    union = np.where(crowd, own[:, None], own[:, None] + theirs - shared)
    overlaps: NDArray[np.float64] = shared / np.maximum(union, 1e-12)
    return overlaps


def match_greedily(
    overlaps: NDArray[np.float64], crowd: NDArray[np.bool_], ignored: NDArray[np.bool_], thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Match detections, best first, to objects.

    A detection is matched to the free object that it overlaps most (of equal overlaps the last), to an ignored one only
    if there is no other. A crowd can be matched any number of times.

    Args:
        overlaps: ``(k, n)`` of detections and objects.
        crowd: ``(n,)`` whether an object is a crowd.
        ignored: ``(n,)`` whether an object need not be found.
        thresholds: ``(t,)`` required overlaps, ascending.

    Returns:
        ``(t, k)`` index of the object that makes a detection true, else -1; and whether it matches an ignored one.
    """
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]
    target = np.full((len(limits), len(overlaps)), -1)
    forgiven = np.zeros(target.shape, bool)
    taken = np.zeros((len(limits), len(crowd)), bool)
    for d in np.flatnonzero((overlaps >= limits[0]).any(1)):
        within = (overlaps[d] >= limits) & (~taken | crowd)
        for group, is_ignored in ((~ignored, False), (ignored, True)):
            fits = within & group & (target[:, d, None] == -1)
            t = np.flatnonzero(fits.any(1))
            best = len(crowd) - 1 - np.where(fits[t], overlaps[d], -1.0)[:, ::-1].argmax(1)
            taken[t, best] = True
            if is_ignored:
                forgiven[t, d] = True
            else:
                target[t, d] = best
    return target, forgiven
