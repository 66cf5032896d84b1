"""From dense predictions to detections."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.geometry.bins import Bins
from locdistill.geometry.boxes import clip
from locdistill.geometry.edges import decode
from locdistill.geometry.grid import Grid
from locdistill.geometry.nms import multiclass_nms
from locdistill.models.settings import DetectionSettings
from locdistill.types import Dense, Detections


def scale_factors(sizes: Int[Tensor, "b 2"], original_sizes: Int[Tensor, "b 2"]) -> Float[Tensor, "b 2"]:
    """How much each image was enlarged, along ``y`` and ``x``: its size over its original size, in float32."""
    return sizes.float() / original_sizes.float()


def select(scores: Float[Tensor, "b l c"], grid: Grid, candidates: int) -> Int[Tensor, "b k"]:
    """Indices of the locations with the largest best class score, at most ``candidates`` of each level.

    A level that has no more than that keeps all its locations, in their order. No threshold is applied before.
    """
    best = scores.amax(-1)
    chosen, start = [], 0
    for size in grid.level_sizes:
        if size > candidates:
            chosen.append(best[:, start : start + size].topk(candidates).indices + start)
        else:
            chosen.append(torch.arange(start, start + size, device=best.device).expand(len(best), -1))
        start += size
    return torch.cat(chosen, 1)


@torch.no_grad()
def detections(
    dense: Dense,
    grid: Grid,
    *,
    bins: Bins,
    sizes: Int[Tensor, "b 2"],
    scales: Float[Tensor, "b 2"],
    settings: DetectionSettings,
) -> list[Detections]:
    """Detections of each image of a batch, in pixels of the original images.

    As GFL v1 is published: the best locations of each level; boxes from the means of the edge distributions, clipped
    to the resized image and divided by the scale *before* non-maximum suppression; no box is dropped for its size.
    Everything but the suppression runs over the whole batch at once.

    Args:
        dense: Predictions.
        grid: Where they were made.
        bins: Support of the edge distributions.
        sizes: Height and width of each resized image, without padding.
        scales: How much each image was enlarged, along ``y`` and ``x``.
        settings: Thresholds and limits.
    """
    scores = dense.cls_logits.float().sigmoid()
    chosen = select(scores, grid, settings.candidates)[..., None]
    scores = scores.gather(1, chosen.expand(-1, -1, scores.shape[-1]))
    distances = bins.expect(dense.edge_logits.float()) * grid.strides[:, None]
    boxes = decode(grid.points, distances).gather(1, chosen.expand(-1, -1, 4))
    boxes = clip(boxes, sizes[:, None]) / scales.to(boxes).flip(-1).repeat(1, 2)[:, None]
    return [
        Detections(
            *multiclass_nms(
                own_boxes,
                own_scores,
                score_threshold=settings.score_threshold,
                iou_threshold=settings.nms_iou,
                max_detections=settings.max_detections,
            )
        )
        for own_boxes, own_scores in zip(boxes, scores, strict=True)
    ]
