"""Meaning of the numbers that a location predicts, and the bins of their distributions."""

from __future__ import annotations

import math

from locdistill.geometry.bins import Bins, CircularBins, RowBins
from locdistill.geometry.coding import ANGLE, DISTANCES, GROWTH, AnchorDeltas, Coding, RotatedDistances
from locdistill.geometry.kinds import Rotated
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings

FIRST_ANGLE = {"oc": -math.pi / 4, "le90": -math.pi / 2, "le135": -math.pi / 4}
"""Start of a half turn that contains all angles of a range, with those of ``oc`` in its middle."""


def meaning_of(settings: DetectorSettings) -> tuple[Coding, Bins]:
    """Return coding and bins of a detector's numbers.

    They are four distances in strides; four distances along the sides of a rotated box, and its angle; or the shift and
    growth of an anchor, and an angle.
    """
    numbers, reg_max = KINDS[settings.model].numbers, settings.reg_max
    if numbers == "distances":
        return DISTANCES, Bins(reg_max)
    kind, first, unit = Rotated(settings.angles), FIRST_ANGLE[settings.angles], 1.0
    coding: Coding = RotatedDistances(kind)
    ranges, angle = 4 * ((0.0, float(reg_max)),), (first, first + math.pi)
    if numbers == "anchor_deltas":
        unit = settings.angle_unit
        coding, ranges, angle = AnchorDeltas(kind, unit), 4 * (GROWTH,), ANGLE
    if settings.angle_bins == "circular":
        return coding, CircularBins(RowBins(reg_max, ranges), math.pi / unit, first / unit)
    return coding, RowBins(reg_max, (*ranges, angle))
