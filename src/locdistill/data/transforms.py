"""Transforms of images and their objects: resizing, flips, turns, rotation, placing, colour, mosaics of four.

They combine to one matrix from pixels of the file to pixels of the network's input, applied to the image and to the
corners of the objects. Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from locdistill.data.augment import ColourChange, Patch, coloured, erased
from locdistill.geometry.boxes import clip
from locdistill.geometry.kinds import HORIZONTAL
from locdistill.geometry.rotated import part_inside, polygon_hull
from locdistill.images import keep_ratio_size, resize_to

FILL = (124, 116, 104)
"""Fill colour outside a rotated or shrunk image: ImageNet's mean, almost 0 after normalisation, as padding is."""


class Sample(NamedTuple):
    """One image with its objects, before collation.

    Attributes:
        image: RGB.
        boxes: ``x1, y1, x2, y2`` in pixels of ``image``.
        labels: Class indices.
        ignored: Crowd regions and difficult objects.
        original_size: Height and width of the file.
        image_id: The data set's identifier.
        quads: Corners ``x, y`` of each object, clockwise on screen; only for rotated objects.
    """

    image: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "g 4"]
    labels: Int[Tensor, " g"]
    ignored: Bool[Tensor, " g"]
    original_size: tuple[int, int]
    image_id: int
    quads: Float[Tensor, "g 4 2"] | None = None


class View(NamedTuple):
    """One view of an image: it is resized, mirrored, turned by right angles, placed in a frame, and rotated.

    The frame has the size of the image within the limits (height and width are swapped for an odd number of turns). An
    enlarged image is therefore cropped to a window, and a shrunk one gets a margin.

    Attributes:
        long: Limit of the longer side in pixels.
        short: Limit of the shorter side in pixels.
        flipped: Whether the image is flipped left to right.
        turns: Number of clockwise right-angle turns after the flip, 0 to 3. A vertical flip is ``flipped`` with 2
            turns.
        degrees: Clockwise rotation about the centre of the frame.
        zoom: Scale factor on top of the limits.
        window: Position of the frame on the enlarged image, or of the shrunk image in the frame: from 0 (left, top) to
            1.
        least: Minimum visible fraction of an object's area; objects below it are ignored. Used only if parts of the
            image may be lost (``cuts``).
        shift: Shift of the content to the right and down, as shares of the frame.
        colour: Change of colours; None leaves them.
        patches: Rectangles of the frame to erase.
        frame: Height and width of the frame, where they do not follow from the image.
        mosaic: The other three images, if this is the view of a mosaic, whose frame is that of the first image; all
            else in this view is that of the first image in its part of the frame.
    """

    long: int
    short: int
    flipped: bool = False
    turns: int = 0
    degrees: float = 0.0
    zoom: float = 1.0
    window: tuple[float, float] = (0.5, 0.5)
    least: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    colour: ColourChange | None = None
    patches: tuple[Patch, ...] = ()
    frame: tuple[int, int] | None = None
    mosaic: Mosaic | None = None

    @property
    def cuts(self) -> bool:
        """True if parts of the image may be lost."""
        return self.degrees != 0 or self.zoom != 1 or self.shift != (0, 0) or self.frame is not None

    @property
    def mark(self) -> bytes:
        """Key that distinguishes this view from others of the same image and size.

        The images of a mosaic count by position; their contents are not in the key.
        """
        more = b"" if self.shift == (0, 0) else struct.pack("<c2d", b"s", *self.shift)
        more += b"" if self.colour is None else struct.pack("<c4d?", b"c", *self.colour)
        more += b"".join(struct.pack("<c4dQ", b"e", *patch) for patch in self.patches)
        more += b"" if self.mosaic is None else b"m" + self.mosaic.mark
        pose = struct.pack("<B", self.flipped | self.turns << 1 | bool(more) << 3)
        cut = struct.pack("<5d", self.degrees, self.zoom, *self.window, self.least) if self.cuts else b""
        return pose + cut + (hashlib.blake2b(more, digest_size=16).digest() if more else b"")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the frame for an image of the given size."""
        return self.frame or self._turned(keep_ratio_size(height, width, short=self.short, long=self.long))

    def content(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width to which an image of the given size is resized, before turns."""
        rows, columns = keep_ratio_size(height, width, short=self.short, long=self.long)
        if self.zoom == 1:
            return rows, columns
        return max(int(rows * self.zoom + 0.5), 1), max(int(columns * self.zoom + 0.5), 1)

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """Return the position ``x, y`` of the turned image's upper left corner in the frame, in whole pixels."""
        (rows, columns), (frame_rows, frame_columns) = (
            self._turned(self.content(height, width)),
            self.size(height, width),
        )
        x, y = (frame_columns - columns) * self.window[0], (frame_rows - rows) * self.window[1]
        return round(x + frame_columns * self.shift[0]), round(y + frame_rows * self.shift[1])

    def placing(self, height: int, width: int) -> np.ndarray:
        """Return the matrix from pixels of the resized and turned image to pixels of the frame: offset and rotation."""
        x, y = self.offset(height, width)
        rows, columns = self.size(height, width)
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        middle, back = _moved_by(columns / 2, rows / 2), _moved_by(x - columns / 2, y - rows / 2)
        return middle @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ back if self.degrees else _moved_by(x, y)

    def matrix(self, height: int, width: int) -> np.ndarray:
        """Return the ``(3, 3)`` matrix from pixels of the file to pixels of the frame."""
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


