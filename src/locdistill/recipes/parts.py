"""A run put together, before its first step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from locdistill.data.records import Dataset
from locdistill.distillation.cached import Recall
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.engine.speed import Speed
from locdistill.models.detector import Detector
from locdistill.objective.objective import Objective
from locdistill.recipes.recipe import Recipe


@dataclass(frozen=True)
class Parts:
    """A run put together: the recipe with everything filled in, and what it is made of.

    Attributes:
        recipe: What is run.
        datasets: The splits ``train`` and ``val``.
        detector: The student.
        objective: The loss.
        teacher: Who teaches, in the student's terms; None without distillation.
        start: The weights file that the student begins with; None for those of its backbone.
        speed: How the machine is made use of.
        memory: What is remembered of the teacher's predictions; None where it is asked at each step.
    """

    recipe: Recipe
    datasets: dict[str, Dataset]
    detector: Detector
    objective: Objective
    teacher: FrozenTeacher | None
    start: Path | None
    speed: Speed
    memory: Recall | None = None
