"""Divergences that compare patterns of a whole map, or of a whole vector of scores, instead of single values.

A loss of a whole map still has one value per location. Pearson's ``1 - r`` of two patterns is half the mean of the
squared differences of their standardised values. A divergence of two distributions over the positions of a map is a sum
over the positions. So the regions and normalisers of all other terms apply here too: with :class:`Everywhere` and a
mean per level of each image the first gives the published loss, with a sum over each image the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.distillation.adapters import OfMaps, Pair, as_maps, grouped, inside_maps, per_location, shares
from locdistill.distillation.logits import common_classes
from locdistill.losses.distribution import kl_summands
from locdistill.objective.scene import Scene
from locdistill.objective.term import Need
from locdistill.settings import Positive

EPSILON = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class _OfPatterns(OfMaps):
    """Base class of divergences between maps of features or of class predictions.

    Attributes:
        what: ``features`` of the pyramids, or ``classes``: the class predictions, a map for each class.
        temperature: Divisor of the compared values.
    """

    what: Literal["features", "classes"] = "features"
    temperature: Positive = 1.0

    @property
    def needs(self) -> frozenset[Need]:
        """Maps and adapters; for classes only the predictions, since both sides have equally many class maps."""
        return super(_OfPatterns, self).needs if self.what == "features" else frozenset({Need.TEACHER})

    def pairs(self, scene: Scene, own: nn.Module | None = None) -> list[Pair]:
        """Pair maps of features, or of the logits, without the quality of GFL v2, of the classes that both predict.

        Raises:
            TeacherError: Features are missing, or of unequal width without adapters; see :meth:`OfMaps.pairs`.
        """
        if self.what == "features":
            return super(_OfPatterns, self).pairs(scene, own)
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        logits = common_classes(scene.student.cls_logits, scene.teacher.cls_logits, scene.teacher.known)
        student, teacher = (as_maps(x, scene.grid) for x in logits)
        per_cell = scene.grid.per_cell
        return [Pair(*level, groups=per_cell) for level in zip(student, teacher, inside_maps(scene), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation(_OfPatterns):
    """Half the squared difference of standardised values, with one minus Pearson's correlation as mean.

    ``across`` the locations of a level it is PKD (Cao et al. 2022): each channel of a map is standardised to mean 0 and
    variance 1, so that neither scale nor offset of the teacher's features matters. On class scores it is the relation
    within a class of DIST (Huang et al. 2022), and across the classes at each location, DIST's relation between
    classes.

    Statistics are computed over the image's own locations, so that neither the other images nor the padding matter.
    Published PKD computes them over all images of a process together, padding included (``per="batch"``). A constant
    pattern has no direction: two of them contribute zero, and one alone 1/2 (in place of 1). The variance is clamped to
    at least 1e-6.

    Attributes:
        across: Axis of the mean and the variance: the ``locations`` of each level, per channel, or the ``channels`` of
            each location.
        per: Set of locations: those of each ``image``, or of the ``batch`` of this process.
        scores: Class scores to compare: their ``sigmoid``, as in detectors, or one ``softmax`` (DIST).
        temperature: Divisor of class logits; the scale of features has no effect.
    """

    across: Literal["locations", "channels"] = "locations"
    per: Literal["image", "batch"] = "image"
    scores: Literal["sigmoid", "softmax"] = "sigmoid"

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the mean over channels; zero where both patterns agree up to scale and offset."""
        levels = []
        for pair in self.pairs(scene, own):
            student, teacher = (self._standardised(x, pair) for x in (pair.student, pair.teacher))
            levels.append(grouped((student - teacher).square(), pair.groups).mean(2) / 2)
        return per_location(levels, scene.grid)

    def _standardised(self, x: Float[Tensor, "b c h w"], pair: Pair) -> Float[Tensor, "b c h w"]:
        """Return features or class scores of a level, standardised to mean 0 and variance 1 over the chosen axis.

        Over locations the statistics are those of the positions within the image; others are transformed alike.
        """
        if self.what == "classes":
            x = x / self.temperature
            x = x.sigmoid() if self.scores == "sigmoid" else grouped(x, pair.groups).softmax(2).flatten(1, 2)
        if self.across == "channels":
            vectors = grouped(x, pair.groups)
            centred = vectors - vectors.mean(2, keepdim=True)
            return (centred * (centred.square().mean(2, keepdim=True) + EPSILON).rsqrt()).flatten(1, 2)
        axes = (2, 3) if self.per == "image" else (0, 2, 3)
        weight = (pair.inside if self.per == "image" else torch.ones_like(pair.inside)).to(x.dtype)
        count = weight.sum(axes, keepdim=True).clamp(min=1)
        centred = x - (x * weight).sum(axes, keepdim=True) / count
        return centred * ((centred.square() * weight).sum(axes, keepdim=True) / count + EPSILON).rsqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelKL(_OfPatterns):
    """Channel-wise distillation (CWD, Shu et al. 2021): each channel as a distribution over the positions of its level.

    ``temperature^2 / channels * sum_c sum_p phi(t)_cp log(phi(t)_cp / phi(s)_cp)`` with ``phi`` the softmax over the
    positions of the image's own part of the level. The value of a location is its summand: the *sum* over the level is
    the loss and is not negative, but single values may be. In the published code the padding is part of the softmax.
    """

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return each location's summand; the sum is zero where both maps agree up to a constant added to a channel."""
        levels = []
        for pair in self.pairs(scene, own):
            student, teacher = (
                (x / self.temperature).masked_fill(~pair.inside, -torch.inf).flatten(2).log_softmax(-1).view_as(x)
                for x in (pair.student, pair.teacher)
            )
            levels.append(self.temperature**2 * grouped(kl_summands(student, teacher), pair.groups).mean(2))
        return shares(levels, scene.grid)
