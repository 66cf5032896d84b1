"""Non-maximum suppression within classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.geometry import rotated
from locdistill.geometry.boxes import centre_offset, pairwise_iou
from locdistill.geometry.sweep import moved_apart, overlapping_pairs

# From this number of boxes on, classes are suppressed one after another: the memory of one pass grows quadratically.
ONE_PASS_LIMIT = 10_000
# Boxes that are suppressed together, and pairs of boxes that are compared at once (about 100 bytes each).
BLOCK = 256
PAIRS = 2**18
# The same where only overlapping pairs are compared: blocks double, as few boxes of a crowd remain after the first.
SPARSE_BLOCK = 512
SPARSE_BLOCK_LIMIT = 4096
# The published numbers of score voting.
CLOSENESS = 0.8
VOTE_THRESHOLD = 0.7
VOTE_WIDTH = 0.025


def class_nms(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], iou_threshold: float
) -> Int[Tensor, " k"]:
    """Return indices of the boxes that no better box of their class overlaps by more than the threshold, best first.

    Boxes are moved apart by class (label times the largest coordinate plus one, in float32), as the reference does for
    every number of boxes, so that one pass serves all classes. `torchvision.ops.batched_nms` switches its method with
    the number of boxes, and with it the last digits, which decide ties.
    """
    from torchvision.ops import nms  # noqa: PLC0415 - slow to import, and kinds of boxes are asked for less

    if not len(boxes):
        return labels.new_zeros(0)
    apart = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < ONE_PASS_LIMIT:
        kept: Tensor = nms(apart, scores, iou_threshold)
        return kept
    members = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    kept = torch.cat([own[nms(apart[own], scores[own], iou_threshold)] for own in members])
    return kept[scores[kept].argsort(descending=True, stable=True)]


def rotated_class_nms(
    boxes: Float[Tensor, "n 5"], scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], iou_threshold: float
) -> Int[Tensor, " k"]:
    """Apply :func:`class_nms` to rotated boxes ``cx, cy, w, h, theta``, by their exact overlap.

    Only boxes whose circumscribed boxes overlap are compared, in float64. The result is that of greedy suppression by
    falling score, for any number of boxes; of equal scores the first counts as the better one. Memory grows with the
    number of boxes, not with its square. A box that is not finite stays, and suppresses nothing.

    Differences from mmcv and detectron2: they also suppress at an overlap *equal* to the threshold (`torchvision.ops`
    and the DOTA development kit do not), and compute in float32.
    """
    if not len(boxes):
        return labels.new_zeros(0)
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order].detach().double()
    apart = moved_apart(rotated.hull(ranked), labels[order])
    over = partial(_overlapping, boxes=ranked, hulls=apart, threshold=iou_threshold)
    return order[_best(ranked, over, SPARSE_BLOCK, SPARSE_BLOCK_LIMIT, limit=len(ranked))]


def voting_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    *,
    threshold: float,
    limit: int,
) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """Suppress by score-voting Cluster-DIoU-NMS: return the best boxes, moved to weighted means, and their indices.

    Boxes are suppressed as usual, but by `pairwise_closeness` in place of the IoU. Each box that is kept then becomes
    the mean of all boxes of its class that score no more than itself and are closer to it than 0.7, suppressed or not,
    weighted by ``score * exp(-(1 - closeness)^2 / 0.025)``. Scores stay as they are.

    Source: Cluster-NMS of Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference for Object
    Detection and Instance Segmentation" (2020), with the numbers of the reference implementation (HikariTJU/LD). Its
    iteration on a matrix of all pairs converges to the result of greedy suppression by falling score; here that is
    computed in blocks, and stops at ``limit`` boxes. Memory grows with the number of boxes, not with its square.

    Differences from the reference: classes are separated by their labels, not by moving boxes by 4000 pixels per class
    (which mixes the classes of wider images and rounds the coordinates); the result is exact for any number of boxes; a
    box without area is neither NaN nor dropped: it always votes for itself.

    Args:
        boxes: Candidates in any order; of equal scores the first counts as the better one.
        scores: Score of each candidate.
        labels: Class of each candidate.
        threshold: Closeness to a better box of its class above which a box is suppressed.
        limit: Maximum number of boxes to keep.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked, classes = boxes[order], labels[order]
    close = partial(_close, boxes=ranked, labels=classes, threshold=threshold)
    kept = _best(ranked, close, BLOCK, BLOCK, limit)
    return _vote(ranked, scores[order], classes, kept), order[kept]


