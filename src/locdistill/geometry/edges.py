"""Boxes as four distances from a location to the edges."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def decode(points: Float[Tensor, "l 2"], distances: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
    """Box ``x1, y1, x2, y2`` of a location and its distances to the left, top, right and bottom edge, in one unit."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def encode(points: Float[Tensor, "l 2"], boxes: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
    """Distances from a location to the left, top, right and bottom edge; negative where it lies outside the box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)
