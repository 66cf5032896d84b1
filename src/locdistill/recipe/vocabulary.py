"""The vocabulary of recipes: parts of terms, and assigners, by name."""

from __future__ import annotations

from locdistill.assign.atss import ATSS
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU
from locdistill.distillation.fgd import AttentionL1, AttentiveL2, BackgroundCells, ContextL2, ObjectCells
from locdistill.distillation.imitation import (
    Everywhere,
    FeatureL2,
    FineGrained,
    GatedLevelMean,
    GeneralInstances,
    OutsideBoxes,
)
from locdistill.distillation.logits import ClassBinary, ClassBinaryKL, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.mgd import MaskedGeneration
from locdistill.distillation.patterns import ChannelKL, Correlation
from locdistill.distillation.regions import ScoreGap, TeacherConfidence, ValuableLocations
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
    "edge_kl": EdgeKL,
    "class_kl": ClassKL,
    "class_binary": ClassBinary,
    "class_binary_kl": ClassBinaryKL,
    "teacher_overlap": TeacherOverlap,
    "feature_l2": FeatureL2,
    "correlation": Correlation,
    "channel_kl": ChannelKL,
    "masked_generation": MaskedGeneration,
    "attentive_l2": AttentiveL2,
    "attention_l1": AttentionL1,
    "context_l2": ContextL2,
}
REGIONS: dict[str, type] = {
    "counted": Counted,
    "positives": Positives,
    "inside_boxes": InsideBoxes,
    "valuable_locations": ValuableLocations,
    "score_gap": ScoreGap,
    "teacher_confidence": TeacherConfidence,
    "everywhere": Everywhere,
    "outside_boxes": OutsideBoxes,
    "fine_grained": FineGrained,
    "general_instances": GeneralInstances,
    "object_cells": ObjectCells,
    "background_cells": BackgroundCells,
}
NORMALISERS: dict[str, type] = {
    "positive_count": PositiveCount,
    "weight_sum": WeightSum,
    "constant": Constant,
    "per_image": PerImage,
    "level_mean": LevelMean,
    "image_level_mean": ImageLevelMean,
    "image_positive_count": ImagePositiveCount,
    "image_weight_sum": ImageWeightSum,
    "gated_level_mean": GatedLevelMean,
}
SCHEDULES: dict[str, type] = {
    "linear": Linear,
    "cosine": Cosine,
}
ASSIGNERS: dict[str, type] = {"atss": ATSS, "fcos": FCOSPoints, "max_iou": MaxIoU}
