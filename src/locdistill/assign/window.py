"""Locations around an object's centre.

Locations of a level form a lattice, so those near a point are computed, not searched: the cost grows with the number of
objects, not with objects times locations.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from locdistill.geometry.boxes import centres
from locdistill.geometry.grid import Grid
from locdistill.types import Instances


def locations_around(
    grid: Grid, instances: Instances, reach: int
) -> tuple[Int[Tensor, "b g v k"], Bool[Tensor, "b g v k"]]:
    """Return the locations of each of the ``v`` levels in a window of cells around each object's centre.

    The window extends ``reach`` cells from the nearest one to each side; near a border of the image it is shifted
    inwards, its width unchanged. Returned are the locations' indices and which of them exist within the image.
    """
    width = 2 * reach + 1
    device = grid.points.device
    strides, shapes, starts, _ = grid.on_levels
    # Rows and columns that lie inside each image: (b, level, 2) as (height, width).
    limit = torch.ceil(instances.extents[:, None] / strides[:, None]).long()
    limit = torch.minimum(limit, shapes)
    centre = centres(instances.boxes).flip(-1)[:, :, None] / strides[:, None] - grid.offset
    first = (centre.round().long() - reach).clamp(min=0)
    first = torch.minimum(first, (limit[:, None] - width).clamp(min=0))
    steps = torch.arange(width, device=device)
    window = first[..., None] + steps  # (b, g, level, 2, width)
    rows, columns = window[..., 0, :, None], window[..., 1, None, :]
    usable = (rows < limit[:, None, :, 0, None, None]) & (columns < limit[:, None, :, 1, None, None])
    cells = rows * shapes[:, 1, None, None] + columns
    anchors = torch.arange(grid.per_cell, device=device)
    index = starts[:, None, None, None] + cells[..., None] * grid.per_cell + anchors
    index, usable = index.where(usable[..., None], 0).flatten(-3), usable.flatten(-2)
    return index, usable.repeat_interleave(grid.per_cell, -1)
