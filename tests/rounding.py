"""How far numbers that were computed in float32 may lie from the exact ones: the rule that tests compare by.

A sum of n products depends on the order in which a processor adds them (width of its vectors, fused multiply-add,
threads). It is off by about sqrt(n) u S, where u is eps / 2 and S is the sum of the magnitudes (Higham and Mary 2019, A
new approach to probabilistic rounding error analysis). Terms of both signs leave about S / sqrt(n) of S, so that two
such sums differ by 2 n u = n eps of their usual size. That bound has room: the largest value is larger than the usual
one, and vectors add in many short sums. Layers one after the other add up their n. Single elements may be small sums of
large terms, so that the largest element sets what is small.

Where the code can compute in float64 and a stored float32 array is the other side, do that: what is left is the
rounding of the stored array, which is the same on every machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def assert_rounded(actual: Tensor, expected: Any, *, terms: int, largest: float | None = None) -> None:
    """Check that two arrays differ by no more than the rounding of float32.

    Args:
        actual: Values of ours, in float32 or float64.
        expected: Values of the same shape.
        terms: Number of terms that are added up for one value, over all layers.
        largest: Largest magnitude that goes into a value; that of the expected values where None.
    """
    expected = torch.as_tensor(expected).double()
    if largest is None:
        largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=terms * EPS * largest)
