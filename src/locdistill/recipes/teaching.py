"""From the teacher that a recipe names to one that its student understands."""

from __future__ import annotations

from pathlib import Path

from locdistill.distillation.bridges import AdaptedTeacher, Facts, SeveralTeachers
from locdistill.distillation.onnx_teacher import SUFFIX, OnnxTeacher
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.errors import TeacherError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, NormalisationSettings
from locdistill.models.weights import locate
from locdistill.recipes import folder
from locdistill.recipes.compatible import Needs, check_teacher
from locdistill.recipes.hub import resolve_hub
from locdistill.recipes.recipe import Colleague, OnnxSettings, Recipe, TeacherSettings


def teacher_files(recipe: Recipe) -> tuple[Path, ...]:
    """The weights files of all teachers; none where there is no teacher, or it is made of the student.

    Raises:
        TeacherError: The recipe has a teacher, but a file is not named.
        WeightsError: There is no such file.
    """
    if recipe.teacher is None or recipe.teacher.follows:
        return ()
    if recipe.teacher.weights is None:
        name = recipe.teacher.name or "a trained detector"
        how = f" How to get it: {recipe.teacher.where}" if recipe.teacher.where else ""
        raise TeacherError(f"recipe {recipe.name} needs its teacher ({name}); name it with --teacher FILE.{how}")
    if any(other.weights is None for other in recipe.teacher.more):
        raise TeacherError(
            f"recipe {recipe.name} has {1 + len(recipe.teacher.more)} teachers; name all of them, with "
            "teacher.weights=[FILE, FILE]"
        )
    named = (recipe.teacher.weights, *(other.weights for other in recipe.teacher.more))
    return tuple(locate(resolve_hub(str(weights))) for weights in named)


def with_teacher(recipe: Recipe, files: tuple[Path, ...]) -> tuple[Recipe, FrozenTeacher]:
    """Load the teachers, record which files they were, and bridge what differs from the student; see their ``notes``.

    Raises:
        TeacherError: A file is another one than in the run, or cannot teach this student.
        WeightsError: A file cannot be read.
    """
    assert recipe.teacher is not None
    settings, several = recipe.teacher, bool(recipe.teacher.more)
    if several:
        _check_no_maps(recipe)
    own: tuple[TeacherSettings | Colleague, ...] = (settings, *settings.more)
    digests = [_digest(file, each) for file, each in zip(files, own, strict=True)]
    teachers = [_listened_to(recipe, file, each) for file, each in zip(files, own, strict=True)]
    more = tuple(o.model_copy(update={"sha256": d}) for o, d in zip(settings.more, digests[1:], strict=True))
    known = settings.model_copy(update={"sha256": digests[0], "more": more})
    teacher = SeveralTeachers(teachers, [each.share for each in own]) if several else teachers[0]
    teacher.notes = tuple(note for each in teachers for note in each.notes)
    return recipe.model_copy(update={"teacher": known}), teacher


def teacher_of(recipe: Recipe) -> FrozenTeacher:
    """The teacher of a recipe that names one, to look at what it taught.

    Raises:
        TeacherError: There is no such file, it is another one than in the run, or it cannot teach this student.
        WeightsError: The file cannot be read.
    """
    files = teacher_files(recipe)
    assert files, "a teacher that follows the student is made of it"
    return with_teacher(recipe, files)[1]


def _check_no_maps(recipe: Recipe) -> None:
    """Terms that look at maps need one teacher.

    Raises:
        TeacherError: There is such a term.
    """
    needs = {name: Needs.of([term.build()]) for name, term in recipe.terms.items()}
    if names := [name for name, need in needs.items() if need.features or need.cross]:
        raise TeacherError(
            f"the terms {', '.join(names)} look at a teacher's feature maps or head, and of several teachers only the "
            "predictions can be averaged; leave these terms out, or name one teacher"
        )


