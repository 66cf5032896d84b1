"""Conversion of dense predictions to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import HORIZONTAL, BoxKind
from locdistill.geometry.nms import voting_nms
from locdistill.models.settings import DetectionSettings
from locdistill.types import Dense, Detections


def select(scores: Float[Tensor, "b l c"], grid: Grid, candidates: int) -> Int[Tensor, "b k"]:
    """Return indices of the locations with the largest best class score, at most ``candidates`` of each level.

    A level with no more locations keeps all of them, in their order. No threshold is applied before.
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
def candidates(
    dense: Dense,
    grid: Grid,
    *,
    bins: Bins,
    sizes: Int[Tensor, "b 2"],
    scales: Float[Tensor, "b 2"],
    settings: DetectionSettings,
    flipped: bool = False,
    coding: Coding = DISTANCES,
) -> list[Detections]:
    """Return candidate detections of each image of a batch, in pixels of the original images, before suppression.

    Candidates are all pairs of location and class whose class score is *greater* than the threshold, among the best
    locations of each level; a location may appear for several classes. Boxes are computed from the means of the edge
    distributions, clipped to the resized image (rotated ones by their centre) and divided by the scale; none is dropped
    for its size. Candidates keep the order of the locations.

    Where the predictions have a quality beside the class score, locations are ranked by the product of the two, which
    is also the reported score. If the product was trained as the class score (GFL v2), the threshold applies to it too.
    If the quality only ranks (centerness of ATSS and FCOS), the threshold applies to the class score alone, so that
    reported scores may be below it.

    Args:
        dense: Predictions.
        grid: Locations of the predictions.
        bins: Support of the edge distributions.
        sizes: Height and width of each resized image, without padding.
        scales: How much each image was enlarged, along ``y`` and ``x``.
        settings: Thresholds and limits.
        flipped: Whether the images were mirrored left and right before padding; boxes are mirrored back.
        coding: Meaning of the predicted numbers.
    """
    judged = ranked = dense.cls_logits.float().sigmoid()
    if dense.quality_logits is not None:
        ranked = judged * dense.quality_logits.float().sigmoid()[..., None]
        judged = ranked if dense.quality_in_score else judged
    chosen = select(ranked, grid, settings.candidates)[..., None]
    per_class = chosen.expand(-1, -1, ranked.shape[-1])
    ranked, judged = ranked.gather(1, per_class), judged.gather(1, per_class)
    kind = coding.kind
    boxes = kind.scaled(coding.decode(grid, bins.expect(dense.edge_logits.float())), grid.strides[:, None])
    boxes = kind.clipped(boxes.gather(1, chosen.expand(-1, -1, kind.numbers)), sizes[:, None])
    if flipped:
        boxes = kind.mirrored(boxes, sizes[:, 1:].to(boxes))
    boxes = kind.shrunk(boxes, scales.to(boxes).flip(-1)[:, None])
    inside = judged > settings.score_threshold
    # Copied before the only wait for the device, which is for the number of candidates, so that it has arrived by then.
    counts = inside.sum((1, 2)).to("cpu", non_blocking=inside.is_cuda)
    image, location, labels = inside.nonzero(as_tuple=True)
    found = (boxes[image, location], ranked[image, location, labels], labels)
    return [Detections(*own) for own in zip(*(torch.split(part, counts.tolist()) for part in found), strict=True)]


@torch.no_grad()
def suppress(
    views: Sequence[list[Detections]], settings: DetectionSettings, kind: BoxKind = HORIZONTAL
) -> list[Detections]:
    """Return detections of each image from its candidates, best score first.

    Args:
        views: Candidates of the same images, one list per view. Those of an image are merged before suppression.
        settings: Kind of suppression, threshold and limit.
        kind: Kind of the boxes.
    """
    found = []
    for own in zip(*views, strict=True):
        boxes, scores, labels = map(torch.cat, zip(*own, strict=True))
        if settings.nms == "voting_cluster_diou":
            boxes, kept = voting_nms(boxes, scores, labels, threshold=settings.nms_iou, limit=settings.max_detections)
        else:
            kept = kind.nms(boxes, scores, labels, settings.nms_iou)[: settings.max_detections]
            boxes = boxes[kept]
        found.append(Detections(boxes, scores[kept], labels[kept]))
    return found
