"""Assignment by the IoU of anchors and objects (RetinaNet, Lin et al. 2017), for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from locdistill.assign.assignment import Assignment, assignment_of
from locdistill.assign.ignore import ByShare, in_ignored
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.geometry.objects import in_turn
from locdistill.types import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxIoU(ByShare):
    """Assignment of each anchor to the object it overlaps most, if it overlaps it enough.

    An anchor whose highest IoU reaches ``positive`` is assigned to that object; one below ``negative`` is background;
    one between takes no part. With ``low_quality`` every object also claims the anchors that overlap it most, however
    small the overlap and whatever their assignment; of several objects that claim an anchor the last takes it, as in
    the reference.

    All anchors are compared with all objects, a few objects at a time (:mod:`locdistill.geometry.objects`).

    Attributes:
        positive: Lowest IoU of a positive anchor.
        negative: IoU from which an anchor is no longer background.
        min_positive: Minimum of an object's highest IoU for it to claim anchors by ``low_quality``. An object whose
            highest IoU is 0 claims none; the reference, with its 0 here, would give it all the anchors that do not
            touch it.
        low_quality: Whether every object gets its best anchors.
        box: Boxes the anchors are compared with: the ``circumscribed`` box of an object, which is the object's own box
            where it is not rotated ("hbb"), or its ``own`` box ("obb").
    """

    positive: float = 0.5
    negative: float = 0.4
    min_positive: float = 0.0
    low_quality: bool = True
    box: Literal["circumscribed", "own"] = "circumscribed"

    def __post_init__(self) -> None:
        if not 0 < self.negative <= self.positive <= 1:
            raise ValueError(f"expected 0 < negative <= positive <= 1, got {self.negative} and {self.positive}")
        ByShare.__post_init__(self)  # super() does not know a class with slots

    @torch.no_grad()
    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch."""
        inside, anchors = grid.within(instances.extents), grid.anchors()
        usable = inside
        if self.ignore_iof is not None:
            usable = inside & ~in_ignored(grid, instances, self.ignore_iof)
        # Each anchor's highest IoU, the first object with it, and the last that claims the anchor (or -1).
        best = torch.zeros(usable.shape, dtype=anchors.dtype, device=anchors.device)
        slot = torch.zeros(usable.shape, dtype=torch.int32, device=anchors.device)
        last = slot - 1
        slots = torch.arange(instances.boxes.shape[1], dtype=torch.int32, device=anchors.device).expand(len(best), -1)
        objects = instances.boxes if self.box == "circumscribed" else instances.targets
        for boxes, present, index in in_turn(anchors, objects, instances.present, slots):
            kind = kind_of(boxes)
            overlaps = kind.anchor_iou(anchors, boxes).where(usable[:, None] & present[..., None], 0)
            highest, first = overlaps.max(1)
            slot, best = (first.int() + index[0, 0]).where(highest > best, slot), torch.maximum(highest, best)
            if self.low_quality:
                # Each object claims the anchors whose IoU is its highest, up to rounding; the last object gets them.
                most = overlaps.amax(2, keepdim=True)
                claims = (overlaps >= most * (1 - kind.rounding)) & (most > 0) & (most >= self.min_positive)
                last = torch.maximum(last, index[..., None].where(claims, -1).amax(1))
        gt_index = slot.where(best >= self.positive, -1)
        if self.low_quality:
            gt_index = last.where(last >= 0, gt_index)
        counted = usable & ((gt_index >= 0) | (best < self.negative))
        return assignment_of(grid, instances, gt_index.long(), inside=inside, counted=counted)
