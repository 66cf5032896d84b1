"""Teachers that do not match their student: what is said in other bins, of other classes, or by several at once.

Everything is done to the teacher's predictions, so that no term needs to know of it: what comes out is in the student's
bins, at the student's locations and in the student's order of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from locdistill.distillation.settings import SoftTarget
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.constant import constant, indices
from locdistill.models.fold import Haste
from locdistill.models.kinds import KINDS
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.types import Batch, Dense

UNKNOWN = -20.0
"""Logit of a class that a teacher does not know. It means nothing: see ``Dense.known``."""
Step = Callable[[Dense], Dense]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a detector speaks of, as far as another one that listens needs to know.

    Attributes:
        classes: Names of its classes.
        strides: Of its pyramid's levels, in pixels.
        offset: Position of a location within its cell, in strides.
        octaves: Anchor sizes per ratio in a cell.
        ratios: Height over width of the anchors of a cell.
        bins: Of the distributions of these numbers; None where it has boxes and no distributions.
        channels: Width of the maps of its pyramid and its head; None where it hands out none.
        coding: What the numbers mean that a location predicts.
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
        """Those of a detector of this package."""
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
    """The same distributions over other bins: each bin's probability is split between its two new neighbours.

    The split is that of a two-hot target (GFL, equation 6): linear, so that each bin's position, and with it the mean
    of the distribution, is kept. Probabilities beyond the range of the new bins go to the first or last of them: there
    the mean moves by no more than what lies outside. Total probability is kept, and where the positions are those of
    the new bins nothing changes but a constant added to an edge's logits.

    Between coarse bins, a finer support would allow something smoother than what is known; nothing is made up here.

    Args:
        logits: Unnormalised log-probabilities.
        positions: Where each number's bins lie, edges in strides from the *student's* location; they need not be
            evenly spaced, nor equal for all numbers.
        bins: The new bins.

    Returns:
        Log-probabilities. That of a bin which gets nothing is the logarithm of the smallest positive number.
    """
    table = bins.two_hot(bins.limit(positions.mT)).transpose(0, 1).to(logits)
    probs = torch.einsum("...en,enm->...em", logits.softmax(-1), table)
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def soft_edges(
    distances: Float[Tensor, "*batch"], bins: Bins, *, kind: SoftTarget = "two_hot", width: float = 0.5
) -> Float[Tensor, "*batch n"]:
    """Distributions for a teacher that has none: made of the distances of its boxes' edges.

    Args:
        distances: In strides; beyond the range of the bins, the first or last of them.
        bins: The student's.
        kind: ``two_hot``, the two neighbouring bins, whose mean is the distance; or ``gaussian``, whose mean is the
            distance too, but for what its tails lose at the ends of the range.
        width: Standard deviation of the Gaussian, in strides. It says how sure the teacher is, which nobody knows.

    Returns:
        Log-probabilities.
    """
    inside = bins.limit(distances)
    if kind == "gaussian":
        offsets = (bins.positions(inside) - inside[..., None]) / width
        return (-offsets.square() / 2).log_softmax(-1)
    return bins.two_hot(inside).clamp(min=torch.finfo(inside.dtype).tiny).log()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebin:
    """Puts distributions into the student's bins, around the student's locations; see :func:`rebin`.

    Attributes:
        own: The teacher's bins, of numbers that mean what the student's do.
        bins: The student's.
        shift: Where the student's locations lie in a cell, less where the teacher's do, in strides; of four edges.
    """

    own: Bins
    bins: Bins
    shift: float = 0.0

    def __call__(self, dense: Dense) -> Dense:
        """Predictions in the student's bins; from a location further right, left edges are further and right nearer."""
        logits = dense.edge_logits.float()
        positions = self.own.positions(logits).expand(logits.shape[-2:])
        if self.shift:
            positions = positions + constant((self.shift, self.shift, -self.shift, -self.shift), logits)[:, None]
        return dense._replace(edge_logits=rebin(logits, positions, self.bins))


@dataclass(frozen=True, slots=True, kw_only=True)
class Soften:
    """Makes distributions of the boxes of a teacher that has none; see :func:`soft_edges`.

    Such a teacher gives the four distances themselves, in strides, in the place of the logits of a single bin.

    Attributes:
        shift: Where the student's locations lie in a cell, less where the teacher's do, in strides.
        bins: The student's.
        kind: What is made of a distance.
        width: Standard deviation of a Gaussian, in strides.
    """

    shift: float
    bins: Bins
    kind: SoftTarget = "two_hot"
    width: float = 0.5

    def __call__(self, dense: Dense) -> Dense:
        """Predictions in the student's bins."""
        distances = dense.edge_logits[..., 0].float()
        distances = distances + constant((self.shift, self.shift, -self.shift, -self.shift), distances)
        return dense._replace(edge_logits=soft_edges(distances, self.bins, kind=self.kind, width=self.width))


