"""Sources of the teacher's predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.dist import broadcast_from_first
from locdistill.models.average import Average
from locdistill.models.detector import Detector
from locdistill.models.fold import SpeedUps, optimised
from locdistill.models.settings import NormalisationSettings
from locdistill.types import Batch, Dense

EPSILON = 1e-5
"""Constant added to variances, which are 0 on maps of a single position."""


class FrozenTeacher(ABC):
    """A source of predictions without trainable weights.

    It is not a submodule of the student: its weights are in no checkpoint, no optimiser and no DDP bucket.

    Attributes:
        notes: Descriptions of the conversions of its predictions for its student.
        comparable: Whether its predictions are comparable with its student's; otherwise only its maps can be used.
        teachers: Teachers whose predictions it converts or combines.
        average: The running average of the student that it is; None for a teacher that no step changes.
    """

    notes: tuple[str, ...] = ()
    comparable: bool = True
    teachers: tuple[FrozenTeacher, ...] = ()
    average: Average | None = None

    @abstractmethod
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return the teacher's predictions on the batch, padding included, without gradient.

        Args:
            batch: The student's batch.
            features: Whether to return the maps of its pyramid too.
            towers: Whether to return the maps inside its head too.
        """

    def to(self, device: torch.device) -> FrozenTeacher:
        """Move to the device of the batches."""
        for teacher in self.teachers:
            teacher.to(device)
        return self

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Return the predictions of the teacher's head for the student's features, with gradient to them.

        Args:
            student: The student's predictions, with ``towers``.
            teacher: This teacher's predictions of the same batch, with ``towers``.
        """
        raise NotImplementedError("this teacher has no head to run; the checks of a recipe reject terms that need one")

    def optimise(self, how: SpeedUps) -> None:
        """Speed up predictions (same outputs up to rounding). Call after moving to the device of the batches."""
        for teacher in self.teachers:
            teacher.optimise(how)

    def after_step(self, student: nn.Module) -> None:
        """Update the average, if it is one, with the student's current weights.

        Statistics of batch normalisation differ between processes until the next forward pass; those of the first
        process are used.
        """
        if self.average is not None:
            self.average.update(student)
            broadcast_from_first(self.average.model.buffers())

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its number of updates; empty for weights that are in their own file."""
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved average."""
        if self.average is not None:
            self.average.load_state_dict(state)


class LiveTeacher(FrozenTeacher):
    """A frozen detector that runs on every batch.

    It normalises the images by its own statistics, stays in eval mode, and runs under the caller's precision policy
    until it is optimised. Then a folded copy of it predicts in the chosen precision, and only the head of the detector
    itself is used, for the student's features.

    Args:
        detector: The detector.
        levels: Pyramid levels to predict on, consecutive ones of the detector's; None for all.
        scale: Factor by which the batch is enlarged, so that the teacher's level ``k + log2(scale)`` has the cells of
            the student's level ``k``.
    """

    def __init__(self, detector: Detector, *, levels: Sequence[int] | None = None, scale: int = 1) -> None:
        self.detector = detector.eval().requires_grad_(False)
        own = detector.settings.levels
        chosen = tuple(levels or own)
        self.first, self.last = own.index(chosen[0]), own.index(chosen[-1]) + 1
        self.scale = scale
        self._how = SpeedUps()
        self._look: Callable[..., Dense] | None = None

    def to(self, device: torch.device) -> LiveTeacher:
        """Move to the device of the batches; earlier speed-ups on another device are dropped."""
        self.detector.to(device)
        self._how, self._look = SpeedUps(), None
        return self

    def optimise(self, how: SpeedUps) -> None:
        """Speed up predictions; see :func:`locdistill.models.fold.optimised`."""
        self._how, self._look = how, how.wrap(optimised(self.detector, how), "the teacher")

    @property
    def normalisation(self) -> NormalisationSettings:
        """Its normalisation of images."""
        own = self.detector.settings
        return NormalisationSettings(mean=own.mean, std=own.std, bgr=own.bgr)

    def normalise_as(self, how: NormalisationSettings) -> None:
        """Change the normalisation of images; settings that are None stay unchanged."""
        self.detector.normalise_as(how)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return the teacher's predictions on the batch; see :meth:`FrozenTeacher.__call__`."""
        images = self.detector.normalise(batch.images, batch.sizes)
        if self.scale > 1:
            images = nn.functional.interpolate(images, scale_factor=float(self.scale), mode="bilinear")
        look = self._look or self.detector
        dtype = self._how.dtype
        with nullcontext() if dtype is None else torch.autocast(images.device.type, dtype):
            dense: Dense = look(self._how.images(images), features=features, towers=towers)
        if self.last - self.first == len(self.detector.settings.levels):
            return dense
        sizes = self.detector.grid_for(images.shape[-2:]).level_sizes
        place = slice(sum(sizes[: self.first]), sum(sizes[: self.last]))
        quality = dense.quality_logits
        return dense._replace(
            cls_logits=dense.cls_logits[:, place],
            edge_logits=dense.edge_logits[:, place],
            quality_logits=None if quality is None else quality[:, place],
            features=dense.features[self.first : self.last],
            towers=dense.towers[2 * self.first : 2 * self.last],
        )

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Return the teacher's head's predictions for the student's features (CrossKD), with gradient to them.

        CrossKD is by Wang et al. 2024. The student's maps inside both towers, before the ReLU that ends all
        convolutions but the last, are aligned to the mean and spread of the teacher's maps, and pass through the rest
        of the teacher's head. In the paper each channel is aligned over all images of a batch; here over each image, so
        that an image's loss does not depend on the other images of its batch.
        """
        maps = [like(s, t) for s, t in zip(student.towers, teacher.towers, strict=True)]
        head: Any = self.detector.head
        dense: Dense = head.finish(maps, first=self.first)
        return dense


def like(x: Float[Tensor, "b d h w"], model: Float[Tensor, "b d v u"]) -> Float[Tensor, "b d h w"]:
    """Align maps to the mean and standard deviation of ``model`` per image and channel; no gradient to ``model``."""
    model = model.detach()
    mean, its_mean = x.mean((2, 3), keepdim=True), model.mean((2, 3), keepdim=True)
    spread, its_spread = ((m.float().var((2, 3), correction=0, keepdim=True) + EPSILON).sqrt() for m in (x, model))
    return ((x - mean) * (its_spread / spread) + its_mean).to(model.dtype)


class AverageTeacher(LiveTeacher):
    """An exponential moving average of the student's own weights (a mean teacher; Tarvainen and Valpola 2017).

    It equals the student at first, so that terms which compare with it begin at about 0, and nothing is learned from
    random weights. As the decay rises (see `Average`) it becomes more stable than the student. Unlike in the paper, the
    weight of the terms is not ramped up, teacher and student get the same augmented image, and the teacher has no
    dropout and normalises by averaged statistics.

    Its weights are part of the run's checkpoint. With several processes, the student must begin with the same weights
    on all of them.

    Args:
        student: The detector in training; it is copied.
        decay: Decay of the average after the first steps.
    """

    def __init__(self, student: Detector, decay: float) -> None:
        self.average = Average(student, decay)
        detector = self.average.model
        assert isinstance(detector, Detector)
        super().__init__(detector)

    def optimise(self, how: SpeedUps) -> None:
        """Change the memory layout and compile, without folding, since its weights follow the student's."""
        if how.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        self._how, self._look = how, how.wrap(self.detector, "the teacher")
