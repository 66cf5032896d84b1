"""One training step: student, teacher, objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.engine.compiled import Compiled, bucketed
from locdistill.engine.optim import build_optimizer, parameter_groups, scaled_lr
from locdistill.engine.plan import Plan
from locdistill.engine.result import RunState
from locdistill.engine.settings import EngineSettings
from locdistill.engine.speed import Machine, Speed, choose, set_backends
from locdistill.errors import TeacherError
from locdistill.geometry.grid import Grid
from locdistill.models.detector import Detector
from locdistill.models.fold import SpeedUps
from locdistill.models.recompute import recompute
from locdistill.objective.learned import Learned, TrainingProgress
from locdistill.objective.objective import Objective
from locdistill.objective.scene import Scene
from locdistill.types import Batch, Dense, Instances

EXAMPLE_SIDE = 256
"""Side of the blank image used to find the shapes of predictions: two cells on the coarsest level of a pyramid."""


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


Watch = Callable[[Scene], Mapping[str, Tensor]]
"""Function that computes monitored quantities: by name, a sum over a batch and the divisor of the sums, ``(2,)``."""


@dataclass(frozen=True, slots=True)
class Guidance:
    """Objective, teacher and monitored quantities. Not part of the model: neither saved with it nor optimised."""

    objective: Objective
    teacher: Teacher | None
    watch: Watch | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Functions called at every step, compiled or not. Not part of the model."""

    student: Callable[..., Dense]
    compare: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


class Losses(NamedTuple):
    """Losses of a batch.

    Attributes:
        total: Sum of the terms, to be minimised.
        names: Names of the terms.
        terms: Values of the terms, ``(t,)``, without gradient.
        watched: Monitored quantities: by name, a sum over the batch and the divisor of the sums.
    """

    total: Float[Tensor, ""]
    names: tuple[str, ...]
    terms: Float[Tensor, " t"]
    watched: dict[str, Tensor]


