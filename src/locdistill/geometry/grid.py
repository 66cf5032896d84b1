"""Locations of a pyramid of feature maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Levels(NamedTuple):
    """Properties of each level, as tensors on the device of the locations, so that nothing is copied there in training.

    Attributes:
        strides: Stride in pixels.
        shapes: Height and width of the map.
        starts: Index of the first location.
        sizes: Number of locations.
    """

    strides: Float[Tensor, " v"]
    shapes: Int[Tensor, "v 2"]
    starts: Int[Tensor, " v"]
    sizes: Int[Tensor, " v"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All locations of a feature pyramid, flattened level by level, row by row, anchor by anchor.

    GFL, ATSS and FCOS have one location per cell of a map. RetinaNet has one for each of the anchors of a cell, which
    share the cell's point: ratio by ratio, and within a ratio octave by octave.

    Attributes:
        points: The locations ``x, y`` in pixels: the point of each cell, on which its anchors are centred.
        strides: Stride of each location's level in pixels.
        levels: Index of each location's level, from 0.
        shapes: Height and width of each level's map.
        level_strides: Stride of each level in pixels.
        on_levels: Strides, shapes and start of each level, as tensors.
        anchor_shapes: Width and height of each anchor of a cell, in strides.
        per_cell: Number of locations of each cell.
        level_sizes: Number of locations of each level.
        offset: Position of a cell's point in the cell, in strides: 0 for the upper left corner, a multiple of the
            stride (GFL, GFL v2, ATSS, RetinaNet), 0.5 for the middle (FCOS).
    """

    points: Float[Tensor, "l 2"]
    strides: Float[Tensor, " l"]
    levels: Int[Tensor, " l"]
    shapes: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]
    on_levels: Levels
    anchor_shapes: Float[Tensor, "p 2"]
    per_cell: int
    level_sizes: tuple[int, ...]
    offset: float = 0.0

    @classmethod
    def build(
        cls,
        shapes: tuple[tuple[int, int], ...],
        strides: tuple[int, ...],
        *,
        anchor_scale: float = 8.0,
        offset: float = 0.0,
        octaves: int = 1,
        ratios: tuple[float, ...] = (1.0,),
        device: torch.device | str = "cpu",
    ) -> Grid:
        """Build the locations of maps of the given heights and widths.

        Args:
            shapes: Height and width of each level's map.
            strides: Stride of each level in pixels.
            anchor_scale: Side of the smallest square anchor, in strides (8 in GFL and ATSS, 4 in RetinaNet).
            offset: Position of a cell's point in the cell, in strides.
            octaves: Number of anchor sizes per ratio, each ``2 ** (1 / octaves)`` times the one before.
            ratios: Height over width of the anchors.
            device: Device of the locations.
        """
        rows, columns, per_location, levels = [], [], [], []
        sizes = [anchor_scale * 2 ** (octave / octaves) for octave in range(octaves)]
        anchor_shapes = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for ratio in ratios for size in sizes]
        per_cell = len(anchor_shapes)
        for level, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
            x, y = level_points(height, width, stride, offset=offset, per_cell=per_cell, device=device)
            rows.append(y)
            columns.append(x)
            per_location.append(torch.full((height * width * per_cell,), float(stride), device=device))
            levels.append(torch.full((height * width * per_cell,), level, device=device))
        sides = torch.tensor(shapes, device=device)
        sizes_of_levels = sides.prod(-1) * per_cell
        return cls(
            # The values of one coordinate are contiguous in memory: comparisons run along the locations.
            points=torch.stack((torch.cat(columns), torch.cat(rows))).T,
            strides=torch.cat(per_location),
            levels=torch.cat(levels),
            shapes=tuple((int(h), int(w)) for h, w in shapes),
            level_strides=tuple(strides),
            on_levels=Levels(
                strides=torch.tensor(strides, device=device, dtype=torch.float32),
                shapes=sides,
                starts=sizes_of_levels.cumsum(0) - sizes_of_levels,
                sizes=sizes_of_levels,
            ),
            anchor_shapes=torch.tensor(anchor_shapes, device=device, dtype=torch.float32),
            per_cell=per_cell,
            level_sizes=tuple(int(h) * int(w) * per_cell for h, w in shapes),
            offset=offset,
        )

    def anchors(self) -> Float[Tensor, "l 4"]:
        """Return the anchor of each location, ``x1, y1, x2, y2`` in pixels."""
        half = (self.anchor_shapes / 2).T.repeat(1, len(self.points) // self.per_cell) * self.strides
        return torch.cat((self.points.T - half, self.points.T + half)).T

    def within(self, extents: Int[Tensor, "b 2"]) -> Bool[Tensor, "b l"]:
        """Return which locations have a cell that begins inside each image's own extent (height, width in pixels)."""
        height, width = extents[:, :1], extents[:, 1:]
        corners = self.points - self.offset * self.strides[:, None]
        return (corners[:, 0] < width) & (corners[:, 1] < height)


def level_points(
    height: int,
    width: int,
    stride: int,
    *,
    offset: float,
    per_cell: int,
    device: torch.device | str = "cpu",
) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"]]:
    """Compute ``x`` and ``y`` of the locations of one level, in pixels, row by row, anchor by anchor.

    An export to another format may trace it with a height and width that are not known (``repeat_interleave`` would
    make a file that fails at run time).
    """
    ys = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride
    xs = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride
    shape = (height, width, per_cell)
    return xs[None, :, None].expand(shape).reshape(-1), ys[:, None, None].expand(shape).reshape(-1)
