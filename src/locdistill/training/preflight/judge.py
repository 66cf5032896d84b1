"""What a measured teacher is worth, why it is worth no more, and what to do about that."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from locdistill.data.settings import DataSettings
from locdistill.distillation.teacher import LiveTeacher
from locdistill.models.settings import NormalisationSettings
from locdistill.recipe.yaml_io import typed
from locdistill.training.preflight.report import Finding, TeacherNetwork, in_words
from locdistill.training.preflight.teacher import START, Measurement
from locdistill.training.prepare import Parts

CHANCE, ENOUGH = 0.01, 50
"""AP50 below which a teacher is at chance level, and the objects from which on that, or a fault, is said."""
POOR = 0.15
"""AP below which a teacher is called poor."""
FEWEST = 20
"""Objects from which on a teacher is judged at all."""
GAIN, RATIO = 0.02, 1.15
"""What another normalisation must gain, in AP and in proportion, to be named."""
FOUND, RIGHT = 0.3, 0.5
"""Where so many of the objects are found, this share of them must be called right, or names are not what they say.

A teacher that sees wrong colours finds fewer.
"""
OTHER_SIZE = 1.5
"""Ratio of image sizes, in training of teacher and student, that is worth a word."""


@dataclass(frozen=True)
class Suspect:
    """A teacher that was measured.

    Attributes:
        parts: The run.
        name: What to call it.
        measurement: What it found.
        network: Who looks at the images.
        position: Its place among several.
    """

    parts: Parts
    name: str
    measurement: Measurement
    network: TeacherNetwork
    position: int

    def settings(self, **values: object) -> tuple[str, ...]:
        """What says these things of this teacher, as typed; nothing for those behind the first, see `where`."""
        if self.position:
            return ()
        onnx, own = not isinstance(self.network, LiveTeacher), []
        for key, value in values.items():
            group = "teacher.onnx." if onnx else "teacher." if key == "classes" else "teacher.input."
            own.append(shlex.quote(f"{group}{key}={typed(value)}"))
        return tuple(own)

    @property
    def where(self) -> str:
        """Where such settings stand for those behind the first."""
        return f" (in the recipe, in entry {self.position} of teacher.more)" if self.position else ""


def stopping(suspect: Suspect) -> list[Finding]:
    """Why a run must not begin: its teacher is at chance level; then what explains that."""
    score = suspect.measurement.score
    if score.objects < ENOUGH or score.ap50 >= CHANCE:
        return []
    level = Finding(
        what=f"{suspect.name} is at chance level: {score} on {score.images} validation images with {score.objects} "
        "objects. Learning from it can only do harm",
        remedy="see below for why; to go on all the same, give --no-preflight",
    )
    return [level, *(_causes(suspect) or _possible_causes(suspect))]


def doubts(suspect: Suspect) -> list[Finding]:
    """What to be warned of in a teacher that is better than chance."""
    score = suspect.measurement.score
    if score.objects < FEWEST:
        return [
            Finding(
                what=f"{suspect.name} cannot be judged: there are {score.objects} objects of its classes on "
                f"{score.images} validation images",
                remedy="measure it where there are more: locdistill evaluate WEIGHTS --data PATH",
            )
        ]
    found = _causes(suspect)
    if score.ap < POOR and not found:
        found.append(
            Finding(
                what=f"{suspect.name} is poor on these data: {score}. A teacher that is not clearly better than the "
                "student alone makes it worse",
                remedy="train the student alone first and compare (see the notes), or take a better teacher",
            )
        )
    return found


def _causes(suspect: Suspect) -> list[Finding]:
    """What was seen to be wrong. Where classes differ by their colour alone, one fault may look like the other."""
    return [*_wrong_normalisation(suspect), *_wrong_classes(suspect)]


def _wrong_normalisation(suspect: Suspect) -> list[Finding]:
    """Another normalisation with which the teacher finds clearly more."""
    best = max(suspect.measurement.trials, key=lambda trial: trial.score.ap, default=None)
    if (
        best is None
        or best.score.objects < ENOUGH
        or not (best.score.ap - best.own.ap >= GAIN and best.score.ap >= RATIO * best.own.ap)
    ):
        return []
    own, how = suspect.network.normalisation, best.how
    changed = {
        key: getattr(how, key) for key in NormalisationSettings.model_fields if getattr(how, key) != getattr(own, key)
    }
    return [
        Finding(
            what=f"{suspect.name} sees wrong colours: normalised as {in_words(own)}, it finds {best.own}; as "
            f"{in_words(how)} ({best.name}), {best.score}, on the same {best.score.images} images",
            remedy=f"normalise its images so{suspect.where}",
            settings=suspect.settings(**changed),
        )
    ]


def _wrong_classes(suspect: Suspect) -> list[Finding]:
    """Objects are found and called something else: the classes are others than their names say."""
    score = suspect.measurement.score
    if score.found < max(FEWEST, FOUND * score.objects) or score.right >= RIGHT:
        return []
    listed = ", ".join(f"{other} where there is {name}" for name, other in score.called[:5])
    what = (
        f"{suspect.name} was trained on other classes than their names say, or on these in another order: of the "
        f"objects that it finds, it calls {1 - score.right:.0%} something else ({listed})"
    )
    renamed = _renamed(suspect)
    if renamed is None:
        return [Finding(what=what, remedy="take a teacher that was trained on these classes")]
    return [Finding(what=what, remedy=f"name its classes as these data do{suspect.where}", settings=renamed)]


def _renamed(suspect: Suspect) -> tuple[str, ...] | None:
    """The setting that names the teacher's classes by what it finds; None where that is no mere exchange of names."""
    net = suspect.network
    its = net.detector.settings.classes if isinstance(net, LiveTeacher) else net.facts.classes
    means = {other: name for name, other in suspect.measurement.score.called}  # what it says, and what that is
    if set(means) != set(means.values()) or not set(means) <= set(its):
        return None
    return suspect.settings(classes=tuple(means.get(name, name) for name in its))


