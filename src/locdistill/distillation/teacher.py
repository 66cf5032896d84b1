"""Where the teacher's predictions come from."""

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
"""Added to variances, which are 0 on maps of a single place."""


class FrozenTeacher(ABC):
    """A source of predictions that learns nothing in the run.

    It is composed, never a submodule: its weights are in no checkpoint, no optimiser and no DDP bucket.

    Attributes:
        notes: In words, what was done to make its student understand it.
        comparable: Whether its predictions are in its student's terms; otherwise only its maps are of use.
    """

    notes: tuple[str, ...] = ()
    comparable: bool = True

    @abstractmethod
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """The teacher's predictions on the batch, padding included, without gradient.

        Args:
            batch: What the student sees.
            features: Whether to hand out the maps of its pyramid too.
            towers: Whether to hand out the maps inside its head too.
        """

    @abstractmethod
    def to(self, device: torch.device) -> FrozenTeacher:
        """Move to where the batches are."""

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """What the teacher's head makes of the student's features, with gradient to them.

        Args:
            student: The student's predictions, with ``towers``.
            teacher: This teacher's of the same batch, with ``towers``.
        """
        raise NotImplementedError("this teacher has no head to run; the recipe's checks refuse what asks for one")

    def optimise(self, how: SpeedUps) -> None:  # noqa: B027 - not everyone can
        """Say the same, up to rounding, in less time from now on; to be called where the batches are."""

    def after_step(self, student: nn.Module) -> None:  # noqa: B027 - most have nothing to do
        """It learns nothing from the student."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: its weights are in their own file."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Nothing to go on from."""


class LiveTeacher(FrozenTeacher):
    """A frozen detector that looks at every batch.

    It normalises the images by its own statistics, stays in eval mode, and runs under the caller's precision policy
    until it is optimised; then a folded copy of it predicts, in the precision that was chosen, and the detector
    itself has only its head at work, where the student's features go through it.

    Args:
        detector: Who teaches.
        levels: The pyramid levels to speak of, consecutive ones of the detector's; None for all.
        scale: The batch is enlarged this much before the teacher looks at it, so that its level ``k + log2(scale)``
            has the cells of the student's level ``k``.
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
        """Move to where the batches are; what was optimised elsewhere is so no more."""
        self.detector.to(device)
        self._how, self._look = SpeedUps(), None
        return self

    def optimise(self, how: SpeedUps) -> None:
        """See :func:`locdistill.models.fold.optimised`."""
        self._how, self._look = how, how.wrap(optimised(self.detector, how), "the teacher")

    @property
    def normalisation(self) -> NormalisationSettings:
        """How it normalises images."""
        own = self.detector.settings
        return NormalisationSettings(mean=own.mean, std=own.std, bgr=own.bgr)

    def normalise_as(self, how: NormalisationSettings) -> None:
        """Normalise images in another way from now on; what is None stays."""
        self.detector.normalise_as(how)

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """The teacher's predictions on the batch; see :meth:`FrozenTeacher.__call__`."""
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
        """What the teacher's head makes of the student's features (CrossKD, Wang et al. 2024), with gradient to them.

        The student's maps inside both towers, before the ReLU that ends all convolutions but the last, are given the
        mean and spread that the teacher's have there, and go through the rest of the teacher's head. In the paper each
        channel is aligned over all images of a batch; here over each image, so that an image's loss does not depend on
        which others share its batch.
        """
        maps = [like(s, t) for s, t in zip(student.towers, teacher.towers, strict=True)]
        head: Any = self.detector.head
        dense: Dense = head.finish(maps, first=self.first)
        return dense


def like(x: Float[Tensor, "b d h w"], model: Float[Tensor, "b d v u"]) -> Float[Tensor, "b d h w"]:
    """Maps with each image's and channel's mean and standard deviation made those of others; no gradient to those."""
    model = model.detach()
    mean, its_mean = x.mean((2, 3), keepdim=True), model.mean((2, 3), keepdim=True)
    spread, its_spread = ((m.float().var((2, 3), correction=0, keepdim=True) + EPSILON).sqrt() for m in (x, model))
    return ((x - mean) * (its_spread / spread) + its_mean).to(model.dtype)


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

    def optimise(self, how: SpeedUps) -> None:
        """Change the layout and compile; its weights follow the student's, and stay as they are."""
        if how.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        self._how, self._look = how, how.wrap(self.detector, "the teacher")

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
