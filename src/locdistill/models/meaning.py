"""Meaning of the numbers that a location predicts, and the bins of their distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

from locdistill.geometry.bins import Bins, CircularBins, RowBins
from locdistill.geometry.coding import ANGLE, DISTANCES, GROWTH, AnchorDeltas, Coding, RotatedDistances
from locdistill.geometry.kinds import Rotated
from locdistill.models.kinds import KINDS, NumbersName
from locdistill.models.settings import DetectorSettings

Meaning = tuple[Coding, Bins]
FIRST_ANGLE = {"oc": -math.pi / 4, "le90": -math.pi / 2, "le135": -math.pi / 4}
"""Start of a half turn that contains all angles of a range, with those of ``oc`` in its middle."""


def distances(settings: DetectorSettings) -> Meaning:
    """Return coding and bins of four distances, in strides."""
    return DISTANCES, Bins(settings.reg_max)


def rotated_distances(settings: DetectorSettings) -> Meaning:
    """Return coding and bins of four distances along the sides of a rotated box, in strides, and its angle."""
    reg_max, ranges = settings.reg_max, 4 * ((0.0, float(settings.reg_max)),)
    coding = RotatedDistances(Rotated(settings.angles))
    first = FIRST_ANGLE[settings.angles]
    if settings.angle_bins == "circular":
        return coding, CircularBins(RowBins(reg_max, ranges), math.pi, first)
    return coding, RowBins(reg_max, (*ranges, (first, first + math.pi)))


def anchor_deltas(settings: DetectorSettings) -> Meaning:
    """Return coding and bins of the shift and growth of an anchor, and an angle."""
    coding = AnchorDeltas(Rotated(settings.angles), settings.angle_unit)
    if settings.angle_bins == "circular":
        first = FIRST_ANGLE[settings.angles] / settings.angle_unit
        lengths = RowBins(settings.reg_max, 4 * (GROWTH,))
        return coding, CircularBins(lengths, math.pi / settings.angle_unit, first)
    return coding, RowBins(settings.reg_max, (*4 * (GROWTH,), ANGLE))


MEANINGS: dict[NumbersName, Callable[[DetectorSettings], Meaning]] = {
    "distances": distances,
    "rotated_distances": rotated_distances,
    "anchor_deltas": anchor_deltas,
}


def meaning_of(settings: DetectorSettings) -> Meaning:
    """Return coding and bins of a detector's numbers."""
    return MEANINGS[KINDS[settings.model].numbers](settings)
