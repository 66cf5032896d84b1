"""The support of the edge distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.constant import constant

MARGIN = 0.1
"""Margin, in bins, by which targets stay below the last bin, as in the reference."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Positions ``0, 1, ..., reg_max`` of an edge, in strides from the location (GFL, Li et al. 2020, section 3.2)."""

    reg_max: int = 16

    @property
    def count(self) -> int:
        """Number of bins: ``reg_max + 1``."""
        return self.reg_max + 1

    def positions(self, like: Tensor) -> Float[Tensor, "*e n"]:
        """Return the position of each bin, on the device and in the dtype of ``like``; per edge where they differ."""
        return torch.arange(self.count, device=like.device, dtype=like.dtype)

    def steps(self, like: Tensor) -> Float[Tensor, " e"]:
        """Return the distance between neighbouring bins, in strides (1); one value per edge if they differ.

        Numbers of different units become comparable once they are counted in steps.
        """
        return like.new_ones(1)

    def expect(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Compute the mean of the distributions, in strides: softmax over the last axis, dotted with the positions."""
        return logits.softmax(-1) @ self.positions(logits)

    def clamp(self, distances: Float[Tensor, "*batch"], margin: float = MARGIN) -> Float[Tensor, "*batch"]:
        """Limit distances to the range of the bins, less a margin in bins below the last: ``[0, reg_max - margin]``."""
        return distances.clamp(0, self.reg_max - margin)

    def two_hot(self, distances: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
        """Compute the distribution over the two neighbouring bins whose mean is the distance (GFL, equation 6).

        Distances must lie in ``[0, reg_max]``; ``expect`` of the logarithm of the result gives them back.
        """
        return (1 - (distances[..., None] - self.positions(distances)).abs()).clamp(min=0)

    def difference(self, a: Float[Tensor, "*batch"], b: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Compute ``a - b``."""
        return a - b

    def deviation(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Compute the standard deviation of the distributions, in strides."""
        offsets = self.positions(logits) - self.expect(logits)[..., None]
        return (logits.softmax(-1) * offsets.square()).sum(-1).sqrt()


@dataclass(frozen=True, slots=True)
class RowBins(Bins):
    """Bins whose positions differ between the predicted numbers; the last axis of the values runs over the numbers.

    Attributes:
        reg_max: Number of the last bin; the first is 0.
        ranges: Position of the first and the last bin of each number; the others are evenly spaced between them.
    """

    reg_max: int
    ranges: tuple[tuple[float, float], ...]

    def positions(self, like: Tensor) -> Float[Tensor, "*e n"]:
        """Return the position of each bin of each number."""
        steps = range(self.count)
        rows = [[first + (last - first) * k / self.reg_max for k in steps] for first, last in self.ranges]
        return constant(rows, like)

    def steps(self, like: Tensor) -> Float[Tensor, " e"]:
        """Return the distance between the bins of each number."""
        return constant([(last - first) / self.reg_max for first, last in self.ranges], like)

    def expect(self, logits: Float[Tensor, "*batch e n"]) -> Float[Tensor, "*batch e"]:
        """Compute the mean of the distributions."""
        return (logits.softmax(-1) * self.positions(logits)).sum(-1)

    def clamp(self, distances: Float[Tensor, "*batch e"], margin: float = MARGIN) -> Float[Tensor, "*batch e"]:
        """Limit values to the range of the bins, less a margin in bins below the last."""
        first, last = constant(self.ranges, distances).unbind(-1)
        return torch.minimum(torch.maximum(distances, first), last - margin * self.steps(distances))

    def two_hot(self, distances: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch e n"]:
        """Compute the distribution over the two neighbouring bins whose mean is the value."""
        apart = (distances[..., None] - self.positions(distances)).abs() / self.steps(distances)[:, None]
        return (1 - apart).clamp(min=0)


@dataclass(frozen=True, slots=True)
class CircularBins(Bins):
    """`RowBins`, followed by the bins of an angle, which lie on a circle: the last bin is next to the first.

    The mean of an angle's distribution is the direction of the mean of ``exp(2 pi i theta / period)``. Values beyond
    one end of the range wrap around to the other. The mean of two neighbouring bins is not exactly linear in their
    probabilities: with 9 bins in half a turn the error is at most 0.16 degrees, with 17 by 0.03.

    Attributes:
        reg_max: That of ``lengths``: the angle has as many bins.
        lengths: Bins of the numbers before the angle.
        period: Period of the angle: a rectangle is the same after half a turn.
        first: Smallest mean of an angle; means lie within one period above it.
    """

    reg_max: int = field(init=False)
    lengths: RowBins
    period: float = math.pi
    first: float = -math.pi / 2

    def __post_init__(self) -> None:
        """Take the number of bins from ``lengths``."""
        object.__setattr__(self, "reg_max", self.lengths.reg_max)

    def positions(self, like: Tensor) -> Float[Tensor, "*e n"]:
        """Return the positions of ``lengths``, and for the angle ``0, period / n, 2 period / n, ...``."""
        angles = constant([self.period * k / self.count for k in range(self.count)], like)
        return torch.cat((self.lengths.positions(like), angles[None]))

    def steps(self, like: Tensor) -> Float[Tensor, " e"]:
        """Return the distance between the bins of each number."""
        return torch.cat((self.lengths.steps(like), constant([self.period / self.count], like)))

    def expect(self, logits: Float[Tensor, "*batch e n"]) -> Float[Tensor, "*batch e"]:
        """Compute the mean of the distributions; that of the angle is circular.

        The gradient of the circular mean is damped where the distribution has almost no direction, as at the beginning
        of training: with the mean vector's length ``r`` it is proportional to ``r / (r^2 + 0.01)`` instead of
        ``1 / r``. The value is exact.
        """
        lengths = self.lengths.expect(logits[..., :-1, :])
        turns = [2 * math.pi * k / self.count for k in range(self.count)]
        probs = logits[..., -1, :].softmax(-1)
        x = probs @ constant([math.cos(turn) for turn in turns], logits)
        y = probs @ constant([math.sin(turn) for turn in turns], logits)
        x0, y0 = x.detach(), y.detach()
        moved = (x0 * (y - y0) - y0 * (x - x0)) / (x0.square() + y0.square() + 0.01)
        angle = (torch.atan2(y0, x0) + moved) * (self.period / (2 * math.pi))
        angle = torch.remainder(angle - self.first, self.period) + self.first
        return torch.cat((lengths, angle[..., None]), -1)

    def clamp(self, distances: Float[Tensor, "*batch e"], margin: float = MARGIN) -> Float[Tensor, "*batch e"]:
        """Limit lengths to the range of the bins, less the margin; wrap angles into one period, from 0."""
        lengths = self.lengths.clamp(distances[..., :-1], margin)
        return torch.cat((lengths, torch.remainder(distances[..., -1:], self.period)), -1)

    def difference(self, a: Float[Tensor, "*batch e"], b: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch e"]:
        """Compute ``a - b``; for angles, the shorter way round."""
        difference = a - b
        return torch.cat((difference[..., :-1], self._around(difference[..., -1:])), -1)

    def two_hot(self, distances: Float[Tensor, "*batch e"]) -> Float[Tensor, "*batch e n"]:
        """Compute the distribution over the two neighbouring bins, on the circle for the angle."""
        lengths = self.lengths.two_hot(distances[..., :-1])
        apart = self._around(distances[..., -1:] - self.positions(distances)[-1])
        shares = (1 - apart.abs() * (self.count / self.period)).clamp(min=0)
        return torch.cat((lengths, shares[..., None, :]), -2)

    def deviation(self, logits: Float[Tensor, "*batch e n"]) -> Float[Tensor, "*batch e"]:
        """Compute the standard deviation; for the angle, the root mean square of the deviations on the circle."""
        lengths = self.lengths.deviation(logits[..., :-1, :])
        offsets = self.positions(logits)[-1] - self.expect(logits)[..., -1:]
        angle = (logits[..., -1, :].softmax(-1) * self._around(offsets).square()).sum(-1).sqrt()
        return torch.cat((lengths, angle[..., None]), -1)

    def _around(self, angles: Tensor) -> Tensor:
        """Wrap angles to between minus and plus half a period."""
        return torch.remainder(angles + self.period / 2, self.period) - self.period / 2
