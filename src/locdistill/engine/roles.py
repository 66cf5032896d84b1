"""Interfaces of the parts that the engine uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from locdistill.geometry.grid import Grid
from locdistill.models.fold import SpeedUps
from locdistill.objective.learned import Learned, TrainingProgress
from locdistill.objective.scene import Scene
from locdistill.types import Batch, Dense, Detections, Instances


@runtime_checkable
class Student(Protocol):
    """The detector in training; an ``nn.Module`` in fact."""

    training: bool

    def __call__(self, images: Tensor, *, features: bool = False, towers: bool = False) -> Dense:
        """Predict from normalised images; optionally with the maps of the pyramid, or inside the head."""

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise uint8 images for the backbone, zero in the padding."""

    def see(self, images: Tensor, sizes: Tensor) -> tuple[Dense, Grid]:
        """Predict from uint8 images; return the grid of locations too."""

    def grid_for(self, size: Sequence[int]) -> Grid:
        """Return the locations of images of this height and width."""

    def candidates(
        self, dense: Dense, grid: Grid, sizes: Tensor, original_sizes: Tensor, *, flipped: bool = False
    ) -> list[Detections]:
        """Decode predictions to boxes before suppression, in pixels of the original images, with flips undone."""

    def suppress(self, views: Sequence[list[Detections]]) -> list[Detections]:
        """Combine the boxes of one or more views of the same images into final detections."""

    def save(self, path: Path) -> Any:
        """Write the weights and the settings needed to rebuild the model."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation mode."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters by name."""

    def buffers(self) -> Iterator[Tensor]:
        """Yield all buffers."""


@runtime_checkable
class Teacher(Protocol):
    """A source of predictions that is not optimised; not part of the model in training.

    It may follow the student. Its state, learned from the student, is in the run's checkpoint and in no weights file. A
    frozen teacher has none, so that its weights are in no file of the run.
    """

    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Predict from the same images as the student, without gradients; with maps as the student."""

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Predict from the student's maps inside the head, with gradients to them; both predictions include towers."""

    def to(self, device: torch.device) -> Any:
        """Move to the student's device."""

    def optimise(self, how: SpeedUps) -> None:
        """Speed up inference; called on the student's device, before the first step."""

    def after_step(self, student: nn.Module) -> None:
        """Update from the student's weights after an optimiser step; the result is the same on every process."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state learned in the run, as tensors and plain values; empty for a frozen teacher."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""


@runtime_checkable
class Goal(Protocol):
    """The objective: named, weighted loss terms whose sum is minimised."""

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""

    @property
    def needs_features(self) -> bool:
        """Whether any term uses the maps of the pyramids."""

    @property
    def needs_cross(self) -> bool:
        """Whether any term uses the predictions of the teacher's head for the student's features."""

    @property
    def needs_towers(self) -> bool:
        """Whether any term uses maps inside the heads."""

    @property
    def learns(self) -> bool:
        """Whether any term may have weights or a running state."""

    def learned(self, example: Callable[[], tuple[Dense, Dense | None]]) -> Learned:
        """Create the weights of the terms, from the shapes of predictions of student and teacher."""

    def scene(
        self,
        student: Dense,
        teacher: Dense | None,
        *,
        grid: Grid,
        instances: Instances,
        progress: TrainingProgress,
        cross: Dense | None = None,
    ) -> Scene:
        """Return the terms' view of the batch, at this progress of the run."""

    def losses(self, scene: Scene) -> dict[str, Tensor]:
        """Compute one scalar per term."""


Watch = Callable[[Scene], Mapping[str, Tensor]]
"""Function that computes monitored quantities: by name, a sum over a batch and the divisor of the sums, ``(2,)``."""
