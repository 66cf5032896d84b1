"""Feature imitation: the regions of the methods compared in the LD paper, and their normaliser.

All are terms of :class:`~locdistill.distillation.imitation.FeatureL2`:

=================================  =============================================================================
FitNets (Romero et al. 2015)       on :class:`Everywhere`
inside ground-truth boxes          on :class:`~locdistill.objective.regions.InsideBoxes` with its positives
main region                        on :class:`~locdistill.objective.regions.Positives`
fine-grained (Wang et al. 2019)    on :class:`FineGrained`
DeFeat (Guo et al. 2021)           one inside the boxes, and one on :class:`OutsideBoxes` with twice its weight
general instances (Dai et al.      on :class:`GeneralInstances`
2021)
feature richness (Du et al. 2021)  on :class:`~locdistill.distillation.regions.TeacherConfidence`
=================================  =============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from locdistill.distillation.adapters import OfMaps, per_location
from locdistill.distillation.logits import common_classes
from locdistill.geometry.boxes import paired_iou
from locdistill.geometry.objects import in_turn
from locdistill.objective.learned import adapters
from locdistill.objective.normalisers import LevelMean, Normaliser
from locdistill.objective.regions import within_objects
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Need, Region
from locdistill.settings import Count, Share
from locdistill.types import Dense


@dataclass(frozen=True, slots=True, kw_only=True)
class _WithPadding(Region):
    """Base class of regions that may include the padding.

    Attributes:
        padding: Whether the region includes locations in the padding of the batch: the whole map, as in the reference.
    """

    padding: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        """The padding, if the region includes it."""
        return frozenset({Need.PADDING}) if self.padding else NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Everywhere(_WithPadding):
    """Every location of the image, ignored or not.

    Attributes:
        padding: Whether the region includes locations in the padding of the batch: the whole map, as in the reference.
    """

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weight 1 in the region."""
        inside = scene.assignment.inside.to(scene.confidence.dtype)
        return torch.ones_like(inside) if self.padding else inside


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideBoxes(_WithPadding):
    """The background: locations with a centre that is not strictly inside any object's box.

    The reference is meant to imitate the background, but compares the student's background features with the teacher's
    foreground features, which crashes. Here both are taken from the background.

    Attributes:
        padding: Whether the region includes locations in the padding of the batch, as in the reference.
    """

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weight 1 in the region."""
        outside = ~within_objects(scene)
        return (outside if self.padding else outside & scene.assignment.inside).to(scene.confidence.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineGrained(Region):
    """Locations whose anchor's IoU with an object exceeds a fraction of the object's highest IoU with any anchor.

    Wang et al. 2019; the highest IoU is taken over all levels, as in the reference.

    Attributes:
        part: Fraction of the highest IoU of any anchor with the object.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    part: Share = 0.5

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weight 1 in the region."""
        anchors, inside = scene.grid.anchors(), scene.assignment.inside
        near = torch.zeros_like(inside)
        for boxes, present in in_turn(anchors, scene.instances.boxes, scene.instances.present):
            iou = paired_iou(anchors, boxes[:, :, None]) * (present[..., None] & inside[:, None])
            near = near | (iou > self.part * iou.amax(2, keepdim=True)).any(1)
        return near.to(scene.confidence.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneralInstances(Region):
    """Locations where student and teacher differ most in a class score (GI imitation, Dai et al. 2021).

    A location's score is the largest difference of their class scores; its box is that of the detector with the higher
    score for that class. On every level non-maximum suppression is applied by score, and the best remaining locations
    are the region. No ground truth is used. Rotated boxes are replaced by their circumscribed boxes.

    Attributes:
        top: Locations per level.
        nms_iou: A box is suppressed if it overlaps a better one of its level by more than this.
        per: Set from which a level's locations are selected: each ``image``, or the ``batch``. ``batch`` is the
            published code, from which the published numbers come: all images of a process, with suppression across
            images, and with locations in the padding, whose boxes lie around the image's corner.
        score: Scores to compare: ``probability`` of both. The published code of GFL v2 students differs: ``mixed``, the
            teacher's class logit with the student's probability (LD v2), and ``logit``, class logits without the
            quality (IM v2).
    """

    top: Count = 10
    nms_iou: float = 0.3
    per: Literal["image", "batch"] = "image"
    score: Literal["probability", "mixed", "logit"] = "probability"

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher, and the padding if its locations may be selected."""
        return frozenset({Need.TEACHER, Need.PADDING} if self.per == "batch" else {Need.TEACHER})

    @torch.no_grad()
    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weight 1 at up to ``top`` locations of a level; equal scores are ranked as by ``torch.max``."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        grid, inside = scene.grid, scene.assignment.inside
        # The teacher's score minus the student's, for the class where they differ most.
        student, teacher = scene.student, scene.teacher
        ours = student.cls_logits if self.score == "logit" else student.score_logits.sigmoid()
        theirs = teacher.score_logits.sigmoid() if self.score == "probability" else teacher.cls_logits
        ours, theirs = common_classes(ours, theirs, teacher.known)
        leads = theirs - ours
        lead = leads.gather(-1, leads.abs().argmax(-1, keepdim=True))[..., 0]
        points = grid.points / grid.strides[:, None]
        its, mine = (scene.coding.kind.hull(boxes) for boxes in (scene.boxes_of(teacher), scene.boxes))
        boxes, score = torch.where(lead[..., None] >= 0, its, mine), lead.abs()
        if self.per == "image":
            score = score.masked_fill(~inside, -torch.inf)
        else:
            boxes = boxes - torch.cat((points, points), -1) * ~inside[..., None]
        # The best locations of each level; levels are padded to the largest one and processed together.
        sizes = grid.level_sizes
        place = torch.cat([torch.arange(size, device=score.device) for size in sizes])
        shape = (len(score), len(sizes), max(sizes))
        level_score, level_boxes = score.new_full(shape, -torch.inf), boxes.new_zeros((*shape, 4))
        level_score[:, grid.levels, place], level_boxes[:, grid.levels, place] = score, boxes
        if self.per == "batch":
            pooled = level_boxes.transpose(0, 1).flatten(1, 2), level_score.transpose(0, 1).flatten(1)
            chosen = best_apart(*pooled, count=self.top, iou=self.nms_iou).view(shape[1], shape[0], shape[2])
            chosen = chosen.transpose(0, 1)
        else:
            chosen = best_apart(level_boxes, level_score, count=self.top, iou=self.nms_iou)
        return chosen[:, grid.levels, place].to(score.dtype)


