"""What the engine asks of the parts that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from locdistill.geometry.grid import Grid
from locdistill.types import Batch, Dense, Detections, Instances


@runtime_checkable
class Student(Protocol):
    """The detector in training; an ``nn.Module`` in fact."""

    training: bool

    def __call__(self, images: Tensor) -> Dense:
        """Predict from normalised images."""

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Turn uint8 images into what the backbone expects, zero where padded."""

    def grid_for(self, images_hw: tuple[int, int]) -> Grid:
        """The locations of images of this height and width."""

    def detections(self, dense: Dense, grid: Grid, sizes: Tensor, original_sizes: Tensor) -> list[Detections]:
        """Turn predictions into boxes, in pixels of the original images."""

    def save(self, path: Path) -> Any:
        """Write the weights and what is needed to build the model again."""

    def eval(self) -> Any:
        """Switch to evaluation."""

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters by name."""

    def buffers(self) -> Iterator[Tensor]:
        """All buffers."""


@runtime_checkable
class Teacher(Protocol):
    """A frozen source of predictions; no part of the model in training."""

    def __call__(self, batch: Batch) -> Dense:
        """Predict from the same images as the student, without gradients."""

    def to(self, device: torch.device) -> Any:
        """Move to where the student is."""


@runtime_checkable
class Goal(Protocol):
    """The objective: named, weighted loss terms whose sum is minimised."""

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""

    def __call__(self, student: Dense, teacher: Dense | None, *, grid: Grid, instances: Instances) -> dict[str, Tensor]:
        """One scalar per term."""
