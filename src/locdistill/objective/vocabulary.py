"""The parts of supervised terms by the names that recipes use."""

from __future__ import annotations

from locdistill.objective.normalisers import (
    Constant,
    ImageLevelMean,
    ImagePositiveCount,
    ImageWeightSum,
    LevelMean,
    PerImage,
    PositiveCount,
    WeightSum,
)
from locdistill.objective.regions import Counted, InsideBoxes, Positives
from locdistill.objective.schedules import Cosine, Linear
from locdistill.objective.supervised import Centerness, DistributionFocal, Focal, Overlap, QualityFocal, ValueL1

DIVERGENCES: dict[str, type] = {
    "quality_focal": QualityFocal,
    "focal": Focal,
    "overlap": Overlap,
    "value_l1": ValueL1,
    "distribution_focal": DistributionFocal,
    "centerness": Centerness,
}
REGIONS: dict[str, type] = {"counted": Counted, "positives": Positives, "inside_boxes": InsideBoxes}
NORMALISERS: dict[str, type] = {
    "positive_count": PositiveCount,
    "weight_sum": WeightSum,
    "constant": Constant,
    "per_image": PerImage,
    "level_mean": LevelMean,
    "image_level_mean": ImageLevelMean,
    "image_positive_count": ImagePositiveCount,
    "image_weight_sum": ImageWeightSum,
}
SCHEDULES: dict[str, type] = {"linear": Linear, "cosine": Cosine}
