"""Reconstruction of a finished run: the student before and after training, its teacher, its loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from locdistill.distillation.regions import valuable_region
from locdistill.distillation.settings import EMA_DECAY, TeacherSettings
from locdistill.distillation.teacher import AverageTeacher, FrozenTeacher
from locdistill.engine.checkpoint import load_checkpoint
from locdistill.errors import LocdistillError, RecipeError, RunError, TeacherError, WeightsError
from locdistill.models.detector import Detector
from locdistill.models.hub import find, is_address
from locdistill.objective.objective import Objective
from locdistill.objective.scene import Scene
from locdistill.objective.term import Region
from locdistill.recipe.load import build_recipe, load_recipe, recipe_data
from locdistill.recipe.recipe import OF_TEACHER, Recipe
from locdistill.recipe.run_folder import RECIPE
from locdistill.study.diagnose.result import ALONE, START, STUDENT
from locdistill.training.prepare import objective_of, teacher_of
from locdistill.types import Batch, Dense

CHECKPOINT = "last.ckpt"


@dataclass(frozen=True)
class Reopened:
    """A reconstructed run.

    Attributes:
        recipe: Recipe of the run, with the present paths of data and teacher.
        folder: Run folder.
        weights: Weights file of the student.
        students: Students by name, in evaluation mode: ``student`` after training; ``student alone``, trained without
            the teacher, if given; ``student before`` training, if it can be rebuilt.
        teacher: Teacher.
        objective: Loss.
        device: Device of the detectors and the teacher.
        notes: Differences from the original run.
    """

    recipe: Recipe
    folder: Path
    weights: Path
    students: dict[str, Detector]
    teacher: FrozenTeacher
    objective: Objective
    device: torch.device
    notes: tuple[str, ...]

    @property
    def student(self) -> Detector:
        """Student after training."""
        return self.students[STUDENT]

    @property
    def valuable(self) -> Region:
        """Valuable region of the run's own terms, or the published one."""
        return valuable_region(self.objective)

    def scene(self, who: str, batch: Batch, taught: Dense) -> Scene:
        """Compute the predictions of one of the students on a batch on the device, with those of the teacher.

        The scene has only objects of the teacher's classes, because others cannot be compared.
        """
        dense, grid = self.students[who].see(batch.images, batch.sizes)
        return self.objective.scene(dense, taught, grid=grid, instances=batch.instances, checked=False).taught

    def learned(self) -> dict[str, Any]:
        """Load the learned parameters of terms at the end of the run.

        Raises:
            RunError: The checkpoint of the run no longer exists.
        """
        prefix = "learned."
        state = _checkpoint(self.folder)["state_dict"]
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def reopen(
    run: str | Path,
    *,
    against: str | Path | None = None,
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    device: torch.device,
) -> Reopened:
    """Reconstruct a run from its folder.

    Args:
        run: Run folder of the student, for its best weights, or ``run/last``.
        against: Run folder or weights of the same student, trained alone.
        teacher: Present path of the teacher's weights, if it differs from the recipe's.
        data: Present path of the data set, likewise.
        device: Device of the detectors.

    Raises:
        RunError: There is no run.
        RecipeError: The run had no teacher and none is given, or ``against`` has other locations, classes or bins.
        TeacherError: The teacher is not available, or does not match.
        WeightsError: Weights cannot be read.
    """
    weights = find(run)
    if not (weights.parent / RECIPE).is_file():
        raise RunError(f"{weights.parent} is not a run folder: it has no {RECIPE}; pass the folder of a run")
    saved = weights.parent / RECIPE
    recipe = build_recipe(recipe_data(saved), str(saved)) if is_address(str(run)) else load_recipe(saved)
    recipe = _renamed(recipe, teacher, data)
    student = Detector.load(weights, device)
    teaching = _teacher(recipe, student, weights.parent).to(device)
    students = {STUDENT: student}
    if against is not None:
        students[ALONE] = Detector.load(find(against), device)
        _check_alike(student, students[ALONE], str(against))
    notes = []
    try:
        students[START] = _start(recipe).to(device).eval()
    except LocdistillError as error:
        notes.append(f"The student before training is left out, because it cannot be rebuilt: {error}")
    return Reopened(
        recipe=recipe,
        folder=weights.parent,
        weights=weights,
        students=students,
        teacher=teaching,
        objective=objective_of(recipe, student),
        device=device,
        notes=tuple(notes),
    )


