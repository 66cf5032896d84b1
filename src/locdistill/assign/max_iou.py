"""Assignment by the IoU of anchors and objects (RetinaNet, Lin et al. 2017), for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from locdistill.assign.assignment import Assignment, assignment_of
from locdistill.assign.ignore import ByShare, in_ignored
from locdistill.geometry.boxes import pairwise_iou
from locdistill.geometry.grid import Grid
from locdistill.types import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxIoU(ByShare):
    """Assign each anchor the object it overlaps most, if it overlaps it enough.

    An anchor whose highest IoU reaches ``positive`` answers for that object; one below ``negative`` is background; one
    between takes no part. With ``low_quality`` every object also gets the anchors that overlap it most of all, however
    little and whatever else they would be; of several objects that so claim an anchor the last takes it, as in the
    reference.

    Memory grows with images times anchors times objects: 24 bytes each at the peak, so two images of 800 x 1333
    (200 000 anchors each) with 50 objects take about 500 MB for a moment.

    Attributes:
        positive: Lowest IoU of a positive anchor.
        negative: IoU from which an anchor is no background any more.
        min_positive: An object whose highest IoU is below this gets no anchors by ``low_quality``; nor does one whose
            highest IoU is 0, to which the reference, with its 0 here, would give all the anchors that do not touch it.
        low_quality: Whether every object gets its best anchors.
    """

    has_thresholds: ClassVar[bool] = False
    positive: float = 0.5
    negative: float = 0.4
    min_positive: float = 0.0
    low_quality: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.negative <= self.positive <= 1:
            raise ValueError(f"0 < negative <= positive <= 1, came {self.negative} and {self.positive}")
        ByShare.__post_init__(self)  # super() does not know a class with slots

    @torch.no_grad()
    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch."""
        inside = grid.within(instances.extents)
        usable = inside
        if self.ignore_iof is not None:
            usable = inside & ~in_ignored(grid, instances, self.ignore_iof)
        overlaps = pairwise_iou(grid.anchors()[None], instances.boxes)
        overlaps = overlaps.where(usable[..., None] & instances.present[:, None], 0)
        # An empty column keeps the maximum defined for a batch without any object.
        best, slot = pad(overlaps, (0, 1)).max(-1)
        gt_index = slot.where(best >= self.positive, -1)
        if self.low_quality:
            last = self._last_claim(overlaps)
            gt_index = last.where(last >= 0, gt_index)
        counted = usable & ((gt_index >= 0) | (best < self.negative))
        return assignment_of(grid, instances, gt_index, inside=inside, counted=counted)

    def _last_claim(self, overlaps: Float[Tensor, "b l g"]) -> Int[Tensor, "b l"]:
        """The last of the objects whose highest IoU is at this anchor; -1 where there is none."""
        highest = overlaps.amax(1, keepdim=True)
        claims = (overlaps == highest) & (highest > 0) & (highest >= self.min_positive)
        slots = torch.arange(1, overlaps.shape[-1] + 1, device=overlaps.device)
        return pad(slots * claims, (0, 1)).amax(-1) - 1