class TrainingModule(nn.Module):
    """A detector in training.

    Its submodules are ``detector``, and ``learned`` where terms of the objective own weights or a running state (an
    adapter between feature maps of unequal width): the checkpoint and the optimiser hold both, the published weights
    only the detector. The teacher gets the same augmented images, with the same precision, without gradients; the
    losses are computed in float32.

    Args:
        detector: The student.
        objective: The loss terms.
        teacher: The teacher; needed if and only if the objective has a term that compares with one.
        settings: Training settings.
        watch: Function that computes monitored quantities.
        speed: Speed options; by default the choice of ``settings`` for this machine.

    Raises:
        TeacherError: The objective needs a teacher, and there is none.
    """

    def __init__(
        self,
        detector: Detector,
        objective: Objective,
        teacher: Teacher | None = None,
        settings: EngineSettings | None = None,
        *,
        watch: Watch | None = None,
        speed: Speed | None = None,
    ) -> None:
        super().__init__()
        if objective.needs_teacher and teacher is None:
            raise TeacherError(
                "the objective has terms that compare with a teacher, but no teacher was given: give the weights of "
                "one, or train with supervised terms only"
            )
        self.detector = detector
        self.settings = settings or EngineSettings()
        self.speed = speed or choose(self.settings, Machine.here(self.settings))
        self.work = Work(detector, self.compare)
        self.lap: Callable[[str], None] = unmeasured
        self.guidance = Guidance(objective, teacher if objective.needs_teacher else None, watch)
        self.learned: Learned | None = None
        if objective.learns:
            with torch.random.fork_rng(devices=[]):  # leaves the generators of the run unchanged
                torch.manual_seed(self.settings.seed)
                self.learned = objective.learned(self._example)
        self.plan: Plan | None = None
        self.progress = RunState()

    @torch.no_grad()
    def _example(self) -> tuple[Dense, Dense | None]:
        """Return student's and teacher's predictions of a blank image, from which the terms learn their shapes."""
        device = next(p.device for _, p in self.detector.named_parameters())
        if self.guidance.teacher is not None:
            self.guidance.teacher.to(device)
        training = self.detector.training
        self.detector.eval()
        try:
            return self.predictions(blank_batch(device))
        finally:
            self.detector.train(training)

    def arrange(self) -> None:
        """Apply the chosen memory layout and activation checkpointing to the student; call before it is copied."""
        if self.speed.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        if self.speed.checkpointing:
            recompute(self.detector.backbone)

    def speed_up(self, device: torch.device) -> None:
        """Move the teacher to the student's device, and apply the chosen speed-ups to both."""
        speed = self.speed
        set_backends(tf32=speed.tf32, cudnn_benchmark=speed.cudnn_benchmark)
        if self.guidance.teacher is not None:
            self.guidance.teacher.to(device)
            self.guidance.teacher.optimise(
                SpeedUps(fold=speed.teacher, dtype=speed.dtype, channels_last=speed.channels_last, wrap=self._compiled)
            )
        compare = self._compiled(self.compare, "the objective", whole=True)
        self.work = Work(self._compiled(self.detector, "the student"), compare)

    def _compiled(self, function: Callable[..., Any], name: str, *, whole: bool = False) -> Callable[..., Any]:
        """Return the function, compiled if that was chosen."""
        speed = self.speed
        if not speed.compile:
            return function
        mode = "reduce-overhead" if speed.cuda_graphs else None
        return Compiled(function, name, whole=whole, must=speed.must_compile, mode=mode)

    def forward(self, batch: Batch) -> Losses:
        """Compare student, teacher and labels on a batch."""
        student, teacher = self.predictions(batch)
        cross = None
        if teacher is not None and self.guidance.teacher is not None and self.guidance.objective.needs_cross:
            adapted = student if self.learned is None else self.learned.crossing(student)
            cross = self.guidance.teacher.cross(adapted, teacher)
        done = self.progress.step / self.plan.total_steps if self.plan is not None else 0.0
        progress = TrainingProgress(done, self.learned)
        grid = self.detector.grid_for(batch.images.shape[-2:])
        instances = bucketed(batch.instances) if self.speed.compile else batch.instances
        with torch.autocast(batch.images.device.type, enabled=False):
            terms, watched = self.work.compare(student, teacher, cross, grid, instances, progress)
        self.lap("losses")
        if self.speed.cuda_graphs:  # the next step overwrites the memory of these results
            watched = {name: value.clone() for name, value in watched.items()}
        values = torch.stack(list(terms.values()))
        return Losses(values.sum(), tuple(terms), values.detach(), watched)

    def compare(
        self,
        student: Dense,
        teacher: Dense | None,
        cross: Dense | None,
        grid: Grid,
        instances: Instances,
        progress: TrainingProgress,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the terms of the objective and the monitored quantities, by name."""
        objective, watch = self.guidance.objective, self.guidance.watch
        scene = objective.scene(student, teacher, grid=grid, instances=instances, progress=progress, cross=cross)
        losses, watched = objective.losses(scene), {} if watch is None else dict(watch(scene))
        if progress.learned is not None and progress.learned.balance is not None:
            watched |= progress.learned.balance.watched()
        return losses, watched

    def predictions(self, batch: Batch) -> tuple[Dense, Dense | None]:
        """Return the predictions of student and teacher; with maps of pyramids and heads only if a term needs them."""
        maps = {"features": self.guidance.objective.needs_features, "towers": self.guidance.objective.needs_towers}
        images = self.detector.normalise(batch.images, batch.sizes)
        if self.speed.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        dense = self.work.student(images, **maps)
        self.lap("student")
        if self.guidance.teacher is None:
            return dense, None
        with torch.no_grad():
            teacher = self.guidance.teacher(batch, **maps)
        self.lap("teacher")
        return dense, teacher

    def optimizer(self) -> torch.optim.Optimizer:
        """Return a new optimiser of all trainable parameters, at the full learning rate."""
        assert self.plan is not None
        lr = scaled_lr(self.settings, self.plan.images_per_step)
        groups = parameter_groups(self.detector, self.settings, lr, self.learned)
        return build_optimizer(groups, self.settings, fused=self.speed.fused)


def unmeasured(_part: str) -> None:
    """Ignore the end of a part of a step: the default without a profile."""


def blank_batch(device: torch.device) -> Batch:
    """Return a batch of one black image without objects."""
    side = EXAMPLE_SIDE
    sizes = torch.full((1, 2), side, device=device)
    none = torch.zeros(1, 1, dtype=torch.bool, device=device)
    return Batch(
        images=torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device),
        sizes=sizes,
        original_sizes=sizes,
        image_ids=torch.zeros(1, dtype=torch.long, device=device),
        instances=Instances(torch.zeros(1, 1, 4, device=device), none.long(), none, none, sizes),
    )
