"""Decoded images kept in memory, shared by the processes that read them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor


class PictureCache:
    """A block of memory with a slot for each image, filled as images are first read.

    Images without a slot within ``limit`` bytes are read from their files each time. Forked workers share the block
    (two that fill the same slot write the same pixels). Workers started otherwise begin with an empty block each, of
    their share of the limit.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]] | np.ndarray, *, limit: int, workers: int = 0) -> None:
        self._shapes = np.asarray(shapes, dtype=np.int64).reshape(-1, 2)
        self._limit, self._workers = limit, workers
        sizes = 3 * self._shapes.prod(-1)
        ends = np.cumsum(sizes)
        self._starts = ends - sizes
        self.places = int((ends <= self._limit).sum())
        total = int(ends[self.places - 1]) if self.places else 0
        # Anonymous shared memory: physical pages are allocated only when written, and freed with the processes.
        self._pixels = torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(total, 1)), dtype=np.uint8))
        self._filled = torch.from_numpy(np.frombuffer(mmap.mmap(-1, max(self.places, 1)), dtype=np.uint8))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make an empty cache of a worker's share of the memory."""
        share = self._limit // max(self._workers, 1)
        return partial(PictureCache, limit=share, workers=1), (self._shapes,)

    def get(self, index: int) -> UInt8[Tensor, "3 h w"] | None:
        """Return the image if it is cached; the caller must not write to it."""
        if index >= self.places or not self._filled[index]:
            return None
        return self._place(index).permute(2, 0, 1)

    def put(self, index: int, image: UInt8[Tensor, "3 h w"]) -> None:
        """Store the image if it has a slot of its shape."""
        if index < self.places and tuple(image.shape[-2:]) == tuple(self._shapes[index].tolist()):
            self._place(index).copy_(image.permute(1, 2, 0))
            self._filled[index] = 1  # after the pixels, for others read as soon as it is set

    def _place(self, index: int) -> Tensor:
        height, width = self._shapes[index].tolist()
        start = int(self._starts[index])
        return self._pixels[start : start + 3 * height * width].view(height, width, 3)
