"""Samplers: the assignment of images to batches, processes and epochs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One image in one batch: together with the seed, it determines all random choices.

    Attributes:
        image: Position in the data set.
        epoch: The epoch.
        turn: Number of previous draws of the image in this epoch.
        way: Index of the view; None draws one at random.
        late: Whether the run is in its last part, without mosaics.
    """

    image: int
    epoch: int = 0
    turn: int = 0
    way: int | None = None
    late: bool = False


class GroupedSampler(Sampler[list[Draw]]):
    """Shuffled batches grouped by aspect ratio (``w / h > 1`` or not), the same number on each process.

    The rules are those of the reference implementation: each group is shuffled and filled up from its own beginning to
    a multiple of images per step over all processes, the batches of both groups are shuffled, each process takes a
    contiguous slice. Every image is used at least ``repeat`` times an epoch; a group smaller than a step repeats.

    Unlike the reference, the order depends only on seed and epoch, and an epoch can be started in the middle.

    Attributes:
        batch_size: Number of images per batch of this process.
    """

    def __init__(
        self,
        wide: Sequence[bool] | np.ndarray,
        *,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeat: int = 1,
        late: float = 0,
    ) -> None:
        flags = np.asarray(wide, dtype=bool)
        self._groups = [group for group in (np.flatnonzero(~flags), np.flatnonzero(flags)) if len(group)]
        self.batch_size, self._seed = batch, seed
        self._rank, self._world_size, self._repeat = rank, world_size, repeat
        self._epoch, self._skipped = 0, {0: 0}
        self._share_late, self._late_from = late, math.inf

    def __len__(self) -> int:
        """Return the number of batches per process and epoch, skipped ones included."""
        step = self.batch_size * self._world_size
        return sum(-(-len(group) * self._repeat // step) for group in self._groups)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._epoch = epoch

    def skip(self, batches: int, *, epoch: int | None = None) -> None:
        """Skip the first ``batches`` of an epoch without reading them; ``None``: the current epoch.

        This applies to every iteration over that epoch and to no other; ``skip(0)`` undoes it. The length stays that of
        the whole epoch.
        """
        self._skipped = {self._epoch if epoch is None else epoch: batches}

    def ends_at(self, batches: int) -> None:
        """Set the number of batches of the whole run; the draws of its last part are marked as late."""
        self._late_from = batches * (1 - self._share_late) if self._share_late else math.inf

    def __iter__(self) -> Iterator[list[Draw]]:
        """Iterate over the batches of this process, from the first that is not skipped."""
        epoch = self._epoch
        skipped = self._skipped.get(epoch, 0)
        random = np.random.default_rng((self._seed, epoch))
        step = self.batch_size * self._world_size
        batches: list[list[Draw]] = []
        for group in self._groups:
            order = random.permutation(np.tile(group, self._repeat))
            order = np.resize(order, -(-len(order) // step) * step)  # repeats from the beginning
            draws, turns = [], Counter[int]()
            for image in order.tolist():
                draws.append(Draw(image, epoch, turns[image]))
                turns[image] += 1
            batches += [draws[start : start + self.batch_size] for start in range(0, len(draws), self.batch_size)]
        mixed = random.permutation(len(batches))
        own = [batches[i] for i in mixed[self._rank * len(self) : (self._rank + 1) * len(self)]]
        for position, batch in enumerate(own[skipped:], epoch * len(self) + skipped):
            yield [draw._replace(late=True) for draw in batch] if position >= self._late_from else batch


def share(count: int, *, batch: int, rank: int = 0, world_size: int = 1, views: int = 1) -> list[list[Draw]]:
    """Return a process's batches of all images, once and in order, distributed round-robin, without repeats.

    With several views each batch is repeated once per view, consecutively; ``turn`` is the index of the view.
    """
    indices = range(rank, count, world_size)
    starts = range(0, len(indices), batch)
    return [
        [Draw(index, turn=view) for index in indices[start : start + batch]]
        for start in starts
        for view in range(views)
    ]
