"""What happens to one image: a size, flips, turns, and its objects along with it.

All of it is one matrix from pixels of the file to pixels that the network sees, applied to the image and to the corners
of the objects. Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import math
import struct
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from locdistill.geometry.boxes import clip
from locdistill.geometry.kinds import HORIZONTAL
from locdistill.geometry.rotated import part_inside, polygon_hull
from locdistill.images import keep_ratio_size, resize_to

FILL = (124, 116, 104)
"""Colour of what lies beyond a turned or shrunk image: ImageNet's mean, which a network sees as padding, almost 0."""


class Sample(NamedTuple):
    """One image on its way into a batch.

    Attributes:
        image: RGB.
        boxes: ``x1, y1, x2, y2`` in pixels of ``image``.
        labels: Class indices.
        ignored: Crowd regions and difficult objects.
        original_size: Height and width of the file.
        image_id: The data set's identifier.
        quads: Corners ``x, y`` of each object, clockwise on screen, where they are rotated.
    """

    image: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "g 4"]
    labels: Int[Tensor, " g"]
    ignored: Bool[Tensor, " g"]
    original_size: tuple[int, int]
    image_id: int
    quads: Float[Tensor, "g 4 2"] | None = None


class View(NamedTuple):
    """One way to look at an image: it is resized, mirrored, turned by right angles, placed in a frame, and rotated.

    The frame has the size that the image has within its limits (height and width change places with an odd number of
    turns), so that what is enlarged is cut to a window, and what is shrunk has a margin.

    Attributes:
        long: Limit of the longer side in pixels.
        short: Limit of the shorter side in pixels.
        flipped: Whether it is mirrored left and right.
        turns: Right angles by which it is then turned clockwise, 0 to 3. A flip of top and bottom is ``flipped`` with
            2 turns.
        degrees: Angle by which it is rotated about the middle of the frame, clockwise.
        zoom: Factor of its size, beside the limits.
        window: Where the frame lies on the enlarged image, or the shrunk image in the frame: from 0 (left, top) to 1.
        least: An object of which a smaller part of the area is left in the frame is ignored; asked only of views that
            ``cut``.
    """

    long: int
    short: int
    flipped: bool = False
    turns: int = 0
    degrees: float = 0.0
    zoom: float = 1.0
    window: tuple[float, float] = (0.5, 0.5)
    least: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether parts of the image may be lost."""
        return self.degrees != 0 or self.zoom != 1

    @property
    def mark(self) -> bytes:
        """What tells this view from others that give the same size."""
        pose = struct.pack("<B", self.flipped | self.turns << 1)
        return pose + (struct.pack("<5d", self.degrees, self.zoom, *self.window, self.least) if self.cuts else b"")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the frame for an image of these sides."""
        return self._turned(keep_ratio_size(height, width, short=self.short, long=self.long))

    def content(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of these sides is resized, before it is turned."""
        rows, columns = keep_ratio_size(height, width, short=self.short, long=self.long)
        return (rows, columns) if self.zoom == 1 else (_scaled(rows, self.zoom), _scaled(columns, self.zoom))

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """Where the upper left corner of the turned image lies in the frame: ``x, y`` in whole pixels."""
        (rows, columns), (frame_rows, frame_columns) = (
            self._turned(self.content(height, width)),
            self.size(height, width),
        )
        return round((frame_columns - columns) * self.window[0]), round((frame_rows - rows) * self.window[1])

    def placing(self, height: int, width: int) -> np.ndarray:
        """The matrix from pixels of the resized and turned image to pixels of the frame: an offset, and a rotation."""
        x, y = self.offset(height, width)
        rows, columns = self.size(height, width)
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        middle, back = _moved_by(columns / 2, rows / 2), _moved_by(x - columns / 2, y - rows / 2)
        return middle @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ back if self.degrees else _moved_by(x, y)

    def matrix(self, height: int, width: int) -> np.ndarray:
        """The ``(3, 3)`` matrix from pixels of the file to pixels of the frame."""
        rows, columns = self.content(height, width)
        steps = [np.diag((columns / width, rows / height, 1.0))]
        if self.flipped:
            steps.append(np.array([[-1.0, 0, columns], [0, 1, 0], [0, 0, 1]]))
        for _ in range(self.turns):
            steps.append(np.array([[0.0, -1, rows], [1, 0, 0], [0, 0, 1]]))
            rows, columns = columns, rows
        return reduce(lambda done, step: step @ done, [*steps, self.placing(height, width)])

    def _turned(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if self.turns % 2 else size


def pose(*, flipped: bool, upended: bool, turns: int) -> tuple[bool, int]:
    """Flips, left and right and top and bottom, and then turns, as a flip left and right and then turns."""
    return flipped != upended, (turns + 2 * upended) % 4


def choose_limits(
    sizes: tuple[tuple[int, int], ...], mode: Literal["value", "range"], random: np.random.Generator
) -> tuple[int, int]:
    """Limits ``(long, short)`` for one image.

    ``value`` takes one of the pairs, each with equal probability; ``range`` draws either limit as a whole number,
    uniformly between its smallest and largest value, both included.
    """
    if mode == "value":
        return sizes[int(random.integers(len(sizes)))]
    longs, shorts = zip(*sizes, strict=True)
    long = int(random.integers(min(longs), max(longs) + 1))
    short = int(random.integers(min(shorts), max(shorts) + 1))
    return long, min(long, short)


def look_at(sample: Sample, view: View, *, keep_ignored: bool = True) -> Sample:
    """A sample with its objects in pixels of the file, as it is looked at.

    Axis-aligned boxes become those around their corners, limited to the frame. Quadrilaterals are never limited: what
    the frame cuts off an object is not seen, and belongs to it. Of what the view cuts too much off is ignored, or left
    out where ignored objects are not kept; so is what lies beyond the frame.

    Args:
        sample: The image may have its size already.
        view: The way.
        keep_ignored: Whether ignored objects are handed on.
    """
    height, width = sample.original_size
    frame = view.size(height, width)
    corners = HORIZONTAL.corners(sample.boxes) if sample.quads is None else sample.quads
    corners = moved(corners, view.matrix(height, width))
    boxes = polygon_hull(corners)
    seen = sample._replace(
        image=_picture(sample.image, view, sample.original_size),
        boxes=clip(boxes, torch.tensor(frame)) if sample.quads is None else boxes,
        quads=None if sample.quads is None else corners,
    )
    return _without_the_lost(seen, corners, view.least, keep_ignored=keep_ignored) if view.cuts else seen


def moved(points: Float[Tensor, "*batch 2"], matrix: np.ndarray) -> Float[Tensor, "*batch 2"]:
    """Points ``x, y`` under an affine map, a ``(3, 3)`` matrix."""
    (a, b, c), (d, e, f), _ = matrix.tolist()
    x, y = points.unbind(-1)
    return torch.stack((a * x + b * y + c, d * x + e * y + f), -1)


def _without_the_lost(sample: Sample, corners: Float[Tensor, "g 4 2"], least: float, *, keep_ignored: bool) -> Sample:
    """The sample, with objects of which less than the least part is in the image ignored or left out."""
    height, width = sample.image.shape[-2:]
    frame = corners.new_tensor([width / 2, height / 2, width, height, 0])
    part = part_inside(frame, corners)
    lost = part < least
    keep = (part > 0) & (~lost | keep_ignored)
    return sample._replace(
        boxes=sample.boxes[keep],
        labels=sample.labels[keep],
        ignored=(sample.ignored | lost)[keep],
        quads=None if sample.quads is None else sample.quads[keep],
    )


def _picture(image: UInt8[Tensor, "3 _h _w"], view: View, original: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """The image as it is looked at: by copying pixels, and by bilinear sampling only where it is rotated."""
    image = resize_to(image, view.content(*original), flipped=view.flipped)
    image = image.rot90(-view.turns, (-2, -1)) if view.turns else image
    frame = view.size(*original)
    if view.degrees:
        # an image under a rigid map, with bilinear sampling
        placing = view.placing(*original)
        height, width = image.shape[-2:]
        (a, b, c), (d, e, f), _ = np.linalg.inv(placing).tolist()
        rows, columns = (torch.arange(side) + 0.5 for side in frame)
        x, y = a * columns + (b * rows + c)[:, None], d * columns + (e * rows + f)[:, None]
        grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), -1)[None]  # from -1 to 1 along the sides
        fill = torch.tensor(FILL, dtype=torch.float32)[:, None, None]
        found = grid_sample((image - fill)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        return (found + fill).round_().clamp_(0, 255).to(torch.uint8)
    return image if tuple(image.shape[-2:]) == frame else _placed(image, frame, view.offset(*original))


def _placed(image: UInt8[Tensor, "3 _h _w"], frame: tuple[int, int], offset: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """An image on a canvas of another size, its upper left corner at ``x, y``."""
    canvas = image.new_tensor(FILL).expand(*frame, 3).clone().permute(2, 0, 1)
    (x, y), (height, width) = offset, image.shape[-2:]
    (rows, own_rows), (columns, own_columns) = _common(y, height, frame[0]), _common(x, width, frame[1])
    canvas[:, rows, columns] = image[:, own_rows, own_columns]
    return canvas


def _common(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """What a line and a canvas have in common: in pixels of the canvas, and of the line."""
    first, end = max(start, 0), min(start + length, limit)
    return slice(first, end), slice(first - start, end - start)


def _moved_by(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def _scaled(side: int, factor: float) -> int:
    return max(int(side * factor + 0.5), 1)
