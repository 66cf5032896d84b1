"""Conversion of predictions of teachers with other bins or classes than the student, and of several teachers.

Only the teacher's predictions are converted, so that terms are not affected: the result is in the student's bins, at
the student's locations and in the student's order of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from locdistill.distillation.settings import SoftTarget
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.constant import constant
from locdistill.models.kinds import KINDS
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.types import Batch, Dense

UNKNOWN = -20.0
"""Placeholder logit of a class that a teacher does not know, to be ignored: see ``Dense.known``."""
Step = Callable[[Dense], Dense]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Properties of a detector's predictions that decide whether another detector can use them.

    Attributes:
        classes: Names of its classes.
        strides: Strides of its pyramid's levels, in pixels.
        offset: Position of a location within its cell, in strides.
        octaves: Anchor sizes per ratio in a cell.
        ratios: Height over width of the anchors of a cell.
        bins: Bins of the distributions of these numbers; None where it predicts boxes without distributions.
        channels: Width of the maps of its pyramid and its head; None where it provides none.
        coding: Meaning of the numbers predicted at a location.
    """

    classes: tuple[str, ...]
    strides: tuple[int, ...]
    offset: float = 0.0
    octaves: int = 1
    ratios: tuple[float, ...] = (1.0,)
    channels: int | None = None
    coding: Coding = DISTANCES
    bins: Bins | None = None

    @classmethod
    def of(cls, settings: DetectorSettings) -> Facts:
        """Return the facts of a detector of this package."""
        kind = KINDS[settings.model]
        coding, bins = meaning_of(settings)
        return cls(
            classes=settings.classes,
            strides=settings.strides,
            offset=kind.offset,
            octaves=kind.octaves,
            ratios=kind.ratios,
            channels=settings.channels,
            coding=coding,
            bins=bins,
        )


def rebin(
    logits: Float[Tensor, "*batch e n"], positions: Float[Tensor, "e n"], bins: Bins
) -> Float[Tensor, "*batch e m"]:
    """Convert distributions to other bins: split each bin's probability between its two new neighbours.

    The split is that of a two-hot target (GFL, equation 6): linear, so that each bin's position, and with it the mean
    of the distribution, is kept. Probabilities beyond the range of the new bins go to the first or last bin, which
    moves the mean by no more than what lies outside. Total probability is kept. Where the positions equal those of the
    new bins, only a constant is added to an edge's logits.

    When bins are refined, no smoothing is applied between the old positions: no information is added.

    Args:
        logits: Unnormalised log-probabilities.
        positions: Positions of each number's bins, edges in strides from the *student's* location; they need not be
            evenly spaced, nor equal for all numbers.
        bins: The new bins.

    Returns:
        Log-probabilities; for an empty bin, the logarithm of the smallest positive number.
    """
    table = bins.two_hot(bins.clamp(positions.mT, margin=0)).transpose(0, 1).to(logits)
    probs = torch.einsum("...en,enm->...em", logits.softmax(-1), table)
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def soft_edges(
    distances: Float[Tensor, "*batch"], bins: Bins, *, kind: SoftTarget = "two_hot", width: float = 0.5
) -> Float[Tensor, "*batch n"]:
    """Compute distributions for a teacher that has none, from the distances of its boxes' edges.

    Args:
        distances: Distances in strides; those beyond the range of the bins are clamped to the first or last bin.
        bins: The student's.
        kind: ``two_hot``, the two neighbouring bins, with the distance as mean; or ``gaussian``, with the distance as
            mean except for the tails that are cut off at the ends of the range.
        width: Standard deviation of the Gaussian, in strides. It stands for the teacher's uncertainty, which is not
            known.

    Returns:
        Log-probabilities.
    """
    inside = bins.clamp(distances, margin=0)
    if kind == "gaussian":
        offsets = (bins.positions(inside) - inside[..., None]) / width
        return (-offsets.square() / 2).log_softmax(-1)
    return bins.two_hot(inside).clamp(min=torch.finfo(inside.dtype).tiny).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebin:
    """Conversion of distributions to the student's bins and locations; see :func:`rebin`.

    Attributes:
        own: The teacher's bins, of numbers with the same meaning as the student's.
        bins: The student's.
        shift: Position of the student's locations in a cell minus that of the teacher's, in strides; for four edges.
    """

    own: Bins
    bins: Bins
    shift: float = 0.0

    def __call__(self, dense: Dense) -> Dense:
        """Convert to the student's bins; seen from further right, left edges are further and right ones nearer."""
        logits = dense.edge_logits.float()
        positions = self.own.positions(logits).expand(logits.shape[-2:])
        if self.shift:
            positions = positions + constant((self.shift, self.shift, -self.shift, -self.shift), logits)[:, None]
        return dense._replace(edge_logits=rebin(logits, positions, self.bins))


