"""Settings of the teacher: weights, their interpretation, and the cache of predictions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from locdistill.models.settings import Deviation, NormalisationSettings
from locdistill.settings import Settings
from locdistill.types import Triple

SoftTarget = Literal["two_hot", "gaussian"]

NumberFormat = Literal["half", "8bit"]
EMA = "ema"
"""Value of ``teacher.weights`` for a teacher that is the running average of the student."""

EMA_DECAY = 0.999
"""Decay of the mean teacher (Tarvainen and Valpola 2017)."""


class OnnxSettings(Settings):
    """Properties of a detector that its ONNX file does not record."""

    classes: tuple[str, ...] | None = None
    """Names of the classes, in the file's order; None for those of COCO (80 classes) or VOC (20 classes)."""
    mean: Triple = (103.53, 116.28, 123.675)
    """Mean of the input channels, in the network's order, 0 to 255; by default that of MMDetection and NanoDet."""
    std: Deviation = (57.375, 57.12, 58.395)
    bgr: bool = True
    """Whether the network's channel order is blue, green, red."""
    offset: float = 0.5
    """Position of a location within its cell, in strides: 0.5 in NanoDet and FCOS, 0 in GFL."""
    boxes: Literal["strides", "pixels", "corners"] = "strides"
    """Meaning of four numbers per location, if there are no distributions: distances to the edges, in strides or in
    pixels, or ``x1, y1, x2, y2`` in pixels."""


class Colleague(Settings):
    """An additional teacher."""

    weights: str | None = None
    """Weights as in ``teacher.weights``, except for ``ema``."""
    share: float = Field(default=1.0, gt=0)
    """Its weight in the mean of the teachers; only ratios matter."""
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    input: NormalisationSettings | None = None
    onnx: OnnxSettings | None = None


class CacheSettings(Settings):
    """Settings of the cache of a teacher's predictions, with which it processes each view of an image once."""

    path: str
    """A folder; several runs of the same teacher and student may share it."""
    numbers: NumberFormat = "half"
    """Number format of the cache: ``half`` precision, or ``8bit`` in about half the space."""


class TeacherSettings(Settings):
    """Settings of the teacher."""

    weights: str | None = None
    """A weights file, a run folder, ``run/best``, or an address (``https://``, ``hf://``); None if it has to be given
    on the command line.

    ``ema`` is the running average of the student's own weights (a folder of this name is ``./ema``). It equals the
    student at first, so that the terms which compare with it begin at about 0. Its weights are only in the run's
    checkpoint.
    """
    decay: float | None = Field(default=None, gt=0, lt=1)
    """Maximum decay of that average: step ``k`` from 0 has ``min(decay, (1 + k) / (10 + k))``. None for 0.999."""
    name: str = ""
    """Description of the teacher."""
    where: str = ""
    """Instructions for obtaining it."""
    sha256: str | None = None
    """Digest of the weights file. None accepts any file; a finished run has it filled in."""
    scale: int = Field(default=1, ge=1, le=4)
    """Factor by which the teacher's input is enlarged: 1, 2 or 4. Its levels are shifted accordingly."""
    soft_target: SoftTarget | None = None
    """Distributions for a teacher that has boxes only: ``two_hot`` or ``gaussian`` around the distance of each edge."""
    soft_width: float = Field(default=0.5, gt=0)
    """Standard deviation of the Gaussian, in strides."""
    classes: tuple[str, ...] | None = None
    """Names of its classes, in its order, if its weights file has wrong ones; see also ``input``."""
    input: NormalisationSettings | None = None
    """Normalisation of its images, if its weights file has a wrong one; for an ONNX file, it is in ``onnx``."""
    onnx: OnnxSettings | None = None
    """Properties that the teacher's file does not record, if it is an ONNX file."""
    share: float = Field(default=1.0, gt=0)
    """Its weight in the mean, if there are several teachers."""
    cache: CacheSettings | None = None
    """Cache of its predictions; a folder name alone is accepted. With None the teacher runs at each step. Missing
    predictions are added during training; ``locdistill cache build`` adds them beforehand."""
    more: tuple[Colleague, ...] = ()
    """Further teachers: the probabilities of all are averaged. ``weights: [a, b]`` is short for two of equal share."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """Convert a list of weights to the first teacher and ``more``, and a folder name to settings of the cache."""
        if not isinstance(values, dict):
            return values
        if isinstance(values.get("weights"), list | tuple):
            first, *others = values["weights"] or [None]
            values = {**values, "weights": first, "more": [{"weights": other} for other in others]}
        if isinstance(values.get("cache"), str):
            values = {**values, "cache": {"path": values["cache"]}}
        return values

    @model_validator(mode="after")
    def _of_one_kind(self) -> TeacherSettings:
        if self.cache is not None and self.follows:
            raise ValueError(
                "the predictions of a teacher that is the student's running average change at each step and cannot be "
                "cached; set teacher.cache=null"
            )
        if self.decay is not None and not self.follows:
            raise ValueError(
                "decay is only for a teacher that is the student's running average; set teacher.weights=ema, or "
                "teacher.decay=null"
            )
        if self.sha256 is not None and self.follows:
            raise ValueError(
                "sha256 is the digest of a teacher's file, but teacher.weights=ema has no file; set teacher.sha256=null"
            )
        if self.more and self.follows:
            raise ValueError(
                "a teacher that is the student's running average cannot be combined with others; set teacher.more=[]"
            )
        if self.scale == 3:
            raise ValueError("expected scale 1, 2 or 4, so that the grids of teacher and student agree, came 3")
        return self

    @property
    def follows(self) -> bool:
        """Whether the teacher is the running average of the student, not a file."""
        return self.weights == EMA
