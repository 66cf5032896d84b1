"""One summand of the loss: divergence times region, over a normaliser, times a weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from locdistill.objective.normalisers import Normaliser, WeightSum
from locdistill.objective.scene import Scene


@runtime_checkable
class Divergence(Protocol):
    """How wrong the student is at every location, finite everywhere, whether or not the location counts."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A value per location, with gradient to the student."""


@runtime_checkable
class Region(Protocol):
    """Where, and how much, a divergence counts."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """A weight per location, without gradient; zero outside the region."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """``weight * sum(of * on / norm)`` over the batch.

    Attributes:
        of: What is measured.
        on: Where it counts.
        norm: What the sum is divided by.
        weight: Factor of the whole.
    """

    of: Divergence
    on: Region
    norm: Normaliser = field(default_factory=WeightSum)
    weight: float = 1.0

    @property
    def needs_teacher(self) -> bool:
        """Whether divergence or region looks at a teacher."""
        return any(getattr(part, "needs_teacher", False) for part in (self.of, self.on, self.norm))

    @property
    def needs_quality(self) -> bool:
        """Whether divergence or region looks at the quality that a head predicts beside the class score."""
        return any(getattr(part, "needs_quality", False) for part in (self.of, self.on, self.norm))

    @property
    def needs_thresholds(self) -> bool:
        """Whether divergence or region looks at the assigner's thresholds, which only some assigners have."""
        return any(getattr(part, "needs_thresholds", False) for part in (self.of, self.on, self.norm))

    @property
    def needs_features(self) -> bool:
        """Whether divergence or region looks at the maps of the pyramids."""
        return any(getattr(part, "needs_features", False) for part in (self.of, self.on, self.norm))

    def per_location(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Each location's share of the term."""
        weights = self.on(scene)
        return self.weight * self.of(scene) * weights / self.norm(weights, scene)

    def __call__(self, scene: Scene) -> Float[Tensor, ""]:
        """The term's value; 0, with gradients defined, where the region is empty."""
        return self.per_location(scene).sum()
