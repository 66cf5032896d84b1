"""The support of the edge distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Bins:
    """Positions ``0, 1, ..., reg_max`` of an edge, in strides from the location (GFL, Li et al. 2020, section 3.2)."""

    reg_max: int = 16

    @property
    def count(self) -> int:
        """Number of bins: ``reg_max + 1``."""
        return self.reg_max + 1

    def positions(self, like: Tensor) -> Float[Tensor, " n"]:
        """Position of each bin, on the device and of the type of ``like``."""
        return torch.arange(self.count, device=like.device, dtype=like.dtype)

    def expect(self, logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Mean of the distributions, in strides: softmax over the last axis, dotted with the positions."""
        return logits.softmax(-1) @ self.positions(logits)

    def clamp(self, distances: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Limit distances to what the bins can hold, with the margin of the reference: ``[0, reg_max - 0.1]``."""
        return distances.clamp(0, self.reg_max - 0.1)

    def two_hot(self, distances: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch n"]:
        """The distribution over the two neighbouring bins whose mean is the distance (GFL, equation 6).

        Distances must lie in ``[0, reg_max]``; ``expect`` of the logarithm of the result gives them back.
        """
        return (1 - (distances[..., None] - self.positions(distances)).abs()).clamp(min=0)
