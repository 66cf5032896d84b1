"""Assignment of FCOS (Tian et al. 2019), for a whole batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad

from locdistill.assign.assignment import Assigner, Assignment, assignment_of, strongest_claim
from locdistill.assign.window import locations_around
from locdistill.geometry.boxes import area, centres
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.geometry.objects import inside_some
from locdistill.types import Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class FCOSPoints(Assigner):
    """Assignment of each object to the points near its centre, on the level whose range holds its size.

    A point is assigned to an object when it lies strictly inside it and inside a square around its centre, and the
    farthest of the object's four edges is within the range of the point's level; of several objects the smallest takes
    the point. Only the points around each centre are searched, so memory grows with the objects alone.

    Points beyond the image's own extent do not count. In the reference they train as background, so that its loss
    depends on which images share a batch.

    Attributes:
        radius: Half the side of the square, in strides of the point's level.
        longest: Upper end of a level's range, in its strides, and lower end of the next level's; both ends belong to a
            range. The last level has no upper end. With strides 8 to 128 these are the published ranges: up to 64, 64
            to 128, 128 to 256, 256 to 512 and from 512 pixels.
        leave_ignored: Whether points strictly inside an ignored box (a crowd, a difficult object) that are assigned to
            no object take no part. The reference has no such rule: they train as background.
    """

    radius: float = 1.5
    longest: float = 8.0
    leave_ignored: bool = False

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.longest > 0):
            raise ValueError(f"expected radius and longest > 0, got {self.radius} and {self.longest}")

    def ignoring(self) -> FCOSPoints:
        """Return the same assigner, with ignored regions left out of training."""
        return replace(self, leave_ignored=True)

    @torch.no_grad()
    def __call__(self, grid: Grid, instances: Instances) -> Assignment:
        """Assign the locations of a batch."""
        inside = grid.within(instances.extents)
        index, usable = locations_around(grid, instances, math.ceil(self.radius))
        # Whether a point is near the centre of the object, and the object in the range of its level.
        points, boxes = grid.points[index], instances.boxes[:, :, None, None]
        half = self.radius * grid.strides[index][..., None]
        low = torch.maximum(centres(boxes) - half, boxes[..., :2])
        high = torch.minimum(centres(boxes) + half, boxes[..., 2:])
        central = ((points > low) & (points < high)).all(-1)
        farthest = torch.maximum(points - boxes[..., :2], boxes[..., 2:] - points).amax(-1)
        # Shortest and longest distance to an edge of each level, in pixels.
        ends = self.longest * grid.on_levels.strides[:-1]
        shortest, longest = pad(ends, (1, 0)), pad(ends, (0, 1), value=math.inf)
        within = kind_of(instances.targets).depth(points, instances.targets[:, :, None, None]) > 0
        fits = within & central & (farthest >= shortest[:, None]) & (farthest <= longest[:, None])
        valid = usable & instances.present[..., None, None] & fits
        claims = -area(instances.boxes)[..., None].expand_as(index.flatten(2))
        gt_index = strongest_claim(index.flatten(2), claims, valid.flatten(2), len(grid.points))
        counted = inside
        if self.leave_ignored:
            ignored = inside_some(grid.points, instances.boxes, instances.ignored)
            counted = inside & (~ignored | (gt_index >= 0))
        return assignment_of(grid, instances, gt_index, inside=inside, counted=counted)
