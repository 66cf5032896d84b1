"""What the engine asks of the parts that it is given."""

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
        """Predict from normalised images; hand out the maps of the pyramid, or inside the head, too."""

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Turn uint8 images into what the backbone expects, zero where padded."""

    def see(self, images: Tensor, sizes: Tensor) -> tuple[Dense, Grid]:
        """Predict from uint8 images; where, too."""

    def grid_for(self, size: Sequence[int]) -> Grid:
        """The locations of images of this height and width."""

    def candidates(
        self, dense: Dense, grid: Grid, sizes: Tensor, original_sizes: Tensor, *, flipped: bool = False
    ) -> list[Detections]:
        """Turn predictions into boxes before suppression, in pixels of the original images, mirrored back."""

    def suppress(self, views: Sequence[list[Detections]]) -> list[Detections]:
        """Turn the boxes of one or more views of the same images into what is reported."""

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
    """A source of predictions that is not optimised; no part of the model in training.

    It may follow the student. What it has learned from it is its state, which is in the run's checkpoint and in no
    weights file; a frozen teacher has none, so that its weights are in no file of the run.
    """

    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Predict from the same images as the student, without gradients; with maps as the student."""

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Predict from the student's maps inside the head, with gradients to them; both predictions hold theirs."""

    def to(self, device: torch.device) -> Any:
        """Move to where the student is."""

    def optimise(self, how: SpeedUps) -> None:
        """Speed up inference; called where the student is, before the first step."""

    def after_step(self, student: nn.Module) -> None:
        """Look at the student's weights after an optimiser step; the same on every process afterwards."""

    def state_dict(self) -> dict[str, Any]:
        """What was learned in the run, as tensors and plain values; empty for a frozen teacher."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


@runtime_checkable
class Goal(Protocol):
    """The objective: named, weighted loss terms whose sum is minimised."""

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""

    @property
    def needs_features(self) -> bool:
        """Whether any term looks at the maps of the pyramids."""

    @property
    def needs_cross(self) -> bool:
        """Whether any term looks at what the teacher's head makes of the student's features."""

    @property
    def needs_towers(self) -> bool:
        """Whether any term looks at maps inside the heads."""

    @property
    def learns(self) -> bool:
        """Whether any term may own weights or a running state."""

    def learned(self, example: Callable[[], tuple[Dense, Dense | None]]) -> Learned:
        """What the terms own, new, from the shapes of predictions of student and teacher."""

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
        """The batch as the terms see it, at this progress of the run."""

    def losses(self, scene: Scene) -> dict[str, Tensor]:
        """One scalar per term."""


Watch = Callable[[Scene], Mapping[str, Tensor]]
"""What is told of training beside the losses: by name, a sum over a batch and what to divide the sums by, ``(2,)``."""
