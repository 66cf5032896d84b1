"""Non-maximum suppression within classes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import nms

from locdistill.geometry.boxes import centre_offset, pairwise_iou

# From this number of boxes on, classes are suppressed one after the other: memory of one pass grows with the square.
ONE_PASS_LIMIT = 10_000
# Boxes that are suppressed together, and pairs of boxes that are compared at once (about 100 bytes each).
BLOCK = 256
PAIRS = 2**18
# The published numbers of score voting.
CLOSENESS = 0.8
VOTE_THRESHOLD = 0.7
VOTE_WIDTH = 0.025


def class_nms(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], labels: Int[Tensor, " n"], iou_threshold: float
) -> Int[Tensor, " k"]:
    """Indices of the boxes that no better box of their class overlaps by more than the threshold, best score first.

    Boxes are moved apart by class (label times the largest coordinate plus one, in float32), as the reference does for
    every number of boxes, so that one pass serves all classes. `torchvision.ops.batched_nms` changes the method with
    the number of boxes, and with it the last digits that decide on ties.
    """
    if not len(boxes):
        return labels.new_zeros(0)
    apart = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    if len(boxes) < ONE_PASS_LIMIT:
        kept: Tensor = nms(apart, scores, iou_threshold)
        return kept
    members = [(labels == label).nonzero()[:, 0] for label in range(int(labels.max()) + 1)]
    kept = torch.cat([own[nms(apart[own], scores[own], iou_threshold)] for own in members])
    return kept[scores[kept].argsort(descending=True, stable=True)]


def voting_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    *,
    threshold: float,
    limit: int,
) -> tuple[Float[Tensor, "k 4"], Int[Tensor, " k"]]:
    """Score-voting Cluster-DIoU-NMS: the best boxes, each moved to the mean of those it stands for, and their indices.

    Boxes are suppressed as usual, only by the closeness of `pairwise_closeness` in place of the IoU. Each box that is
    kept then becomes the mean of all boxes of its class that score no more than itself and are closer to it than 0.7,
    suppressed or not, weighted by ``score * exp(-(1 - closeness)^2 / 0.025)``. Scores stay as they are.

    Source: Cluster-NMS of Zheng et al., "Enhancing Geometric Factors in Model Learning and Inference for Object
    Detection and Instance Segmentation" (2020), with the numbers of the reference implementation (HikariTJU/LD). What
    it iterates to on a matrix of all pairs is what going through the boxes by falling score gives; here that is done in
    blocks, and ends with the last box that is asked for. Memory grows with the number of boxes, not with its square.

    Differences from the reference: classes are told apart by their labels, not by moving boxes by 4000 pixels per
    class (which mixes the classes of wider images and rounds off the coordinates); it is exact for any number of
    boxes; a box without area is neither NaN nor lost, it stands for itself.

    Args:
        boxes: Candidates in any order; of equal scores the first counts as the better one.
        scores: Of the candidates.
        labels: Of the candidates.
        threshold: A box goes if it is closer than this to a better one of its class.
        limit: Largest number of boxes to keep.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked, classes = boxes[order], labels[order]
    kept = _best(ranked, classes, threshold, limit)
    return _vote(ranked, scores[order], classes, kept), order[kept]


def pairwise_closeness(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """IoU less the 0.8th power of the squared centre distance over the squared enclosing diagonal, of all pairs.

    The exponent makes distance count for more than in DIoU. Union and squared diagonal are at least 1e-6, where the
    reference has no limit for the union (boxes without area give 0 / 0) and adds 1e-7 to the squared diagonal.
    """
    return pairwise_iou(a, b) - centre_offset(a[:, None], b) ** CLOSENESS


def _best(boxes: Tensor, labels: Tensor, threshold: float, limit: int) -> Tensor:
    """Positions of the first ``limit`` boxes, which come best first, that no kept one before them suppresses."""
    positions = torch.arange(len(boxes), device=boxes.device)
    kept = positions[:0]
    for block in torch.split(positions, BLOCK):
        free = torch.ones_like(block, dtype=torch.bool)
        for better in torch.split(kept, PAIRS // BLOCK):
            free &= ~_close(boxes, labels, better, block, threshold).any(0)
        block = block[free]  # noqa: PLW2901
        kept = torch.cat((kept, block[_settled(_close(boxes, labels, block, block, threshold).triu(1))]))
        if len(kept) >= limit:
            break
    return kept[:limit]


def _close(boxes: Tensor, labels: Tensor, a: Tensor, b: Tensor, threshold: float) -> Bool[Tensor, "n m"]:
    """Which of the boxes at ``a`` and at ``b`` are of one class and closer than the threshold."""
    return (pairwise_closeness(boxes[a], boxes[b]) > threshold) & (labels[a, None] == labels[b])


def _settled(hits: Bool[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Which of the boxes remain, where row ``i`` tells which later boxes the box ``i`` suppresses if it remains.

    All remain at first; each round asks which are suppressed by those that remained. After round ``i`` the first ``i``
    answers are final, and mostly all of them long before.
    """
    remain = torch.ones(len(hits), dtype=torch.bool, device=hits.device)
    while True:
        now = ~(hits & remain[:, None]).any(0)
        if torch.equal(now, remain):
            return now
        remain = now


def _vote(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """The kept boxes, each moved by the weighted mean difference of the boxes that vote for it.

    There is no matrix product: that is rounded to a few digits where reduced precision is switched on.
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
