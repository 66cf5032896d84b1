"""Supervised losses of GFL (Li et al. 2020), ATSS, FCOS and RetinaNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from locdistill.losses.distribution import distribution_focal_loss
from locdistill.losses.focal import focal_loss, quality_focal_loss
from locdistill.losses.overlap import OVERLAPS, OverlapKind, overlap_loss
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Divergence, Need


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityFocal(Divergence):
    """Quality focal loss: the target of the class score is the IoU of the location's own box with its object.

    Attributes:
        beta: Exponent of the distance to the target (2 in GFL).
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    beta: float = 2.0

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss, summed over classes; without an object the target is zero for every class."""
        logits, assignment = scene.student.score_logits, scene.assignment
        targets = torch.zeros_like(logits).scatter(-1, assignment.labels[..., None], scene.quality[..., None])
        return quality_focal_loss(logits, targets, beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Focal(Divergence):
    """Focal loss: the target is one for the score of the object's class, zero for the others (Lin et al. 2017).

    Attributes:
        gamma: Exponent of the error.
        alpha: Factor where the target is one; ``1 - alpha`` where it is zero.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    gamma: float = 2.0
    alpha: float = 0.25

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss, summed over classes; without an object the target is zero for every class."""
        logits, assignment = scene.student.cls_logits, scene.assignment
        positive = assignment.positive[..., None].to(logits.dtype)
        targets = torch.zeros_like(logits).scatter(-1, assignment.labels[..., None], positive)
        return focal_loss(logits, targets, gamma=self.gamma, alpha=self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Centerness(Divergence):
    """Binary cross-entropy of the predicted quality with the centerness of the location in its object (FCOS)."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUALITY, Need.DISTANCES})

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss; only values at positives are meaningful."""
        logits = scene.student.quality_logits
        assert logits is not None, "the objective checks that a quality is there"
        return binary_cross_entropy_with_logits(logits, scene.centerness, reduction="none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap(Divergence):
    """Overlap loss of the student's box and its object (see :func:`locdistill.losses.overlap.overlap_loss`).

    Attributes:
        kind: ``giou`` (GFL, the published teachers), ``diou`` or ``ciou``; for rotated boxes ``gwd``, ``kld`` (both of
            Rotated-LD), ``probiou`` or ``rotated_iou``.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    kind: OverlapKind = "giou"

    @property
    def numbers(self) -> int:
        """Number of coordinates per box that it compares."""
        return OVERLAPS[self.kind][0]

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss; only values at positives are meaningful."""
        return overlap_loss(scene.boxes, scene.target_boxes, kind=self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueL1(Divergence):
    """L1 distance of the predicted numbers (the means of their distributions) from those of the object, summed.

    The rotated RetinaNet of JDet is trained with it. Unlike an overlap, it depends on which of the equivalent
    parametrisations of a box is used.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss; only values at positives are meaningful."""
        truth = scene.coding.encode(scene.grid, scene.target_boxes)
        return scene.bins.difference(scene.bins.expect(scene.student.edge_logits), truth).abs().sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributionFocal(Divergence):
    """Distribution focal loss: the two bins beside the true edge share the probability; the mean over the edges."""

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Compute the loss; only values at positives are meaningful."""
        targets = scene.bins.two_hot(scene.target_values)
        return distribution_focal_loss(scene.student.edge_logits, targets).mean(-1)
