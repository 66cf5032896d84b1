"""Numbers that are known beforehand, as tensors where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def constant(
    values: Sequence[float] | Sequence[Sequence[float]], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """These numbers on the device of ``like`` and of its type, or of another; to be read only.

    They are sent once. Sending numbers to a GPU makes the program wait for it, and a training step must not wait.
    """
    made: Tensor = _sent(_frozen(values), like.device, dtype or like.dtype)
    return made


def indices(values: Sequence[int], like: Tensor) -> Tensor:
    """:func:`constant` for places of an axis."""
    return constant(values, like, torch.long)


def _frozen(values: Any) -> Any:
    return tuple(map(_frozen, values)) if isinstance(values, Sequence) else values


@lru_cache(maxsize=256)
def _sent(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    # What is made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


# What `torch.compiler.assume_constant_result` does, without the compiler, which it imports: longer than PyTorch takes.
_sent._dynamo_marked_constant = True  # type: ignore[attr-defined]
