"""How closely a student follows its teacher."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.losses.distribution import softened_kl
from locdistill.objective.scene import Scene

EDGE_KL, BOX_IOU = "agree/edge_kl", "agree/box_iou"


@torch.no_grad()
def agreement(scene: Scene) -> dict[str, Float[Tensor, "2"]]:
    """What student and teacher say alike of the objects, at the positive locations; nothing without a teacher.

    Objects are those of the classes that the teacher knows.

    Unlike the terms of a recipe, which have temperatures, regions and weights of their own, this is the same measure in
    every run. The teacher may be a detector of another kind on the same grid.

    Returns:
        By name, a sum over the positives and their number, so that means over many batches are exact.

        ``agree/edge_kl``
            Divergence of the student's edge distributions from the teacher's, in nats: the sum over bins at temperature
            1, the mean over the edges. 0 is full agreement.
        ``agree/box_iou``
            IoU of both boxes, each the mean of its distributions. 1 is full agreement.
    """
    if scene.teacher is None:
        return {}
    theirs = scene.teacher.edge_logits
    # All locations are compared, since picking out the positives would wait for the device to count them.
    divergence = scene.bins.count * softened_kl(scene.student.edge_logits, theirs, temperature=1.0).mean(-1)
    overlap = scene.coding.kind.paired_iou(scene.boxes, scene.teacher_boxes)
    positive = scene.taught.assignment.positive.to(divergence.dtype)
    count = positive.sum()
    return {
        EDGE_KL: torch.stack(((divergence * positive).sum(), count)),
        BOX_IOU: torch.stack(((overlap * positive).sum(), count)),
    }