def _possible_causes(suspect: Suspect) -> list[Finding]:
    """What else may be the cause, where none was found."""
    net, data = suspect.network, suspect.parts.recipe.data
    causes = [
        Finding(
            what="it may not be a trained detector (random weights, or those of a backbone alone)",
            remedy="see what it finds on the data that it was trained on: locdistill evaluate WEIGHTS --data PATH",
        ),
        Finding(
            what="it may have been trained on pictures or objects of another kind",
            remedy=f"train a teacher on these data: {_training_on(data)} --backbone resnet50",
        ),
    ]
    if isinstance(net, LiveTeacher):
        its, mine = net.detector.settings.input.long, max(data.sizes)[0]
        if max(its, mine) > OTHER_SIZE * min(its, mine):
            size = net.detector.settings.input
            causes.insert(
                0,
                Finding(
                    what=f"images are of another size than those it was trained on: {mine} pixels long, {its} there",
                    remedy="train at its size",
                    settings=(f"data.sizes=[[{size.long},{size.short}]]",),
                ),
            )
    return causes


def _training_on(data: DataSettings) -> str:
    """The command that trains on the same data."""
    where = ("format", "train", "val", "holdout", "ignore_classes")
    given = {key: getattr(data, key) for key in where}
    defaults = DataSettings()
    words = [f"data.{key}={typed(value)}" for key, value in given.items() if value != getattr(defaults, key)]
    return shlex.join(["locdistill", "train", "--data", data.path, *words])


def no_better_than_start(measurements: dict[str, Measurement]) -> list[Finding]:
    """Teachers that are no better than what the student begins with."""
    start = measurements.get(START)
    if start is None:
        return []
    return [
        Finding(
            what=f"{name} is no better than the student as it begins: {measurement.score} against {start.score}",
            remedy="take a better teacher, or train on without one",
        )
        for name, measurement in measurements.items()
        if name != START and measurement.score.ap <= start.score.ap
    ]


def baseline(parts: Parts) -> str:
    """What a teacher's AP is to be compared with, and how."""
    words = " ".join(f"{setting}=null" for setting in parts.recipe.of_teacher)
    return (
        "a teacher helps where it is clearly better than the student alone, which nobody knows before that is trained: "
        f"locdistill train RUN/recipe.yaml {words} --out ALONE, then locdistill compare ALONE RUN"
    )
