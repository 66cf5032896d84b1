"""Overlapping pairs of many axis-aligned boxes, found without comparing all with all.

Values are selected by ``index_select``, which for rows of numbers is much faster than indexing on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CANDIDATES = 2**20
"""Pairs whose vertical extents are compared at once (about 60 bytes each)."""
PAIRS = {"cpu": 2**14}
"""Pairs that are processed at once; few enough to fit a CPU's cache."""
PAIRS_ELSEWHERE = 2**18
"""The same on other devices, where each iteration has a fixed cost."""


def overlapping_pairs(
    a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"] | None = None
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Return indices into ``a`` and ``b`` of the boxes ``x1, y1, x2, y2`` that overlap, in no particular order.

    Without ``b``: the pairs within ``a``, each once, in either order.

    Boxes are sorted by their left edges, so the boxes that start within the horizontal extent of another are a
    contiguous range; of these the vertical extents are compared. Time and memory grow with the pairs that overlap
    horizontally, and memory beyond a limit only with the pairs that overlap. Boxes that share no more than a vertical
    line count as overlapping, so that rounding cannot lose a pair. A box that is not finite overlaps nothing.
    """
    own, order = _sorted(a)
    if b is None:
        i, j = _starting_within(own, own, torch.arange(1, len(a) + 1, device=a.device))
        return order[i], order[j]
    other, other_order = _sorted(b)
    i, j = _starting_within(own, other, torch.searchsorted(other[0], own[0]))
    # The same with the roles exchanged, without the pairs that start together.
    j_too, i_too = _starting_within(other, own, torch.searchsorted(own[0], other[0], right=True))
    return order[torch.cat((i, i_too))], other_order[torch.cat((j, j_too))]


def moved_apart(boxes: Float[Tensor, "n 4"], groups: Int[Tensor, " n"]) -> Float[Tensor, "n 4"]:
    """Move boxes ``x1, y1, x2, y2`` sideways by group, so that those of different groups do not overlap.

    Rounding keeps the order of edges within a group: boxes that overlapped still do.
    """
    if not len(boxes):
        return boxes
    width = 2 * boxes.nan_to_num(0, 0, 0).abs().max() + 1
    return boxes + (groups * width)[:, None] * boxes.new_tensor([1, 0, 1, 0])


def in_parts(value: Callable[[Tensor, Tensor], Tensor], i: Int[Tensor, " k"], j: Int[Tensor, " k"]) -> Tensor:
    """Compute ``value(i, j)``, which has one number per pair of indices, for some pairs at a time."""
    size = PAIRS.get(i.device.type, PAIRS_ELSEWHERE)
    some = zip(torch.split(i, size), torch.split(j, size), strict=True)
    return torch.cat([value(*places) for places in some])


def _sorted(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Sort coordinates (4, n) by left edge, and return them with the order; boxes not finite become empty and last."""
    finite = boxes.isfinite().all(1)
    low = boxes[:, :2].T.where(finite, torch.inf)
    high = boxes[:, 2:].T.where(finite, -torch.inf)
    order = low[0].argsort()
    return torch.cat((low, high))[:, order], order


def _starting_within(a: Tensor, b: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Find overlapping pairs of boxes of ``a`` with those of ``b`` that start within them, from index ``first`` on."""
    counts = (torch.searchsorted(b[0], a[2].contiguous(), right=True) - first).clamp(min=0)
    ends = counts.cumsum(0)
    sizes = torch.unique_consecutive((ends - 1).div(CANDIDATES, rounding_mode="floor"), return_counts=True)[1]
    shift = first - (ends - counts)
    found = [(first[:0], first[:0])]
    for rows in torch.split(torch.arange(len(first), device=first.device), sizes.tolist()):
        # Each of these rows with each of its candidates.
        i = rows.repeat_interleave(counts[rows])
        j = torch.arange(len(i), device=i.device) + (ends - counts)[rows[0]] + shift.index_select(0, i)
        top, bottom = (a[k].index_select(0, i) for k in (1, 3))
        meet = ((top < b[3].index_select(0, j)) & (b[1].index_select(0, j) < bottom)).nonzero()[:, 0]
        found.append((i.index_select(0, meet), j.index_select(0, meet)))
    i, j = (torch.cat(parts) for parts in zip(*found, strict=True))
    return i, j
