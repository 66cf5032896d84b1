"""The training data as one stream that can be entered anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from locdistill.types import Batch


@contextmanager
def torch_rng_kept() -> Iterator[None]:
    """Leave PyTorch's CPU generator as it was.

    Starting a data loader draws a number from it. Without this, a run that enters an epoch in the middle, or that
    evaluates more often, would have another dropout than one that does not.
    """
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


class Stream:
    """Batches ``start`` to ``end`` of a loader that is gone through again and again.

    The loader's sampler must give the same order for the same epoch: ``set_epoch(e)`` chooses the epoch, and
    ``skip(n)`` lets its next pass begin at batch ``n``.
    """

    def __init__(self, loader: Any, start: int, end: int) -> None:
        self.loader = loader
        self.start = start
        self.end = end

    def __len__(self) -> int:
        """Batches that are left."""
        return max(0, self.end - self.start)

    def __iter__(self) -> Iterator[Batch]:
        """Go on from ``start``, epoch after epoch."""
        position, per_epoch = self.start, len(self.loader)
        while position < self.end:
            epoch, offset = divmod(position, per_epoch)
            sampler = _sampler(self.loader)
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


def _sampler(loader: Any) -> Any:
    """The part of the loader that knows epochs: its batch sampler, or else its sampler."""
    for name in ("batch_sampler", "sampler"):
        sampler = getattr(loader, name, None)
        if hasattr(sampler, "set_epoch") and hasattr(sampler, "skip"):
            return sampler
    raise TypeError(
        f"the training loader's sampler needs set_epoch(epoch) and skip(batches) to resume a run exactly; "
        f"{type(loader).__name__} has neither on its batch_sampler nor on its sampler"
    )
