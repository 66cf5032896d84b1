"""The training data as one stream with a start at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from locdistill.types import Batch


@dataclass(slots=True)
class Stream:
    """Batches ``start`` to ``end`` of repeated passes over a loader.

    The loader's sampler must give the same order for the same epoch: ``set_epoch(e)`` chooses the epoch, and
    ``skip(n)`` starts its next pass at batch ``n``. If it has ``ends_at``, this is called with ``end``.

    Starting a loader draws a number from PyTorch's CPU generator, whose state is kept: otherwise dropout would change
    in a run that resumes in the middle of an epoch, or that evaluates more often.
    """

    loader: Any
    start: int
    end: int

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
            if hasattr(sampler, "ends_at"):
                sampler.ends_at(self.end)
            if offset:
                sampler.skip(offset)
            with torch.random.fork_rng(devices=[]):
                batches = iter(self.loader)
            for batch in batches:
                yield batch
                position += 1
                if position == self.end:
                    return