class Mosaic(NamedTuple):
    """The division of a frame among four images, and the views of the last three.

    Attributes:
        x: Position of the upright line between them, as a share of the width.
        y: Position of the level line, as a share of the height.
        others: Image and view of the upper right, the lower left and the lower right part.
    """

    x: float
    y: float
    others: tuple[tuple[int, View], ...]

    @property
    def mark(self) -> bytes:
        """Key that distinguishes this mosaic from others; see `View.mark`."""
        views = (struct.pack("<3q", image, view.long, view.short) + view.mark for image, view in self.others)
        return struct.pack("<2d", self.x, self.y) + b"".join(views)


class Piece(NamedTuple):
    """One image of a mosaic.

    Attributes:
        image: Position in the data set.
        view: Its view, whose frame is its part of the mosaic.
        x: Left edge of that part, in pixels.
        y: Upper edge.
    """

    image: int
    view: View
    x: int
    y: int


def pieces_of(image: int, view: View, frame: tuple[int, int]) -> list[Piece]:
    """Return the images of a mosaic, without those that get no pixel.

    Args:
        image: The first image.
        view: The view of the mosaic.
        frame: Height and width of the mosaic.
    """
    assert view.mosaic is not None
    (rows, columns), (across, down, others) = frame, view.mosaic
    x, y = round(columns * across), round(rows * down)
    parts = ((0, 0, x, y), (x, 0, columns, y), (0, y, x, rows), (x, y, columns, rows))
    views = ((image, view._replace(mosaic=None)), *others)
    return [
        Piece(own, seen._replace(frame=(bottom - top, right - left)), left, top)
        for (own, seen), (left, top, right, bottom) in zip(views, parts, strict=True)
        if right > left and bottom > top
    ]


def assembled(pieces: Sequence[tuple[Piece, Sample]], frame: tuple[int, int]) -> Sample:
    """Return the mosaic of transformed samples, with the identity of the first.

    Args:
        pieces: The images' places, and their samples.
        frame: Height and width of the mosaic.
    """
    samples = [sample for _, sample in pieces]
    first, places = samples[0], [sample.boxes.new_tensor([piece.x, piece.y]) for piece, sample in pieces]
    canvas = first.image.new_empty((*frame, 3)).permute(2, 0, 1)
    for piece, sample in pieces:
        height, width = sample.image.shape[-2:]
        canvas[:, piece.y : piece.y + height, piece.x : piece.x + width] = sample.image
    quads = [sample.quads + at for sample, at in zip(samples, places, strict=True) if sample.quads is not None]
    return first._replace(
        image=canvas,
        boxes=torch.cat([sample.boxes + at.repeat(2) for sample, at in zip(samples, places, strict=True)]),
        labels=torch.cat([sample.labels for sample in samples]),
        ignored=torch.cat([sample.ignored for sample in samples]),
        quads=torch.cat(quads) if quads else None,
    )


def pose(*, flipped: bool, upended: bool, turns: int) -> tuple[bool, int]:
    """Reduce horizontal and vertical flips followed by turns to a horizontal flip followed by turns."""
    return flipped != upended, (turns + 2 * upended) % 4


