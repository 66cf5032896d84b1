"""Non-maximum suppression within classes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import nms

# From this number of boxes on, classes are suppressed one after the other: memory of one pass grows with the square.
ONE_PASS_LIMIT = 10_000


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


def multiclass_nms(
    boxes: Float[Tensor, "l 4"],
    scores: Float[Tensor, "l c"],
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
) -> tuple[Float[Tensor, "k 4"], Float[Tensor, " k"], Int[Tensor, " k"]]:
    """Boxes, scores and labels of the detections of one image, best score first.

    Every pair of location and class whose score is *greater* than the threshold is a candidate; a location may be
    reported for several classes. Boxes of equal score keep the order of the locations.
    """
    location, labels = (scores > score_threshold).nonzero(as_tuple=True)
    chosen, confidence = boxes[location], scores[location, labels]
    kept = class_nms(chosen, confidence, labels, iou_threshold)[:max_detections]
    return chosen[kept], confidence[kept], labels[kept]
