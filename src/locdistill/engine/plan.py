"""Number of steps of a run, and the boundaries of its epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Numbers of steps, batches and images of a run.

    Batches are one endless stream of repeated passes over the data; every optimiser step uses ``accumulate`` of them,
    also across the end of an epoch. So every step has the same number of images, and epoch ``e`` ends with the step
    that uses its last batch.

    Attributes:
        batches_per_epoch: Batches of one process in one pass over the data.
        accumulate: Batches of one process per optimiser step.
        batch_per_device: Images of one batch of one process.
        world: Processes that train together.
        total_steps: Optimiser steps of the whole run.
    """

    batches_per_epoch: int
    accumulate: int
    batch_per_device: int
    world: int
    total_steps: int

    @classmethod
    def of(cls, loader: Any, settings: EngineSettings, world: int) -> Plan:
        """Count the steps of a run over this loader.

        Raises:
            RunError: The loader is empty, or its batch size is unknown.
        """
        batches = len(loader)
        if batches == 0:
            raise RunError(
                "the training data give no batch: there are no images, or fewer than a batch. Check the data set with "
                "'locdistill data check', or use a smaller batch"
            )
        owners = (loader, getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None))
        sizes = [getattr(owner, "batch_size", None) for owner in owners]
        size = next((size for size in sizes if isinstance(size, int)), None)
        if size is None:
            raise RunError(
                "the training loader has no batch size, by which the learning rate is scaled: give the loader or its "
                "sampler an integer 'batch_size'"
            )
        per_epoch = batches / settings.accumulate
        return cls(
            batches_per_epoch=batches,
            accumulate=settings.accumulate,
            batch_per_device=size,
            world=world,
            total_steps=settings.steps or math.ceil(settings.epochs * per_epoch),
        )

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step, over all processes."""
        return self.batch_per_device * self.world * self.accumulate

    def epochs_done(self, steps: int) -> int:
        """Return the number of complete passes over the data in this many optimiser steps."""
        return steps * self.accumulate // self.batches_per_epoch

    def completes(self, steps: int, every: int | None = 1) -> bool:
        """Return whether the last of this many steps completed a multiple of ``every`` epochs; never if 0 or None."""
        return bool(every and self.epochs_done(steps) // every > self.epochs_done(steps - 1) // every)

    def fingerprint(self, seed: int) -> dict[str, int]:
        """Return the values that must be equal for a resumed run to continue as if it had not stopped."""
        return {
            "processes": self.world,
            "batch_per_device": self.batch_per_device,
            "batches_per_epoch": self.batches_per_epoch,
            "accumulate": self.accumulate,
            "seed": seed,
        }
