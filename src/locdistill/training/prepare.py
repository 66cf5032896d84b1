"""Preparation of a run, before its first step."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from locdistill.data.open import HELD_OUT_NOTE, open_dataset, shared_images, with_holdout
from locdistill.data.records import Dataset
from locdistill.distillation.cache.open import CacheUse, open_cache
from locdistill.distillation.cache.teacher import Recall
from locdistill.distillation.compatible import check_start
from locdistill.distillation.load import Pupil, load_teacher, teacher_files
from locdistill.distillation.settings import EMA_DECAY
from locdistill.distillation.teacher import AverageTeacher, FrozenTeacher
from locdistill.engine.launch import process_count
from locdistill.engine.speed import Machine, Speed, choose
from locdistill.errors import AnnotationError, RecipeError
from locdistill.models.detector import Detector
from locdistill.models.hub import find
from locdistill.models.weights import load_strict
from locdistill.objective.objective import Objective
from locdistill.recipe.recipe import OF_TEACHER, Recipe
from locdistill.recipe.terms import build_component
from locdistill.types import Progress

log = logging.getLogger("locdistill")


@dataclass(frozen=True)
class Parts:
    """A prepared run: the completed recipe, and the objects built from it.

    Attributes:
        recipe: Recipe with everything filled in.
        datasets: The splits ``train`` and ``val``.
        detector: Student.
        objective: Loss.
        teacher: Teacher, with predictions converted to the student's classes, bins and locations; None without
            distillation.
        start: Weights file that the student starts from; None for pretrained weights of its backbone.
        speed: Speed settings of the machine.
        memory: Cached predictions of the teacher; None if the teacher runs at each step.
    """

    recipe: Recipe
    datasets: dict[str, Dataset]
    detector: Detector
    objective: Objective
    teacher: FrozenTeacher | None
    start: Path | None
    speed: Speed
    memory: Recall | None = None


def compose(recipe: Recipe, *, fresh: bool, progress: Progress | None = None) -> Parts:
    """Open the data, load the teacher, build the detector, and fill in the settings that the recipe leaves open.

    Args:
        recipe: Recipe of the run.
        fresh: Whether to fetch initial weights for the student; a checkpoint holds all weights.
        progress: Progress display for reading the images, if the teacher has a cache without their digests.
    """
    files = teacher_files(recipe.teacher, recipe.name)
    start = None
    if fresh and recipe.start is not None:
        start = files[0] if recipe.start == OF_TEACHER else find(recipe.start)
    recipe, datasets = _with_data(recipe)
    recipe, speed = _with_speed(recipe, datasets["train"])
    teacher: FrozenTeacher | None = None
    if files:
        recipe, teacher = with_teacher(recipe, files)
    torch.manual_seed(recipe.engine.seed)
    detector = Detector(recipe.detector, pretrained=fresh and start is None)
    if start is not None:
        # initial weights from a file
        weights = Detector.load(start)
        check_start(detector.settings, weights.settings, str(start))
        load_strict(detector, weights.state_dict(), str(start))
        log.info("the student starts from the weights of %s", start)
    if recipe.teacher is not None and recipe.teacher.follows:
        teacher = AverageTeacher(detector, recipe.teacher.decay or EMA_DECAY)
    recipe = recipe.model_copy(update={"detector": detector.settings})
    objective = objective_of(recipe, detector)
    parts = Parts(
        recipe=recipe,
        datasets=datasets,
        detector=detector,
        objective=objective,
        teacher=teacher,
        start=start,
        speed=speed,
    )
    if recipe.teacher is None or recipe.teacher.cache is None:
        return parts
    assert teacher is not None
    use = CacheUse(
        settings=recipe.teacher,
        teacher=teacher,
        student=detector,
        objective=objective,
        dataset=datasets["train"],
        data=recipe.data,
        precision=recipe.engine.precision,
        seed=recipe.engine.seed,
    )
    teacher, memory = open_cache(use, progress=progress)
    return replace(parts, teacher=teacher, memory=memory)


def _with_data(recipe: Recipe) -> tuple[Recipe, dict[str, Dataset]]:
    """Open both splits, and take the classes from the training data.

    Raises:
        RecipeError: The recipe has no data, or its classes are not those of the data.
        DataError: A split cannot be read, or all images to evaluate on are trained on.
    """
    if not recipe.data.path:
        raise RecipeError("no data set given; pass --data FOLDER or set data.path")
    settings = with_holdout(recipe.data)
    if settings.classes is None and recipe.detector.classes:
        settings = settings.model_copy(update={"classes": recipe.detector.classes})
    detector = recipe.detector
    train_set = open_dataset(settings, "train", boxes=detector)
    settings = settings.model_copy(update={"classes": train_set.classes})
    val_set = open_dataset(settings, "val", boxes=detector)
    if settings.holdout and recipe.data.holdout is None:
        val_set = replace(val_set, notes={**val_set.notes, HELD_OUT_NOTE: len(val_set)})
    if detector.classes and detector.classes != train_set.classes:
        raise RecipeError(
            f"detector.classes {list(detector.classes)} differ from the classes of the data, "
            f"{list(train_set.classes)}; leave out detector.classes, or set data.classes to the same"
        )
    if both := shared_images(train_set, val_set):
        what = f"{len(both)} of the {len(val_set)} images to evaluate on are trained on ({both[0]}, ...)"
        if len(both) == len(val_set):
            raise AnnotationError(
                f"{settings.path}: {what}; name other images with data.val=NAME, or hold some out with data.holdout=0.1"
            )
        log.warning("%s: %s", settings.path, what)
    detector = detector.model_copy(update={"classes": train_set.classes})
    return recipe.model_copy(update={"data": settings, "detector": detector}), {"train": train_set, "val": val_set}


def _with_speed(recipe: Recipe, train: Dataset) -> tuple[Recipe, Speed]:
    """Choose the speed settings for the machine, and fill in the precision, which the run keeps on other machines."""
    engine, data = recipe.engine, recipe.data
    batch = data.batch_per_device * engine.accumulate * process_count(engine)
    steps = engine.steps or engine.epochs * data.repeat * len(train) // batch
    one_size = len(data.sizes) == 1 and len({(record.width, record.height) for record in train.records}) == 1
    speed = choose(engine, Machine.here(engine), steps=steps, one_size=one_size)
    if engine.precision == "auto":
        recipe = recipe.model_copy(update={"engine": engine.model_copy(update={"precision": speed.precision})})
    return recipe, speed


def objective_of(recipe: Recipe, detector: Detector) -> Objective:
    """Build the recipe's loss for a detector."""
    assigner = build_component("assigner", recipe.assigner)
    terms = {name: term.build() for name, term in recipe.terms.items()}
    for name, term in terms.items():
        if term.needs_teacher and term.balance is None:
            terms[name] = replace(term, balance=recipe.balance)
    return Objective(
        terms=terms,
        bins=detector.bins,
        coding=detector.coding,
        assigner=assigner.ignoring() if recipe.data.hands_on_ignored else assigner,
    )


def with_teacher(recipe: Recipe, files: tuple[Path, ...]) -> tuple[Recipe, FrozenTeacher]:
    """Load a recipe's teachers, and record their files in the recipe.

    Raises:
        TeacherError: A file differs from the one in the run, or does not match this student.
        WeightsError: A file cannot be read.
    """
    assert recipe.teacher is not None
    terms = {name: term.build() for name, term in recipe.terms.items()}
    settings, teacher = load_teacher(
        recipe.teacher, files, Pupil(detector=recipe.detector, terms=terms, data=recipe.data)
    )
    return recipe.model_copy(update={"teacher": settings}), teacher


def teacher_of(recipe: Recipe) -> FrozenTeacher:
    """Load the teacher of a finished run from its recipe, for analysis.

    Raises:
        TeacherError: There is no such file, it differs from the one in the run, or it does not match this student.
        WeightsError: The file cannot be read.
    """
    files = teacher_files(recipe.teacher, recipe.name)
    assert files, "the running average of the student has no file"
    return with_teacher(recipe, files)[1]
