"""Where terms count: regions that need no teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from locdistill.geometry.objects import inside_some
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Need, Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(Region):
    """Every location of the image that is not ignored, positive or not: where class losses act."""

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Weight 1."""
        return scene.assignment.counted.to(scene.confidence.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """The region itself."""
        return scene.assignment.counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives(Region):
    """The main region: locations that answer for an object.

    Attributes:
        by: Weight of a location: ``ones``; ``student_confidence``, its own highest class probability, as GFL weights
            its box losses and LD its main region; ``iou``, of its anchor with the object; ``centerness``, how central
            it is in the object, as ATSS and FCOS weight their box loss.
    """

    by: Literal["ones", "student_confidence", "iou", "centerness"] = "ones"

    @property
    def needs(self) -> frozenset[Need]:
        """Distances to four edges, for centerness."""
        return frozenset({Need.DISTANCES}) if self.by == "centerness" else NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """The chosen weight at positives."""
        positive = scene.assignment.positive.to(scene.confidence.dtype)
        if self.by == "student_confidence":
            return positive * scene.confidence
        if self.by == "iou":
            return positive * scene.assignment.overlaps
        if self.by == "centerness":
            return scene.centerness
        return positive

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """All positives."""
        return scene.assignment.positive


def within_objects(scene: Scene) -> Bool[Tensor, "b l"]:
    """Locations of the image whose centre lies strictly inside some object's box, on whatever level."""
    within = inside_some(scene.grid.points, scene.instances.boxes, scene.instances.present)
    return within & scene.assignment.inside


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideBoxes(Region):
    """Locations strictly inside an object's box, on whatever level.

    Without positives it is the valuable region of detectors without anchors (the published LD for FCOS); with them, a
    region to imitate features in (what the published code calls ``fitnet``, and the foreground of DeFeat).

    Attributes:
        by: Weight of a location: ``ones``, or ``student_confidence``, its own highest class probability.
        positives: Whether positives may be in the region.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    by: Literal["ones", "student_confidence"] = "ones"
    positives: bool = False

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """The chosen weight in the region."""
        region = self.reach(scene)
        return scene.confidence * region if self.by == "student_confidence" else region.to(scene.confidence.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """The region, whatever the student says there."""
        region = within_objects(scene)
        return region if self.positives else region & ~scene.assignment.positive
