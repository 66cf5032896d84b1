"""Where the teacher's predictions come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from locdistill.dist import broadcast_from_first
from locdistill.models.average import Average
from locdistill.models.detector import Detector
from locdistill.types import Batch, Dense


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
    def __call__(self, batch: Batch, *, features: bool = False) -> Dense:
        """The teacher's predictions on the batch, padding included; with ``features``, the maps of its pyramid too."""
        dense: Dense = self.detector(self.detector.normalise(batch.images, batch.sizes), features=features)
        return dense

    def after_step(self, student: nn.Module) -> None:
        """It learns nothing from the student."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: its weights are in their own file."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to go on from."""


class AverageTeacher(LiveTeacher):
    """An exponential moving average of the student's own weights (a mean teacher; Tarvainen and Valpola 2017).

    It is the student at first, so that terms which compare with it begin at about 0, and at random weights nothing is
    learned from it; as the decay rises (see `Average`) it becomes the steadier of the two. Nothing holds the terms back
    at first, as a ramp of their weight does in the paper. Also unlike there, teacher and student see one and the same
    augmented image, and the teacher has no dropout and normalises by averaged statistics.

    Its weights are part of the run, and in its checkpoint; a student of several processes must begin with the same
    weights on all of them.

    Args:
        student: The detector in training; it is copied.
        decay: Of the average, once the first steps are forgotten.
    """

    def __init__(self, student: Detector, decay: float) -> None:
        self.average = Average(student, decay)
        detector = self.average.model
        assert isinstance(detector, Detector)
        super().__init__(detector)

    def after_step(self, student: nn.Module) -> None:
        """Take in the student's present weights.

        Statistics of batch normalisation are each process's own until its next forward pass; those of the first count.
        """
        self.average.update(student)
        broadcast_from_first(self.detector.buffers())

    def state_dict(self) -> dict[str, Any]:
        """The average and its number of updates."""
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self.average.load_state_dict(state)