@dataclass(frozen=True, slots=True, kw_only=True)
class Soften:
    """Conversion of a teacher's boxes to distributions, where it has none; see :func:`soft_edges`.

    Such a teacher provides the four distances, in strides, in place of the logits of a single bin.

    Attributes:
        shift: Position of the student's locations in a cell minus that of the teacher's, in strides.
        bins: The student's bins.
        kind: Kind of distribution.
        width: Standard deviation of a Gaussian, in strides.
    """

    shift: float
    bins: Bins
    kind: SoftTarget = "two_hot"
    width: float = 0.5

    def __call__(self, dense: Dense) -> Dense:
        """Convert the boxes to distributions over the student's bins."""
        distances = dense.edge_logits[..., 0].float()
        distances = distances + constant((self.shift, self.shift, -self.shift, -self.shift), distances)
        return dense._replace(edge_logits=soft_edges(distances, self.bins, kind=self.kind, width=self.width))


@dataclass(frozen=True, slots=True, kw_only=True)
class MapClasses:
    """Conversion of class logits to the student's classes and their order.

    Attributes:
        sources: For each class of the student, its index among the teacher's; None where the teacher does not know it.
    """

    sources: tuple[int | None, ...]

    def __call__(self, dense: Dense) -> Dense:
        """Convert to the student's classes, and record those the teacher knows."""
        logits = dense.cls_logits
        logits = logits.index_select(-1, constant([source or 0 for source in self.sources], logits, torch.long))
        missing = [i for i, source in enumerate(self.sources) if source is None]
        if not missing:
            return dense._replace(cls_logits=logits, known=None)
        known = tuple(i for i, source in enumerate(self.sources) if source is not None)
        return dense._replace(
            cls_logits=logits.index_fill(-1, constant(missing, logits, torch.long), UNKNOWN), known=known
        )


class AdaptedTeacher(FrozenTeacher):
    """A teacher with predictions converted to the student's bins, locations and classes.

    Args:
        teacher: The teacher.
        steps: Conversions of its predictions, in order; also applied to its head's predictions for the student's
            features.
    """

    def __init__(self, teacher: FrozenTeacher, *steps: Step) -> None:
        self.teacher, self.steps = teacher, steps
        self.teachers = (teacher,)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return the teacher's converted predictions; its maps are unchanged."""
        dense = self.teacher(batch, features=features, towers=towers)
        return reduce(lambda dense, step: step(dense), self.steps, dense)

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Return the converted predictions of the teacher's head for the student's features."""
        return reduce(lambda dense, step: step(dense), self.steps, self.teacher.cross(student, teacher))


class SeveralTeachers(FrozenTeacher):
    """Several teachers combined: the average of their probabilities, not of their logits.

    A class score is averaged over those teachers that know the class. The quality of GFL v2 is a factor of the score
    before it is averaged; a quality used only for ranking is dropped. There are no common maps and no common head.

    Args:
        teachers: Teachers with predictions in the student's bins, locations and classes.
        shares: Their weights, positive; only their ratios matter. None for equal weights.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher], shares: Sequence[float] | None = None) -> None:
        self.teachers = tuple(teachers)
        weights = [1.0] * len(self.teachers) if shares is None else list(shares)
        if not weights or len(weights) != len(self.teachers) or min(weights) <= 0:
            raise ValueError(f"expected a positive weight for each of {len(self.teachers)} teachers, came {weights}")
        self.shares = tuple(weight / sum(weights) for weight in weights)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return the mean of their predictions."""
        assert not features, "the recipe's checks refuse terms that look at maps"
        assert not towers, "and at what a head makes of the student's"
        return averaged([teacher(batch) for teacher in self.teachers], self.shares)


def averaged(predictions: Sequence[Dense], shares: Sequence[float]) -> Dense:
    """Average the probabilities of several predictions, weighted by shares that sum to 1.

    Means are computed from logarithms, so that no precision is lost where a probability is close to 0 or 1.
    """
    # The background channel of the published GFL v2 is not a class.
    count = min(dense.cls_logits.shape[-1] for dense in predictions)
    scores = torch.stack([dense.score_logits[..., :count] for dense in predictions])
    weights = [
        [share * (dense.known is None or i in dense.known) for i in range(count)]
        for share, dense in zip(shares, predictions, strict=True)
    ]
    some = tuple(i for i, column in enumerate(zip(*weights, strict=True)) if any(column))
    known = None if len(some) == count else some
    by_class = constant(weights, scores, torch.float32)
    total = by_class.sum(0)
    logs = torch.where(total > 0, by_class / total, 1 / len(predictions)).log()[:, None, None].to(scores)
    cls_logits = (logs + logsigmoid(scores)).logsumexp(0) - (logs + logsigmoid(-scores)).logsumexp(0)
    edges = torch.stack([dense.edge_logits.log_softmax(-1) for dense in predictions])
    edge_shares = constant(shares, edges).log().view(-1, 1, 1, 1, 1)
    return Dense(cls_logits, (edge_shares + edges).logsumexp(0), known=known)
