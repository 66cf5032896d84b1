"""Measurement of a run at its initial weights: images, objects, locations, losses, gradients, seconds of a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import nn

from locdistill.data.records import Dataset
from locdistill.engine.module import Losses, TrainingModule
from locdistill.types import Batch

FLAT = 2
"""Range of values in an image up to which it is blank."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """Losses and gradients of a batch at the initial weights.

    Attributes:
        losses: Value of each term.
        parameters: Number of the detector's parameters.
        learning: Number of those that are trained.
        gradient: Norm of the gradient.
        seconds: Seconds of a step.
    """

    losses: dict[str, float] = field(default_factory=dict)
    parameters: int = 1
    learning: int = 1
    gradient: float = 1.0
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the terms."""
        return sum(self.losses.values())


def measure(module: TrainingModule, batch: Batch, device: torch.device) -> Before:
    """Compute losses and gradients of a batch, twice, and take the time of the second; no weight changes."""
    student = module.detector
    assert isinstance(student, nn.Module)
    module.to(device)
    own, batch = [*student.parameters()], move_data_to_device(batch, device)
    learning, seconds = [parameter for parameter in own if parameter.requires_grad], 0.0
    dtype = module.speed.dtype
    for _ in range(2 if learning else 1):
        begun = time.monotonic()
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            losses: Losses = module(batch)
        gradients = torch.autograd.grad(losses.total, learning, allow_unused=True) if learning else ()
        norms = [gradient.norm() for gradient in gradients if gradient is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0  # waits for the device
        seconds = time.monotonic() - begun
    return Before(
        losses=dict(zip(losses.names, losses.terms.tolist(), strict=True)),
        parameters=sum(parameter.numel() for parameter in own),
        learning=sum(parameter.numel() for parameter in learning),
        gradient=norm,
        seconds=seconds,
    )


def blank_images(dataset: Dataset) -> tuple[str, ...]:
    """Return the names of the images of a single colour."""
    names = []
    for record in dataset.records:
        image = dataset.picture(record)
        if int(image.amax()) - int(image.amin()) <= FLAT:
            names.append(record.path.name)
    return tuple(names)
