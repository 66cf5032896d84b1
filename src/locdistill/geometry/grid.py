"""Where a pyramid of feature maps looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All locations of a feature pyramid, flattened level by level, row by row.

    Attributes:
        points: Location centres ``x, y`` in pixels.
        strides: Stride of each location's level in pixels.
        levels: Index of each location's level, from 0.
        shapes: Height and width of each level's map.
        level_strides: Stride of each level in pixels.
        anchor_scale: Side of the square anchor of a location, in strides (8 in GFL and ATSS).
        offset: Position of a centre within its cell, in strides (0 in GFL and ATSS: multiples of the stride).
    """

    points: Float[Tensor, "l 2"]
    strides: Float[Tensor, " l"]
    levels: Int[Tensor, " l"]
    shapes: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]
    anchor_scale: float = 8.0
    offset: float = 0.0

    @classmethod
    def build(
        cls,
        shapes: tuple[tuple[int, int], ...],
        strides: tuple[int, ...],
        *,
        anchor_scale: float = 8.0,
        offset: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> Grid:
        """Lay out the locations of maps of the given heights and widths."""
        points, per_location, levels = [], [], []
        for level, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
            ys = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride
            xs = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride
            y, x = torch.meshgrid(ys, xs, indexing="ij")
            points.append(torch.stack((x.flatten(), y.flatten()), -1))
            per_location.append(torch.full((height * width,), float(stride), device=device))
            levels.append(torch.full((height * width,), level, device=device))
        return cls(
            points=torch.cat(points),
            strides=torch.cat(per_location),
            levels=torch.cat(levels),
            shapes=tuple((int(h), int(w)) for h, w in shapes),
            level_strides=tuple(strides),
            anchor_scale=anchor_scale,
            offset=offset,
        )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Number of locations of each level."""
        return tuple(h * w for h, w in self.shapes)

    def anchors(self) -> Float[Tensor, "l 4"]:
        """The square anchor of each location, ``x1, y1, x2, y2`` in pixels."""
        half = (self.strides * (self.anchor_scale / 2))[:, None]
        return torch.cat((self.points - half, self.points + half), -1)

    def within(self, extents: Int[Tensor, "b 2"]) -> Bool[Tensor, "b l"]:
        """Which locations lie inside each image's own extent (height, width in pixels)."""
        height, width = extents[:, :1], extents[:, 1:]
        return (self.points[:, 0] < width) & (self.points[:, 1] < height)
