"""Which locations lie in regions that are neither object nor background: crowds and difficult objects."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from locdistill.geometry.boxes import pairwise_iof
from locdistill.geometry.grid import Grid
from locdistill.types import Instances

IGNORE_IOF = 0.5


def check_share(ignore_iof: float | None) -> None:
    """Refuse a part of an area that is none.

    Raises:
        ValueError: It does not lie between 0 and 1.
    """
    if ignore_iof is not None and not 0 < ignore_iof < 1:
        raise ValueError(f"ignore_iof lies between 0 and 1, came {ignore_iof}")


def in_ignored(grid: Grid, instances: Instances, iof: float) -> Bool[Tensor, "b l"]:
    """Which locations' anchors have more than this part of their area inside one ignored box."""
    part = pairwise_iof(grid.anchors()[None], instances.boxes)
    return ((part > iof) & instances.ignored[:, None]).any(-1)
