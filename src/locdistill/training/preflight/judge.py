"""Assessment of a measured teacher: problems, likely causes and remedies."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from locdistill.data.settings import DataSettings
from locdistill.distillation.teacher import LiveTeacher
from locdistill.models.kinds import KINDS
from locdistill.models.settings import NormalisationSettings
from locdistill.objective.term import Need
from locdistill.recipe.terms import split_component
from locdistill.recipe.yaml_io import typed
from locdistill.training.preflight.report import Finding, TeacherNetwork, in_words
from locdistill.training.preflight.teacher import START, Measurement
from locdistill.training.prepare import Parts

CHANCE, ENOUGH = 0.01, 50
"""AP50 below which a teacher is at chance level, and the minimum number of objects to report that, or a fault."""
POOR = 0.15
"""AP below which a teacher is reported as poor."""
FEWEST = 20
"""Minimum number of objects to assess a teacher."""
GAIN, RATIO = 0.02, 1.15
"""Minimum gain of another normalisation, in AP and as a ratio, to be reported."""
FOUND, RIGHT = 0.3, 0.5
"""Share of objects found from which class labels are checked, and the minimum share of correct labels among them.

Below the second share, the teacher's class names are reported as wrong. A teacher with a wrong normalisation finds
fewer objects than the first share.
"""

OTHER_SIZE = 1.5
"""Ratio of the teacher's to the student's training image size, or its inverse, above which it is reported."""


@dataclass(frozen=True)
class Suspect:
    """A measured teacher.

    Attributes:
        parts: The run.
        name: Display name.
        measurement: Result of the measurement.
        network: Network of the teacher.
        position: Index among several teachers.
    """

    parts: Parts
    name: str
    measurement: Measurement
    network: TeacherNetwork
    position: int

    def settings(self, **values: object) -> tuple[str, ...]:
        """Format these settings of this teacher for the command line; none unless it is the first, see `where`."""
        if self.position:
            return ()
        onnx, own = not isinstance(self.network, LiveTeacher), []
        for key, value in values.items():
            group = "teacher.onnx." if onnx else "teacher." if key == "classes" else "teacher.input."
            own.append(shlex.quote(f"{group}{key}={typed(value)}"))
        return tuple(own)

    @property
    def where(self) -> str:
        """Place in the recipe of the settings of a teacher other than the first."""
        return f" (in the recipe, in entry {self.position} of teacher.more)" if self.position else ""


def stopping(suspect: Suspect) -> list[Finding]:
    """List the reasons that stop a run: a teacher at chance level, then the causes."""
    score = suspect.measurement.score
    if score.objects < ENOUGH or score.ap50 >= CHANCE:
        return []
    level = Finding(
        what=f"{suspect.name} is at chance level: {score} on {score.images} validation images with {score.objects} "
        "objects, and can only do harm",
        remedy="see the causes below; to start all the same, pass --no-preflight",
    )
    return [level, *(_causes(suspect) or _possible_causes(suspect))]


def doubts(suspect: Suspect) -> list[Finding]:
    """List warnings about a teacher that is better than chance."""
    score = suspect.measurement.score
    if score.objects < FEWEST:
        return [
            Finding(
                what=f"{suspect.name} cannot be assessed: only {score.objects} objects of its classes are on "
                f"{score.images} validation images",
                remedy="evaluate it on data with more: locdistill evaluate WEIGHTS --data PATH",
            )
        ]
    found = _causes(suspect)
    if score.ap < POOR and not found:
        found.append(
            Finding(
                what=f"{suspect.name} is poor on these data: {score}. A teacher that is not clearly better than the "
                "student alone makes it worse",
                remedy="train the student alone first and compare (see the notes), or use a better teacher",
            )
        )
    return found


def unlike_assigners(parts: Parts, teachers: Mapping[str, TeacherNetwork]) -> list[Finding]:
    """Report teachers that were trained with another assigner, whose predictions are compared location by location.

    Where the teacher learned background, its predictions contradict the student's labels. Published for a GFL student
    of a RetinaNet on COCO: 30.3 AP, against 41.2 with CrossKD, whose terms see the teacher's head on the student's
    features (Wang et al. 2024).
    """
    direct = [
        name for name, term in parts.objective.terms.items() if term.needs_predictions and Need.CROSS not in term.needs
    ]
    own, _ = split_component(parts.recipe.assigner)
    theirs = {
        name: KINDS[net.detector.settings.model].assigner
        for name, net in teachers.items()
        if isinstance(net, LiveTeacher)
    }
    return [
        Finding(
            what=f"{name} was trained with another assigner ({its}, here {own}): where it learned background, it "
            f"contradicts the labels of the student, and {', '.join(direct)} compare them at every location",
            remedy="try the method that avoids this, and compare: --method crosskd",
        )
        for name, its in theirs.items()
        if direct and its != own
    ]


def _causes(suspect: Suspect) -> list[Finding]:
    """List the detected faults. If classes differ by colour alone, the two faults may be confused."""
    return [*_wrong_normalisation(suspect), *_wrong_classes(suspect)]


def _wrong_normalisation(suspect: Suspect) -> list[Finding]:
    """Report another normalisation with a clearly higher AP of the teacher."""
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
            what=f"{suspect.name} receives wrong colours: normalised as {in_words(own)}, it has {best.own}; as "
            f"{in_words(how)} ({best.name}), {best.score}, on the same {best.score.images} images",
            remedy=f"set its normalisation{suspect.where}",
            settings=suspect.settings(**changed),
        )
    ]


def _wrong_classes(suspect: Suspect) -> list[Finding]:
    """Report wrong class names: the teacher finds the objects but assigns them other classes."""
    score = suspect.measurement.score
    if score.found < max(FEWEST, FOUND * score.objects) or score.right >= RIGHT:
        return []
    listed = ", ".join(f"{other} where there is {name}" for name, other in score.called[:5])
    what = (
        f"{suspect.name} was trained on other classes than it lists, or in another order: of the objects that it "
        f"finds, {1 - score.right:.0%} have another class ({listed})"
    )
    net = suspect.network
    its = net.detector.settings.classes if isinstance(net, LiveTeacher) else net.facts.classes
    means = {other: name for name, other in score.called}  # predicted class to true class
    if set(means) != set(means.values()) or not set(means) <= set(its):  # no permutation
        return [Finding(what=what, remedy="use a teacher trained on these classes")]
    renamed = suspect.settings(classes=tuple(means.get(name, name) for name in its))
    return [Finding(what=what, remedy=f"rename its classes to match the data{suspect.where}", settings=renamed)]


def _possible_causes(suspect: Suspect) -> list[Finding]:
    """List possible causes, for a teacher without a detected fault."""
    net, data = suspect.network, suspect.parts.recipe.data
    causes = [
        Finding(
            what="it may not be a trained detector (random weights, or those of a backbone alone)",
            remedy="check its AP on the data that it was trained on: locdistill evaluate WEIGHTS --data PATH",
        ),
        Finding(
            what="it may have been trained on images or objects of another kind",
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
                    what=f"its images had another size in training: {its} pixels long, here {mine}",
                    remedy="train at its size",
                    settings=(f"data.sizes=[[{size.long},{size.short}]]",),
                ),
            )
    return causes


def _training_on(data: DataSettings) -> str:
    """Return the command that trains on the same data."""
    where = ("format", "train", "val", "holdout", "holdout_by", "ignore_classes")
    given = {key: getattr(data, key) for key in where}
    defaults = DataSettings()
    words = [f"data.{key}={typed(value)}" for key, value in given.items() if value != getattr(defaults, key)]
    return shlex.join(["locdistill", "train", "--data", data.path, *words])


def no_better_than_start(measurements: dict[str, Measurement]) -> list[Finding]:
    """List the teachers that are no better than the student's initial weights."""
    start = measurements.get(START)
    if start is None:
        return []
    return [
        Finding(
            what=f"{name} is no better than the student at its start: {measurement.score} against {start.score}",
            remedy="use a better teacher, or train without one",
        )
        for name, measurement in measurements.items()
        if name != START and measurement.score.ap <= start.score.ap
    ]


def baseline(parts: Parts) -> str:
    """Return the note on the baseline for a teacher's AP, the student alone, with the commands to measure it."""
    words = " ".join(f"{setting}=null" for setting in parts.recipe.of_teacher)
    return (
        "a teacher helps if it is clearly better than the student alone. To measure that:\n"
        f"locdistill train RUN/recipe.yaml {words} --out ALONE\nlocdistill compare ALONE RUN"
    )
