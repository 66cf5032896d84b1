"""Adaptive training sample selection (Zhang et al. 2020), for a whole batch at once.

The candidates of an object are, on every level, the ``topk`` locations nearest to its centre. They lie in a window of
``topk`` x ``topk`` cells around the centre (:mod:`locdistill.assign.window`). Only where single locations are excluded
(``ignore_iof``) is the lattice incomplete, and all locations are searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from locdistill.assign.assignment import Assignment, assignment_of, strongest_claim
from locdistill.assign.ignore import ByShare, in_ignored
from locdistill.assign.window import locations_around
from locdistill.geometry.boxes import centres
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.geometry.objects import in_turn
from locdistill.types import Instances

CENTRE_MARGIN_PX = 0.01


class Candidates(NamedTuple):
    """Candidates of an object to become positive; ``usable`` is false where a level had too few."""

    locations: Int[Tensor, "b g k"]
    usable: Bool[Tensor, "b g k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ATSS(ByShare):
    """Adaptive assignment: positives are candidates whose IoU reaches their mean plus their deviation per object.

    The IoU is that of a location's anchor with the box that circumscribes the object; positives lie inside the object's
    own box, be it rotated or not.

    Attributes:
        topk: Candidates per level and object.
    """

    has_thresholds: ClassVar[bool] = True
    topk: int = 9

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise ValueError(f"expected topk >= 1, got {self.topk}")
        ByShare.__post_init__(self)  # super() does not know a class with slots

    @torch.no_grad()
    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch. Ties of distance are broken in the order of ``torch.topk``."""
        inside = grid.within(instances.extents)
        ignored = None if self.ignore_iof is None else in_ignored(grid, instances, self.ignore_iof)
        if ignored is None:
            candidates = nearest_in_window(grid, instances, self.topk)
        else:
            candidates = nearest_of_allowed(grid, instances, inside & ~ignored, self.topk)
        overlaps, usable, thresholds = _compared(grid, candidates, instances, instances.boxes)
        depth = kind_of(instances.targets).depth(grid.points[candidates.locations], instances.targets[:, :, None])
        positive = usable & (overlaps >= thresholds[..., None]) & (depth > CENTRE_MARGIN_PX)
        gt_index = strongest_claim(candidates.locations, overlaps, positive, len(grid.points))
        counted = inside if ignored is None else inside & ~ignored
        return assignment_of(grid, instances, gt_index, inside=inside, counted=counted, thresholds=thresholds)


@torch.no_grad()
def adaptive_thresholds(
    grid: Grid, instances: Instances, topk: int = 9, boxes: Float[Tensor, "b g d"] | None = None
) -> Float[Tensor, "b g"]:
    """Compute the IoU at which ATSS would make an anchor positive for each object; infinite in empty slots.

    It serves the valuable region of detectors with another assigner. With several anchors per cell (RetinaNet: 9) the
    ``topk`` candidates of a level are in effect the anchors of the nearest cell, so this is another statistic than that
    of ATSS, as in the reference.

    Args:
        grid: The locations.
        instances: The objects.
        topk: Candidates per level and object.
        boxes: Boxes the anchors are compared with; None is ``instances.boxes``.
    """
    candidates = nearest_in_window(grid, instances, topk)
    return _compared(grid, candidates, instances, instances.boxes if boxes is None else boxes)[2]


def nearest_in_window(grid: Grid, instances: Instances, topk: int) -> Candidates:
    """Find the nearest locations of each level, in a window of cells around the centre.

    A row or column that is not among the ``topk`` nearest rows or columns cannot hold one of the ``topk`` nearest
    locations, because nearer ones in its own line come before it; near a border the window moves inwards. The window is
    of odd width, because the nearest cell is its middle.
    """
    cells = -(-topk // grid.per_cell)  # the anchors of a cell are equally near
    index, usable = locations_around(grid, instances, cells // 2)
    return _take_nearest(grid, instances.boxes, index, usable, topk)


def nearest_of_allowed(grid: Grid, instances: Instances, allowed: Bool[Tensor, "b l"], topk: int) -> Candidates:
    """Find the nearest allowed locations of each level, among all; levels are padded to the largest."""
    steps = torch.arange(max(grid.level_sizes), device=grid.points.device)
    exists = steps < grid.on_levels.sizes[:, None]
    index = (grid.on_levels.starts[:, None] + steps).where(exists, 0)
    usable = (exists & allowed[:, index])[:, None]  # (b, 1, level, l)
    # A batch without objects has one empty part.
    parts = [_take_nearest(grid, some, index, usable, topk) for (some,) in in_turn(grid.points, instances.boxes)] or [
        _take_nearest(grid, instances.boxes, index, usable, topk)
    ]
    return Candidates(*(torch.cat(both, 1) for both in zip(*parts, strict=True)))


def _take_nearest(
    grid: Grid,
    boxes: Float[Tensor, "b g 4"],
    index: Int[Tensor, "*#bg v k"],
    usable: Bool[Tensor, "b _ v k"],
    topk: int,
) -> Candidates:
    offset = grid.points[index] - centres(boxes)[:, :, None, None]
    distance = offset.square().sum(-1).sqrt().masked_fill(~usable, torch.inf)
    nearest = distance.topk(min(topk, distance.shape[-1]), -1, largest=False, sorted=False).indices
    return Candidates(*(x.expand(distance.shape).gather(-1, nearest).flatten(-2) for x in (index, usable)))


def _compared(
    grid: Grid, candidates: Candidates, instances: Instances, boxes: Float[Tensor, "b g d"]
) -> tuple[Float[Tensor, "b g k"], Bool[Tensor, "b g k"], Float[Tensor, "b g"]]:
    """Compute the IoU of each candidate's anchor with its object, which of them exist, and each object's threshold.

    The threshold is mean plus unbiased deviation, or infinite (unreachable) with fewer than two candidates.
    """
    kind = kind_of(boxes)
    overlaps = kind.paired_iou(kind.upright(grid.anchors()[candidates.locations]), boxes[:, :, None])
    usable = candidates.usable & instances.present[..., None]
    count = usable.sum(-1)
    mean = (overlaps * usable).sum(-1) / count.clamp(min=1)
    variance = ((overlaps - mean[..., None]).square() * usable).sum(-1) / (count - 1).clamp(min=1)
    return overlaps, usable, (mean + variance.sqrt()).masked_fill(count < 2, torch.inf)
