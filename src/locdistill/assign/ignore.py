"""Regions that are neither object nor background: crowds and difficult objects."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from locdistill.assign.assignment import Assigner
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.geometry.objects import in_turn
from locdistill.types import Instances

IGNORE_IOF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ByShare(Assigner):
    """Assigner that leaves out locations by the share of their anchor inside an ignored box.

    Attributes:
        ignore_iof: Share of an anchor's area inside an ignored box (a crowd, a difficult object) above which its
            location takes no part; for a rotated object the box is the circumscribed one, and the anchor's centre must
            also lie in the object itself. ``None``, as in the published configurations: ignored boxes have no effect
            and their locations train as background.
    """

    ignore_iof: float | None = None

    def __post_init__(self) -> None:
        """Refuse an invalid share.

        Raises:
            ValueError: It does not lie between 0 and 1.
        """
        if self.ignore_iof is not None and not 0 < self.ignore_iof < 1:
            raise ValueError(f"expected 0 < ignore_iof < 1, got {self.ignore_iof}")

    def ignoring(self) -> ByShare:
        """Return the same assigner, with ignored regions left out of training, unless that is set already."""
        return self if self.ignore_iof is not None else replace(self, ignore_iof=IGNORE_IOF)


def in_ignored(grid: Grid, instances: Instances, iof: float) -> Bool[Tensor, "b l"]:
    """Return the locations whose anchors have more than this share of their area inside one ignored box."""
    anchors = grid.anchors()
    found = torch.zeros(len(instances.boxes), len(anchors), dtype=torch.bool, device=anchors.device)
    for boxes, ignored in in_turn(anchors, instances.targets, instances.ignored):
        part = kind_of(boxes).anchor_iof(anchors, boxes)
        found = found | ((part > iof) & ignored[..., None]).any(1)
    return found
