"""Conversion between the numbers predicted at a location and boxes, in strides of the location's level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import HORIZONTAL, Horizontal, Rotated
from locdistill.geometry.rotated import in_frame

GROWTH = (-2.0, 2.0)
"""First and last bin of shift and growth of an anchor, in Rotated-LD and JDet."""
ANGLE = (-5.0, 2.0)
"""First and last bin of the angle there: a uniform distribution then means an upright box in the range ``oc``."""


@dataclass(frozen=True, slots=True)
class Distances:
    """Distances from the location to the left, top, right and bottom edge, in strides."""

    names: ClassVar[tuple[str, ...]] = ("left", "top", "right", "bottom")
    units: ClassVar[tuple[str, ...]] = 4 * ("strides",)
    distances: ClassVar[int] = 4
    kind: ClassVar[Horizontal] = HORIZONTAL

    def decode(self, grid: Grid, values: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
        """Compute boxes ``x1, y1, x2, y2``, in strides, from the numbers."""
        return decode(grid.points / grid.strides[:, None], values)

    def encode(self, grid: Grid, boxes: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
        """Compute the numbers that describe these boxes (in strides), negative where the location is outside the box.

        They are not limited to the range of the bins.
        """
        return encode(grid.points / grid.strides[:, None], boxes)


@dataclass(frozen=True, slots=True)
class RotatedDistances:
    """Distances from the location to the four edges of a rotated box, in strides, and the angle in radians.

    Distances are measured along the box's own axes: left and right along its side ``w``, top and bottom along ``h``.

    Attributes:
        kind: Kind of the boxes, with the range of their angles, which determines which edge is the left one.
    """

    names: ClassVar[tuple[str, ...]] = ("left", "top", "right", "bottom", "angle")
    units: ClassVar[tuple[str, ...]] = (*4 * ("strides",), "radians")
    distances: ClassVar[int] = 4
    kind: Rotated = field(default_factory=Rotated)

    def decode(self, grid: Grid, values: Float[Tensor, "b l 5"]) -> Float[Tensor, "b l 5"]:
        """Compute ``cx, cy, w, h, theta``, lengths in strides."""
        left, top, right, bottom, theta = values.unbind(-1)
        along, across = (right - left) / 2, (bottom - top) / 2
        cos, sin = theta.cos(), theta.sin()
        x, y = (grid.points / grid.strides[:, None]).unbind(-1)
        centre = (x + along * cos - across * sin, y + along * sin + across * cos)
        return torch.stack((*centre, left + right, top + bottom, theta), -1)

    def encode(self, grid: Grid, boxes: Float[Tensor, "b l 5"]) -> Float[Tensor, "b l 5"]:
        """Compute the distances and the angle; distances are negative where the location lies outside the box."""
        along, across = in_frame(grid.points / grid.strides[:, None], boxes)
        _, _, w, h, theta = boxes.unbind(-1)
        return torch.stack((w / 2 + along, h / 2 + across, w / 2 - along, h / 2 - across, theta), -1)


@dataclass(frozen=True, slots=True)
class AnchorDeltas:
    """Shift and growth of the location's upright anchor, and the angle (the published Rotated-LD and JDet).

    ``cx = x + dx * w_a``, ``cy = y + dy * h_a``, ``w = w_a exp(dw)``, ``h = h_a exp(dh)``, ``theta = unit * dtheta``.

    Attributes:
        kind: Kind of the boxes, with the range of their angles.
        unit: Unit of the angle, in radians: 1 in Rotated-LD, pi in JDet.
    """

    names: ClassVar[tuple[str, ...]] = ("dx", "dy", "dw", "dh", "angle")
    units: ClassVar[tuple[str, ...]] = (*2 * ("anchors",), *2 * ("powers of e",), "angle units")
    distances: ClassVar[int] = 0
    kind: Rotated = field(default_factory=Rotated)
    unit: float = 1.0

    def decode(self, grid: Grid, values: Float[Tensor, "b l 5"]) -> Float[Tensor, "b l 5"]:
        """Compute ``cx, cy, w, h, theta``, lengths in strides."""
        points = grid.points / grid.strides[:, None]
        sides = grid.anchor_shapes.repeat(len(points) // grid.per_cell, 1)
        centre, size = points + values[..., :2] * sides, sides * values[..., 2:4].exp()
        return torch.cat((centre, size, values[..., 4:] * self.unit), -1)

    def encode(self, grid: Grid, boxes: Float[Tensor, "b l 5"]) -> Float[Tensor, "b l 5"]:
        """Compute the numbers; sides of zero (locations without an object) count as the smallest positive number."""
        points = grid.points / grid.strides[:, None]
        sides = grid.anchor_shapes.repeat(len(points) // grid.per_cell, 1)
        tiny = torch.finfo(boxes.dtype).tiny
        growth = (boxes[..., 2:4].clamp(min=tiny) / sides).log()
        return torch.cat(((boxes[..., :2] - points) / sides, growth, boxes[..., 4:] / self.unit), -1)


Coding: TypeAlias = Distances | RotatedDistances | AnchorDeltas
"""Meaning of the numbers predicted at a location, with the name and unit of each, and the kind of the boxes.

The first ``distances`` of the numbers are those to the four edges, in strides.
"""
DISTANCES = Distances()


def decode(points: Float[Tensor, "l 2"], distances: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
    """Compute boxes ``x1, y1, x2, y2`` from distances to the left, top, right and bottom edge, in one unit."""
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def encode(points: Float[Tensor, "l 2"], boxes: Float[Tensor, "b l 4"]) -> Float[Tensor, "b l 4"]:
    """Compute distances to the left, top, right and bottom edge; negative where the location is outside the box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)
