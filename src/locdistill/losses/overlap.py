"""Losses on pairs of boxes."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.boxes import paired_ciou, paired_diou, paired_giou

OverlapKind = Literal["giou", "diou", "ciou"]
_SIMILARITY = {"giou": paired_giou, "diou": paired_diou, "ciou": paired_ciou}


def overlap_loss(
    boxes: Float[Tensor, "*batch 4"], targets: Float[Tensor, "*batch 4"], *, kind: OverlapKind = "giou"
) -> Float[Tensor, "*batch"]:
    """One minus the similarity of predicted and true boxes ``x1, y1, x2, y2`` in any one unit."""
    return 1 - _SIMILARITY[kind](boxes, targets)