def _digest(file: Path, settings: TeacherSettings | Colleague) -> str:
    digest = folder.file_digest(file)
    if settings.sha256 not in (None, digest):
        raise TeacherError(
            f"{file} is not the teacher that the recipe was run with (sha256 {digest[:12]}..., expected "
            f"{str(settings.sha256)[:12]}...): put the file back, or accept the new one in a new run with "
            "teacher.sha256=null"
        )
    return digest


def _listened_to(recipe: Recipe, file: Path, own: TeacherSettings | Colleague) -> FrozenTeacher:
    """One teacher, its predictions in the student's terms."""
    assert recipe.teacher is not None
    options, foreign = recipe.teacher, None
    teaches: DetectorSettings | Facts
    if file.suffix == SUFFIX:
        if own.input is not None or own.classes is not None:
            raise TeacherError(
                f"{file}: what an ONNX file does not say is set by teacher.onnx, and not by teacher.input or "
                "teacher.classes"
            )
        foreign = onnx_teacher(file, own.onnx)
        teaches = foreign.facts
    else:
        detector = _detector(file, own)
        teaches = detector.settings
    bridge = check_teacher(
        recipe.detector,
        teaches,
        str(file),
        needs=Needs.of(term.build() for term in recipe.terms.values()),
        scale=options.scale,
        soft=options.soft_target,
        soft_width=options.soft_width,
    )
    teacher: FrozenTeacher
    if foreign is not None:
        _check_input(recipe, foreign)
        teacher = foreign.looking(bridge.strides, options.scale)
    else:
        levels = [stride.bit_length() - 1 for stride in bridge.strides]
        teacher = LiveTeacher(detector, levels=levels, scale=options.scale)
    if bridge.steps:
        teacher = AdaptedTeacher(teacher, *bridge.steps)
    teacher.notes, teacher.comparable = tuple(f"{file.name}: {note}" for note in bridge.notes), bridge.comparable
    return teacher


def _detector(file: Path, own: TeacherSettings | Colleague) -> Detector:
    """The detector in a weights file, with what the recipe knows better than the file.

    Raises:
        TeacherError: The recipe names another number of classes.
    """
    detector = Detector.load(file)
    there = detector.settings.classes
    if own.classes is not None and len(own.classes) != len(there):
        raise TeacherError(
            f"teacher.classes names {len(own.classes)} classes, and {file} has {len(there)}: {list(there)}"
        )
    if own.classes is not None:
        detector.settings = detector.settings.model_copy(update={"classes": own.classes})
    detector.normalise_as(own.input or NormalisationSettings())
    return detector


def _check_input(recipe: Recipe, teacher: OnnxTeacher) -> None:
    """Images must fit into a file with a fixed input size; before the first step, and not in the middle of a run.

    Raises:
        TeacherError: They do not.
    """
    assert recipe.teacher is not None
    if teacher.size is None:
        return
    pad, scale = recipe.data.pad_to, recipe.teacher.scale
    long = max(-(-max(size) // pad) * pad for size in recipe.data.sizes) * scale
    if long > max(teacher.size):
        limits = [side // scale // pad * pad for side in (max(teacher.size), min(teacher.size))]
        raise TeacherError(
            f"{teacher.file} looks at images of {teacher.size[0]}x{teacher.size[1]} (height x width), and those of the "
            f"recipe may be {long} long for it; set data.sizes=[[{limits[0]}, {limits[1]}]]"
        )


def onnx_teacher(file: Path, settings: OnnxSettings | None) -> OnnxTeacher:
    """The teacher in an ONNX file.

    Raises:
        TeacherError: ONNX Runtime is not installed, or the file's inputs or outputs are not those of a detector.
    """
    own = settings or OnnxSettings()
    return OnnxTeacher(
        file, classes=own.classes, mean=own.mean, std=own.std, bgr=own.bgr, offset=own.offset, boxes=own.boxes
    )
