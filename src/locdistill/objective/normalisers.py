"""Denominators of the weighted sum of a term.

A normaliser gives a denominator per location (broadcast over ``(b, l)``), so that "mean over each level" is the same
mechanism as "sum over everything". Global quantities are averaged over processes here, in one place: with gradients
averaged by DDP, dividing by the mean over processes equals dividing by the global total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.dist import reduce_mean
from locdistill.objective.scene import Scene
from locdistill.settings import Positive


@runtime_checkable
class Normaliser(Protocol):
    """Denominator for every location, positive everywhere."""

    __slots__ = ()

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute denominators from the region's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveCount(Normaliser):
    """Number of positive locations, averaged over processes and at least 1.

    In the reference, RetinaNet divides by the count of its own process; here it is averaged as for the other detectors.

    Attributes:
        one_per_image: Whether an image without positives counts as one (GFL, ATSS, RetinaNet), or as none (FCOS).
    """

    one_per_image: bool = True

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator for all locations."""
        counts = scene.assignment.positive.sum(-1).clamp(min=int(self.one_per_image))
        count = counts.sum().to(weights.dtype)
        return reduce_mean(count).clamp(min=1)[None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSum(Normaliser):
    """Sum of the region's weights over the batch, averaged over processes (GFL's box and distribution losses).

    Attributes:
        epsilon: Added to the sum, as in the reference's distilling heads. Its plain GFL head adds nothing and gives
            NaN for a batch without positives.
    """

    epsilon: float = 1e-6

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator for all locations."""
        return reduce_mean(weights.sum() + self.epsilon)[None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(Normaliser):
    """Fixed number: the published normalisation of localization distillation.

    The term is then a sum over the images of a process, so its strength grows with their number; the reference's author
    calls it a bug (HikariTJU/LD, issue 78). Choose ``PerImage`` unless old numbers must be reproduced.

    Attributes:
        divisor: 1 for main LD and 4 for LD on the valuable region; the reference's 4 and 16 also average over the four
            edges, which ``EdgeKL`` does itself.
    """

    divisor: Positive = 1.0

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Return one denominator for all locations."""
        return weights.new_full((1, 1), self.divisor)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerImage(Normaliser):
    """Mean over images of each image's sum, times a reference number of images per process.

    Equal to ``Constant`` when a process holds ``reference_batch`` images, and unchanged by how a batch is split into
    micro-batches and processes.

    Attributes:
        reference_batch: Images per process for which the term's weight was tuned (3 or 2 in the published recipes).
        divisor: As in ``Constant``.
    """

    reference_batch: Positive = 3.0
    divisor: Positive = 1.0

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator for all locations."""
        return (_images(weights) * (self.divisor / self.reference_batch))[None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelMean(Normaliser):
    """Sum of the weights of each pyramid level of this process: a mean per level, levels summed.

    The published normalisation of class distillation. It depends on which images share a process; ``ImageLevelMean``
    does not.
    """

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator per level."""
        sums = _level_sums(weights, scene).sum(0, keepdim=True)
        return torch.where(sums > 0, sums, 1.0)[:, scene.grid.levels]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLevelMean(Normaliser):
    """Mean over each level of each image, levels summed, averaged over images.

    This is ``LevelMean`` of each image separately, so it does not depend on how a batch is split. With one image both
    are equal; with more, a level that holds positives of few images weighs less here, because the other images count as
    zero.

    Attributes:
        over: Denominator of the mean: ``weights``, their sum; ``locations``, the number of locations with a positive
            weight (the published Rotated-LD, whose weights are below 1, so that its terms are weaker than they appear).
    """

    over: Literal["weights", "locations"] = "weights"

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator per image and level."""
        counted = weights if self.over == "weights" else (weights > 0).to(weights.dtype)
        sums = _level_sums(counted, scene)
        return torch.where(sums > 0, sums, 1.0)[:, scene.grid.levels] * _images(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePositiveCount(Normaliser):
    """Number of positive locations of each image, averaged over images.

    This is ``PositiveCount`` of each image separately, so it does not depend on how a batch is split.

    Attributes:
        at_least: Minimum count per image, so that an image without objects, where the whole background may add up, does
            not outweigh the others. ATSS gives an object up to nine per level.
    """

    at_least: Positive = 9.0

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator per image."""
        count = scene.assignment.positive.sum(-1, keepdim=True).to(weights.dtype)
        return count.clamp(min=self.at_least) * _images(weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWeightSum(Normaliser):
    """Weighted mean over each image, averaged over images.

    This is ``WeightSum`` of each image separately, so it does not depend on how a batch is split.

    Attributes:
        epsilon: Number added to each image's sum.
    """

    epsilon: float = 1e-6

    def __call__(self, weights: Float[Tensor, "b l"], scene: Scene) -> Float[Tensor, "#b #l"]:
        """Compute one denominator per image."""
        return (weights.sum(-1, keepdim=True) + self.epsilon) * _images(weights)


def _images(weights: Tensor) -> Tensor:
    """Return the number of images per process, averaged over processes (they differ when a last batch is uneven)."""
    return reduce_mean(weights.new_full((), weights.shape[0]))


def _level_sums(weights: Tensor, scene: Scene) -> Tensor:
    sums = weights.new_zeros(weights.shape[0], len(scene.grid.shapes))
    return sums.index_add(1, scene.grid.levels, weights)
