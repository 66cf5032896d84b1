"""From a recipe to a run folder: everything is put together here, and nowhere else.

A run folder holds ``recipe.yaml`` (resolved: it gives the same run again), ``run.json`` (versions, digests of data and
teacher), ``preflight.txt`` and ``preflight.json`` (what the look before the first step found), ``log.txt``,
``metrics.json``, ``metrics.csv``, ``curves.png``, ``train_batch.png``, ``val_predictions.png``,
``best.safetensors``, ``last.safetensors`` (the detector alone) and ``last.ckpt`` (for ``--resume``; the weights of a
teacher that is the student's running average are there and nowhere else).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch.utils.data import DataLoader

from locdistill.data.loader import training_loader
from locdistill.data.records import Dataset
from locdistill.distillation.agreement import agreement
from locdistill.distillation.teacher import AverageTeacher, FrozenTeacher
from locdistill.engine.devices import check_training_devices
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.signals import requeued
from locdistill.engine.speed import Machine, Speed, choose
from locdistill.engine.trainer import fit, process_count
from locdistill.errors import LocdistillError, RecipeError, TeacherError
from locdistill.evaluation.evaluator import Evaluator
from locdistill.models.detector import Detector
from locdistill.models.weights import load_strict, locate
from locdistill.objective.objective import Objective
from locdistill.objective.term import Term
from locdistill.recipes import folder, pictures
from locdistill.recipes.compatible import MismatchError, check_start
from locdistill.recipes.defaults import Request, goes_on, resolve, resumed_recipe
from locdistill.recipes.hub import resolve_hub
from locdistill.recipes.load import Override
from locdistill.recipes.memory import Progress, with_memory
from locdistill.recipes.opening import open_for
from locdistill.recipes.parts import Parts
from locdistill.recipes.preflight import LOOK, Preflight, examine
from locdistill.recipes.preflight_report import PreflightReport, refused
from locdistill.recipes.recipe import EMA_DECAY, OF_TEACHER, Recipe
from locdistill.recipes.teaching import teacher_files, with_teacher
from locdistill.recipes.terms import build_component
from locdistill.recipes.use import validation_loader
from locdistill.types import Batch

PREFLIGHT, PREFLIGHT_JSON = "preflight.txt", "preflight.json"
log = logging.getLogger("locdistill")


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        out: The run folder.
        best: Weights with the best AP; None if nothing was evaluated.
        last: Weights at the end.
        metrics: The content of ``metrics.json``.
    """

    out: Path
    best: Path | None
    last: Path
    metrics: dict[str, Any]


def train(  # noqa: PLR0913 - the words of the command line
    data: str | Path | None = None,
    *,
    model: str | None = None,
    backbone: str | None = None,
    epochs: int | None = None,
    pretrained: str | bool | None = None,
    start: str | Path | None = None,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    overrides: tuple[Override, ...] | list[Override] = (),
) -> RunResult:
    """Train a detector; what is left out is chosen for the data (see :mod:`locdistill.recipes.defaults`).

    Args:
        data: Folder of a COCO, VOC, YOLO, DOTA or HRSC2016 data set.
        model: Kind of detector: ``gfl``, ``gflv2``, ``atss``, ``fcos``, ``retinanet``, or with rotated boxes
            ``rotated_gfl`` or ``rotated_retinanet``; GFL, rotated where the objects of the data are, unless given.
        backbone: A timm name; ``resnet18`` unless given.
        epochs: Passes over the data.
        pretrained: Weights of the backbone: ``hub``, ``none`` or a file.
        start: Weights file or run folder of a trained detector of the same classes, which training begins with; unless
            a recipe is named, its architecture and input size are taken too.
        recipe: Name or file of a recipe to start from.
        out: The run folder, which must be new; ``runs/train-<name>`` unless given.
        resume: Continue the run in ``out``.
        overrides: ``"key.path=value"``, any field of the recipe.

    Raises:
        LocdistillError: One of its kinds, when something is wrong with recipe, data, weights or run folder.
    """
    request = Request(
        data=data,
        model=model,
        backbone=backbone,
        epochs=epochs,
        pretrained=pretrained,
        start=start,
        recipe=recipe,
        overrides=tuple(overrides),
    )
    return _start(request, "train", out, resume)


