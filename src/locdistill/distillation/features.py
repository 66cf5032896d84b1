"""Feature imitation: how far the student's feature maps are from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from locdistill.distillation.adapters import OfMaps, per_location
from locdistill.objective.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureL2(OfMaps):
    """Squared difference of the student's and the teacher's features, the mean over channels.

    The divergence of FitNets (Romero et al. 2015) and of the methods after it, which differ in the *region* where they
    imitate; see :mod:`locdistill.distillation.imitation`. The reference has no adapter: both its pyramids have 256
    channels. Locations of one cell share its feature: with the nine anchors of a RetinaNet cell, a region weighs the
    cell by the number of its anchors that lie in the region.
    """

    local: ClassVar[bool] = True

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Zero where both features agree (the student's through its adapter); without gradient to the teacher."""
        levels = [(p.student - p.teacher).square().mean(1, keepdim=True) for p in self.pairs(scene, own)]
        return per_location(levels, scene.grid)
