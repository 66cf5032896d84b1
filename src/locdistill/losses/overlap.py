"""Losses on pairs of boxes, axis-aligned or rotated; three of the losses treat rotated boxes as Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.boxes import paired_ciou, paired_diou, paired_giou
from locdistill.geometry.gaussian import gwd, hellinger, kld
from locdistill.geometry.rotated import paired_iou as paired_rotated_iou

OverlapKind = Literal["giou", "diou", "ciou", "rotated_iou", "gwd", "kld", "probiou"]


OVERLAPS: dict[OverlapKind, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {
    "giou": (4, lambda boxes, targets: 1 - paired_giou(boxes, targets)),
    "diou": (4, lambda boxes, targets: 1 - paired_diou(boxes, targets)),
    "ciou": (4, lambda boxes, targets: 1 - paired_ciou(boxes, targets)),
    "rotated_iou": (5, lambda boxes, targets: 1 - paired_rotated_iou(boxes, targets)),
    # ln(1 + D) with the normalised Wasserstein distance D: MMRotate with tau = 0, which the reference implementation
    # (Rotated-LD) trains with. The paper (Yang et al. 2021) has 1 - 1 / (tau + f(D^2)).
    "gwd": (5, lambda boxes, targets: gwd(boxes, targets).log1p()),
    # 1 - 1 / (1 + ln(1 + K)), with K twice the divergence of the prediction from the truth (Yang et al. 2021; MMRotate
    # with tau = 1, whose K is at least 1e-6; here it may be 0).
    "kld": (5, lambda boxes, targets: 1 - 1 / (1 + kld(boxes, targets).log1p())),
    "probiou": (5, hellinger),
}
"""Number of coordinates per box, and the loss, by kind of overlap."""


def overlap_loss(
    boxes: Float[Tensor, "*batch d"], targets: Float[Tensor, "*batch d"], *, kind: OverlapKind = "giou"
) -> Float[Tensor, "*batch"]:
    """Compute the loss of predicted boxes against true ones; lengths in any one unit, angles in radians.

    It is one minus the similarity of axis-aligned boxes ``x1, y1, x2, y2`` (``giou``, ``diou``, ``ciou``) or of rotated
    ones ``cx, cy, w, h, theta`` (``rotated_iou``); or a distance of the Gaussians that represent rotated boxes:
    ``gwd``, ``kld`` (see `OVERLAPS`), and for ``probiou`` the Hellinger distance, the loss ``L1`` of Llerena et al.
    (2021).
    """
    return OVERLAPS[kind][1](boxes, targets)
