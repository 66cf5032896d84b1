"""Where the teacher's predictions come from."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from locdistill.models.detector import Detector
from locdistill.types import Batch, Dense


@runtime_checkable
class Teacher(Protocol):
    """A source of predictions on the student's own batch; it has no weights that anyone else sees."""

    def __call__(self, batch: Batch) -> Dense:
        """The teacher's predictions, without gradient."""

    def to(self, device: torch.device) -> Teacher:
        """Move to where the batches are."""


class LiveTeacher:
    """A frozen detector that looks at every batch.

    It is composed, never a submodule: its weights are in no checkpoint, no optimiser and no DDP bucket. It normalises
    the images by its own statistics, stays in eval mode, and runs under the caller's precision policy.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector.eval().requires_grad_(False)

    def to(self, device: torch.device) -> LiveTeacher:
        """Move to where the batches are."""
        self.detector.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Dense:
        """The teacher's predictions on the batch, padding included."""
        dense: Dense = self.detector(self.detector.normalise(batch.images, batch.sizes))
        return dense
