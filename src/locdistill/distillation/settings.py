"""Settings of who teaches: weights, how they are understood, and where predictions are kept."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from locdistill.models.settings import NormalisationSettings
from locdistill.settings import Settings
from locdistill.types import Triple

SoftTarget = Literal["two_hot", "gaussian"]

NumberFormat = Literal["half", "8bit"]
ONNX_SUFFIX = ".onnx"
"""Of teachers in ONNX files."""
EMA = "ema"
"""``teacher.weights`` where the student teaches itself."""

EMA_DECAY = 0.999
"""Of the mean teacher (Tarvainen and Valpola 2017)."""


class OnnxSettings(Settings):
    """What an ONNX file does not say of itself."""

    classes: tuple[str, ...] | None = None
    """Names, in the file's order; None is those of COCO where there are 80, those of VOC where there are 20."""
    mean: Triple = (103.53, 116.28, 123.675)
    """Of the input channels, in the network's order, 0 to 255; those of MMDetection and NanoDet unless given."""
    std: Triple = (57.375, 57.12, 58.395)
    bgr: bool = True
    """Whether the network takes blue, green, red."""
    offset: float = 0.5
    """Position of a location within its cell, in strides: 0.5 in NanoDet and FCOS, 0 in GFL."""
    boxes: Literal["strides", "pixels", "corners"] = "strides"
    """What four numbers per location are, where there are no distributions: distances to the edges, in strides or in
    pixels, or ``x1, y1, x2, y2`` in pixels."""


class Colleague(Settings):
    """One more teacher, beside the first."""

    weights: str | None = None
    """As ``teacher.weights``, but for ``ema``."""
    share: float = Field(default=1.0, gt=0)
    """Its weight in the mean of the teachers; only ratios count."""
    sha256: str | None = None
    classes: tuple[str, ...] | None = None
    input: NormalisationSettings | None = None
    onnx: OnnxSettings | None = None


class CacheSettings(Settings):
    """Where a teacher's predictions are kept, so that it looks at each image once."""

    path: str
    """A folder; several runs of the same teacher and student may share it."""
    numbers: NumberFormat = "half"
    """How precisely they are kept: ``half`` precision, or ``8bit`` in about half the space."""


class TeacherSettings(Settings):
    """The detector that teaches."""

    weights: str | None = None
    """A weights file, a run folder, or ``run/best``; None where the file has to be named on the command line.

    ``ema`` is the running average of the student's own weights (a folder of this name is ``./ema``). It is the student
    at first, so that the terms which compare with it begin at about 0; its weights are in the run's checkpoint alone.
    """
    decay: float | None = Field(default=None, gt=0, lt=1)
    """Of that average, at most: step ``k`` from 0 has ``min(decay, (1 + k) / (10 + k))``. None is 0.999."""
    name: str = ""
    """What the teacher is, in words."""
    where: str = ""
    """How to get it."""
    sha256: str | None = None
    """Digest of the weights file. None takes whichever file is there; a finished run has it filled in."""
    scale: int = Field(default=1, ge=1, le=4)
    """The batch is enlarged this much before the teacher looks at it: 1, 2 or 4. Its levels are shifted likewise."""
    soft_target: SoftTarget | None = None
    """Distributions for a teacher that has boxes only: ``two_hot`` or ``gaussian`` around the distance of each edge."""
    soft_width: float = Field(default=0.5, gt=0)
    """Standard deviation of the Gaussian, in strides."""
    classes: tuple[str, ...] | None = None
    """Names of its classes, in its order, where its weights' file is wrong about them; see also ``input``."""
    input: NormalisationSettings | None = None
    """How its images are normalised, where its weights' file is wrong about it; of an ONNX file, ``onnx`` says it."""
    onnx: OnnxSettings | None = None
    """What the teacher's file does not say of itself, where it is an ONNX file."""
    share: float = Field(default=1.0, gt=0)
    """Its weight in the mean where there are more teachers."""
    cache: CacheSettings | None = None
    """Where its predictions are kept; a folder's name alone will do. None asks the teacher at each step. What is not
    there yet is added as the images come; ``locdistill cache build`` does it beforehand."""
    more: tuple[Colleague, ...] = ()
    """Further teachers: the probabilities of all are averaged. ``weights: [a, b]`` is short for two of equal share."""

    @model_validator(mode="before")
    @classmethod
    def _several(cls, values: Any) -> Any:
        """A list of weights: the first teacher, and more."""
        if isinstance(values, dict) and isinstance(values.get("weights"), list | tuple):
            first, *others = values["weights"] or [None]
            return {**values, "weights": first, "more": [{"weights": other} for other in others]}
        return values

    @field_validator("cache", mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _of_one_kind(self) -> TeacherSettings:
        if self.cache is not None and self.follows:
            raise ValueError(
                "a teacher that is the student's running average says something else at each step, and cannot be "
                "cached; set teacher.cache=null"
            )
        if self.decay is not None and not self.follows:
            raise ValueError(
                "decay is that of a teacher which is the student's running average; set teacher.weights=ema, or "
                "teacher.decay=null"
            )
        if self.sha256 is not None and self.follows:
            raise ValueError(
                "sha256 is the digest of a teacher's file, and teacher.weights=ema has none; set teacher.sha256=null"
            )
        if self.more and self.follows:
            raise ValueError(
                "a teacher that is the student's running average has no others beside it; set teacher.more=[]"
            )
        if self.scale == 3:
            raise ValueError("scale is 1, 2 or 4, so that the grids of teacher and student agree; came 3")
        return self

    @property
    def follows(self) -> bool:
        """Whether the teacher is the running average of the student, and no file."""
        return self.weights == EMA
