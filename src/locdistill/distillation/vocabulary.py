"""The parts of all terms, supervised and distilling, by the names that recipes use."""

from __future__ import annotations

from locdistill.distillation.features import FeatureL2
from locdistill.distillation.imitation import Everywhere, FineGrained, GatedLevelMean, GeneralInstances, OutsideBoxes
from locdistill.distillation.logits import ClassBinary, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.regions import ScoreGap, TeacherConfidence, ValuableLocations
from locdistill.objective import vocabulary as supervised

DIVERGENCES: dict[str, type] = supervised.DIVERGENCES | {
    "edge_kl": EdgeKL,
    "class_kl": ClassKL,
    "class_binary": ClassBinary,
    "teacher_overlap": TeacherOverlap,
    "feature_l2": FeatureL2,
}
REGIONS: dict[str, type] = supervised.REGIONS | {
    "valuable_locations": ValuableLocations,
    "score_gap": ScoreGap,
    "teacher_confidence": TeacherConfidence,
    "everywhere": Everywhere,
    "outside_boxes": OutsideBoxes,
    "fine_grained": FineGrained,
    "general_instances": GeneralInstances,
}
NORMALISERS: dict[str, type] = supervised.NORMALISERS | {"gated_level_mean": GatedLevelMean}
