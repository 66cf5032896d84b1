"""The kinds of detectors: what sets them apart beside their losses, which are terms of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from locdistill.geometry.bins import Bins, CircularBins, RowBins
from locdistill.geometry.coding import ANGLE, DISTANCES, GROWTH, AnchorDeltas, Coding, RotatedDistances
from locdistill.geometry.kinds import Rotated
from locdistill.models.fpn import ExtraLevels
from locdistill.models.heads.centerness import CenternessHead
from locdistill.models.heads.gfl import GFLHead, GFLv2Head
from locdistill.models.heads.retina import RetinaHead
from locdistill.models.settings import DetectorSettings

Meaning = tuple[Coding, Bins]
FIRST_ANGLE = {"oc": -math.pi / 4, "le90": -math.pi / 2, "le135": -math.pi / 4}
"""Where half a turn begins that has all angles of a range, those of ``oc`` in its middle."""


def distances(settings: DetectorSettings) -> Meaning:
    """Four distances, in strides."""
    return DISTANCES, Bins(settings.reg_max)


def rotated_distances(settings: DetectorSettings) -> Meaning:
    """Four distances along the sides of a rotated box, in strides, and its angle."""
    reg_max, ranges = settings.reg_max, 4 * ((0.0, float(settings.reg_max)),)
    coding = RotatedDistances(Rotated(settings.angles))
    first = FIRST_ANGLE[settings.angles]
    if settings.angle_bins == "circular":
        return coding, CircularBins(RowBins(reg_max, ranges), math.pi, first)
    return coding, RowBins(reg_max, (*ranges, (first, first + math.pi)))


def anchor_deltas(settings: DetectorSettings) -> Meaning:
    """Shift and growth of an anchor, and an angle."""
    coding = AnchorDeltas(Rotated(settings.angles), settings.angle_unit)
    if settings.angle_bins == "circular":
        first = FIRST_ANGLE[settings.angles] / settings.angle_unit
        lengths = RowBins(settings.reg_max, 4 * (GROWTH,))
        return coding, CircularBins(lengths, math.pi / settings.angle_unit, first)
    return coding, RowBins(settings.reg_max, (*4 * (GROWTH,), ANGLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorKind:
    """A kind of detector.

    Attributes:
        head: Built from the settings; called with the levels of a pyramid it gives `Dense`.
        meaning: What the numbers mean that a location predicts, and the bins of their distributions.
        extra: What the further levels of the pyramid are made of.
        offset: Position of a location within its cell, in strides.
        octaves: Anchor sizes per ratio.
        ratios: Height over width of the anchors of a cell.
    """

    head: type[nn.Module]
    meaning: Callable[[DetectorSettings], Meaning] = distances
    extra: ExtraLevels = "output"
    offset: float = 0.0
    octaves: int = 1
    ratios: tuple[float, ...] = (1.0,)


KINDS: dict[str, DetectorKind] = {
    "gfl": DetectorKind(head=GFLHead),
    "gflv2": DetectorKind(head=GFLv2Head),
    "atss": DetectorKind(head=CenternessHead),
    "fcos": DetectorKind(head=CenternessHead, extra="output_relu", offset=0.5),
    "retinanet": DetectorKind(head=RetinaHead, extra="input", octaves=3, ratios=(0.5, 1.0, 2.0)),
    "rotated_gfl": DetectorKind(head=GFLHead, meaning=rotated_distances),
    "rotated_retinanet": DetectorKind(
        head=RetinaHead, meaning=anchor_deltas, extra="input", octaves=3, ratios=(1.0, 0.5, 2.0)
    ),
}
