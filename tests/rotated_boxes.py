"""Rotated boxes for tests, and their overlap as shapely and exact arithmetic find it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import shapely
import torch
from torch import Tensor

from locdistill.geometry.rotated import corners

Point = tuple[Fraction, Fraction]


def draw(rng: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """Numbers in a range, in double precision."""
    return low + (high - low) * torch.rand(count, generator=rng, dtype=torch.float64)


def random_boxes(
    seed: int | torch.Generator,
    count: int,
    *,
    extent: float = 300.0,
    sides: tuple[float, float] = (4.0, 400.0),
) -> Tensor:
    """Boxes with their centres in a square; sides are even on a log scale, angles may be in no range."""
    rng = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    low, high = (math.log(side) for side in sides)
    sizes = (draw(rng, count, low, high).exp() for _ in range(2))
    return torch.stack((*(draw(rng, count, 0, extent) for _ in range(2)), *sizes, draw(rng, count, -7, 7)), -1)


def renamed(boxes: Tensor, turns: int) -> Tensor:
    """The same rectangles, turned by so many right angles."""
    x, y, w, h, theta = boxes.unbind(-1)
    sides = (h, w) if turns % 2 else (w, h)
    return torch.stack((x, y, *sides, theta + turns * math.pi / 2), -1)


def families(rng: torch.Generator, count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Pairs of all sorts, six times ``count`` of them."""
    yield "random", random_boxes(rng, count), random_boxes(rng, count)
    thin = [random_boxes(rng, count, extent=100, sides=(2, 1000)) for _ in range(2)]
    for boxes, side in zip(thin, (3, 2), strict=True):
        boxes[:, side] = draw(rng, count, 0.5, 3)
    yield "thin", *thin
    far = random_boxes(rng, count, extent=20_000, sides=(2, 1000))
    inner = far.clone()
    inner[:, 2:4] *= torch.stack((draw(rng, count, 0.1, 0.9), draw(rng, count, 0.1, 0.9)), -1)
    yield "nested", far, inner
    far = random_boxes(rng, 2 * count, extent=20_000, sides=(2, 1000))
    jitter = 10 ** draw(rng, 2 * count, -14, math.log10(3))
    noise = torch.randn(2 * count, 5, generator=rng, dtype=torch.float64) * jitter[:, None]
    near = far + noise * torch.tensor([1, 1, 1, 1, 0.01])
    near[:, 2:4] = near[:, 2:4].abs().clamp(min=0.5)
    yield "nearly equal", far, near
    far = random_boxes(rng, count, extent=20_000, sides=(2, 1000))
    turns = torch.randint(-2, 3, (count,), generator=rng)
    same = torch.stack([renamed(far, turn) for turn in range(-2, 3)])[turns + 2, torch.arange(count)]
    yield "identical", far, same


def outlines(boxes: Tensor) -> np.ndarray:
    """Shapely's polygons."""
    return shapely.polygons(corners(boxes).numpy())


def shapely_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of boxes one to one. Of nearly equal ones GEOS misses the overlap of some (a few in a hundred thousand)."""
    first, second = outlines(a), outlines(b)
    shared = shapely.area(shapely.intersection(first, second))
    return torch.from_numpy(shared / (shapely.area(first) + shapely.area(second) - shared))


def exact_iou(a: Tensor, b: Tensor) -> float:
    """Of two boxes, from their corners on without rounding: one is cut along the edges of the other."""
    first, second = ([(Fraction(x), Fraction(y)) for x, y in corners(box).tolist()] for box in (a, b))
    shared = _area(_cut(first, second))
    return float(shared / (_area(first) + _area(second) - shared))


def _side(point: Point, start: Point, end: Point) -> Fraction:
    return (end[0] - start[0]) * (point[1] - start[1]) - (end[1] - start[1]) * (point[0] - start[0])


def _cut(polygon: list[Point], by: list[Point]) -> list[Point]:
    """Sutherland and Hodgman, for convex polygons in the direction in which ``_side`` is positive within."""
    for start, end in zip(by, by[1:] + by[:1], strict=True):
        kept: list[Point] = []
        for here, there in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            own, other = _side(here, start, end), _side(there, start, end)
            if own >= 0:
                kept.append(here)
            if own * other < 0:
                part = own / (own - other)
                kept.append((here[0] + part * (there[0] - here[0]), here[1] + part * (there[1] - here[1])))
        polygon = kept
    return polygon


def _area(polygon: list[Point]) -> Fraction:
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum((a[0] * b[1] - a[1] * b[0] for a, b in pairs), Fraction(0))) / 2
