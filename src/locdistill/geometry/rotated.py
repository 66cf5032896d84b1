"""Rotated boxes ``cx, cy, w, h, theta`` and their overlap with each other and with polygons.

Pixels and radians; ``x`` points right and ``y`` down. The width lies along ``(cos theta, sin theta)``, the height along
``(-sin theta, cos theta)``: a positive angle turns clockwise on screen. Five numbers do not describe a rectangle
uniquely: ``(w, h, theta)``, ``(w, h, theta + pi)`` and ``(h, w, theta + pi / 2)`` are the same one, and an angle range
selects one of them.

Overlaps are computed in float32 at least, and in float64 for float64 inputs, which suppression, merging and evaluation
should use.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.geometry.boxes import EPSILON
from locdistill.geometry.sweep import in_parts, overlapping_pairs

AngleRange = Literal["oc", "le90", "le135"]
"""Range of angles, which selects one of the equivalent parametrisations of a rectangle.

``oc``: theta in (0, pi / 2], either side may be the longer one (OpenCV since 4.5.1); upright boxes have pi / 2, and
their width is vertical. ``le90`` and ``le135``: the width is the longer side and theta in [-pi / 2, pi / 2) or in
[-pi / 4, 3 pi / 4). All as in MMRotate.
"""
_START = {"oc": -math.pi, "le90": -math.pi / 2, "le135": -math.pi / 4}


# -------------------------------------------------------------------------------------------------------------- numbers


def wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert the values to float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def along_axes(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Compute coordinates of vectors ``x, y`` along axes that are rotated by an angle; all broadcast."""
    return cos * x + sin * y, cos * y - sin * x


# -------------------------------------------------------------------------------------------------------- one rectangle


