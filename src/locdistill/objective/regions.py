"""Where terms count: regions that need no teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from locdistill.objective.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Every location of the image that is not ignored, positive or not: where class losses act."""

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Weight 1."""
        return scene.assignment.counted.to(scene.confidence.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives:
    """The main region: locations that answer for an object.

    Attributes:
        by: Weight of a location: ``ones``; ``student_confidence``, its own highest class probability, as GFL weights
            its box losses and LD its main region; ``iou``, of its anchor with the object.
    """

    by: Literal["ones", "student_confidence", "iou"] = "ones"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """The chosen weight at positives."""
        positive = scene.assignment.positive.to(scene.confidence.dtype)
        if self.by == "student_confidence":
            return positive * scene.confidence
        if self.by == "iou":
            return positive * scene.assignment.overlaps
        return positive
