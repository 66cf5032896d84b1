"""The training data as one stream with a start at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from locdistill.types import Batch


@contextmanager
def torch_rng_kept() -> Iterator[None]:
    """Restore the state of PyTorch's CPU generator on exit.

    Starting a data loader draws a number from it. Without this, dropout would change in a run that resumes in the
    middle of an epoch, or that evaluates more often.
    """
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


class Stream:
    """Batches ``start`` to ``end`` of repeated passes over a loader.

    The loader's sampler must give the same order for the same epoch: ``set_epoch(e)`` chooses the epoch, and
    ``skip(n)`` starts its next pass at batch ``n``.
    """

    def __init__(self, loader: Any, start: int, end: int) -> None:
        self.loader = loader
        self.start = start
        self.end = end

    def __len__(self) -> int:
        """Return the number of remaining batches."""
        return max(0, self.end - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from ``start``, epoch after epoch.

        Raises:
            TypeError: No sampler of the loader can be started at an epoch and a batch.
        """
        samplers = [getattr(self.loader, name, None) for name in ("batch_sampler", "sampler")]
        able = [found for found in samplers if hasattr(found, "set_epoch") and hasattr(found, "skip")]
        if not able:
            raise TypeError(
                f"{type(self.loader).__name__}: to resume a run exactly, the loader's batch_sampler or sampler needs "
                "the methods set_epoch(epoch) and skip(batches)"
            )
        sampler: Any = able[0]
        position, per_epoch = self.start, len(self.loader)
        while position < self.end:
            epoch, offset = divmod(position, per_epoch)
            sampler.set_epoch(epoch)
            if offset:
                sampler.skip(offset)
            with torch_rng_kept():
                batches = iter(self.loader)
            for batch in batches:
                yield batch
                position += 1
                if position == self.end:
                    return
