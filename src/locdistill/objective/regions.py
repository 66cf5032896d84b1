"""Regions that need no teacher: the locations, and weights, at which terms count."""

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
    """Every location of the image that is not ignored, positive or not: the region of class losses."""

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return weight 1 in the region."""
        return scene.assignment.counted.to(scene.confidence.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return the region itself."""
        return scene.assignment.counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Positives(Region):
    """Main region: the locations assigned to an object.

    Attributes:
        by: Weight of a location: ``ones``; ``student_confidence``, its own highest class probability, as in GFL's box
            losses and LD's main region; ``iou``, that of its anchor with the object; ``centerness``, that of the
            location in the object, as in the box loss of ATSS and FCOS.
    """

    by: Literal["ones", "student_confidence", "iou", "centerness"] = "ones"

    @property
    def needs(self) -> frozenset[Need]:
        """Distances to the four edges, for centerness."""
        return frozenset({Need.DISTANCES}) if self.by == "centerness" else NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the chosen weight at positives."""
        positive = scene.assignment.positive.to(scene.confidence.dtype)
        if self.by == "student_confidence":
            return positive * scene.confidence
        if self.by == "iou":
            return positive * scene.assignment.overlaps
        if self.by == "centerness":
            return scene.centerness
        return positive

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return all positives."""
        return scene.assignment.positive


def within_objects(scene: Scene) -> Bool[Tensor, "b l"]:
    """Return the locations of the image that lie strictly inside some object's box, on any level."""
    within = inside_some(scene.grid.points, scene.instances.boxes, scene.instances.present)
    return within & scene.assignment.inside


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideBoxes(Region):
    """Locations strictly inside an object's box, on any level.

    Without positives this is the valuable region of anchor-free detectors (the published LD for FCOS); with them, a
    region for feature imitation (``fitnet`` in the published code, and the foreground of DeFeat).

    Attributes:
        by: Weight of a location: ``ones``, or ``student_confidence``, its own highest class probability.
        positives: Whether positives may be in the region.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING
    by: Literal["ones", "student_confidence"] = "ones"
    positives: bool = False

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return the chosen weight in the region."""
        region = self.reach(scene)
        return scene.confidence * region if self.by == "student_confidence" else region.to(scene.confidence.dtype)

    def reach(self, scene: Scene) -> Bool[Tensor, "b l"]:
        """Return the region, independent of the student's predictions."""
        region = within_objects(scene)
        return region if self.positives else region & ~scene.assignment.positive
