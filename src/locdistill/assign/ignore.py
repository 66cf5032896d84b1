"""Which locations lie in regions that are neither object nor background: crowds and difficult objects."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from locdistill.geometry.boxes import pairwise_iof
from locdistill.geometry.grid import Grid
from locdistill.types import Instances

IGNORE_IOF = 0.5


def in_ignored(grid: Grid, instances: Instances, iof: float) -> Bool[Tensor, "b l"]:
    """Which locations' anchors have more than this part of their area inside one ignored box."""
    part = pairwise_iof(grid.anchors()[None], instances.boxes)
    return ((part > iof) & instances.ignored[:, None]).any(-1)
