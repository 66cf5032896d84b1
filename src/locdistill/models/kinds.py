"""The kinds of detectors, one record each: settings, defaults, help texts and checks follow from it.

A record is plain data, and imports no network: it refers to heads, meanings of numbers, losses and assigners by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Model = Literal["gfl", "gflv2", "atss", "fcos", "retinanet", "rotated_gfl", "rotated_retinanet"]
"""Names of the kinds, for type checkers; a test compares them with the table."""
HeadName = Literal["gfl", "gflv2", "centerness", "retina"]
NumbersName = Literal["distances", "rotated_distances", "anchor_deltas"]
Loss = Literal["gfl", "centerness", "retina"]
ExtraLevels = Literal["output", "output_relu", "input"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorKind:
    """Kind of detector.

    Attributes:
        title: Its name in prose.
        head: Name of the network behind the pyramid (see `models.detector`).
        loss: Name of the published loss without a teacher (see `distillation.presets`).
        assigner: Name of the published assigner in the vocabulary of recipes.
        quality: Quality that its head predicts beside the class scores: ``centerness``, trained by a term of its own; a
            factor ``in_score``; or nothing.
        rotated: Whether its boxes are rotated.
        numbers: Name of the numbers that a location predicts (see `models.meaning`).
        defaults: Settings whose defaults differ from those of `DetectorSettings`.
        extra: Input of the further levels of the pyramid.
        offset: Position of a location within its cell, in strides.
        octaves: Anchor sizes per ratio.
        ratios: Height over width of the anchors of a cell.
    """

    title: str
    head: HeadName
    loss: Loss
    assigner: str
    quality: Literal["centerness", "in_score"] | None = None
    rotated: bool = False
    numbers: NumbersName = "distances"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    extra: ExtraLevels = "output"
    offset: float = 0.0
    octaves: int = 1
    ratios: tuple[float, ...] = (1.0,)


_RETINA: dict[str, Any] = {"anchor_scale": 4.0, "norm_groups": 0}
KINDS: dict[str, DetectorKind] = {
    "gfl": DetectorKind(title="GFL", head="gfl", loss="gfl", assigner="atss"),
    "gflv2": DetectorKind(title="GFL v2", head="gflv2", loss="gfl", assigner="atss", quality="in_score"),
    "atss": DetectorKind(title="ATSS", head="centerness", loss="centerness", assigner="atss", quality="centerness"),
    "fcos": DetectorKind(
        title="FCOS",
        head="centerness",
        loss="centerness",
        assigner="fcos",
        quality="centerness",
        extra="output_relu",
        offset=0.5,
    ),
    "retinanet": DetectorKind(
        title="RetinaNet",
        head="retina",
        loss="retina",
        assigner="max_iou",
        defaults=_RETINA,
        extra="input",
        octaves=3,
        ratios=(0.5, 1.0, 2.0),
    ),
    "rotated_gfl": DetectorKind(
        title="Rotated GFL", head="gfl", loss="gfl", assigner="atss", rotated=True, numbers="rotated_distances"
    ),
    "rotated_retinanet": DetectorKind(
        title="Rotated RetinaNet",
        head="retina",
        loss="retina",
        assigner="max_iou",
        rotated=True,
        numbers="anchor_deltas",
        defaults=_RETINA | {"reg_max": 8, "angles": "oc"},
        extra="input",
        octaves=3,
        ratios=(1.0, 0.5, 2.0),
    ),
}
