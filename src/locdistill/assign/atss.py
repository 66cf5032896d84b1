"""Adaptive training sample selection (Zhang et al. 2020), for a whole batch at once.

The candidates of an object are, on every level, the ``topk`` locations nearest to its centre. Locations of a level form
a lattice, so those lie in a window of ``topk`` x ``topk`` cells around the centre: the cost grows with the number of
objects, not with objects times locations. Only where single locations are left out (``ignore_iof``) is the lattice
broken and every location looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from locdistill.assign.assignment import Assignment
from locdistill.geometry.boxes import centres, paired_iou, pairwise_iof
from locdistill.geometry.grid import Grid
from locdistill.types import Instances

CENTRE_MARGIN_PX = 0.01


class Candidates(NamedTuple):
    """Locations that may become positive for an object; ``usable`` is false where a level had too few."""

    locations: Int[Tensor, "b g k"]
    usable: Bool[Tensor, "b g k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ATSS:
    """Assign each object the candidates whose IoU reaches the mean plus the deviation of its candidates' IoU.

    Attributes:
        topk: Candidates per level and object.
        ignore_iof: Locations whose anchor has more than this part of its area inside an ignored box (a crowd, a
            difficult object) take no part. ``None``, as in the published configurations: ignored boxes have no effect
            and their locations train as background.
    """

    topk: int = 9
    ignore_iof: float | None = None

    @torch.no_grad()
    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch. Ties of distance are broken as ``torch.topk`` happens to."""
        inside = grid.within(instances.extents)
        ignored = self._ignored(grid, instances)
        if ignored is None:
            candidates = nearest_in_window(grid, instances, self.topk)
        else:
            candidates = nearest_of_allowed(grid, instances, inside & ~ignored, self.topk)
        overlaps = _anchor_overlaps(grid, candidates.locations, instances.boxes)
        thresholds = _thresholds(overlaps, candidates.usable & instances.present[..., None])
        positive = (overlaps >= thresholds[..., None]) & _centre_inside(grid, candidates.locations, instances.boxes)
        best, gt_index = _strongest_object(candidates.locations, overlaps, positive, len(grid.points))
        counted = inside if ignored is None else inside & (~ignored | (gt_index >= 0))
        return _assignment(instances, best, gt_index, inside, counted, thresholds)

    def _ignored(self, grid: Grid, instances: Instances) -> Bool[Tensor, "b l"] | None:
        if self.ignore_iof is None:
            return None
        iof = pairwise_iof(grid.anchors()[None], instances.boxes)
        return ((iof > self.ignore_iof) & instances.ignored[:, None]).any(-1)


def nearest_in_window(grid: Grid, instances: Instances, topk: int) -> Candidates:
    """The nearest locations of each level, looked for in a window of cells around the centre.

    A row or column that is not among the ``topk`` nearest rows or columns cannot hold one of the ``topk`` nearest
    locations, because nearer ones in its own line come before it; near a border the window moves inwards. The window is
    of odd width, because the nearest cell is its middle.
    """
    cells = -(-topk // grid.per_cell)  # the anchors of a cell are equally near
    reach = cells // 2
    width = 2 * reach + 1
    device = grid.points.device
    strides = torch.tensor(grid.level_strides, device=device, dtype=torch.float32)
    shapes = torch.tensor(grid.shapes, device=device)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(-1).cumsum(0)[:-1]))
    # Rows and columns that lie inside each image: (b, level, 2) as (height, width).
    limit = torch.ceil(instances.extents[:, None] / strides[:, None]).long()
    limit = torch.minimum(limit, shapes)
    centre = centres(instances.boxes).flip(-1)[:, :, None] / strides[:, None] - grid.offset
    first = (centre.round().long() - reach).clamp(min=0)
    first = torch.minimum(first, (limit[:, None] - width).clamp(min=0))
    steps = torch.arange(width, device=device)
    window = first[..., None] + steps  # (b, g, level, 2, width)
    rows, columns = window[..., 0, :, None], window[..., 1, None, :]
    usable = (rows < limit[:, None, :, 0, None, None]) & (columns < limit[:, None, :, 1, None, None])
    index = starts[:, None, None] + rows * shapes[:, 1, None, None] + columns
    index, usable = index.where(usable, 0).flatten(-2), usable.flatten(-2)
    anchors = torch.arange(grid.per_cell, device=device)
    index = (index[..., None] * grid.per_cell + anchors).flatten(-2)
    usable = usable.repeat_interleave(grid.per_cell, -1)
    return _take_nearest(grid, instances, index, usable, topk)


