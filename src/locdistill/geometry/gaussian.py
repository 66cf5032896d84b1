"""Distances of rotated boxes ``cx, cy, w, h, theta`` as normal distributions, in scalars.

A box is represented by the distribution with its centre as mean and ``R diag(a^2, b^2) R^T`` as covariance, where ``R``
rotates by theta and ``a, b`` are half the sides; for :func:`hellinger` a third of that, the covariance of a point
within the box. Such distributions depend neither on the parametrisation of a rectangle nor on the angle of a square.

The published implementations multiply and invert matrices and take small differences of large sums, which needs clamps
against negative roots. Here the second box is first rewritten so that its sides correspond to those of the first; the
result is sums of non-negative terms, so that little cancels. Computations are in float32 at least. Sides are at least
1e-7, as in MMRotate, so empty slots (all numbers zero) have no distance. Every gradient is finite; it is zero where the
distance is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.rotated import along_axes, wide

SIDES = (1e-7, 1e7)


class _Pair(NamedTuple):
    """Pair of boxes with half sides ``a, b`` and ``c, d``, ordered so that ``(a^2 - b^2) (c^2 - d^2)`` is not negative.

    ``along, across`` is the vector between the centres in the axes of the one box and of the other; ``mixed`` is that
    product times the squared sine of the angle between the two: the part of a distance due to rotation.
    """

    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    own: tuple[Tensor, Tensor]
    other: tuple[Tensor, Tensor]
    mixed: Tensor


def _paired(first: Tensor, second: Tensor) -> _Pair:
    first, second = (wide(boxes) for boxes in (first, second))
    a, b, c, d = (boxes[..., k].clamp(*SIDES) / 2 for boxes in (first, second) for k in (2, 3))
    swap = (a - b) * (c - d) < 0
    c, d = torch.where(swap, d, c), torch.where(swap, c, d)
    theta = torch.where(swap, second[..., 4] + math.pi / 2, second[..., 4])
    x, y = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
    sin = (first[..., 4] - theta).sin()
    mixed = (a - b) * (a + b) * (c - d) * (c + d) * sin.square()
    own, other = (along_axes(x, y, angle.cos(), angle.sin()) for angle in (first[..., 4], theta))
    return _Pair(a, b, c, d, own, other, mixed)


def _root(values: Tensor) -> Tensor:
    """Compute the square root of sums of squares, with gradient zero at zero, where it has none."""
    above = values > torch.finfo(values.dtype).tiny
    return torch.where(above, torch.where(above, values, 1).sqrt(), 0)


def gwd(first: Float[Tensor, "*batch 5"], second: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch"]:
    """Compute the Wasserstein distance over the fourth root of the product of both areas; scale-free and symmetric.

    ``D^2 = |m|^2 + tr(S + T) - 2 tr((S^(1/2) T S^(1/2))^(1/2))`` for covariances ``S, T`` and the vector ``m`` between
    the centres; in half sides ``|m|^2 + (a - c)^2 + (b - d)^2 + 2 mixed / (ac + bd + sqrt((ac + bd)^2 - mixed))``.

    Source: Yang et al., "Rethinking Rotated Object Detection with Gaussian Wasserstein Distance Loss" (2021); the
    normalisation is that of MMRotate and the reference implementation (Rotated-LD), which write it as
    ``2 (det S det T)^(1/8)``. The gradient flows through it too.
    """
    pair = _paired(first, second)
    like = pair.a * pair.c + pair.b * pair.d
    # The root is that of like^2 cos^2 + (ad + bc)^2 sin^2, and so is positive; only rounding could make it less.
    root = _root((like.square() - pair.mixed).clamp(min=0))
    way = pair.other[0].square() + pair.other[1].square()
    squared = way + (pair.a - pair.c).square() + (pair.b - pair.d).square() + 2 * pair.mixed / (like + root)
    return _root(squared) / (2 * (pair.a * pair.b).sqrt() * 2 * (pair.c * pair.d).sqrt()).sqrt()


def kld(first: Float[Tensor, "*batch 5"], second: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch"]:
    """Compute twice the Kullback-Leibler divergence of the first distribution from the second; scale-free.

    ``m^T T^-1 m + tr(T^-1 S) + ln(det T / det S) - 2``; in half sides, with the vector ``u, v`` in the axes of the
    second, ``(u / c)^2 + (v / d)^2 + f(a^2 / c^2) + f(b^2 / d^2) + mixed / (c^2 d^2)``, where ``f(x) = x - 1 - ln x``.

    Source: Yang et al., "Learning High-Precision Bounding Box for Rotated Object Detection via Kullback-Leibler
    Divergence" (2021), equation 5 without its factor 1/2, as in MMRotate.
    """
    pair = _paired(first, second)
    u, v = pair.other
    way = (u / pair.c).square() + (v / pair.d).square()
    # Divided by the area twice: with single sides, or all four at once, the gradient would overflow in float32.
    turn = pair.mixed / (pair.c * pair.d) / (pair.c * pair.d)
    for side, other in ((pair.a, pair.c), (pair.b, pair.d)):
        over = ((side - other) / other) * ((side + other) / other)
        log = torch.where(over.abs() < 0.5, over.clamp(min=-0.5).log1p(), 2 * (side / other).log())
        way = way + (over - log).clamp(min=0)  # f of the squared ratio of the sides
    return way + turn


def hellinger(first: Float[Tensor, "*batch 5"], second: Float[Tensor, "*batch 5"]) -> Float[Tensor, "*batch"]:
    """Compute the Hellinger distance ``sqrt(1 - exp(-B))`` in [0, 1], with the Bhattacharyya distance ``B``; symmetric.

    ``B = m^T (S + T)^-1 m / 4 + ln(det(S + T) / (4 sqrt(det S det T))) / 2``, with variances ``w^2 / 12, h^2 / 12``.

    Source: Llerena et al., "Gaussian Bounding Boxes and Probabilistic Intersection-over-Union for Object Detection"
    (2021), which adds 1e-3 within the logarithm and the roots; here nothing is added.
    """
    pair = _paired(first, second)
    a, b, c, d = pair.a, pair.b, pair.c, pair.d
    unlike = (a * b - c * d).square() + (a * d - b * c).square() + pair.mixed
    product = 4 * a * b * c * d
    # The two adjoint covariances, each in the axes of its own box: m^T adj(S + T) m without a negative term.
    ways = ((b, pair.own[0]), (a, pair.own[1]), (d, pair.other[0]), (c, pair.other[1]))
    scale = (unlike + product).sqrt()
    way = sum(((side * part / scale).square() for side, part in ways), torch.zeros_like(a))
    distance = 0.75 * way + (unlike / product).log1p() / 2
    return _root(-torch.expm1(-distance))
