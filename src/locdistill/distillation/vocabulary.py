"""The parts of all terms, supervised and distilling, by the names that recipes use."""

from __future__ import annotations

from locdistill.distillation.features import FeatureL2
from locdistill.distillation.focus import AttentionL1, AttentiveL2, BackgroundCells, ContextL2, ObjectCells
from locdistill.distillation.generation import MaskedGeneration
from locdistill.distillation.imitation import Everywhere, FineGrained, GatedLevelMean, GeneralInstances, OutsideBoxes
from locdistill.distillation.logits import ClassBinary, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.regions import ScoreGap, TeacherConfidence, ValuableLocations
from locdistill.distillation.relations import ChannelKL, Correlation
from locdistill.objective import vocabulary as supervised

DIVERGENCES: dict[str, type] = supervised.DIVERGENCES | {
    "edge_kl": EdgeKL,
    "class_kl": ClassKL,
    "class_binary": ClassBinary,
    "teacher_overlap": TeacherOverlap,
    "feature_l2": FeatureL2,
    "correlation": Correlation,
    "channel_kl": ChannelKL,
    "masked_generation": MaskedGeneration,
    "attentive_l2": AttentiveL2,
    "attention_l1": AttentionL1,
    "context_l2": ContextL2,
}
REGIONS: dict[str, type] = supervised.REGIONS | {
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
NORMALISERS: dict[str, type] = supervised.NORMALISERS | {"gated_level_mean": GatedLevelMean}
SCHEDULES: dict[str, type] = supervised.SCHEDULES
