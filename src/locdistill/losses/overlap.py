"""Losses on pairs of boxes."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.boxes import paired_ciou, paired_diou, paired_giou
from locdistill.geometry.rotated import paired_iou as paired_rotated_iou
from locdistill.losses.gaussian import GaussianKind, gaussian_loss

OverlapKind = Literal["giou", "diou", "ciou", "rotated_iou", "gwd", "kld", "probiou"]
_SIMILARITY = {"giou": paired_giou, "diou": paired_diou, "ciou": paired_ciou, "rotated_iou": paired_rotated_iou}
_GAUSSIAN: tuple[GaussianKind, ...] = get_args(GaussianKind)
_HORIZONTAL = ("giou", "diou", "ciou")


def numbers_for(kind: OverlapKind) -> int:
    """How many numbers the boxes have that a kind of overlap compares."""
    return 4 if kind in _HORIZONTAL else 5


def kinds_for(numbers: int) -> tuple[OverlapKind, ...]:
    """The kinds of overlap for boxes of so many numbers."""
    return tuple(kind for kind in get_args(OverlapKind) if numbers_for(kind) == numbers)


def overlap_loss(
    boxes: Float[Tensor, "*batch d"], targets: Float[Tensor, "*batch d"], *, kind: OverlapKind = "giou"
) -> Float[Tensor, "*batch"]:
    """How far predicted boxes are from true ones, in any one unit of length.

    One minus the similarity of axis-aligned boxes ``x1, y1, x2, y2`` (``giou``, ``diou``, ``ciou``), or of rotated ones
    ``cx, cy, w, h, theta`` (``rotated_iou``); or a distance of the Gaussians that stand for rotated boxes (``gwd``,
    ``kld``, ``probiou``; see :func:`locdistill.losses.gaussian.gaussian_loss`).
    """
    for gaussian in _GAUSSIAN:
        if kind == gaussian:
            return gaussian_loss(boxes, targets, kind=gaussian)
    return 1 - _SIMILARITY[kind](boxes, targets)
