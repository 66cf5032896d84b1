"""Everything that a loss term may look at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.assign.assignment import Assigner, Assignment
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.constant import indices
from locdistill.geometry.grid import Grid
from locdistill.losses.centerness import centerness
from locdistill.objective.learned import NO_RUN, Moment
from locdistill.types import Dense, Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A batch as the terms see it: predictions, truth, and what follows from both.

    Boxes are in strides of each location's level, as in the reference, so that a box of one size has one scale on every
    level; only ``assignment`` and ``instances`` are in pixels. Of the ``e`` numbers that a location predicts ``coding``
    makes a box.

    Attributes:
        student: Predictions that are trained, in float32.
        teacher: Predictions to learn from, in float32; ``None`` without distillation.
        grid: The locations that both speak of.
        instances: Ground truth.
        assignment: Which location answers for which object.
        bins: Support of the student's edge distributions.
        boxes: The student's boxes: mean of the edge distributions around each location.
        target_boxes: The assigned objects' boxes; zeros where there is none.
        target_values: The numbers that make the assigned object's box, limited to what the bins hold.
        confidence: The student's highest class score, without gradient.
        moment: Where the run is, and what the terms have learned until then.
        cross: What the teacher's head makes of the student's features, in float32; ``None`` unless a term asks for it.
        coding: What the predicted numbers mean.
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
    moment: Moment = NO_RUN
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
        """IoU of the student's box with its object, without gradient; 0 where there is none."""
        return self.coding.kind.paired_iou(self.boxes.detach(), self.target_boxes) * self.assignment.positive

    @property
    def centerness(self) -> Float[Tensor, "b l"]:
        """How central each location is in its object, between 0 and 1; 0 where there is none.

        The objective checks that boxes are made of distances to four edges.
        """
        distances = self.coding.distances(self.coding.encode(self.grid, self.target_boxes))
        return centerness(distances) * self.assignment.positive

    @property
    def taught(self) -> Scene:
        """The scene with the objects of those classes alone that the teacher knows.

        Where it sees background, its boxes are of nothing in particular. Where another object stands, the student still
        learns from the labels.
        """
        if self.teacher is None or self.teacher.known is None:
            return self
        known = torch.zeros(self.student.cls_logits.shape[-1], dtype=torch.bool, device=self.boxes.device)
        known = known.index_fill(0, indices(self.teacher.known, known), True)
        objects, places = self.instances, self.assignment
        return replace(
            self,
            instances=objects._replace(present=objects.present & known[objects.labels]),
            assignment=places._replace(positive=places.positive & known[places.labels]),
        )

    @property
    def teacher_boxes(self) -> Float[Tensor, "b l d"]:
        """The teacher's boxes, as ``boxes`` are the student's."""
        assert self.teacher is not None, "the objective checks that a teacher is there"
        return self.boxes_of(self.teacher)

    def boxes_of(self, dense: Dense) -> Float[Tensor, "b l d"]:
        """The boxes that predictions in the student's terms make, in strides."""
        return self.coding.decode(self.grid, self.bins.expect(dense.edge_logits))


def _in_float32(dense: Dense) -> Dense:
    quality = dense.quality_logits
    return dense._replace(
        cls_logits=dense.cls_logits.float(),
        edge_logits=dense.edge_logits.float(),
        quality_logits=None if quality is None else quality.float(),
    )