def area(boxes: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch"]:
    """Compute width times height."""
    return boxes[..., 2] * boxes[..., 3]


def corners(boxes: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 4 2"]:
    """Return the corners ``x, y``, clockwise on screen, from the one at ``-w / 2, -h / 2`` in the box's own frame."""
    return torch.stack(_outline(*_frames(boxes)), -1).movedim(0, -2)


def hull(boxes: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch 4"]:
    """Compute the circumscribed box ``x1, y1, x2, y2``: ``w |cos| + h |sin|`` by ``w |sin| + h |cos|``."""
    x, y, w, h, theta = boxes.unbind(-1)
    cos, sin = theta.cos().abs(), theta.sin().abs()
    across, down = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return torch.stack((x - across, y - down, x + across, y + down), -1)


def in_frame(
    points: Float[Tensor, "*#batch 2"], boxes: Float[Tensor, "*#batch 5"]
) -> tuple[Float[Tensor, "*#batch"], Float[Tensor, "*#batch"]]:
    """Compute coordinates of points along the sides ``w`` and ``h`` of boxes, from their centres."""
    x, y, _, _, theta = boxes.unbind(-1)
    return along_axes(points[..., 0] - x, points[..., 1] - y, theta.cos(), theta.sin())


def polygon_hull(polygons: Float[Tensor, "*batch p 2"]) -> Float[Tensor, "*batch 4"]:
    """Compute the axis-aligned box ``x1, y1, x2, y2`` around points."""
    return torch.cat((polygons.amin(-2), polygons.amax(-2)), -1)


def canonical(boxes: Float[Tensor, "*batch 5"], angles: AngleRange) -> Float[Tensor, "*batch 5"]:
    """Convert boxes to an angle range; boxes that are in the range already stay equal bit by bit.

    The rectangles stay the same: for a slightly rotated square, the width may be either side.
    """
    x, y, w, h, theta = boxes.unbind(-1)
    turn, start = w < h, _START[angles]
    theta = -theta if angles == "oc" else torch.where(turn, theta + math.pi / 2, theta)
    # Wrapped by multiples of pi into [start, start + pi); what rounding puts outside becomes the start.
    moved = theta - ((theta - start) / math.pi).floor() * math.pi
    moved = moved.where((moved >= start) & (moved < start + math.pi), start)
    theta = torch.where((theta >= start) & (theta < start + math.pi), theta, moved)
    if angles == "oc":
        theta = -theta
        turn = theta > math.pi / 2
        theta = torch.where(turn, theta - math.pi / 2, theta)
    return torch.stack((x, y, torch.where(turn, h, w), torch.where(turn, w, h), theta), -1)


def fit(quads: Float[Tensor, "*batch 4 2"], angles: AngleRange) -> Float[Tensor, "*batch 5"]:
    """Fit the smallest rectangles around four points each, which may be in any order, coincide, or be collinear.

    A smallest rectangle has a side along an edge of the convex hull, which is one of the lines through two of the four
    points, so six directions are tried. MMRotate does the same (by OpenCV) for ``oc`` and ``le90``. For ``le135`` it
    takes the longer of the first two edges as the width and the middle of a diagonal as the centre, which gives another
    rectangle where the points are not the corners of one.
    """
    middle = quads.mean(-2, keepdim=True)
    points = quads - middle
    lines = torch.cat((points.roll(-1, -2) - points, points[..., 2:, :] - points[..., :2, :]), -2)
    theta = torch.atan2(lines[..., 1], lines[..., 0])
    cos, sin = theta.cos()[..., None], theta.sin()[..., None]
    x, y = points[..., None, :, 0], points[..., None, :, 1]
    (left, right), (top, bottom) = (v.aminmax(dim=-1) for v in along_axes(x, y, cos, sin))
    u, v = (left + right) / 2, (top + bottom) / 2
    cos, sin = cos[..., 0], sin[..., 0]
    found = torch.stack((cos * u - sin * v, sin * u + cos * v, right - left, bottom - top, theta), -1)
    best = area(found).argmin(-1, keepdim=True)[..., None].expand(*quads.shape[:-2], 1, 5)
    box = found.gather(-2, best)[..., 0, :]
    return canonical(torch.cat((box[..., :2] + middle[..., 0, :], box[..., 2:]), -1), angles)


# -------------------------------------------------------------------------------------------------------------- overlap


def polygon_area(polygons: Float[Tensor, "*batch p 2"]) -> Float[Tensor, "*batch"]:
    """Compute the area of polygons, with corners in either direction; where a polygon crosses itself, parts cancel."""
    points = wide(polygons)
    x, y = (points - points[..., :1, :]).unbind(-1)
    return ((x * y.roll(-1, -1)).sum(-1) - (y * x.roll(-1, -1)).sum(-1)).abs() / 2


def rectangle_polygon_area(
    rectangles: Float[Tensor, "*#batch 5"], polygons: Float[Tensor, "*#batch p 2"]
) -> Float[Tensor, "*#batch"]:
    """Compute the shared area of rectangles and simple polygons, differentiable in both; leading axes broadcast.

    By Green's theorem: with the rectangle ``[-W, W] x [-H, H]`` and ``F = (0, clamp(x, -W, W) if |y| <= H else 0)``,
    whose curl is 1 in the rectangle and 0 elsewhere, the area is the integral of ``F`` along the polygon's edges. Every
    summand is continuous, so there is no clipping, no sorting, no tolerance, and no special case for parallel or
    coinciding edges. Polygons may be concave, their corners in either direction.
    """
    x, y, w, h, cos, sin = _frames(rectangles)
    across, down = (c.movedim(-1, 0) for c in wide(polygons).unbind(-1))
    return _area_within(*along_axes(across - x, down - y, cos, sin), w, h)


def part_inside(
    rectangles: Float[Tensor, "*#batch 5"], polygons: Float[Tensor, "*#batch p 2"]
) -> Float[Tensor, "*#batch"]:
    """Compute the share of the area of simple polygons that lies in rectangles; the area is at least 1e-6."""
    return rectangle_polygon_area(rectangles, polygons) / polygon_area(polygons).clamp(min=EPSILON)


def paired_iou(a: Float[Tensor, "*#batch 5"], b: Float[Tensor, "*#batch 5"]) -> Float[Tensor, "*#batch"]:
    """Compute intersection over union; leading axes broadcast.

    The union is at least 1e-6, so empty slots (all numbers zero) overlap nothing. The gradient is finite everywhere,
    also where boxes coincide and there is no derivative.
    """
    return _iou(_frames(a), _frames(b))


def pairwise_iou(a: Float[Tensor, "n 5"], b: Float[Tensor, "m 5"]) -> Float[Tensor, "n m"]:
    """Compute :func:`paired_iou` of all pairs; only pairs whose circumscribed boxes overlap are intersected."""
    with torch.no_grad():
        i, j = overlapping_pairs(hull(wide(a)), hull(wide(b)))
    values = iou_of_pairs(a, b, i, j)
    return values.new_zeros(len(a) * len(b)).index_put((i * len(b) + j,), values).reshape(len(a), len(b))


def iou_of_pairs(
    a: Float[Tensor, "n 5"], b: Float[Tensor, "m 5"], i: Int[Tensor, " k"], j: Int[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """Compute :func:`paired_iou` of the boxes ``i`` of ``a`` with the boxes ``j`` of ``b``, some at a time."""
    own, other = _frames(a), _frames(b)
    return in_parts(lambda i, j: _iou(own.index_select(1, i), other.index_select(1, j)), i, j)


def paired_polygon_iou(
    boxes: Float[Tensor, "*#batch 5"], polygons: Float[Tensor, "*#batch p 2"]
) -> Float[Tensor, "*#batch"]:
    """Compute :func:`paired_iou` of rectangles with simple polygons, such as quadrilaterals of raw annotations."""
    shared = rectangle_polygon_area(boxes, polygons)
    union = area(wide(boxes)) + polygon_area(polygons) - shared
    return (shared / union.clamp(min=EPSILON)).clamp(max=1)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Compute intersection over union of rectangles from their frames: ``b`` is transformed to the axes of ``a``."""
    x, y, w, h, cos, sin = a
    other_x, other_y, other_w, other_h, other_cos, other_sin = b
    place = along_axes(other_x - x, other_y - y, cos, sin)
    turn = along_axes(other_cos, other_sin, cos, sin)
    shared = _area_within(*_outline(*place, other_w, other_h, *turn), w, h)
    union: Tensor = 4 * w * h + 4 * other_w * other_h - shared
    return (shared / union.clamp(min=EPSILON)).clamp(max=1)


def _frames(boxes: Tensor) -> Tensor:
    """Stack centre ``x, y``, half sides, cosine, sine on a new first axis: long rows are fast, rows of six slow."""
    x, y, w, h, theta = wide(boxes).unbind(-1)
    return torch.stack((x, y, w / 2, h / 2, theta.cos(), theta.sin()))


def _outline(x: Tensor, y: Tensor, w: Tensor, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Compute coordinates of the corners on a new first axis; ``w`` and ``h`` are half sides."""
    coordinates = []
    for middle, along, across in ((x, w * cos, -h * sin), (y, w * sin, h * cos)):
        first, second = along + across, along - across
        coordinates.append(torch.stack((middle - first, middle + second, middle + first, middle - second)))
    return coordinates[0], coordinates[1]


def _area_within(x: Tensor, y: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Compute the area within ``|x| <= w`` and ``|y| <= h`` of polygons, whose corners are on the first axis.

    Each edge, cut off at ``|y| = h``, adds its extent in ``y`` times the mean of ``clamp(x, -w, w)`` along it. With the
    ends clamped to ``a`` and ``b``, by the distances ``p`` and ``q``, the mean is
    ``(a + b) / 2 + (b - a) / 2 * (q - p) / (|b - a| + p + q)``: no difference of similar numbers, in value and
    gradient.
    """
    next_x, next_y = x.roll(-1, 0), y.roll(-1, 0)
    run, rise = next_x - x, next_y - y
    rise = torch.where(rise == 0, 1, rise)
    cut = _limited(y, h)
    next_cut = cut.roll(-1, 0)
    # From either end, so that a corner inside stays where it is and a horizontal edge has both of its ends.
    start = x + ((cut - y) / rise).clamp(0, 1) * run
    end = next_x - ((next_y - next_cut) / rise).clamp(0, 1) * run
    a, b = _limited(start, w), _limited(end, w)
    p, q = (start - a).abs(), (end - b).abs()
    step = b - a
    extent = (step.abs() + p + q).clamp(min=torch.finfo(step.dtype).tiny)
    return ((next_cut - cut) * (a + b + step * ((q - p) / extent))).sum(0).abs() / 2


def _limited(values: Tensor, limit: Tensor) -> Tensor:
    """Limit values to plus and minus the limit; on the limit, value and limit have half of the gradient each."""
    return torch.maximum(torch.minimum(values, limit), -limit)
