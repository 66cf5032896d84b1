"""Types of errors, and the AP50 that each costs, after Bolya et al., "TIDE", ECCV 2020.

A false detection is of one type, by the objects to find that it overlaps in its image:

* ``classification``: at least 0.5 with an object of another class;
* ``duplicate``: at least 0.5 with an object of its class, which a better detection has;
* ``localization``: between 0.1 and 0.5 with an object of its class;
* ``both``: between 0.1 and 0.5 with an object of another class;
* ``background``: less than 0.1 with every object.

Where the definitions leave a choice: between the first two, the object that it overlaps most decides (its own class if
equal); localization comes before both. ``missed`` are the objects without a true detection, at which no detection of
type classification or localization points.

The cost of a type is the AP50 that fixing it alone would gain. Classification gives the detection the class of the
object, localization its box: it becomes true, unless a better detection has that object; then the worse of the two is
removed. Both, duplicate and background remove the detection. Missed removes the object, which stretches recall: the
detector is taken to be as precise on the objects that it misses as on those that it finds. The costs do not add up to
what is lacking: errors hide each other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from locdistill.evaluation.curves import average
from locdistill.evaluation.matching import FOREGROUND, Matches

ERROR_TYPES = ("classification", "localization", "both", "duplicate", "background", "missed")
_FIXED = ("classification", "localization")
_MISSED = "missed"


@dataclass(frozen=True, eq=False)
class ErrorCosts:
    """Errors of a detector by type.

    Attributes:
        ap: AP50 as it is; None if there is no object to find.
        costs: AP50 that fixing each type alone would gain.
        counts: Number of detections (``missed``: objects) of each type.
    """

    ap: float | None
    costs: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, eq=False)
class ErrorLabels:
    """Type of each false detection.

    Attributes:
        kind: ``(k,)`` index into ``ERROR_TYPES``; -1 for true and ignored detections.
        aim: ``(k,)`` index of the object at which a detection of type classification or localization points, else -1.
        missed: ``(n,)`` mask of the missed objects.
    """

    kind: NDArray[np.int64]
    aim: NDArray[np.int64]
    missed: NDArray[np.bool_]

    def of(self, name: str) -> NDArray[np.bool_]:
        """Return the mask of the detections of a type."""
        mask: NDArray[np.bool_] = self.kind == ERROR_TYPES.index(name)
        return mask


def error_costs(matches: Matches) -> ErrorCosts:
    """Compute the AP50 that each type of error costs."""
    labels = label_errors(matches)
    ap = ap_without(matches, labels, ())
    counts = {name: int(labels.of(name).sum()) for name in ERROR_TYPES[:-1]} | {_MISSED: int(labels.missed.sum())}
    costs = {name: 0.0 if ap is None else (ap_without(matches, labels, (name,)) or 0.0) - ap for name in ERROR_TYPES}
    return ErrorCosts(ap, costs, counts)


def label_errors(matches: Matches) -> ErrorLabels:
    """Find the type of each false detection, and the missed objects."""
    count, pairs = len(matches.reported.images), matches.pairs
    same = matches.reported.labels[pairs.detection] == matches.objects.labels[pairs.object]
    (own, own_overlap), (other, other_overlap) = (pairs.chosen(which).best(count) for which in (same, ~same))
    conditions = {  # the first that holds
        "classification": (other_overlap >= FOREGROUND) & (other_overlap > own_overlap),
        "duplicate": own_overlap >= FOREGROUND,
        "localization": own != -1,
        "both": other != -1,
        "background": np.ones(count, bool),
    }
    kind = np.select([*conditions.values()], [ERROR_TYPES.index(name) for name in conditions])
    kind[matches.true | ~matches.counted] = -1
    aim = np.where(kind == ERROR_TYPES.index("classification"), other, -1)
    aim = np.where(kind == ERROR_TYPES.index("localization"), own, aim)
    missed = matches.to_find
    missed[matches.target[matches.true]] = False
    missed[aim[aim != -1]] = False
    return ErrorLabels(kind, aim, missed)


def ap_without(matches: Matches, labels: ErrorLabels, fixed: Collection[str]) -> float | None:
    """Compute AP50 with some types of errors fixed; None if there is no object to find.

    A class of which fixing leaves no object is left out of the mean; AP is 1 if that holds for all of them.
    """
    removed = ~matches.counted
    for name in fixed:
        if name not in (*_FIXED, _MISSED):
            removed |= labels.of(name)
    target = matches.target.copy()
    for name in _FIXED:
        if name in fixed:
            target = np.where(labels.of(name), labels.aim, target)
    classes, scores = matches.reported.labels.copy(), matches.reported.values
    classes[target != -1] = matches.objects.labels[target[target != -1]]
    # Of the detections that now have the same object, the best stays.
    claims = np.flatnonzero(target != -1)
    claims = claims[np.lexsort((claims, -scores[claims], target[claims]))]
    again = np.ones(len(claims), bool)
    again[np.unique(target[claims], return_index=True)[1]] = False
    removed[claims[again]] = True
    to_find = matches.to_find & ~labels.missed if _MISSED in fixed else matches.to_find
    objects = np.bincount(matches.objects.labels[to_find], minlength=len(matches.classes))
    values = []
    for c in np.flatnonzero(objects).tolist():
        mine = np.flatnonzero((classes == c) & ~removed)
        mine = mine[np.lexsort((matches.reported.images[mine], -scores[mine]))]
        values.append(average(target[mine] != -1, int(objects[c]), matches.levels) or 0.0)
    if values:
        return sum(values) / len(values)
    return 1.0 if matches.to_find.any() else None