def _renamed(recipe: Recipe, teacher: str | Path | None, data: str | Path | None) -> Recipe:
    """Update the paths of teacher and data in a recipe.

    Raises:
        RecipeError: There is no teacher.
    """
    changes: dict[str, Any] = {}
    if data is not None:
        changes["data"] = recipe.data.model_copy(update={"path": str(data)})
    if teacher is not None:
        named = recipe.teacher or TeacherSettings()
        changes["teacher"] = named.model_copy(update={"weights": str(teacher), "sha256": None})
    elif recipe.teacher is None:
        raise RecipeError(
            f"recipe {recipe.name} has no teacher to compare with; pass the folder of a distillation run, or a teacher "
            "with --teacher FILE"
        )
    return recipe.model_copy(update=changes)


def _teacher(recipe: Recipe, student: Detector, folder: Path) -> FrozenTeacher:
    """Load the teacher; a running average of the student is only in the run's checkpoint.

    Raises:
        TeacherError: The teacher is not available, or its predictions cannot be compared with the student's.
        RunError: The checkpoint does not exist.
    """
    assert recipe.teacher is not None
    if not recipe.teacher.follows:
        try:
            teacher = teacher_of(recipe)
        except WeightsError as error:
            raise TeacherError(
                f"the teacher of the run is not available: {error}. If it was moved, pass its path with --teacher"
            ) from error
        if not teacher.comparable:
            raise TeacherError(
                f"the predictions of the teacher of {folder} cannot be compared with the student's: classes, locations "
                "or levels differ, and only its feature maps were used"
            )
        return teacher
    average = AverageTeacher(student, recipe.teacher.decay or EMA_DECAY)
    state = _checkpoint(folder).get("run", {}).get("teacher")
    if not state:
        raise TeacherError(
            f"{folder / CHECKPOINT} holds no running average of the student; pass a teacher with --teacher"
        )
    average.load_state_dict(state)
    return average


def _checkpoint(folder: Path) -> dict[str, Any]:
    """Load the run's last checkpoint.

    Raises:
        RunError: The checkpoint does not exist.
    """
    if not (folder / CHECKPOINT).is_file():
        raise RunError(
            f"{folder / CHECKPOINT} is missing; it is the only file with what the run learned beside the student (a "
            "teacher that is its running average, adapters of terms)"
        )
    return load_checkpoint(folder / CHECKPOINT)


def _start(recipe: Recipe) -> Detector:
    """Rebuild the student before the first step, from the same seed.

    Raises:
        LocdistillError: Its initial weights are not available.
    """
    if recipe.start is not None:
        file = recipe.teacher.weights if recipe.start == OF_TEACHER and recipe.teacher else recipe.start
        return Detector.load(find(str(file)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.engine.seed)
        return Detector(recipe.detector)


def _check_alike(student: Detector, alone: Detector, where: str) -> None:
    """Check that both students have the same locations, classes and bins.

    Raises:
        RecipeError: They differ; the message lists each difference.
    """
    pairs: dict[str, tuple[object, ...]] = {
        key: tuple(getattr(detector.settings, key) for detector in (student, alone)) for key in ("classes", "levels")
    }
    pairs["locations of a cell"] = tuple((d.kind.offset, d.kind.octaves, d.kind.ratios) for d in (student, alone))
    pairs["predicted numbers"] = tuple((d.coding, d.bins) for d in (student, alone))
    differ = [f"{key}: the student has {mine}, this one {its}" for key, (mine, its) in pairs.items() if mine != its]
    if differ:
        lines = "\n  ".join(differ)
        raise RecipeError(
            f"{where} cannot be compared with the student location by location; pass a student of the same kind and "
            f"settings, trained alone:\n  {lines}"
        )