def distill(  # noqa: PLR0913 - the words of the command line
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    model: str | None = None,
    backbone: str | None = None,
    epochs: int | None = None,
    pretrained: str | bool | None = None,
    start: str | Path | None = None,
    methods: Sequence[str] = (),
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    preflight: Preflight | None = LOOK,
    overrides: tuple[Override, ...] | list[Override] = (),
) -> RunResult:
    """Train a student with a teacher's knowledge of where box edges are.

    Args:
        teacher: Weights file or run folder of a trained detector; ``ema`` for the student's own running average.
        data: As for :func:`train`; also the rest.
        model: Kind of the student.
        backbone: The student's; ``resnet18`` unless given.
        epochs: Passes over the data.
        pretrained: Weights of the student's backbone: ``hub``, ``none`` or a file.
        start: Weights that the student begins with, as for :func:`train`; ``teacher`` for its teacher's.
        methods: Names of distillation methods (see :mod:`locdistill.distillation.methods`), which are put together and
            take the place of the recipe's; ``ld`` unless given.
        recipe: Name or file of a recipe to start from.
        out: The run folder, which must be new; ``runs/distill-<name>`` unless given.
        resume: Continue the run in ``out``.
        preflight: How closely to look at the run before its first step; None does not. A run that is resumed is not
            looked at again.
        overrides: ``"key.path=value"``, any field of the recipe.

    Raises:
        LocdistillError: One of its kinds; a :class:`TeacherError` where the teacher cannot teach this student, or the
            look says that this cannot work.
    """
    words = Words(
        model=model,
        backbone=backbone,
        epochs=epochs,
        pretrained=pretrained,
        start=start,
        methods=methods,
        recipe=recipe,
        overrides=overrides,
    )
    return _start(_distillation(teacher, data, words, resume=resume), "distill", out, resume, preflight)


class Words(TypedDict, total=False):
    """The words of :func:`distill` that say what is run."""

    model: str | None
    backbone: str | None
    epochs: int | None
    pretrained: str | bool | None
    start: str | Path | None
    methods: Sequence[str]
    recipe: str | Path | None
    overrides: tuple[Override, ...] | list[Override]


def preflight(
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    how: Preflight = LOOK,
    **words: Unpack[Words],
) -> PreflightReport:
    """Look at a distillation run before its first step, without running it; see :mod:`locdistill.recipes.preflight`.

    Args:
        teacher: As for :func:`distill`; also the rest.
        data: As there.
        how: How closely to look; nothing is shown.
        words: ``model``, ``backbone``, ``epochs``, ``pretrained``, ``start``, ``methods``, ``recipe``, ``overrides``.

    Returns:
        What was found; its ``stops`` are empty where the run may begin.

    Raises:
        LocdistillError: One of its kinds, where there is nothing to look at.
    """
    return _examined(distillation_recipe(teacher, data, **words), how, fresh=True)[1]


def distillation_recipe(
    teacher: str | Path | None = None, data: str | Path | None = None, **words: Unpack[Words]
) -> Recipe:
    """The recipe that :func:`distill` would run.

    Raises:
        LocdistillError: One of its kinds, where there is none.
    """
    recipe = _resolved(_distillation(teacher, data, words), "distill")
    check_training_devices(recipe.engine)
    return recipe


def _distillation(
    teacher: str | Path | None, data: str | Path | None, words: Words, *, resume: bool = False
) -> Request:
    """What is asked for.

    Raises:
        TeacherError: Nobody says who teaches.
    """
    if teacher is None and words.get("recipe") is None and not resume:
        raise TeacherError(
            "there is no teacher; name a trained detector with --teacher RUN_FOLDER_OR_FILE, or let the student's "
            "running average teach with --teacher ema"
        )
    methods = words.get("methods", ())
    several = {
        "methods": (methods,) if isinstance(methods, str) else tuple(methods),
        "overrides": tuple(words.get("overrides", ())),
    }
    return Request(teacher=teacher, data=data, **{**words, **several})  # type: ignore[arg-type]  # the same words


def _start(
    request: Request, verb: str, out: str | Path | None, resume: bool, preflight: Preflight | None = None
) -> RunResult:
    if out is None and not resume and requeued():
        out = _begun_before(request, verb)
    if goes_on(out, resume=resume):
        return run(resumed_recipe(request, out), out, resume=True)
    recipe = _resolved(request, verb)
    return run(recipe, folder.new_folder(out, f"{verb}-{recipe.name}"), preflight=preflight)


def _begun_before(request: Request, verb: str) -> Path | None:
    """The folder in which this job began a run with these words before SLURM put it back into the queue."""
    for path in folder.runs_of_job(f"{verb}-"):
        try:
            resumed_recipe(request, path)
        except LocdistillError:  # another run of the same job
            continue
        return path
    return None


