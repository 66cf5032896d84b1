"""Regions of distillation outside the positives."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuableLocations(Region):
    """The valuable localization region: locations whose anchor is close to an object (LD, algorithm 1).

    A location belongs to it when, for some object with ATSS threshold ``t``, ``gamma * t <= D < t``. An image without
    objects has none.

    Attributes:
        gamma: Lower bound as a fraction of the threshold (0.25 in the paper).
        metric: Definition of ``D``. ``diou``, as in the paper: IoU minus the normalised squared centre distance.
            ``iof_diou``, as in the published code, from which the published numbers come: with intersection over the
            area of the *anchor* in place of the IoU, which on fine levels gives a ring along the boundary of large
            objects. ``iou``, as in Rotated-LD.
        by: Weight of a location: ``iou``, the highest IoU with an object whose band contains it (the published code),
            or ``mask``, 1 (the paper).
        threshold: Source of ``t``: ``assignment``, the threshold of the ATSS assigner; ``adaptive``, the statistic of
            ATSS computed here, for assigners without one (the published LD for RetinaNet).
        topk: Candidates per level and object for the ``adaptive`` statistic.
        positives: Whether the region may include positives. It may in the published LD for GFL and ATSS, where such
            positives get both terms; for RetinaNet they are excluded.
        ring: Whether ``t`` bounds the region from above. It does not in Rotated-LD, where one region is both main and
            valuable region.
        box: The box used for a rotated object. ``circumscribed`` is the circumscribed axis-aligned box. ``unturned`` is
            axis-aligned with its sides ``w`` and ``h``, as if its angle were 0 (the published Rotated-LD, by an
            oversight: with its range of angles, ``oc``, an upright object then lies on its side). ``own`` is the
            rotated box itself, which takes longer and supports only the metric ``iou``. Both ``unturned`` and ``own``
            need the ``adaptive`` threshold, since the assigner's is for the circumscribed box.
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
        """Raise an error if closeness to one box would be compared with the statistic of another.

        Raises:
            ValueError: The box of rotated objects does not fit the assigner's thresholds or this metric.
        """
        if self.box != "circumscribed" and self.threshold == "assignment":
            raise ValueError(
                f"box: {self.box} needs threshold: adaptive; the assigner's thresholds are for the circumscribed box"
            )
        if self.box == "own" and self.metric != "iou":
            raise ValueError(f"box: own needs metric: iou; {self.metric} compares upright boxes")

    @property
    def needs(self) -> frozenset[Need]:
        """The assigner's thresholds, unless they are computed here."""
        return frozenset({Need.THRESHOLDS}) if self.threshold == "assignment" else NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the chosen weight in the region, and 0 outside."""
        instances = scene.instances
        if self.box == "unturned" and instances.oriented is not None:
            centre, half = instances.oriented[..., :2], instances.oriented[..., 2:4] / 2
            scene = replace(scene, instances=instances._replace(boxes=torch.cat((centre - half, centre + half), -1)))
        instances, assignment, anchors = scene.instances, scene.assignment, scene.grid.anchors()
        highest = torch.zeros_like(assignment.overlaps)
        objects = instances.targets if self.box == "own" else instances.boxes
        thresholds = (
            scene.assignment.thresholds
            if self.threshold == "assignment"
            else adaptive_thresholds(scene.grid, scene.instances, self.topk, objects)
        )
        for boxes, present, own in in_turn(anchors, objects, instances.present, thresholds):
            iou = kind_of(boxes).anchor_iou(anchors, boxes)
            closeness, threshold = iou, own[..., None]
            if self.metric != "iou":
                hulls = kind_of(boxes).hull(boxes)[:, :, None]
                overlap = iou if self.metric == "diou" else paired_iof(anchors, hulls)
                closeness = overlap - centre_offset(anchors, hulls)
            band = (closeness >= self.gamma * threshold) & present[..., None]
            if self.ring:
                band = band & (closeness < threshold)
            highest = torch.maximum(highest, (iou * band).amax(1))
        allowed = assignment.inside if self.positives else assignment.inside & ~assignment.positive
        value = highest * allowed
        return value if self.by == "iou" else (value > 0).to(value.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return the mask of the region."""
        return self(scene) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreGap(Region):
    """Every location of the image, weighted by the largest difference of class scores (BCKD, Yang et al. 2023).

    The weight is the largest difference of the scores of student and teacher, ``max_c |q_c - p_c|``, over the classes
    that the teacher knows. Where the class scores agree, the box is not distilled.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the weight of each location; zero where student and teacher agree."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        mine, its = common_classes(scene.student.score_logits, scene.teacher.score_logits, scene.teacher.known)
        return (its.sigmoid() - mine.sigmoid()).abs().amax(-1) * scene.assignment.inside


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherConfidence(Region):
    """Every location of the image, weighted by the teacher's highest class score (CrossKD, Wang et al. 2024).

    Only classes of the student count; other classes of the teacher are ignored.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER})

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weights between 0 and 1."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        mine, teacher = scene.student.score_logits, scene.teacher
        _, its = common_classes(mine, teacher.score_logits, teacher.known)
        return its.sigmoid().amax(-1) * scene.assignment.inside


def valuable_region(objective: Objective) -> Region:
    """Return the valuable region of a run: that of its own terms, or the published one."""
    regions = [term.on for term in objective.terms.values() if term.needs_teacher]
    for region in regions:
        # without anchors it is all of the objects' boxes
        if isinstance(region, ValuableLocations) or (isinstance(region, InsideBoxes) and not region.positives):
            return region
    there = objective.assigner.has_thresholds
    return ValuableLocations(threshold="assignment" if there else "adaptive")