def pairwise_closeness(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Compute IoU less the 0.8th power of squared centre distance over squared enclosing diagonal, of all pairs.

    The exponent gives distance more weight than in DIoU. Union and squared diagonal are at least 1e-6, where the
    reference has no limit for the union (boxes without area give 0 / 0) and adds 1e-7 to the squared diagonal.
    """
    return pairwise_iou(a, b) - centre_offset(a[:, None], b) ** CLOSENESS


Hits = Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]
"""Function that returns which boxes at the first positions suppress, if they remain, which at the second, as indices
into the two lists. With None as the first: which among the second, better boxes before worse ones.
"""


def _best(boxes: Tensor, hits: Hits, size: int, largest: int, limit: int) -> Tensor:
    """Return the first ``limit`` positions of boxes (best first) that no kept one before them suppresses.

    They are taken in blocks, each twice as large as the one before, from ``size`` to ``largest``. Within a block all
    remain at first; each round computes which are suppressed by those that remained. After round ``i`` the first ``i``
    results are final, and usually all of them long before (Cluster-NMS of Zheng et al. 2020).
    """
    positions, start = torch.arange(len(boxes), device=boxes.device), 0
    kept = positions[:0]
    while start < len(boxes) and len(kept) < limit:
        block = positions[start : start + size]
        start, size = start + size, min(2 * size, largest)
        everything = torch.ones_like(block, dtype=torch.bool)
        free = block[everything.index_fill(0, hits(kept, block)[1], False)] if len(kept) else block
        better, worse = hits(None, free)
        remain = everything = everything[: len(free)]
        while not torch.equal(now := everything.index_fill(0, worse[remain[better]], False), remain):
            remain = now
        kept = torch.cat((kept, free[remain]))
    return kept[:limit]


def _close(
    better: Tensor | None, worse: Tensor, *, boxes: Tensor, labels: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Find the pairs of boxes that are of one class and closer than the threshold."""
    found = []
    for some in torch.split(worse if better is None else better, PAIRS // BLOCK):
        close = pairwise_closeness(boxes[some], boxes[worse]) > threshold
        found.append(close & (labels[some, None] == labels[worse]))
    i, j = torch.cat(found).nonzero().unbind(1)
    return (i, j) if better is not None else (i[i < j], j[i < j])


def _overlapping(
    better: Tensor | None, worse: Tensor, *, boxes: Tensor, hulls: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Find the pairs of boxes whose hulls overlap and which themselves overlap by more than the threshold."""
    i, j = overlapping_pairs(hulls[worse]) if better is None else overlapping_pairs(hulls[better], hulls[worse])
    hit = rotated.iou_of_pairs(boxes[worse if better is None else better], boxes[worse], i, j) > threshold
    i, j = i[hit], j[hit]
    return (i, j) if better is not None else (torch.minimum(i, j), torch.maximum(i, j))


def _vote(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Move each kept box by the weighted mean difference of the boxes that vote for it.

    No matrix product is used: it would be rounded to a few digits where reduced precision is enabled.
    """
    own, positions = boxes[kept], torch.arange(len(boxes), device=boxes.device)
    shift, total = torch.zeros_like(own), scores.new_zeros(len(kept), 1)
    for voters in torch.split(positions, max(PAIRS // max(len(kept), 1), 1)):
        closeness = pairwise_closeness(own, boxes[voters])
        votes = (closeness > VOTE_THRESHOLD) & (labels[kept, None] == labels[voters]) & (voters >= kept[:, None])
        weights = torch.exp(-(1 - closeness).square() / VOTE_WIDTH) * scores[voters]
        # Each box votes for itself whatever its area.
        weights = weights.where(votes, 0.0).where(voters != kept[:, None], scores[voters])[..., None]
        shift += ((boxes[voters] - own[:, None]) * weights).where(weights > 0, 0.0).sum(1)
        total += weights.sum(1)
    return own + shift / total.clamp(min=torch.finfo(total.dtype).tiny)
