"""Whether a teacher can teach a student, and whether weights can be what it begins with."""

from __future__ import annotations

import shlex
from typing import Any

from locdistill.errors import TeacherError, WeightsError
from locdistill.interop.recognise import numbered
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import SUFFIX

_FREE = {
    *("classes", "backbone", "pretrained", "frozen_stages", "norm_eval", "norm_frozen"),
    *("anchor_scale", "input", "detections"),
}
"""What does not change what weights mean, or (classes, backbone) is compared on its own."""


def check_teacher(student: DetectorSettings, teacher: DetectorSettings, where: str, *, features: bool = False) -> None:
    """Both must speak of the same classes, in the same order, at the same locations and in the same bins.

    The locations are the same where the pyramid levels are, and the cells' locations: those of GFL, GFL v2 and ATSS;
    FCOS looks at the centres of its cells, and RetinaNet has nine anchors in each. Sizes of anchors do not matter: only
    the student's locations are assigned to objects.

    Args:
        student: What learns.
        teacher: What teaches.
        where: The teacher, in messages.
        features: Whether feature maps are compared too, which then must be of equal width.

    Raises:
        TeacherError: They do not; the message lists every difference with its remedy.
    """
    problems = []
    if student.classes != teacher.classes:
        problems.append(_unnamed(student, teacher, where) or _classes(student.classes, teacher.classes))
    if _cell(student.model) != _cell(teacher.model):
        alike = ", ".join(kind for kind in KINDS if _cell(kind) == _cell(student.model))
        problems.append(
            f"locations: the teacher, of kind {teacher.model}, has {_where(teacher.model)}, the student, of kind "
            f"{student.model}, {_where(student.model)}; take a teacher of kind {alike}, or set "
            f"detector.model={teacher.model}"
        )
    shared = [("levels", "pyramid levels"), ("reg_max", "largest distance in strides")]
    if features:
        shared.append(("channels", "width of the pyramid, whose feature maps a term compares"))
    for key, what in shared:
        mine, its = _plain(getattr(student, key)), _plain(getattr(teacher, key))
        if mine != its:
            problems.append(f"{what}: the teacher has {its}, the student {mine}; set detector.{key}={its}")
    if problems:
        raise TeacherError("\n  ".join([f"{where} cannot teach this student:", *problems]))


def check_start(student: DetectorSettings, weights: DetectorSettings, where: str) -> None:
    """Weights that a student begins with must be those of a detector that computes the same from them.

    Names and shapes are compared when the weights are loaded; here, what they do not show: the order of classes, how
    images are normalised, where a bottleneck halves the resolution, and the like.

    Raises:
        WeightsError: They are not; the message lists every difference with its remedy.
    """
    problems = []
    if student.classes != weights.classes:
        problems.append(
            _unnamed(student, weights, where)
            or f"classes: the weights have {list(weights.classes)}, the student {list(student.classes)}; set "
            "data.classes to those of the weights if the data have them all, or begin with a pretrained backbone "
            "(leave start out)"
        )
    pairs = {key: (getattr(student, key), getattr(weights, key)) for key in DetectorSettings.model_fields}
    differ = {key: pair for key, pair in pairs.items() if key not in _FREE and pair[0] != pair[1]}
    if student.backbone.split(".")[0] != weights.backbone.split(".")[0]:  # a tag names weights, not an architecture
        differ["backbone"] = pairs["backbone"]
    for key, pair in differ.items():
        mine, its = map(_plain, pair)
        problems.append(f"{key}: the weights have {its}, the student {mine}; set detector.{key}={its}")
    if problems:
        raise WeightsError("\n  ".join([f"this student cannot begin with {where}:", *problems]))


def _plain(value: Any) -> Any:
    """A value as it is written in a recipe."""
    return list(value) if isinstance(value, tuple) else value


def _cell(model: str) -> tuple[Any, ...]:
    """Where a kind of detector looks within a cell of a feature map, and with which anchors."""
    kind = KINDS[model]
    return kind.offset, kind.octaves, kind.ratios


def _where(model: str) -> str:
    kind = KINDS[model]
    per_cell = kind.octaves * len(kind.ratios)
    place = "in the middle" if kind.offset else "at the corner"
    return f"{'one' if per_cell == 1 else per_cell} {place} of each cell"


def _unnamed(student: DetectorSettings, other: DetectorSettings, where: str) -> str:
    """What to do where a checkpoint does not name its classes, and there are as many; empty where that is not so."""
    names, count = student.classes, len(other.classes)
    spare = other.model == "gflv2" and not other.background_channel  # one of them may be for background
    if other.classes != numbered(count) or len(names) not in (count, count - spare):
        return ""
    file = "CHECKPOINT.pth" if where.endswith(SUFFIX) else shlex.quote(where)  # what it was converted from
    return (
        f"classes: {where} does not name its {count} classes, the student has {list(names)}; if it was trained on "
        f"these, in this order, name them: locdistill convert {file} NAMED.safetensors --classes "
        f"{shlex.quote(','.join(names))}, and take NAMED.safetensors"
    )


def _classes(student: tuple[str, ...], teacher: tuple[str, ...]) -> str:
    if set(student) == set(teacher):
        return (
            f"classes: the same in another order; the teacher has {list(teacher)}, the student {list(student)}; set "
            f"data.classes to the teacher's order"
        )
    only_teacher = [name for name in teacher if name not in student]
    only_student = [name for name in student if name not in teacher]
    parts = [f"the teacher has {len(teacher)}, the student {len(student)}"]
    if only_teacher:
        parts.append(f"only the teacher knows {only_teacher[:10]}")
    if only_student:
        parts.append(f"only the student's data have {only_student[:10]}")
    remedy = "take a teacher that was trained on these classes"
    if not only_teacher:
        remedy += f", or leave the others out, as background, with data.classes=[{', '.join(teacher)}]"
    return f"classes: {'; '.join(parts)}; {remedy}"