def _resolved(request: Request, verb: str) -> Recipe:
    """The recipe that a request stands for.

    Raises:
        RecipeError: It is one for the other verb.
    """
    recipe = resolve(request)
    if recipe.distils != (verb == "distill"):
        other = "distill" if recipe.distils else "train"
        what = "distils" if recipe.distils else "has no teacher and no term that needs one"
        raise RecipeError(f"recipe {recipe.name} {what}: use 'locdistill {other}' for it")
    return recipe


def _examined(recipe: Recipe, preflight: Preflight, *, fresh: bool) -> tuple[Parts | None, PreflightReport]:
    """The run, put together and looked at; without its parts where teacher and student do not match."""
    try:
        parts = compose(recipe, fresh=fresh)
    except MismatchError as error:
        return None, refused(error)
    return parts, examine(parts, preflight)


def run(
    recipe: Recipe, out: str | Path | None = None, resume: bool = False, *, preflight: Preflight | None = None
) -> RunResult:
    """Run a recipe into a folder; the one way in which anything is trained.

    Data and teacher are read and checked, and the detector built, before the folder appears.

    Args:
        recipe: What to run.
        out: The run folder; ``runs/<name>`` unless given.
        resume: Continue the run in ``out`` from its last checkpoint.
        preflight: How closely to look at it before its first step; None does not.

    Raises:
        LocdistillError: One of its kinds.
    """
    path = Path(str(out)) if resume else folder.new_folder(out, recipe.name)
    check_training_devices(recipe.engine)
    fresh, report = not (resume and (path / "last.ckpt").is_file()), None
    if preflight is not None and not resume and recipe.distils and folder.process_rank() == 0:
        seen, report = _examined(recipe, preflight, fresh=fresh)
        preflight.tell(report, recipe)
        assert seen is not None, "a teacher that does not match stops the run"
        parts = seen
    else:
        parts = compose(recipe, fresh=fresh)
    facts = folder.facts_of(parts.datasets, recipe.engine)
    if parts.start is not None:
        facts["start"] = {"weights": str(parts.start), "sha256": folder.file_digest(parts.start)}
    facts["speed"] = asdict(parts.speed)
    if resume:
        folder.check_unchanged(path, facts)
    elif folder.process_rank() == 0:
        folder.write_start(path, parts.recipe, facts)
        if report is not None:
            folder.write_text(path / PREFLIGHT, report.text())
            folder.write_text(path / PREFLIGHT_JSON, json.dumps(report.as_dict(), indent=1) + "\n")
        folder.announce(path)
    with folder.logged_to(path):
        if report is not None:
            log.info("%s", report.text())
        else:
            for note in parts.teacher.notes if parts.teacher is not None else ():
                log.info("teacher %s", note)
        return _fit(parts, path, resume)


def compose(recipe: Recipe, *, fresh: bool, progress: Progress | None = None) -> Parts:
    """Open the data, read the teacher, build the detector, and fill in what the recipe left to them.

    Args:
        recipe: What is to be run.
        fresh: Whether weights are fetched for the student; a checkpoint holds them all.
        progress: Shows how far the images are read, where the teacher has a cache that does not know them yet.
    """
    files = teacher_files(recipe)
    start = _start_file(recipe, files) if fresh else None
    recipe, datasets = _with_data(recipe)
    recipe, speed = _with_speed(recipe, datasets["train"])
    teacher: FrozenTeacher | None = None
    if files:
        recipe, teacher = with_teacher(recipe, files)
    torch.manual_seed(recipe.engine.seed)
    detector = Detector(recipe.detector, pretrained=fresh and start is None)
    if start is not None:
        _begin_with(detector, start)
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
    return (
        with_memory(parts, progress=progress)
        if recipe.teacher is not None and recipe.teacher.cache is not None
        else parts
    )


def _start_file(recipe: Recipe, teachers: tuple[Path, ...]) -> Path | None:
    """The weights file that the student begins with; None for those of its backbone.

    Raises:
        WeightsError: There is no such file.
    """
    if recipe.start == OF_TEACHER:
        return teachers[0]
    return None if recipe.start is None else locate(resolve_hub(recipe.start))


def _begin_with(detector: Detector, file: Path) -> None:
    """Give a detector the weights of a file.

    Raises:
        WeightsError: They are of another detector.
    """
    weights = Detector.load(file)
    check_start(detector.settings, weights.settings, str(file))
    load_strict(detector, weights.state_dict(), str(file))
    log.info("the student begins with the weights of %s", file)


