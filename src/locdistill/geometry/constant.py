"""Known numbers as tensors on the device where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def constant(
    values: Sequence[float] | Sequence[Sequence[float]], like: Tensor, dtype: torch.dtype | None = None
) -> Tensor:
    """Return these numbers on the device of ``like``, in its dtype or another; read-only.

    They are copied once. Copying numbers to a GPU synchronises with it, which a training step must avoid.
    """
    frozen = tuple(tuple(row) if isinstance(row, Sequence) else row for row in values)
    made: Tensor = _sent(frozen, like.device, dtype or like.dtype)
    return made


@lru_cache(maxsize=256)
def _sent(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    # A tensor made in inference mode could not be used in training afterwards.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


# The effect of `torch.compiler.assume_constant_result`, without importing the compiler (slower than PyTorch).
_sent._dynamo_marked_constant = True  # type: ignore[attr-defined]