@dataclass(frozen=True, slots=True, kw_only=True)
class MapClasses:
    """Puts class logits into the student's order and leaves out what it does not learn.

    Attributes:
        sources: For each class of the student, its index among the teacher's; None where the teacher does not know it.
    """

    sources: tuple[int | None, ...]

    def __call__(self, dense: Dense) -> Dense:
        """Predictions of the student's classes, which say what of them is known."""
        logits = dense.cls_logits
        logits = logits.index_select(-1, indices([source or 0 for source in self.sources], logits))
        missing = [i for i, source in enumerate(self.sources) if source is None]
        if not missing:
            return dense._replace(cls_logits=logits, known=None)
        known = tuple(i for i, source in enumerate(self.sources) if source is not None)
        return dense._replace(cls_logits=logits.index_fill(-1, indices(missing, logits), UNKNOWN), known=known)


class AdaptedTeacher(FrozenTeacher):
    """A teacher whose predictions are put into the student's terms.

    Args:
        teacher: Who teaches.
        steps: What is done to its predictions, in order; to those of its head on the student's features too.
    """

    def __init__(self, teacher: FrozenTeacher, *steps: Step) -> None:
        self.teacher, self.steps = teacher, steps

    def to(self, device: torch.device) -> AdaptedTeacher:
        """Move to where the batches are."""
        self.teacher.to(device)
        return self

    def hasten(self, how: Haste) -> None:
        """Hasten the teacher."""
        self.teacher.hasten(how)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """The teacher's predictions in the student's terms; its maps are as they were."""
        return self._adapted(self.teacher(batch, features=features, towers=towers))

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """What the teacher's head makes of the student's features, in the student's terms."""
        return self._adapted(self.teacher.cross(student, teacher))

    def _adapted(self, dense: Dense) -> Dense:
        for step in self.steps:
            dense = step(dense)
        return dense


class SeveralTeachers(FrozenTeacher):
    """Several teachers as one: their probabilities are averaged, not their logits.

    A class score is averaged over those teachers that know the class. The quality of GFL v2 is a factor of the score
    before it is averaged; a quality that only ranks is dropped. They have no common maps to hand out, and no one head.

    Args:
        teachers: Which say all they say in the student's terms.
        shares: Their weights, positive; only their ratios count. None is equal weights.
    """

    def __init__(self, teachers: Sequence[FrozenTeacher], shares: Sequence[float] | None = None) -> None:
        self.teachers = tuple(teachers)
        weights = [1.0] * len(self.teachers) if shares is None else list(shares)
        if not weights or len(weights) != len(self.teachers) or min(weights) <= 0:
            raise ValueError(f"expected a positive weight for each of {len(self.teachers)} teachers, came {weights}")
        self.shares = tuple(weight / sum(weights) for weight in weights)

    def to(self, device: torch.device) -> SeveralTeachers:
        """Move to where the batches are."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def hasten(self, how: Haste) -> None:
        """Hasten each of them."""
        for teacher in self.teachers:
            teacher.hasten(how)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """The mean of what they say."""
        assert not features, "the recipe's checks refuse terms that look at maps"
        assert not towers, "and at what a head makes of the student's"
        return averaged([teacher(batch) for teacher in self.teachers], self.shares)


def averaged(said: Sequence[Dense], shares: Sequence[float]) -> Dense:
    """One prediction whose probabilities are the weighted means of those of several; the shares sum to 1.

    Means are taken of logarithms, so that nothing is lost where a probability is close to 0 or 1.
    """
    # A background channel of the published GFL v2 is no class.
    count = min(dense.cls_logits.shape[-1] for dense in said)
    scores = torch.stack([dense.score_logits[..., :count] for dense in said])
    weights = [
        [share * (dense.known is None or i in dense.known) for i in range(count)]
        for share, dense in zip(shares, said, strict=True)
    ]
    some = tuple(i for i, column in enumerate(zip(*weights, strict=True)) if any(column))
    known = None if len(some) == count else some
    by_class = constant(weights, scores, torch.float32)
    total = by_class.sum(0)
    logs = torch.where(total > 0, by_class / total, 1 / len(said)).log()[:, None, None].to(scores)
    cls_logits = (logs + logsigmoid(scores)).logsumexp(0) - (logs + logsigmoid(-scores)).logsumexp(0)
    edges = torch.stack([dense.edge_logits.log_softmax(-1) for dense in said])
    edge_shares = constant(shares, edges).log().view(-1, 1, 1, 1, 1)
    return Dense(cls_logits, (edge_shares + edges).logsumexp(0), known=known)
