"""From a data set to a checked file of a distilled student: all steps of the way in one folder.

The data are checked; a teacher is trained, and its predictions are stored; the student is trained alone and with the
teacher, and both are compared; the better one is exported and compared with its file; one page shows everything. Each
step is skipped if it was done, and continued if it was interrupted.

The settings are those of ``train`` and ``distill`` for the data (:mod:`locdistill.recipe.defaults`). They are chosen at
the start and written into the folder; a continued run takes them from there.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from locdistill.annotations.index import reading_once
from locdistill.data.check import check
from locdistill.distillation.settings import EMA
from locdistill.engine.launch import check_training_devices
from locdistill.engine.log import duration
from locdistill.errors import DataError, RecipeError, RunError
from locdistill.export.export import ExportPlan, export
from locdistill.export.parity import COMPARED, Check
from locdistill.files import file_digest, make_folder, write_text
from locdistill.models.hub import find
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.models.weights import EXPORTED
from locdistill.recipe.defaults import resolve
from locdistill.recipe.fitted import SIZES, VIEWS
from locdistill.recipe.load import Override, dump_recipe, load_recipe
from locdistill.recipe.overrides import parse_override
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.settings import finite
from locdistill.study.arms import Arm, Run, without_teacher
from locdistill.study.compare import page
from locdistill.study.compare.compare import ComparisonPlan, carry_out
from locdistill.study.compare.pictures import pictures
from locdistill.study.compare.result import Comparison, as_json
from locdistill.training.pace import RunPace, fitted_to
from locdistill.types import Tell
from locdistill.viz import report

TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
STAMP, CHECK, EXPORT, STUDENT = "auto.json", "check.json", "export.json", "student"
_LARGER = {"n": "m", "s": "l", "m": "l", "l": "l"}
"""Size of the teacher, by that of the student."""
_TEACHERS_SHARE = 0.5
"""Share of a limited time in which the teacher is trained."""
_LOOK = 0.35
"""Ratio of the time in which the teacher predicts to that of its training step."""
_TAUGHT = 1.15
"""Ratio of the time of a step with stored predictions to that of a step without a teacher."""
_OF_ALL, _OF_TAUGHT = ("data", "engine"), ("terms", "teacher", "balance")
"""Groups of settings that hold for the teacher as for the student, and that hold for a taught student alone."""
_SHOWN = ("AP", "AP50", "AP75")


@dataclass(frozen=True, kw_only=True)
class AutoPlan:
    """A request for the whole way.

    Attributes:
        student: Request for the student; its teacher is a finished one, or None to train one.
        teacher_size: Size of the teacher that is trained; None for a larger one than the student's.
        alone: Whether the student is trained alone as well, to see whether the teacher helps.
        cache: Whether the teacher's predictions are stored, so that it runs once on each view of an image.
        seeds: Number of trainings of each student.
        jobs: Number of parallel trainings.
        export: Form of the exported file.
    """

    student: Request
    teacher_size: str | None = None
    alone: bool = True
    cache: bool = True
    seeds: int = 1
    jobs: int = 1
    export: ExportPlan = field(default_factory=lambda: ExportPlan(dynamic=True))

    def words(self) -> dict[str, str]:
        """Return what decides the settings, to recognise a continued run."""
        student = {name: value for name, value in self.student.items() if value not in (None, (), [])}
        plain = student | {"teacher_size": self.teacher_size, "alone": self.alone, "cache": self.cache}
        return {name: str(value) for name, value in plain.items()}


@dataclass(frozen=True)
class AutoResult:
    """Result of the whole way.

    Attributes:
        out: Folder.
        comparison: Comparison of the students; with one student its metrics alone.
        chosen: Name and seed of the exported run, such as ``distilled-0``.
        export: Facts of the exported file, its comparison with the detector, and AP of both.
        file: The exported file.
        page: The page.
    """

    out: Path
    comparison: Comparison
    chosen: str
    export: dict[str, Any]
    file: Path
    page: Path

    def text(self) -> str:
        """Describe the exported file in a line."""
        both = {which: 100 * of["AP"] for which, of in self.export["metrics"].items()}
        return (
            f"{self.file}: {self.export['megabytes']:.1f} MB, from {self.chosen}/best; AP of the weights "
            f"{both['detector']:.1f}, of the file {both['file']:.1f}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        paths = {"out": str(self.out), "file": str(self.file), "page": str(self.page)}
        return paths | {"chosen": self.chosen, "export": self.export, "comparison": as_json(self.comparison)}


@dataclass(frozen=True)
class Stages:
    """Recipes of the trainings; ``teacher`` is None if a finished one was given, ``alone`` if it was not asked for."""

    distilled: Recipe
    teacher: Recipe | None = None
    alone: Recipe | None = None

    def named(self) -> dict[str, Recipe]:
        """Return the recipes by name, in the order of training."""
        stages = {TEACHER: self.teacher, ALONE: self.alone, DISTILLED: self.distilled}
        return {name: recipe for name, recipe in stages.items() if recipe is not None}


def auto(
    plan: AutoPlan, out: str | Path, *, command: str = "", only_plan: bool = False, tell: Tell = print
) -> AutoResult | None:
    """Go the whole way from a data set to a checked file; run the same again to continue after an interruption.

    Args:
        plan: The request.
        out: Folder of everything.
        command: Command that reproduces the page, shown on it.
        only_plan: Stop after the check of the data and the estimate of the time; returns None.
        tell: Callback for progress messages.

    Raises:
        DataError: The data have faults that must be repaired.
        RecipeError: A setting is wrong, or there are no data.
        RunError: The folder holds something else, or a step failed.
        RunInterrupted: A stop signal was received; everything done so far stays.
    """
    out = Path(out)
    with reading_once():
        stages, checked = _begin(plan, out, tell, write=not only_plan)
    if only_plan:
        return None
    result = carry_out(_comparison(plan, stages, out, command), tell=tell, show=lambda _: [])
    chosen = _best(result)
    file, exported = _exported(plan.export, chosen, stages.distilled, out, tell)
    tell("writing the page again, with pictures and the file")
    sections = [
        _file_section(file, exported, chosen.folder.name),
        *pictures(result),
        _data_section(checked, chosen.folder),
    ]
    return AutoResult(out, result, chosen.folder.name, exported, file, page.write_page(result, sections))


def _begin(plan: AutoPlan, out: Path, tell: Tell, *, write: bool) -> tuple[Stages, dict[str, Any]]:
    """Return the recipes and the report on the data: those of an earlier start, or new ones, which are written.

    Raises:
        RunError: The folder was made by another command.
        DataError: The data have problems.
    """
    stamp, words = out / STAMP, plan.words()
    if stamp.is_file():
        known: dict[str, str] = json.loads(stamp.read_text(encoding="utf-8"))
        changed = [name for name in {**known, **words} if known.get(name) != words.get(name)]
        if changed:
            raise RunError(
                f"{out} was begun with another {', '.join(changed)} (see {stamp}); give the same command to continue "
                "it, or another folder with --out"
            )
        recipes = {name: out / f"{name}.yaml" for name in (TEACHER, ALONE, DISTILLED)}
        found = {name: load_recipe(file) for name, file in recipes.items() if file.is_file()}
        return Stages(**found), json.loads((out / CHECK).read_text(encoding="utf-8"))
    own = {CHECK, *(f"{name}.yaml" for name in (TEACHER, ALONE, DISTILLED))}  # an earlier start may have ended here
    if out.exists() and any(path.name not in own for path in out.iterdir()):
        raise RunError(f"{out} is not empty, and holds no {STAMP} of an earlier start; give another folder with --out")
    if plan.student.get("data") is None:
        raise RecipeError("no data set given; pass --data FOLDER")
    stages = stages_of(plan, out)
    tell(f"checking: {stages.distilled.data.path}")
    checked = check(stages.distilled.data)
    if checked.problems:
        raise DataError(f"{checked}\n\nnothing was trained; repair these, or see 'locdistill data check'")
    for warning in checked.warnings:
        tell(f"warning: {warning}")
    _foretell(plan, stages, tell)
    facts = checked.as_dict() | {"text": str(checked)}
    if write:
        make_folder(out)
        for name, recipe in stages.named().items():
            write_text(out / f"{name}.yaml", dump_recipe(recipe))
        write_text(out / CHECK, json.dumps(facts, indent=1) + "\n")
        write_text(stamp, json.dumps(words, indent=1) + "\n")  # last: the rest is there
    return stages, facts


def stages_of(plan: AutoPlan, out: Path) -> Stages:
    """Resolve a request to the recipes of its trainings.

    Teacher and student see inputs of one size. The student alone has the settings of the distilled one but for the
    teacher, its terms, and the limited number of views of an image that a cache needs.

    Raises:
        RecipeError: A setting is wrong.
    """
    trainings = 1 + plan.alone
    given, minutes = plan.student.get("overrides", ()), plan.student.get("minutes")
    own = [setting for setting in given if parse_override(setting)[0][0] not in _OF_TAUGHT]
    student = Request(**{**plan.student, "methods": (), "teacher": None, "overrides": own})
    weights, teacher, known = plan.student.get("teacher"), None, None
    share = 1 / trainings if weights is not None else (1 - _TEACHERS_SHARE) / trainings
    if weights is None:
        teacher = _resolved(_teachers(plan, student), None if minutes is None else minutes * _TEACHERS_SHARE)
        teacher = teacher.model_copy(update={"name": f"{teacher.name}-{TEACHER}"})
        known, weights = _as_trained(teacher), str(out / f"{TEACHER}-{teacher.engine.seed}" / "best.safetensors")
    by_itself = _resolved(student, None if minutes is None else minutes * share)
    taught = resolve(Request(**{**plan.student, "teacher": weights}), taught_by=known)
    data = by_itself.data.model_copy(update={"sizes": taught.data.sizes, "classes": taught.data.classes})
    views = min(VIEWS, math.ceil(by_itself.engine.epochs)) if plan.cache and weights != EMA else None
    distilled = taught.model_copy(
        update={
            "name": f"{by_itself.name}-{DISTILLED}",
            "engine": by_itself.engine,
            "data": data.model_copy(update={"views": data.views or views}),
        }
    )
    for recipe in (distilled, *([] if teacher is None else [teacher])):
        check_training_devices(recipe.engine)
    alone = without_teacher(distilled).model_copy(update={"name": f"{by_itself.name}-{ALONE}", "data": data})
    return Stages(distilled, teacher, alone if plan.alone else None)


def _teachers(plan: AutoPlan, student: Request) -> Request:
    """Return the request for the teacher: of another size, with what holds for both.

    Raises:
        RecipeError: There is no such size.
    """
    if plan.teacher_size not in (None, *SIZES):
        raise RecipeError(f"--teacher-size {plan.teacher_size}: expected one of {', '.join(SIZES)}")
    size = plan.teacher_size or _LARGER.get(student.get("size") or "n", "l")
    asked = Request(data=student["data"], model=student.get("model"), epochs=student.get("epochs"), size=size)
    if student.get("pretrained") in ("hub", "none"):  # a file is of the student's backbone
        asked["pretrained"] = student["pretrained"]
    given = plan.student.get("overrides", ())
    return Request(**asked, overrides=[setting for setting in given if parse_override(setting)[0][0] in _OF_ALL])


def _resolved(request: Request, minutes: float | None) -> Recipe:
    return resolve(request) if minutes is None else fitted_to(Request(**{**request, "minutes": minutes}))


def _as_trained(recipe: Recipe) -> DetectorSettings:
    """Return the settings that the weights of a recipe will have, as far as a student follows them."""
    long, short = recipe.data.sizes[0]
    given = recipe.detector.input.model_dump() | {"long": long, "short": short}
    return recipe.detector.model_copy(update={"input": InputSettings.model_validate(given)})


def _foretell(plan: AutoPlan, stages: Stages, tell: Tell) -> None:
    """Time the first steps of the trainings, and say how long everything takes."""
    seconds: dict[str, float] = {}
    if stages.teacher is not None:
        pace = RunPace.of(stages.teacher)
        seconds[TEACHER] = _training(stages.teacher, pace)
    student = stages.alone or without_teacher(stages.distilled)
    own = RunPace.of(student)
    trains = _training(student, own)
    if stages.alone is not None:
        seconds["student alone"] = trains * plan.seeds
    seconds["student with its teacher"] = trains * _TAUGHT * plan.seeds
    if stages.teacher is not None:
        views = (stages.distilled.data.views or 1) if plan.cache else _passes(stages.distilled, own)
        looks = pace.per_pass * views * pace.step * _LOOK * (1 if plan.cache else plan.seeds)
        seconds["its predictions"] = looks
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    limit = " at most" if stages.distilled.engine.patience is not None else ""
    unknown = "" if stages.teacher is not None else "; the predictions of the given teacher are not in it"
    tell(f"about {duration(sum(seconds.values()))}{limit} on this machine: {parts}; then the comparison{unknown}")


def _passes(recipe: Recipe, pace: RunPace) -> float:
    engine = recipe.engine
    return engine.epochs if engine.steps is None else engine.steps / pace.per_pass


def _training(recipe: Recipe, pace: RunPace) -> float:
    """Estimate the seconds of a training with its evaluations."""
    passes, every = _passes(recipe, pace), recipe.engine.eval_every
    evaluations = math.ceil(passes / every) if every else 1
    return passes * pace.per_pass * pace.step + evaluations * pace.evaluation


def _comparison(plan: AutoPlan, stages: Stages, out: Path, command: str) -> ComparisonPlan:
    seeds = tuple(range(plan.seeds))
    arms = [Arm(DISTILLED, "student with its teacher", stages.distilled, seeds)]
    if stages.alone is not None:
        arms.insert(0, Arm(ALONE, "student alone", stages.alone, seeds))
    trained = stages.teacher
    return ComparisonPlan(
        arms=tuple(arms),
        out=out,
        teacher=None if trained is None else Arm(TEACHER, "teacher", trained, (trained.engine.seed,)),
        cache=plan.cache,
        jobs=plan.jobs,
        title=f"{stages.distilled.detector.backbone} on {Path(stages.distilled.data.path).name}",
        about="A student for these data, with and without a teacher, and its exported file.",
        command=command,
    )


def _best(result: Comparison) -> Run:
    """Choose the run to export: of the arm with the higher mean AP (the distilled one if they are level) the best."""
    arms = sorted(result.arms, key=lambda arm: (statistics.fmean(result.values(arm.name)), arm.base.distils))
    return max((each.run for each in result.runs[arms[-1].name]), key=lambda run: run.metrics["AP"])


def _exported(plan: ExportPlan, chosen: Run, recipe: Recipe, out: Path, tell: Tell) -> tuple[Path, dict[str, Any]]:
    """Export the chosen run and compare its file, unless this was done; return the file and the facts."""
    weights, stamp = find(chosen.folder), out / EXPORT
    suffix = next(suffix for suffix, kind in EXPORTED.items() if kind == plan.kind)
    file = out / f"{STUDENT}{suffix}"
    form = asdict(plan) | {"weights": file_digest(weights)}
    if stamp.is_file() and file.is_file():
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if known["form"] == json.loads(json.dumps(form)):
            tell(f"there already: {file}")
            return file, known
    tell(f"exporting: {chosen.folder.name}")
    data = recipe.data.model_dump(
        mode="json", include={"val", "format", "holdout", "ignore_classes", "classes", "bits"}
    )
    overrides: list[Override] = [(("data", name), value) for name, value in data.items() if value is not None]
    found = export(weights, file, plan, data=recipe.data.path, overrides=overrides, tell=tell)
    facts = json.loads(json.dumps(finite(found.as_dict()), default=str)) | {"form": form}
    write_text(stamp, json.dumps(facts, indent=1) + "\n")
    return file, facts


def _file_section(file: Path, exported: dict[str, Any], chosen: str) -> report.Section:
    """Describe the exported file, its comparison with the detector, and how to use it."""
    names = [each.name for each in fields(Check)]
    known = [{name: check[name] for name in names} | {"size": tuple(check["size"])} for check in exported["checks"]]
    checks = [Check(**check).cells() for check in known]
    metrics = [(which, *(f"{100 * of[name]:.1f}" for name in _SHOWN)) for which, of in exported["metrics"].items()]
    about = (
        f"{file.name}, {exported['megabytes']:.1f} MB: the best weights of {chosen}, which has the highest AP on the "
        "evaluation images. It takes 8-bit RGB images and normalises them itself."
    )
    commands = (
        f"locdistill predict {file} PICTURES --save found",
        f"locdistill evaluate {file} --data DATA",
        f"locdistill benchmark {file}",
    )
    blocks: list[report.Block] = [
        report.Text(about),
        report.TableBlock(("", *_SHOWN), metrics, caption="AP of the weights and of the file, in percent"),
        report.TableBlock(COMPARED, checks, caption="Largest differences between the detector and the file"),
        report.Preformatted("\n".join(commands)),
    ]
    return report.Section("The file", blocks)


def _data_section(checked: dict[str, Any], run: Path) -> report.Section:
    labels = run / "labels.png"
    picture = [report.Picture(labels, "Classes, sides and places of the objects.")] if labels.is_file() else []
    return report.Section("The data", [report.Preformatted(str(checked["text"])), *picture])
