"""Result of an assigner for every location."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from locdistill.geometry.boxes import paired_iou
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.types import Instances


class Assignment(NamedTuple):
    """Object assigned to each location.

    Attributes:
        gt_index: Slot of the object in ``Instances``, -1 where there is none.
        labels: Class of the object; 0 where there is none.
        boxes: Box of the object in pixels, in the form to be detected; zeros where there is none.
        overlaps: IoU of the location's anchor with the object (a rotated one's circumscribed box); 0 where there is
            none.
        positive: Locations that have an object: the *main* region.
        inside: Locations within the image's extent, ignored ones included.
        counted: Locations that take part in the class loss: inside, and not ignored.
        thresholds: IoU that makes an anchor positive for each object, for assigners that have one (ATSS). Infinite in
            empty slots, and everywhere with other assigners: a valuable region that takes its thresholds from here is
            then empty.
    """

    gt_index: Int[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    boxes: Float[Tensor, "b l d"]
    overlaps: Float[Tensor, "b l"]
    positive: Bool[Tensor, "b l"]
    inside: Bool[Tensor, "b l"]
    counted: Bool[Tensor, "b l"]
    thresholds: Float[Tensor, "b g"]


@runtime_checkable
class Assigner(Protocol):
    """Assigner of objects to locations."""

    __slots__ = ()

    has_thresholds: ClassVar[bool] = False
    """Whether its assignments hold a threshold for each object."""

    def ignoring(self) -> Assigner:
        """Return the same assigner, with ignored regions left out of training."""

    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch."""


def assignment_of(
    grid: Grid,
    instances: Instances,
    gt_index: Int[Tensor, "b l"],
    *,
    inside: Bool[Tensor, "b l"],
    counted: Bool[Tensor, "b l"],
    thresholds: Float[Tensor, "b g"] | None = None,
) -> Assignment:
    """Build an assignment from the choice of an object for each location (-1: none)."""
    positive = gt_index >= 0
    # Locations without an object look up the empty slot appended at the end; it also serves a batch without objects.
    slot = gt_index.where(positive, instances.boxes.shape[1])
    padded, labels = pad(instances.targets, (0, 0, 0, 1)), pad(instances.labels, (0, 1))
    boxes = padded.gather(1, slot[..., None].expand(-1, -1, padded.shape[-1]))
    if thresholds is None:
        thresholds = torch.full_like(instances.boxes[..., 0], torch.inf)
    return Assignment(
        gt_index=gt_index,
        labels=labels.gather(1, slot),
        boxes=boxes,
        overlaps=paired_iou(grid.anchors(), kind_of(boxes).hull(boxes)) * positive,
        positive=positive,
        inside=inside,
        counted=counted,
        thresholds=thresholds,
    )


def strongest_claim(
    index: Int[Tensor, "b g k"], claims: Float[Tensor, "b g k"], valid: Bool[Tensor, "b g k"], locations: int
) -> Int[Tensor, "b l"]:
    """Return the object with the highest valid claim per location, the first of several; -1 without a claim."""
    batch, objects, _ = index.shape
    flat = index.flatten(1)
    claims = claims.where(valid, -torch.inf).flatten(1)
    best = claims.new_full((batch, locations), -torch.inf).scatter_reduce(1, flat, claims, "amax")
    slots = torch.arange(objects, device=index.device)[:, None].expand_as(index)
    wins = valid & (claims == best.gather(1, flat)).view_as(index)
    slots = slots.where(wins, objects).flatten(1)
    first = slots.new_full((batch, locations), objects).scatter_reduce(1, flat, slots, "amin")
    return first.where(first < objects, -1)
