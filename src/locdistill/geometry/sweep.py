"""Which of many axis-aligned boxes overlap, found without comparing all with all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

CANDIDATES = 2**20
"""Pairs whose vertical extents are compared at once (about 60 bytes each)."""
PAIRS = {"cpu": 2**14}
"""Pairs of which something is computed at once: what a processor's cache holds."""
PAIRS_ELSEWHERE = 2**18
"""The same on other devices, where each turn has a price."""


def overlapping_pairs(
    a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"] | None = None
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Places in ``a`` and in ``b`` of the boxes ``x1, y1, x2, y2`` that overlap; in no particular order.

    Without ``b``: the pairs within ``a``, each once, either of its two first.

    Boxes are sorted by their left edges; those that start within the horizontal extent of another are then a range of
    places, and of these the vertical extents are compared. Time and memory grow with the pairs that overlap
    horizontally, and memory beyond a limit only with those that overlap. Boxes that share no more than a vertical
    line count as overlapping: what was rounded alike is never missed. A box that is not finite overlaps nothing.
    """
    own, order = _sorted(a)
    if b is None:
        i, j = _starting_within(own, own, torch.arange(1, len(a) + 1, device=a.device))
        return taken(order, i), taken(order, j)
    other, other_order = _sorted(b)
    i, j = _starting_within(own, other, torch.searchsorted(other[0], own[0]))
    # The same the other way round, less those that start together.
    j_too, i_too = _starting_within(other, own, torch.searchsorted(own[0], other[0], right=True))
    return taken(order, torch.cat((i, i_too))), taken(other_order, torch.cat((j, j_too)))


def moved_apart(boxes: Float[Tensor, "n 4"], groups: Int[Tensor, " n"]) -> Float[Tensor, "n 4"]:
    """Boxes ``x1, y1, x2, y2`` moved sideways by group, so that those of different groups do not overlap.

    Rounding keeps the order of edges within a group: those that overlap still do.
    """
    if not len(boxes):
        return boxes
    width = 2 * boxes.nan_to_num(0, 0, 0).abs().max() + 1
    return boxes + (groups * width)[:, None] * boxes.new_tensor([1, 0, 1, 0])


def in_parts(value: Callable[[Tensor, Tensor], Tensor], i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Tensor:
    """``value(i, j)``, which has a number for each pair of places, for some pairs at a time."""
    size = PAIRS.get(i.device.type, PAIRS_ELSEWHERE)
    some = zip(torch.split(i, size), torch.split(j, size), strict=True)
    return torch.cat([value(*places) for places in some])


def taken(values: Tensor, places: Int[Tensor, " k"], axis: int = 0) -> Tensor:
    """The values at these places of an axis; for rows of numbers many times quicker than an index on a processor."""
    return values.index_select(axis, places)


def _sorted(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of the boxes (4, n) by their left edge, and their places; what is not finite is empty, and last."""
    finite = boxes.isfinite().all(1)
    low = boxes[:, :2].T.where(finite, torch.inf)
    high = boxes[:, 2:].T.where(finite, -torch.inf)
    order = low[0].argsort()
    return torch.cat((low, high))[:, order], order


def _starting_within(a: Tensor, b: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs that overlap of a box of ``a`` and one of ``b`` from place ``first`` to the last that starts within it."""
    last = torch.searchsorted(b[0], a[2].contiguous(), right=True)
    found = [(first[:0], first[:0])]
    for i, j in _expanded(first, (last - first).clamp(min=0)):
        meet = ((taken(a[1], i) < taken(b[3], j)) & (taken(b[1], j) < taken(a[3], i))).nonzero()[:, 0]
        found.append((taken(i, meet), taken(j, meet)))
    i, j = (torch.cat(parts) for parts in zip(*found, strict=True))
    return i, j


def _expanded(first: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each row with each of its ``counts`` places from ``first`` on, some rows at a time."""
    ends = counts.cumsum(0)
    sizes = torch.unique_consecutive((ends - 1).div(CANDIDATES, rounding_mode="floor"), return_counts=True)[1]
    shift = first - (ends - counts)
    for rows in torch.split(torch.arange(len(first), device=first.device), sizes.tolist()):
        i = rows.repeat_interleave(counts[rows])
        place = torch.arange(len(i), device=i.device) + (ends - counts)[rows[0]]
        yield i, place + taken(shift, i)
