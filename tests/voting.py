"""Score-voting Cluster-DIoU-NMS as it is published: a matrix of all pairs of boxes, iterated until nothing changes."""

from __future__ import annotations

import torch
from torch import Tensor


def published_voting_nms(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, limit: int, apart: float = 4000.0
) -> tuple[Tensor, Tensor]:
    """Voted boxes and their indices; classes are told apart by moving boxes ``apart`` pixels per class."""
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    moved = boxes + (labels.to(boxes) * apart)[:, None]
    a, b = moved[:, None], moved[None]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    areas = (moved[:, 2:] - moved[:, :2]).prod(-1)
    iou = inner / (areas[:, None] + areas[None] - inner)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    distance = ((a[..., :2] + a[..., 2:]) / 2 - (b[..., :2] + b[..., 2:]) / 2).square().sum(-1)
    closeness = iou - (distance / (outer.square().sum(-1) + 1e-7)) ** 0.8
    upper = closeness.triu(1)
    matrix = upper
    for _ in range(999):
        kept = matrix.amax(0) <= threshold if len(boxes) else labels.bool()
        following = upper * kept[:, None]
        if torch.equal(following, matrix):
            break
        matrix = following
    votes = closeness.triu() * kept[:, None]
    weights = torch.exp(-(1 - votes * (votes > 0.7)).square() / 0.025) * scores
    voted = (weights @ boxes) / weights.sum(1, keepdim=True)
    chosen = kept.nonzero()[:limit, 0]
    return voted[chosen], order[chosen]
