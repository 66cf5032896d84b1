"""Axis-aligned boxes ``x1, y1, x2, y2`` with real coordinates (no ``+ 1``) and the IoU family on them.

``paired_*`` compare boxes one to one along the leading axes, which broadcast where their docstrings state it;
``pairwise_*`` compare all with all along the last two. Coordinates are processed one by one: a CPU is slow on many rows
of two or four numbers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

EPSILON = 1e-6


def area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute width times height; the sign is lost when both are negative."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centres(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 2"]:
    """Compute the centres ``x, y``."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def clip(boxes: Float[Tensor, "*batch 4"], size: Int[Tensor, "*#batch 2"]) -> Float[Tensor, "*batch 4"]:
    """Limit boxes to an image of ``height, width`` pixels (broadcast over the leading axes)."""
    limit = size.flip(-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), torch.cat((limit, limit), -1))


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    width = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    height = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    return width.clamp(min=0) * height.clamp(min=0)


def _enclosing_sides(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    width = torch.maximum(a[..., 2], b[..., 2]) - torch.minimum(a[..., 0], b[..., 0])
    height = torch.maximum(a[..., 3], b[..., 3]) - torch.minimum(a[..., 1], b[..., 1])
    return width.clamp(min=0), height.clamp(min=0)


def _squares(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the squared distance of the centres, and the squared diagonal of the enclosing box."""
    x = (a[..., 0] + a[..., 2]) / 2 - (b[..., 0] + b[..., 2]) / 2
    y = (a[..., 1] + a[..., 3]) / 2 - (b[..., 1] + b[..., 3]) / 2
    width, height = _enclosing_sides(a, b)
    return x.square() + y.square(), width.square() + height.square()


def centre_offset(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*#batch"]:
    """Compute the squared centre distance over the squared diagonal of the enclosing box (Zheng et al. 2020, DIoU).

    The leading axes broadcast, so the function serves one-to-one and all-to-all comparisons alike.
    """
    distance, diagonal = _squares(a, b)
    return distance / diagonal.clamp(min=EPSILON)


def paired_iou(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*#batch"]:
    """Compute intersection over union; the union is at least 1e-6."""
    overlap = _intersection(a, b)
    return overlap / (area(a) + area(b) - overlap).clamp(min=EPSILON)


def pairwise_iou(a: Float[Tensor, "*#batch n 4"], b: Float[Tensor, "*#batch m 4"]) -> Float[Tensor, "*#batch n m"]:
    """Compute intersection over union of all pairs; the union is at least 1e-6."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :])


def paired_iof(a: Float[Tensor, "*#batch 4"], b: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*#batch"]:
    """Compute intersection over the area of the *first* box ("foreground"), which is at least 1e-6."""
    return _intersection(a, b) / area(a).clamp(min=EPSILON)


def paired_giou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute generalised IoU (Rezatofighi et al. 2019): IoU less the share of the enclosing box outside the union.

    Union and enclosing area are at least 1e-6 (a maximum, as in the reference; nothing is added).
    """
    overlap = _intersection(a, b)
    union = (area(a) + area(b) - overlap).clamp(min=EPSILON)
    width, height = _enclosing_sides(a, b)
    enclosing = (width * height).clamp(min=EPSILON)
    return overlap / union - (enclosing - union) / enclosing


def paired_diou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute distance IoU (Zheng et al. 2020): IoU less squared centre distance over squared enclosing diagonal.

    As in the reference, 1e-6 is added to the union and to the squared diagonal.
    """
    overlap = _intersection(a, b)
    iou = overlap / (area(a) + area(b) - overlap + EPSILON)
    distance, diagonal = _squares(a, b)
    return iou - distance / (diagonal + EPSILON)


def paired_ciou(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute complete IoU (Zheng et al. 2020): DIoU less a penalty on the aspect ratio; ``a`` is the prediction.

    With ``v = 4/pi^2 (atan(w_b/h_b) - atan(w_a/h_a))^2`` the penalty is ``v^2 / (1 - IoU + v)``. As in the reference,
    1e-6 is added to union, squared diagonal and heights, and the gradient flows through ``v`` and its weight.
    """
    overlap = _intersection(a, b)
    iou = overlap / (area(a) + area(b) - overlap + EPSILON)
    distance, diagonal = _squares(a, b)
    angle_a = torch.atan((a[..., 2] - a[..., 0]) / (a[..., 3] - a[..., 1] + EPSILON))
    angle_b = torch.atan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1] + EPSILON))
    v = (4 / math.pi**2) * (angle_b - angle_a).square()
    # Identical boxes give 0 / 0; a maximum keeps value and gradient defined there and changes nothing else.
    return iou - distance / (diagonal + EPSILON) - v.square() / (1 - iou + v).clamp(min=torch.finfo(a.dtype).tiny)
