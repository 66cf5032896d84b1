"""The typed description of one whole run: detector, teacher, data, engine and loss terms.

A recipe is data. It is written as YAML (:mod:`locdistill.recipe.load`), or composed in Python. The resolved recipe
saved with every run reproduces the run.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from locdistill.data.settings import DataSettings
from locdistill.distillation.presets import supervised
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.settings import EngineSettings
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings
from locdistill.objective.term import Need
from locdistill.recipe.terms import Component, TermSettings, spelled_out
from locdistill.settings import Positive, Settings, group

OF_TEACHER = "teacher"
"""Value of ``start`` for a student initialised with its teacher's weights."""


class TestDev(Settings):
    """The published result on COCO test-dev, in percent."""

    ap: float
    ap50: float | None = None
    ap75: float | None = None
    ar100: float | None = None
    """Average recall of up to 100 detections per image."""


class Published(Settings):
    """The published result of a recipe."""

    ap: float | None = None
    """AP, in percent, over the thresholds 0.5 to 0.95."""
    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    baseline: float | None = None
    """AP of the same detector trained without a teacher."""
    baseline50: float | None = None
    """AP50, likewise."""
    corrected: float | None = None
    """AP corrected for a known error of the published evaluation."""
    corrected_baseline: float | None = None
    """Corrected AP of the baseline without a teacher."""
    test_dev: TestDev | None = None
    """The result on COCO test-dev, where it is published."""
    source: str = ""
    """Source of the number, and the split of its evaluation."""
    note: str = ""
    """Known differences between the recipe and the published run."""


def kind_of_detector(recipe: dict[str, Any]) -> str | None:
    """Return the kind of detector in a recipe's plain data; None for an unknown kind, which the check reports."""
    return known_kind(group(recipe, "detector").get("model", "gfl"))


def known_kind(model: Any) -> str | None:
    """Return the kind of detector, or None if it is unknown."""
    return model if isinstance(model, str) and model in KINDS else None


def supervised_terms(model: str) -> dict[str, TermSettings]:
    """Return the published loss of a kind of detector, without a teacher."""
    return {name: TermSettings.of_term(term) for name, term in supervised(model).items()}


class Recipe(Settings):
    """Description of a whole run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the recipe and of its run folder."""
    description: str = ""
    detector: DetectorSettings = DetectorSettings()
    teacher: TeacherSettings | None = None
    start: str | None = None
    """Initial weights of the student: a weights file, or a run folder (its best), of a detector of the same
    architecture and classes; ``teacher`` is the teacher's own file (a folder of this name is ``./teacher``). None uses
    ``detector.pretrained``. A resumed run continues from its checkpoint instead."""
    data: DataSettings = DataSettings()
    engine: EngineSettings = EngineSettings()
    terms: dict[str, TermSettings] = Field(default_factory=dict, min_length=1)
    """The objective: the loss is the sum of these terms; by default the published loss of ``detector.model``."""
    balance: Positive | Literal["pareto"] | None = None
    """Default balance of the terms that compare with a teacher: the norm of a term's gradient with respect to the
    student's predictions, in multiples of the supervised terms'. Weights cancel, so they need no tuning. ``pareto``
    weights labels and teacher by the angle between their gradients, so that neither loss grows; the weights of terms
    matter beside each other alone. None keeps the weights."""
    assigner: Component = ""
    """Assignment of locations to objects: ``atss``, ``fcos`` or ``max_iou``, with options; by default that of
    ``detector.model``. If ``data.crowd`` is ``ignore``, it leaves crowds and difficult objects out."""
    published: Published | None = None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in settings that follow from others unless they are given.

        The input size outside training is that of training; loss and assigner are those of the kind of detector.
        """
        if not isinstance(values, dict):
            return values
        values = dict(values)
        given = values.get("detector")
        model = given.model if isinstance(given, DetectorSettings) else kind_of_detector(values)
        if model is not None:
            values = {"terms": supervised_terms(model), "assigner": KINDS[model].assigner} | {
                key: value for key, value in values.items() if key not in ("terms", "assigner") or value is not None
            }
        data, detector, engine = (values.get(key, {}) for key in ("data", "detector", "engine"))
        own_input = detector.get("input", {}) if isinstance(detector, dict) else None
        if isinstance(data, dict) and isinstance(own_input, dict):
            trained_at = {"bits": data["bits"]} if data.get("bits") is not None else {}
            if data.get("sizes"):
                with suppress(TypeError, ValueError, OverflowError):  # the data's own check reports it
                    long, short = max((int(max(size)), int(min(size))) for size in data["sizes"])
                    trained_at |= {"short": short, "long": long}
                    trained_at |= {"pad_to": data["pad_to"]} if "pad_to" in data else {}
            if trained_at:
                unset = ["bits"] if own_input.get("bits") is None else []  # as complete recipes have it
                own_input = {key: value for key, value in own_input.items() if key not in unset}
                values["detector"] = {**detector, "input": trained_at | own_input}
        if isinstance(engine, dict) and engine.get("precision") in (16, 32):
            values["engine"] = {**engine, "precision": {16: "fp16", 32: "32"}[engine["precision"]]}
        return values

    @field_validator("terms")
    @classmethod
    def _check_term_names(cls, terms: dict[str, TermSettings]) -> dict[str, TermSettings]:
        bad = [name for name in terms if not name.isidentifier()]
        if bad:
            raise ValueError(f"names of terms: expected letters, digits and underscores, came {bad}")
        return terms

    @field_validator("assigner", mode="before")
    @classmethod
    def _spell_out(cls, spec: Any) -> Component:
        return spelled_out("assigner", spec)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        model = self.detector.model
        trained = [name for name, term in self.terms.items() if Need.QUALITY in term.build().needs]
        if KINDS[model].quality == "centerness" and not trained:
            raise ValueError(
                f"no term trains the centerness by which {model} ranks its detections; start from a recipe of {model} "
                "('locdistill recipes'), or leave out the terms"
            )
        if KINDS[model].quality is None and trained:
            raise ValueError(f"the term {trained[0]} trains a quality, which {model} does not predict; remove it")
        taught = [name for name, term in self.terms.items() if term.needs_teacher]
        if taught and self.teacher is None:
            raise ValueError(
                f"the terms {', '.join(taught)} need a teacher, but none is given; set teacher.weights, or remove "
                f"the terms (terms.{taught[0]}=null)"
            )
        if self.teacher is not None and not taught:
            raise ValueError("there is a teacher, but no term uses it; add a term such as ld, or set teacher=null")
        if self.balance is not None and not taught:
            raise ValueError("balance is set, but no term compares with a teacher; set balance=null")
        if self.teacher is not None and self.teacher.cache is not None and self.data.ranges and self.data.views is None:
            raise ValueError(
                "a cache holds the teacher's predictions for each size and rotation of an image, and "
                f"data.{self.data.ranges[0]} is a continuous range; limit the versions of each image with data.views=8"
            )
        if self.start == OF_TEACHER and (self.teacher is None or self.teacher.follows):
            why = "there is no teacher" if self.teacher is None else "the teacher is the student's running average"
            raise ValueError(f"start is 'teacher', but {why}; set start to a weights file or a run folder")
        return self

    @property
    def of_teacher(self) -> list[str]:
        """Settings that are null in the recipe of the student alone."""
        taught = [f"terms.{name}" for name, term in self.terms.items() if term.needs_teacher]
        others = {"balance": self.balance is not None, "start": self.start == OF_TEACHER}
        return ["teacher", *taught, *(name for name, there in others.items() if there)]

    @property
    def distils(self) -> bool:
        """True if the run has a teacher."""
        return self.teacher is not None