def best_apart(
    boxes: Float[Tensor, "*batch n 4"], scores: Float[Tensor, "*batch n"], *, count: int, iou: float
) -> Bool[Tensor, "*batch n"]:
    """Return a mask of the first boxes that non-maximum suppression keeps; boxes of score ``-inf`` are ignored.

    Boxes are selected one after the other and their neighbours suppressed: ``count`` passes over all leading axes at
    once, without synchronisation for the number of remaining boxes.
    """
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    places = torch.arange(scores.shape[-1], device=scores.device)
    for _ in range(count):
        best, place = scores.max(-1, keepdim=True)
        box = boxes.gather(-2, place[..., None].expand(*place.shape, 4))
        taken = (places == place) & (best > -torch.inf)
        chosen = chosen | taken
        scores = scores.masked_fill(taken | (paired_iou(box, boxes) > iou), -torch.inf)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedLevelMean(Normaliser):
    """``LevelMean`` on levels with a positive in some image of the process; other levels contribute zero.

    The published normalisation of feature imitation. Leaving out levels without positives, whatever the region, is a
    side effect of the reference's code.
    """

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Return a denominator per level, infinite where the level contributes nothing."""
        grid, positive = scene.grid, scene.assignment.positive.any(0)
        count = weights.new_zeros(len(grid.shapes)).index_add(0, grid.levels, positive.to(weights.dtype))
        return LevelMean()(weights, scene).masked_fill(count[grid.levels] == 0, torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureL2(OfMaps):
    """Squared difference of the student's and the teacher's features, averaged over channels.

    The divergence of FitNets (Romero et al. 2015) and of the methods after it, which differ in the *region* where they
    imitate; see :mod:`locdistill.distillation.imitation`. The reference has no adapter, since both its pyramids have
    256 channels. Locations of one cell share its feature: with the nine anchors of a RetinaNet cell, the cell is
    weighted by the number of its anchors in the region.

    Attributes:
        kernel: Size of the learned convolution: 1, or 3 as in the published FRS (Du et al. 2021).
    """

    kernel: Literal[1, 3] = 1

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """Create an adapter for each of the student's levels; return None if all are as wide as the teacher's.

        Raises:
            TeacherError: The student or the teacher provides no maps.
        """
        mine, its = zip(*self.levels(student, teacher), strict=True)
        return adapters(mine, its, always=self.adapt, kernel=self.kernel)

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where both features agree (the student's after its adapter)."""
        levels = [(p.student - p.teacher).square().mean(1, keepdim=True) for p in self.pairs(scene, own)]
        return per_location(levels, scene.grid)
