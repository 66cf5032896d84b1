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
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, Unpack

from locdistill.dist import process_rank
from locdistill.distillation.compatible import MismatchError
from locdistill.engine.launch import check_training_devices
from locdistill.engine.signals import requeued
from locdistill.errors import LocdistillError, RecipeError, TeacherError
from locdistill.files import file_digest, write_text
from locdistill.recipe import run_folder
from locdistill.recipe.defaults import Request, resolve
from locdistill.recipe.load import Override
from locdistill.recipe.recipe import Recipe
from locdistill.training.fit import RunResult, fit_run
from locdistill.training.preflight.look import LOOK, Preflight, examine
from locdistill.training.preflight.report import PreflightReport, refused
from locdistill.training.prepare import Parts, compose
from locdistill.training.resume import goes_on, resumed_recipe

PREFLIGHT, PREFLIGHT_JSON = "preflight.txt", "preflight.json"
log = logging.getLogger("locdistill")


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
    """Train a detector; what is left out is chosen for the data (see :mod:`locdistill.recipe.defaults`).

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
        LocdistillError: One of its kinds, when something is wrong with recipe, data, weights or run run_folder.
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
    """Look at a distillation run without running it; see :mod:`locdistill.training.preflight.look`.

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
    return run(recipe, run_folder.new_folder(out, f"{verb}-{recipe.name}"), preflight=preflight)


def _begun_before(request: Request, verb: str) -> Path | None:
    """The folder in which this job began a run with these words before SLURM put it back into the queue."""
    for path in run_folder.runs_of_job(f"{verb}-"):
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
    path = Path(str(out)) if resume else run_folder.new_folder(out, recipe.name)
    check_training_devices(recipe.engine)
    fresh, report = not (resume and (path / "last.ckpt").is_file()), None
    if preflight is not None and not resume and recipe.distils and process_rank() == 0:
        seen, report = _examined(recipe, preflight, fresh=fresh)
        preflight.tell(report, recipe)
        assert seen is not None, "a teacher that does not match stops the run"
        parts = seen
    else:
        parts = compose(recipe, fresh=fresh)
    facts = run_folder.facts_of(parts.datasets, recipe.engine)
    if parts.start is not None:
        facts["start"] = {"weights": str(parts.start), "sha256": file_digest(parts.start)}
    facts["speed"] = asdict(parts.speed)
    if resume:
        run_folder.check_unchanged(path, facts)
    elif process_rank() == 0:
        run_folder.write_start(path, parts.recipe, facts)
        if report is not None:
            write_text(path / PREFLIGHT, report.text())
            write_text(path / PREFLIGHT_JSON, json.dumps(report.as_dict(), indent=1) + "\n")
        run_folder.announce(path)
    with run_folder.logged_to(path):
        if report is not None:
            log.info("%s", report.text())
        else:
            for note in parts.teacher.notes if parts.teacher is not None else ():
                log.info("teacher %s", note)
        return fit_run(parts, path, resume)