def _with_data(recipe: Recipe) -> tuple[Recipe, dict[str, Dataset]]:
    """Open both splits, which raises all that is wrong with them, and take the classes from the training data."""
    if not recipe.data.path:
        raise RecipeError("no data are named; expected --data FOLDER or data.path")
    settings = recipe.data
    if settings.classes is None and recipe.detector.classes:
        settings = settings.model_copy(update={"classes": recipe.detector.classes})
    detector = recipe.detector
    train_set = open_for(detector, settings, "train")
    settings = settings.model_copy(update={"classes": train_set.classes})
    val_set = open_for(detector, settings, "val")
    if detector.classes and detector.classes != train_set.classes:
        raise RecipeError(
            f"detector.classes {list(detector.classes)} are not those of the data, {list(train_set.classes)}; "
            "leave detector.classes out, or name the same in data.classes"
        )
    detector = detector.model_copy(update={"classes": train_set.classes})
    return recipe.model_copy(update={"data": settings, "detector": detector}), {"train": train_set, "val": val_set}


def _with_speed(recipe: Recipe, train: Dataset) -> tuple[Recipe, Speed]:
    """Choose how the machine is made use of, and fill in the precision, which the run keeps on other machines."""
    engine, data = recipe.engine, recipe.data
    batch = data.batch_per_device * engine.accumulate * process_count(engine)
    steps = engine.steps or engine.epochs * data.repeat * len(train) // batch
    one_size = len(data.sizes) == 1 and len({(record.width, record.height) for record in train.records}) == 1
    speed = choose(engine, Machine.here(engine), steps=steps, one_size=one_size)
    if engine.precision == "auto":
        recipe = recipe.model_copy(update={"engine": engine.model_copy(update={"precision": speed.precision})})
    return recipe, speed


def objective_of(recipe: Recipe, detector: Detector) -> Objective:
    """The recipe's loss for a detector."""
    assigner = build_component("assigner", recipe.assigner)
    return Objective(
        terms={name: _balanced(term.build(), recipe.balance) for name, term in recipe.terms.items()},
        bins=detector.bins,
        coding=detector.coding,
        assigner=assigner.ignoring() if recipe.data.hands_on_ignored else assigner,
    )


def _balanced(term: Term, balance: float | None) -> Term:
    """A term with the balance of its recipe, unless it learns from labels or has its own."""
    return replace(term, balance=balance) if term.needs_teacher and term.balance is None else term


def _fit(parts: Parts, out: Path, resume: bool) -> RunResult:
    recipe, detector, datasets = parts.recipe, parts.detector, parts.datasets
    log.info("%s: %d training images, %d to evaluate on, %d classes", *_headline(parts))

    def train_loader(rank: int, world_size: int) -> DataLoader[Batch]:
        return training_loader(
            datasets["train"],
            recipe.data,
            seed=recipe.engine.seed,
            rank=rank,
            world_size=world_size,
            memory=parts.memory,
        )

    def val_loader(rank: int, world_size: int) -> DataLoader[Batch]:
        return validation_loader(
            datasets["val"],
            detector.settings,
            batch=recipe.data.batch_per_device,
            workers=recipe.data.workers,
            rank=rank,
            world_size=world_size,
        )

    first = folder.process_rank() == 0
    if first and not resume:
        _draw_batch(parts, out / "train_batch.png")
    watch = agreement if parts.teacher is None or parts.teacher.comparable else None
    module = TrainingModule(detector, parts.objective, parts.teacher, recipe.engine, watch=watch, speed=parts.speed)
    fitted = fit(
        module,
        make_train_loader=train_loader,
        make_val_loader=val_loader,
        evaluate=Evaluator(datasets["val"]),
        out=out,
        settings=recipe.engine,
        resume=resume,
    )
    if first:
        _draw_results(parts, out, fitted)
    metrics = json.loads((out / folder.METRICS).read_text(encoding="utf-8"))
    return RunResult(out=out, best=fitted.best, last=fitted.last, metrics=metrics)


def _draw_batch(parts: Parts, path: Path) -> None:
    settings = parts.recipe.data.model_copy(update={"workers": 0})
    loader = training_loader(parts.datasets["train"], settings, seed=parts.recipe.engine.seed)
    pictures.training_batch(path, next(iter(loader)), parts.recipe.detector.classes)


def _draw_results(parts: Parts, out: Path, fitted: FitResult) -> None:
    detector = Detector.load(fitted.best or fitted.last)
    pictures.predictions(out / "val_predictions.png", detector, parts.datasets["val"])
    pictures.curves(out / "metrics.csv", out / "curves.png")


def _headline(parts: Parts) -> tuple[str, int, int, int]:
    datasets = parts.datasets
    return parts.recipe.name, len(datasets["train"]), len(datasets["val"]), len(parts.recipe.detector.classes)
