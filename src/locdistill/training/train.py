"""Training from a recipe to a run folder; the only place that assembles a run.

A run folder holds ``recipe.yaml`` (resolved: it reproduces the run), ``run.json`` (versions, digests of data and
teacher), ``preflight.txt`` and ``preflight.json`` (report of the check before the first step), ``log.txt``,
``metrics.json``, ``metrics.csv``, ``curves.png``, ``labels.png``, ``train_batch.png``, ``val_predictions.png``,
``pr_curves.png``, ``confusion.png``, ``errors.png``, ``val_best_worst.png``, ``per_class.csv`` (of the best weights),
``best.safetensors``, ``last.safetensors`` (the detector alone) and ``last.ckpt`` (for ``--resume``; the only file with
the weights of a teacher that is the student's running average).
"""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Unpack

from locdistill.annotations.index import forget, reading_once
from locdistill.dist import process_rank
from locdistill.distillation.compatible import MismatchError
from locdistill.engine.launch import check_training_devices
from locdistill.engine.signals import requeued
from locdistill.errors import LocdistillError, RecipeError, TeacherError
from locdistill.files import file_digest, write_text
from locdistill.recipe import run_folder
from locdistill.recipe.defaults import resolve
from locdistill.recipe.own import imports_of
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import DistillWords, Request, TrainWords, takes
from locdistill.training.fit import RunResult, fit_run
from locdistill.training.pace import fitted_to
from locdistill.training.preflight.look import LOOK, Preflight, examine
from locdistill.training.preflight.report import PreflightReport, refused
from locdistill.training.prepare import Parts, compose
from locdistill.training.resume import goes_on, resumed_recipe

Verb = Literal["train", "distill"]
PREFLIGHT, PREFLIGHT_JSON = "preflight.txt", "preflight.json"
log = logging.getLogger("locdistill")


@takes(TrainWords)
def train(
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    **words: Unpack[TrainWords],
) -> RunResult:
    """Train a detector; defaults are chosen for the data (see :mod:`locdistill.recipe.defaults`).

    Args:
        data: Folder of a COCO, VOC, YOLO, DOTA or HRSC2016 data set.
        out: Run folder, which must be new. Default: ``runs/train-<name>``.
        resume: Continue the run in ``out``.
        words: See :class:`Request`.

    Raises:
        LocdistillError: Recipe, data, weights or run folder are invalid; a subclass for each cause.
    """
    return _start(Request(data=data, teacher=None, methods=(), **words), "train", out, resume)


@takes(DistillWords)
def distill(
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    preflight: Preflight | None = LOOK,
    **words: Unpack[DistillWords],
) -> RunResult:
    """Train a student with localization distillation from a teacher.

    Args:
        teacher: Weights file or run folder of a trained detector; ``ema`` for the student's own running average.
        data: As for :func:`train`; also the rest.
        out: Run folder, which must be new. Default: ``runs/distill-<name>``.
        resume: Continue the run in ``out``.
        preflight: Extent of the preflight check before the first step; None for no check. A resumed run is not checked
            again.
        words: See :class:`Request`.

    Raises:
        LocdistillError: A subclass for each cause; a :class:`TeacherError` if the teacher does not match this student,
            or the preflight check finds that the run cannot work.
    """
    return _start(Request(teacher=teacher, data=data, **words), "distill", out, resume, preflight)


@takes(DistillWords)
def preflight(
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    how: Preflight = LOOK,
    **words: Unpack[DistillWords],
) -> PreflightReport:
    """Check a distillation run without starting it; see :mod:`locdistill.training.preflight.look`.

    Args:
        teacher: As for :func:`distill`; also the rest.
        data: As for :func:`distill`.
        how: Extent of the check; nothing is printed.
        words: See :class:`Request`.

    Returns:
        The report; its ``stops`` are empty if the run may start.

    Raises:
        LocdistillError: The run cannot be prepared; a subclass for each cause.
    """
    return _examined(recipe_for(Request(teacher=teacher, data=data, **words), "distill"), how, fresh=True)[1]


def recipe_for(request: Request, verb: Verb) -> Recipe:
    """Return the recipe that :func:`train` or :func:`distill` would run.

    Raises:
        TeacherError: The request to distill has no teacher.
        RecipeError: The recipe is for the other command.
        LocdistillError: The request gives no valid recipe; a subclass for each cause.
    """
    if verb == "distill" and request.get("teacher") is None and request.get("recipe") is None:
        raise TeacherError(
            "no teacher given; pass a trained detector with --teacher RUN_FOLDER_OR_FILE, or --teacher ema for the "
            "student's running average"
        )
    recipe = resolve(request) if request.get("minutes") is None else fitted_to(request)
    if recipe.distils != (verb == "distill"):
        other = "distill" if recipe.distils else "train"
        what = "has a teacher" if recipe.distils else "has no teacher"
        raise RecipeError(f"recipe {recipe.name} {what}: use 'locdistill {other}' for it")
    check_training_devices(recipe.engine)
    return recipe


def _start(
    request: Request, verb: Verb, out: str | Path | None, resume: bool, preflight: Preflight | None = None
) -> RunResult:
    """Start a run, or resume the one in ``out`` or the one that this job began before SLURM requeued it."""
    if out is None and not resume and requeued():
        for path in run_folder.runs_of_job(f"{verb}-"):
            with suppress(LocdistillError):  # another run of the same job
                resumed_recipe(request, path)
                out = path
                break
    if goes_on(out, resume=resume):
        return run(resumed_recipe(request, out), out, resume=True)
    with reading_once():  # the data, to choose settings by them and to train on them
        recipe = recipe_for(request, verb)
        return run(recipe, run_folder.new_folder(out, f"{verb}-{recipe.name}"), preflight=preflight)


def _examined(recipe: Recipe, preflight: Preflight, *, fresh: bool) -> tuple[Parts | None, PreflightReport]:
    """Prepare and check a run; return the report, and the parts unless teacher and student do not match."""
    try:
        parts = compose(recipe, fresh=fresh)
    except MismatchError as error:
        return None, refused(error)
    return parts, examine(parts, preflight)


def run(
    recipe: Recipe, out: str | Path | None = None, resume: bool = False, *, preflight: Preflight | None = None
) -> RunResult:
    """Run a recipe into a folder; the single entry point of all trainings.

    Data and teacher are read and checked, and the detector is built, before the folder is created.

    Args:
        recipe: Recipe to run.
        out: Run folder. Default: ``runs/<name>``.
        resume: Continue the run in ``out`` from its last checkpoint.
        preflight: Extent of the preflight check before the first step; None for no check.

    Raises:
        LocdistillError: The run cannot be prepared or trained; a subclass for each cause.
    """
    path = Path(str(out)) if resume else run_folder.new_folder(out, recipe.name)
    check_training_devices(recipe.engine)
    fresh, report = not (resume and (path / "last.ckpt").is_file()), None
    if preflight is not None and not resume and recipe.distils and process_rank() == 0:
        seen, report = _examined(recipe, preflight, fresh=fresh)
        preflight.tell(report, recipe)
        assert seen is not None, "a mismatch stops the run"
        parts = seen
    else:
        parts = compose(recipe, fresh=fresh)
    forget()
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
            logging.getLogger(f"{log.name}.preflight").info("%s", report.text())  # printed by the verb
        else:
            for line in imports_of(parts.recipe.model_dump(mode="json")):
                log.info("%s", line)
            for note in parts.teacher.notes if parts.teacher is not None else ():
                log.info("teacher %s", note)
        return fit_run(parts, path, resume)
