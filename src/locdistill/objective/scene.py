"""Inputs of the loss terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.assign.assignment import Assigner, Assignment
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.constant import constant
from locdistill.geometry.grid import Grid
from locdistill.losses.centerness import centerness
from locdistill.objective.learned import NO_RUN, TrainingProgress
from locdistill.types import Dense, Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A batch as input of the terms: predictions, ground truth, and values derived from both.

    Boxes are in strides of each location's level, as in the reference, so that a box of one size has one scale on every
    level; only ``assignment`` and ``instances`` are in pixels. ``coding`` converts the ``e`` numbers predicted at a
    location to a box.

    Attributes:
        student: Predictions to train, in float32.
        teacher: Predictions to learn from, in float32; ``None`` without distillation.
        grid: Locations of both predictions.
        instances: Ground truth.
        assignment: Assignment of objects to locations.
        bins: Support of the student's edge distributions.
        boxes: The student's boxes: mean of the edge distributions around each location.
        target_boxes: The assigned objects' boxes; zeros where there is none.
        target_values: The numbers that describe the assigned object's box, limited to the range of the bins.
        confidence: The student's highest class score, without gradient.
        progress: Progress of the run, and the weights learned by the terms.
        cross: Predictions of the teacher's head on the student's features, in float32; ``None`` unless a term needs
            them.
        coding: Meaning of the predicted numbers.
    """

    student: Dense
    teacher: Dense | None
    grid: Grid
    instances: Instances
    assignment: Assignment
    bins: Bins
    boxes: Float[Tensor, "b l d"]
    target_boxes: Float[Tensor, "b l d"]
    target_values: Float[Tensor, "b l e"]
    confidence: Float[Tensor, "b l"]
    progress: TrainingProgress = NO_RUN
    cross: Dense | None = None
    coding: Coding = DISTANCES

    @classmethod
    def build(
        cls,
        student: Dense,
        teacher: Dense | None,
        *,
        grid: Grid,
        instances: Instances,
        assigner: Assigner,
        bins: Bins,
        cross: Dense | None = None,
        coding: Coding = DISTANCES,
    ) -> Scene:
        """Assign the locations and decode the student's boxes."""
        student = _in_float32(student)
        assignment = assigner(grid, instances)
        target_boxes = coding.kind.scaled(assignment.boxes, 1 / grid.strides[:, None])
        return cls(
            student=student,
            teacher=None if teacher is None else _in_float32(teacher),
            grid=grid,
            instances=instances,
            assignment=assignment,
            bins=bins,
            boxes=coding.decode(grid, bins.expect(student.edge_logits)),
            target_boxes=target_boxes,
            target_values=bins.clamp(coding.encode(grid, target_boxes)),
            confidence=student.score_logits.detach().sigmoid().amax(-1),
            cross=None if cross is None else _in_float32(cross),
            coding=coding,
        )

    @property
    def quality(self) -> Float[Tensor, "b l"]:
        """IoU of the student's box with its object, without gradient; 0 without an object."""
        return self.coding.kind.paired_iou(self.boxes.detach(), self.target_boxes) * self.assignment.positive

    @property
    def centerness(self) -> Float[Tensor, "b l"]:
        """Centerness of each location in its object, between 0 and 1; 0 without an object.

        The objective checks that the predicted numbers are distances to four edges.
        """
        values = self.coding.encode(self.grid, self.target_boxes)
        return centerness(values[..., : self.coding.distances]) * self.assignment.positive

    @property
    def taught(self) -> Scene:
        """Scene with only the objects of those classes that the teacher knows.

        Where the teacher sees background, its boxes are meaningless. At objects of other classes the student still
        learns from the labels.
        """
        if self.teacher is None or self.teacher.known is None:
            return self
        known = torch.zeros(self.student.cls_logits.shape[-1], dtype=torch.bool, device=self.boxes.device)
        known = known.index_fill(0, constant(self.teacher.known, known, torch.long), True)
        objects, places = self.instances, self.assignment
        return replace(
            self,
            instances=objects._replace(present=objects.present & known[objects.labels]),
            assignment=places._replace(positive=places.positive & known[places.labels]),
        )

    def boxes_of(self, dense: Dense) -> Float[Tensor, "b l d"]:
        """Compute the boxes, in strides, of predictions with the student's coding and bins."""
        return self.coding.decode(self.grid, self.bins.expect(dense.edge_logits))


def _in_float32(dense: Dense) -> Dense:
    quality = dense.quality_logits
    return dense._replace(
        cls_logits=dense.cls_logits.float(),
        edge_logits=dense.edge_logits.float(),
        quality_logits=None if quality is None else quality.float(),
    )