def nearest_of_allowed(grid: Grid, instances: Instances, allowed: Bool[Tensor, "b l"], topk: int) -> Candidates:
    """The nearest allowed locations of each level, looked for among all; levels are padded to the largest."""
    device = grid.points.device
    sizes = torch.tensor(grid.level_sizes, device=device)
    steps = torch.arange(max(grid.level_sizes), device=device)
    starts = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)[:-1]))
    exists = steps < sizes[:, None]
    index = (starts[:, None] + steps).where(exists, 0)
    usable = exists & allowed[:, index]  # (b, level, l)
    objects = instances.boxes.shape[1]
    shape = (len(allowed), objects, *index.shape)
    return _take_nearest(grid, instances, index.expand(shape), usable[:, None].expand(shape), topk)


def _take_nearest(
    grid: Grid, instances: Instances, index: Int[Tensor, "b g v k"], usable: Bool[Tensor, "b g v k"], topk: int
) -> Candidates:
    offset = grid.points[index] - centres(instances.boxes)[:, :, None, None]
    distance = offset.square().sum(-1).sqrt().masked_fill(~usable, torch.inf)
    nearest = distance.topk(min(topk, distance.shape[-1]), -1, largest=False, sorted=False).indices
    return Candidates(index.gather(-1, nearest).flatten(-2), usable.gather(-1, nearest).flatten(-2))


def _anchor_overlaps(grid: Grid, index: Int[Tensor, "b g k"], boxes: Float[Tensor, "b g 4"]) -> Float[Tensor, "b g k"]:
    return paired_iou(grid.anchors()[index], boxes[:, :, None])


def _thresholds(overlaps: Float[Tensor, "b g k"], usable: Bool[Tensor, "b g k"]) -> Float[Tensor, "b g"]:
    """Mean plus unbiased deviation; infinite (nothing reaches it) with fewer than two candidates."""
    count = usable.sum(-1)
    mean = (overlaps * usable).sum(-1) / count.clamp(min=1)
    variance = ((overlaps - mean[..., None]).square() * usable).sum(-1) / (count - 1).clamp(min=1)
    return (mean + variance.sqrt()).masked_fill(count < 2, torch.inf)


def _centre_inside(grid: Grid, index: Int[Tensor, "b g k"], boxes: Float[Tensor, "b g 4"]) -> Bool[Tensor, "b g k"]:
    points = grid.points[index]
    low, high = points - boxes[:, :, None, :2], boxes[:, :, None, 2:] - points
    return torch.minimum(low, high).amin(-1) > CENTRE_MARGIN_PX


def _strongest_object(
    index: Int[Tensor, "b g k"], overlaps: Float[Tensor, "b g k"], positive: Bool[Tensor, "b g k"], locations: int
) -> tuple[Float[Tensor, "b l"], Int[Tensor, "b l"]]:
    """Per location the highest IoU among the objects that claim it, and the first object that has it (-1: none)."""
    batch, objects, _ = index.shape
    flat = index.flatten(1)
    claim = overlaps.where(positive, -1.0).flatten(1)
    best = claim.new_full((batch, locations), -1.0).scatter_reduce(1, flat, claim, "amax")
    slots = torch.arange(objects, device=index.device)[:, None].expand_as(index)
    wins = positive & (claim == best.gather(1, flat)).view_as(index)
    slots = slots.where(wins, objects).flatten(1)
    first = slots.new_full((batch, locations), objects).scatter_reduce(1, flat, slots, "amin")
    return best.clamp(min=0), first.where(first < objects, -1)


def _assignment(
    instances: Instances,
    best: Float[Tensor, "b l"],
    gt_index: Int[Tensor, "b l"],
    inside: Bool[Tensor, "b l"],
    counted: Bool[Tensor, "b l"],
    thresholds: Float[Tensor, "b g"],
) -> Assignment:
    positive = gt_index >= 0
    # One empty slot behind the last is what locations without an object look up; it also serves a batch without any.
    slot = gt_index.where(positive, instances.boxes.shape[1])
    boxes, labels = pad(instances.boxes, (0, 0, 0, 1)), pad(instances.labels, (0, 1))
    return Assignment(
        gt_index=gt_index,
        labels=labels.gather(1, slot),
        boxes=boxes.gather(1, slot[..., None].expand(-1, -1, 4)),
        overlaps=best,
        positive=positive,
        inside=inside,
        counted=counted,
        thresholds=thresholds,
    )
