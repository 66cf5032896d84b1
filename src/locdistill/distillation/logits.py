"""Divergences of the student's predictions from the teacher's.

Each can use the student's own predictions, or the predictions of the teacher's head for the student's features
(``head="teacher"``: CrossKD, Wang et al. 2024). The student's own predictions then learn from the ground truth only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.special import entr

from locdistill.geometry.constant import constant
from locdistill.losses.distribution import softened_kl
from locdistill.losses.focal import quality_focal_loss
from locdistill.losses.overlap import OVERLAPS, OverlapKind, overlap_loss
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Divergence, Need
from locdistill.settings import Positive
from locdistill.types import Dense

Head = Literal["own", "teacher"]


class OfPredictions(Divergence):
    """Base class of divergences between the student's and the teacher's predictions.

    Attributes:
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
        beside: Needs in addition to the teacher's predictions at the location itself.
    """

    __slots__ = ()
    beside: ClassVar[frozenset[Need]] = NOTHING
    head: Head

    @property
    def needs(self) -> frozenset[Need]:
        """The teacher's predictions, and those of its head for the student's features if they are compared."""
        crossed = {Need.CROSS} if self.head == "teacher" else NOTHING
        return self.beside | crossed | {Need.TEACHER, Need.LOCAL}

    def pair(self, scene: Scene) -> tuple[Dense, Dense]:
        """Return the predictions of the student, by the chosen head, and of the teacher."""
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        if self.head == "own":
            return scene.student, scene.teacher
        assert scene.cross is not None, "the objective checks that they are there"
        return scene.cross, scene.teacher


def common_classes(
    student: Float[Tensor, "b l c"], teacher: Float[Tensor, "b l k"], known: tuple[int, ...] | None
) -> tuple[Float[Tensor, "b l m"], Float[Tensor, "b l m"]]:
    """Return the logits of the classes that both predict, the teacher's without gradient.

    Where only one of the two has the additional background channel of the published GFL v2, it is left out. A class
    that the teacher does not know is not background for it: the class is left out of distillation.

    Args:
        student: The student's logits.
        teacher: The teacher's, in the student's order of classes.
        known: Indices of the classes that the teacher knows; None for all.
    """
    common = min(student.shape[-1], teacher.shape[-1])
    mine, its = student[..., :common], teacher[..., :common].detach()
    if known is None:
        return mine, its
    places = constant(known, mine, torch.long)
    return mine.index_select(-1, places), its.index_select(-1, places)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeKL(OfPredictions):
    """Localization distillation: the softened divergence of each edge distribution, averaged over the edges.

    Zheng et al. 2022, equation 4; the reference divides its sum over edges by 4 in the normaliser instead.

    Attributes:
        temperature: Softening of both distributions (10 in the paper).
        joint: Whether to use one softmax over the bins of all edges together, and the mean over them all, in place of
            one for each edge, as in the published code for RetinaNet. For edge logits that differ by ``d`` the value is
            about ``var(d) / 2n`` per edge and ``var(d) / 8n`` jointly. The joint value also depends on constants added
            to single edges, which change no box.
        summed: Whether to use the sum over bins in place of the mean: the divergence in nats, independent of the number
            of bins (CrossKD).
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
    """

    beside: ClassVar[frozenset[Need]] = frozenset({Need.DISTRIBUTIONS})
    temperature: Positive = 10.0
    joint: bool = False
    summed: bool = False
    head: Head = "own"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the loss; zero where both agree, up to a constant added to an edge's (jointly: to all) logits."""
        student, teacher = (dense.edge_logits for dense in self.pair(scene))
        bins = student.shape[-1] if self.summed else 1
        if self.joint:
            return bins * softened_kl(student.flatten(-2), teacher.flatten(-2), temperature=self.temperature)
        return bins * softened_kl(student, teacher, temperature=self.temperature).mean(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassKL(OfPredictions):
    """Class distillation: the softened divergence of a softmax over class logits, as in the reference.

    The class logits are used without the quality by which GFL v2 multiplies its scores, for the classes that both
    predict.

    Attributes:
        temperature: Softening of both distributions (2 in the published recipes).
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
    """

    temperature: Positive = 2.0
    head: Head = "own"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the loss; zero where student and teacher agree, up to a constant added to all classes' logits."""
        student, teacher = self.pair(scene)
        mine, its = common_classes(student.cls_logits, teacher.cls_logits, teacher.known)
        return softened_kl(mine, its, temperature=self.temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBinary(OfPredictions):
    """Class distillation by binary cross-entropy: each class score is independent, as in detectors.

    ``sum_c |q_c - p_c|^beta * BCE(p_c, q_c)`` with ``p = sigmoid(student)`` and ``q = sigmoid(teacher)``: a quality
    focal loss to the teacher's scores (BCKD, Yang et al. 2023, where ``beta`` is 1; the class distance of CrossKD,
    likewise). Unlike a softmax it keeps the absolute score. For GFL v2 it uses the score with its quality. The gradient
    also flows through the factor before the cross-entropy. Classes that the teacher does not know contribute zero.

    Attributes:
        beta: Exponent of the distance to the teacher's score.
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
    """

    beta: float = 1.0
    head: Head = "own"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where student and teacher agree."""
        student, teacher = self.pair(scene)
        mine, its = common_classes(student.score_logits, teacher.score_logits, teacher.known)
        return quality_focal_loss(mine, its.sigmoid(), beta=self.beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBinaryKL(OfPredictions):
    """Class distillation by the divergence of each class score, as independent binary problems.

    ``sum_c KL(q_c || p_c)``, the cross-entropy to the teacher's scores (FRS, Du et al. 2021) less the teacher's own
    entropy, a constant. Its gradient with respect to a logit is ``p_c - q_c``. For GFL v2 it uses the score with its
    quality. Classes that the teacher does not know contribute zero.

    Attributes:
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
    """

    head: Head = "own"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where student and teacher agree."""
        student, teacher = self.pair(scene)
        mine, its = common_classes(student.score_logits, teacher.score_logits, teacher.known)
        scores = its.sigmoid()
        entropy: Tensor = entr(scores) + entr(1 - scores)
        return (binary_cross_entropy_with_logits(mine, scores, reduction="none") - entropy).sum(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherOverlap(OfPredictions):
    """One minus the overlap of the student's box with the teacher's at the same location (BCKD, Yang et al. 2023).

    It needs no distribution from the teacher: each box is the mean of its distributions, or the teacher's box itself.

    Attributes:
        kind: ``giou`` (the paper), ``diou`` or ``ciou``; for rotated boxes ``rotated_iou``, ``gwd``, ``kld`` or
            ``probiou``.
        head: Head that computes predictions from the student's features: its ``own``, or the ``teacher``'s.
    """

    kind: OverlapKind = "giou"
    head: Head = "own"

    @property
    def numbers(self) -> int:
        """Number of values per box."""
        return OVERLAPS[self.kind][0]

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where both boxes agree."""
        student, teacher = (scene.boxes_of(dense) for dense in self.pair(scene))
        return overlap_loss(student, teacher.detach(), kind=self.kind)
