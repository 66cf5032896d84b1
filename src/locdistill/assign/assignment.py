"""What an assigner decides for every location."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor


class Assignment(NamedTuple):
    """Which object each location answers for.

    Attributes:
        gt_index: Slot of the object in ``Instances``, -1 where there is none.
        labels: Class of the object; 0 where there is none.
        boxes: Box of the object in pixels; zeros where there is none.
        overlaps: IoU of the location's anchor with the object; 0 where there is none.
        positive: Locations that have an object: the *main* region.
        inside: Locations within the image's extent, ignored ones included.
        counted: Locations that take part in the class loss: inside, and not ignored.
        thresholds: IoU that makes an anchor positive for each object (infinite in empty slots).
    """

    gt_index: Int[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    boxes: Float[Tensor, "b l 4"]
    overlaps: Float[Tensor, "b l"]
    positive: Bool[Tensor, "b l"]
    inside: Bool[Tensor, "b l"]
    counted: Bool[Tensor, "b l"]
    thresholds: Float[Tensor, "b g"]
