"""Where it is worth listening to the teacher beside the positives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locdistill.assign.atss import adaptive_thresholds
from locdistill.distillation.logits import common_classes
from locdistill.geometry.boxes import centre_offset, paired_iof
from locdistill.geometry.kinds import kind_of
from locdistill.geometry.objects import in_turn
from locdistill.objective.objective import Objective
from locdistill.objective.regions import InsideBoxes
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Need, Region
from locdistill.settings import Count
from locdistill.types import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuableLocations(Region):
    """The valuable localization region: locations whose anchor nearly reaches an object (LD, algorithm 1).

    A location belongs to it when, for some object with ATSS threshold ``t``, ``gamma * t <= D < t``. An image without
    objects has none.

    Attributes:
        gamma: Lower bound as a part of the threshold (0.25 in the paper).
        metric: What ``D`` is. ``diou``, the paper's: IoU less the normalised squared centre distance. ``iof_diou``, of
            the published code, which the published numbers come from: with intersection over the area of the *anchor*
            in place of the IoU, which on fine levels gives a ring along the rim of large objects. ``iou``, of
            Rotated-LD.
        by: Weight of a location: ``iou``, the highest IoU with an object whose band it is in (the published code), or
            ``mask``, 1 (the paper).
        threshold: Where ``t`` comes from: ``assignment``, what the assigner found, for ATSS; ``adaptive``, the
            statistic of ATSS worked out here, for assigners that have none (the published LD for RetinaNet).
        topk: Candidates per level and object of the ``adaptive`` statistic.
        positives: Whether positives may be in the region. They may in the published LD for GFL and ATSS, and then get
            both terms; for RetinaNet they are taken out.
        ring: Whether ``t`` bounds the region from above. It does not in Rotated-LD, where one region is main and
            valuable region in one.
        box: The axis-aligned box that stands for a rotated object: ``circumscribed``, or ``unturned``, its sides ``w``
            and ``h`` laid along the axes as if its angle were 0 (the published Rotated-LD, by an oversight: with its
            range of angles, ``oc``, an upright object then lies on its side). ``own`` is no stand-in but the rotated
            box itself, which takes longer and knows the metric ``iou`` alone. Both need the ``adaptive`` threshold: the
            assigner's is of the circumscribed box.
    """

    gamma: float = 0.25
    metric: Literal["iof_diou", "diou", "iou"] = "iof_diou"
    by: Literal["iou", "mask"] = "iou"
    threshold: Literal["assignment", "adaptive"] = "assignment"
    topk: Count = 9
    positives: bool = True
    ring: bool = True
    box: Literal["circumscribed", "unturned", "own"] = "circumscribed"

    def __post_init__(self) -> None:
        """Refuse closeness to one box that is held against the statistic of another.

        Raises:
            ValueError: A stand-in for rotated objects goes with neither the assigner's thresholds nor this metric.
        """
        if self.box != "circumscribed" and self.threshold == "assignment":
            raise ValueError(
                f"box: {self.box} needs threshold: adaptive, for the assigner's thresholds are of the circumscribed box"
            )
        if self.box == "own" and self.metric != "iou":
            raise ValueError(f"box: own needs metric: iou; {self.metric} compares upright boxes")

    @property
    def needs(self) -> frozenset[Need]:
        """The assigner's thresholds, unless they are worked out here."""
        return frozenset({Need.THRESHOLDS}) if self.threshold == "assignment" else NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """The chosen weight in the region."""
        scene = replace(scene, instances=self._seen(scene.instances))
        instances, assignment, anchors = scene.instances, scene.assignment, scene.grid.anchors()
        highest = torch.zeros_like(assignment.overlaps)
        objects = instances.targets if self.box == "own" else instances.boxes
        thresholds = self._thresholds(scene, objects)
        for boxes, present, own in in_turn(anchors, objects, instances.present, thresholds):
            iou = kind_of(boxes).anchor_iou(anchors, boxes)
            closeness, threshold = self._closeness(anchors, boxes, iou), own[..., None]
            band = (closeness >= self.gamma * threshold) & present[..., None]
            if self.ring:
                band = band & (closeness < threshold)
            highest = torch.maximum(highest, (iou * band).amax(1))
        allowed = assignment.inside if self.positives else assignment.inside & ~assignment.positive
        value = highest * allowed
        return value if self.by == "iou" else (value > 0).to(value.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """The region itself."""
        return self(scene) > 0

    def _seen(self, instances: Instances) -> Instances:
        """The objects with the boxes that stand for them."""
        if self.box != "unturned" or instances.oriented is None:
            return instances
        centre, half = instances.oriented[..., :2], instances.oriented[..., 2:4] / 2
        return instances._replace(boxes=torch.cat((centre - half, centre + half), -1))

    def _closeness(
        self, anchors: Float[Tensor, "l 4"], boxes: Float[Tensor, "b k d"], iou: Float[Tensor, "b k l"]
    ) -> Float[Tensor, "b k l"]:
        """``D`` of all anchors and some objects."""
        if self.metric == "iou":
            return iou
        hulls = kind_of(boxes).hull(boxes)[:, :, None]
        overlap = iou if self.metric == "diou" else paired_iof(anchors, hulls)
        return overlap - centre_offset(anchors, hulls)

    def _thresholds(self, scene: Scene, objects: Float[Tensor, "b g d"]) -> Float[Tensor, "b g"]:
        if self.threshold == "assignment":
            return scene.assignment.thresholds
        return adaptive_thresholds(scene.grid, scene.instances, self.topk, objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGap(Region):
    """Every location of the image, by how much the two disagree about a class there (BCKD, Yang et al. 2023).

    The weight is the largest difference of their scores, ``max_c |q_c - p_c|``, over the classes that the teacher
    knows: where both say the same of what is there, the student need not be told where it is.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where student and teacher agree."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        mine, its = common_classes(scene.student.score_logits, scene.teacher.score_logits, scene.teacher.known)
        return (its.sigmoid() - mine.sigmoid()).abs().amax(-1) * scene.assignment.inside


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfidence(Region):
    """Every location of the image, by the teacher's highest class score there (CrossKD, Wang et al. 2024).

    Of the classes that the student is to learn; a teacher that knows others too is not asked where those are.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Between 0 and 1."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        mine, teacher = scene.student.score_logits, scene.teacher
        _, its = common_classes(mine, teacher.score_logits, teacher.known)
        return its.sigmoid().amax(-1) * scene.assignment.inside


def valuable_region(objective: Objective) -> Region:
    """The valuable region of a run: that of its own terms, or the published one."""
    regions = [term.on for term in objective.terms.values() if term.needs_teacher]
    if own := [region for region in regions if _beside(region)]:
        return own[0]
    there = objective.assigner.has_thresholds
    return ValuableLocations(threshold="assignment" if there else "adaptive")


def _beside(region: Region) -> bool:
    """Whether a region is that beside the positives: for detectors without anchors all of the objects' boxes."""
    return isinstance(region, ValuableLocations) or (isinstance(region, InsideBoxes) and not region.positives)
