"""Whether a teacher can teach a student."""

from __future__ import annotations

from locdistill.errors import TeacherError
from locdistill.models.settings import DetectorSettings


def check_teacher(student: DetectorSettings, teacher: DetectorSettings, where: str) -> None:
    """Both must speak of the same classes, in the same order, on the same pyramid levels and in the same bins.

    Raises:
        TeacherError: They do not; the message lists every difference with its remedy.
    """
    problems = []
    if student.classes != teacher.classes:
        problems.append(_classes(student.classes, teacher.classes))
    for key, what in (("levels", "pyramid levels"), ("reg_max", "largest distance in strides")):
        mine, its = getattr(student, key), getattr(teacher, key)
        if mine != its:
            its = list(its) if isinstance(its, tuple) else its
            mine = list(mine) if isinstance(mine, tuple) else mine
            problems.append(f"{what}: the teacher has {its}, the student {mine}; set detector.{key}={its}")
    if problems:
        raise TeacherError("\n  ".join([f"{where} cannot teach this student:", *problems]))


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
