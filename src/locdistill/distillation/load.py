"""Loading of the teachers named by settings, with conversion of their predictions for the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from locdistill.data.settings import DataSettings
from locdistill.distillation.bridges import AdaptedTeacher, Facts, SeveralTeachers
from locdistill.distillation.compatible import check_teacher
from locdistill.distillation.needs import Needs
from locdistill.distillation.onnx_teacher import OnnxTeacher, onnx_teacher
from locdistill.distillation.settings import Colleague, TeacherSettings
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.errors import TeacherError
from locdistill.files import file_digest
from locdistill.models.detector import Detector
from locdistill.models.hub import find
from locdistill.models.settings import DetectorSettings, NormalisationSettings
from locdistill.models.weights import is_exported
from locdistill.objective.term import Term


def teacher_files(settings: TeacherSettings | None, recipe: str) -> tuple[Path, ...]:
    """Find the weights files of all teachers; none without a teacher, or if it is the student's average.

    Args:
        settings: The teacher.
        recipe: Name of the recipe, for messages.

    Raises:
        TeacherError: There is a teacher, but a file is not given.
        WeightsError: There is no such file.
    """
    if settings is None or settings.follows:
        return ()
    if settings.weights is None:
        name = settings.name or "a trained detector"
        how = f" How to get it: {settings.where}" if settings.where else ""
        raise TeacherError(f"recipe {recipe} needs its teacher ({name}); name it with --teacher FILE.{how}")
    if any(other.weights is None for other in settings.more):
        raise TeacherError(
            f"recipe {recipe} has {1 + len(settings.more)} teachers; name all of them, with "
            "teacher.weights=[FILE, FILE]"
        )
    named = (settings.weights, *(other.weights for other in settings.more))
    return tuple(find(str(weights)) for weights in named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pupil:
    """Settings of a student and its training.

    Attributes:
        detector: The student.
        terms: Terms of its loss, with and without the teacher.
        data: The images of both student and teacher.
    """

    detector: DetectorSettings
    terms: Mapping[str, Term]
    data: DataSettings


def load_teacher(
    settings: TeacherSettings, files: tuple[Path, ...], pupil: Pupil
) -> tuple[TeacherSettings, FrozenTeacher]:
    """Load the teachers, record their files, and bridge differences from the student; see their ``notes``.

    Args:
        settings: The teachers.
        files: Their weights files; see :func:`teacher_files`.
        pupil: The student.

    Raises:
        TeacherError: A file differs from that of the run, or its detector does not match this student.
        WeightsError: A file cannot be read.
    """
    several = bool(settings.more)
    needs = {name: Needs.of([term]) for name, term in pupil.terms.items()}
    if several and (names := [name for name, need in needs.items() if need.features or need.cross]):
        raise TeacherError(
            f"the terms {', '.join(names)} use a teacher's feature maps or head, but of several teachers only the "
            "predictions can be averaged; leave these terms out, or name one teacher"
        )
    own: tuple[TeacherSettings | Colleague, ...] = (settings, *settings.more)
    digests = []
    for file, each in zip(files, own, strict=True):
        digest = file_digest(file)
        if each.sha256 not in (None, digest):
            raise TeacherError(
                f"{file} is not the teacher that the recipe was run with (sha256 {digest[:12]}..., expected "
                f"{str(each.sha256)[:12]}...); put the file back, or accept the new one in a new run with "
                "teacher.sha256=null"
            )
        digests.append(digest)
    teachers = [_load(settings, file, each, pupil) for file, each in zip(files, own, strict=True)]
    more = tuple(o.model_copy(update={"sha256": d}) for o, d in zip(settings.more, digests[1:], strict=True))
    known = settings.model_copy(update={"sha256": digests[0], "more": more})
    teacher = SeveralTeachers(teachers, [each.share for each in own]) if several else teachers[0]
    teacher.notes = tuple(note for each in teachers for note in each.notes)
    return known, teacher


def _load(options: TeacherSettings, file: Path, own: TeacherSettings | Colleague, pupil: Pupil) -> FrozenTeacher:
    """Load one teacher, with its predictions converted for the student."""
    foreign = None
    teaches: DetectorSettings | Facts
    if is_exported(file):
        if own.input is not None or own.classes is not None:
            raise TeacherError(
                f"{file} is an ONNX or exported file, for which teacher.input and teacher.classes have no effect; for "
                "one of another program set teacher.onnx instead"
            )
        foreign = onnx_teacher(file, own.onnx)
        teaches = foreign.facts
    else:
        detector = _detector(file, own)
        teaches = detector.settings
    bridge = check_teacher(
        pupil.detector,
        teaches,
        str(file),
        needs=Needs.of(pupil.terms.values()),
        scale=options.scale,
        soft=options.soft_target,
        soft_width=options.soft_width,
    )
    teacher: FrozenTeacher
    if foreign is not None:
        _check_input(foreign, options.scale, pupil.data)
        teacher = foreign.looking(bridge.strides, options.scale)
    else:
        levels = [stride.bit_length() - 1 for stride in bridge.strides]
        teacher = LiveTeacher(detector, levels=levels, scale=options.scale)
    if bridge.steps:
        teacher = AdaptedTeacher(teacher, *bridge.steps)
    teacher.notes, teacher.comparable = tuple(f"{file.name}: {note}" for note in bridge.notes), bridge.comparable
    return teacher


def _detector(file: Path, own: TeacherSettings | Colleague) -> Detector:
    """Return the detector in a weights file, corrected by the settings of the recipe.

    Raises:
        TeacherError: The number of classes in the recipe differs.
    """
    detector = Detector.load(file)
    there = detector.settings.classes
    if own.classes is not None and len(own.classes) != len(there):
        raise TeacherError(
            f"teacher.classes has {len(own.classes)} names, but {file} has {len(there)} classes: {list(there)}; name "
            "each of them"
        )
    if own.classes is not None:
        detector.settings = detector.settings.model_copy(update={"classes": own.classes})
    detector.normalise_as(own.input or NormalisationSettings())
    return detector


def _check_input(teacher: OnnxTeacher, scale: int, data: DataSettings) -> None:
    """Raise an error before the first step, not in the middle of a run, if images exceed a file's fixed input size.

    Raises:
        TeacherError: They exceed it.
    """
    if teacher.size is None:
        return
    pad = data.pad_to
    long = max(-(-max(size) // pad) * pad for size in data.sizes) * scale
    if long > max(teacher.size):
        limits = [side // scale // pad * pad for side in (max(teacher.size), min(teacher.size))]
        raise TeacherError(
            f"{teacher.file} needs images of at most {teacher.size[0]}x{teacher.size[1]} (height x width), and the "
            f"recipe's may be {long} long; set data.sizes=[[{limits[0]}, {limits[1]}]]"
        )
