"""Centerness of a location in an object."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.boxes import EPSILON


def centerness(distances: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Compute centerness: 1 in the middle of a box, 0 on its edges and outside (FCOS, Tian et al. 2019, equation 3).

    ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` of the distances to the left, top, right and bottom edge,
    all in the same unit.
    """
    first, second = distances[..., :2], distances[..., 2:]
    near, far = torch.minimum(first, second).clamp(min=0), torch.maximum(first, second).clamp(min=EPSILON)
    return (near / far).prod(-1).sqrt()