def choose_limits(
    sizes: tuple[tuple[int, int], ...], mode: Literal["value", "range"], random: np.random.Generator
) -> tuple[int, int]:
    """Draw the limits ``(long, short)`` for one image.

    ``value`` picks one of the pairs with equal probability. ``range`` draws each limit as an integer, uniformly between
    its smallest and largest value, both included.
    """
    if mode == "value":
        return sizes[int(random.integers(len(sizes)))]
    longs, shorts = zip(*sizes, strict=True)
    long = int(random.integers(min(longs), max(longs) + 1))
    short = int(random.integers(min(shorts), max(shorts) + 1))
    return long, min(long, short)


def look_at(sample: Sample, view: View, *, keep_ignored: bool = True) -> Sample:
    """Apply a view to a sample with its objects in pixels of the file.

    An axis-aligned box becomes the box around its transformed corners, clipped to the frame. Quadrilaterals are never
    clipped: the hidden part of an object still belongs to it. Objects outside the frame, and those with too small a
    visible part, become ignored; they are dropped if ignored objects are not kept.

    Args:
        sample: The sample; its image may be resized already.
        view: The view to apply.
        keep_ignored: Whether to keep ignored objects.
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
    if view.patches:
        seen = seen._replace(image=erased(seen.image, view.patches, corners))
    if not view.cuts:
        return seen
    rows, columns = seen.image.shape[-2:]
    part = part_inside(corners.new_tensor([columns / 2, rows / 2, columns, rows, 0]), corners)
    lost = part < view.least
    keep = (part > 0) & (~lost | keep_ignored)
    return seen._replace(
        boxes=seen.boxes[keep],
        labels=seen.labels[keep],
        ignored=(seen.ignored | lost)[keep],
        quads=None if seen.quads is None else seen.quads[keep],
    )


def moved(points: Float[Tensor, "*batch 2"], matrix: np.ndarray) -> Float[Tensor, "*batch 2"]:
    """Transform points ``x, y`` by an affine map, a ``(3, 3)`` matrix."""
    (a, b, c), (d, e, f), _ = matrix.tolist()
    x, y = points.unbind(-1)
    return torch.stack((a * x + b * y + c, d * x + e * y + f), -1)


def _picture(image: UInt8[Tensor, "3 _h _w"], view: View, original: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    """Transform the image by a view: pixels are copied, or sampled bilinearly if the view rotates."""
    image = resize_to(image, view.content(*original), flipped=view.flipped)
    image = image.rot90(-view.turns, (-2, -1)) if view.turns else image
    frame = view.size(*original)
    if view.degrees:
        image = image if view.colour is None else coloured(image, view.colour)
        height, width = image.shape[-2:]
        (a, b, c), (d, e, f), _ = np.linalg.inv(view.placing(*original)).tolist()
        down, across = (torch.arange(side) + 0.5 for side in frame)
        x, y = a * across + (b * down + c)[:, None], d * across + (e * down + f)[:, None]
        grid = torch.stack((x * (2 / width) - 1, y * (2 / height) - 1), -1)[None]  # from -1 to 1 along the sides
        fill = torch.tensor(FILL, dtype=torch.float32)[:, None, None]
        found = grid_sample((image - fill)[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
        return (found + fill).round_().clamp_(0, 255).to(torch.uint8)
    (left, top), (height, width) = view.offset(*original), image.shape[-2:]
    (rows, own_rows), (columns, own_columns) = _common(top, height, frame[0]), _common(left, width, frame[1])
    image = image[:, own_rows, own_columns]
    image = coloured(image, view.colour) if view.colour is not None and image.numel() else image
    if tuple(image.shape[-2:]) == frame:
        return image
    canvas = image.new_tensor(FILL).expand(*frame, 3).clone().permute(2, 0, 1)
    canvas[:, rows, columns] = image
    return canvas


def _common(start: int, length: int, limit: int) -> tuple[slice, slice]:
    """Return the overlap of a line and a canvas along one axis, as slices of the canvas and of the line."""
    first = min(max(start, 0), limit)
    end = max(min(start + length, limit), first)
    return slice(first, end), slice(first - start, end - start)


def _moved_by(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])
