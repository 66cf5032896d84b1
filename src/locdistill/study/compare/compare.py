"""``compare``: comparison of several recipes over seeds and images.

Recipes are trained at several seeds unless this was done before; finished run folders are used as they are. Folders of
one recipe with different seeds form one arm. All runs are evaluated on the same images, in the same way. Each arm is
compared with the first (see :mod:`locdistill.study.compare.result`).

:mod:`locdistill.study.arms` trains the runs and resumes them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from locdistill.data.digest import data_digest
from locdistill.data.records import Dataset
from locdistill.distillation.settings import CacheSettings
from locdistill.errors import DataError, RecipeError, RunError
from locdistill.files import make_folder, write_text
from locdistill.recipe.load import Override
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.run_folder import PARENT, read_facts
from locdistill.study.arms import CACHE, Arm, Run, equal_time_steps, train_arms
from locdistill.study.compare import page
from locdistill.study.compare.arms import USE, arms_of, changes, chosen_seeds, flat
from locdistill.study.compare.measure import Measure, evaluation_images, measured_run
from locdistill.study.compare.pictures import pictures
from locdistill.study.compare.result import Comparison, EqualTime, Measured, as_json, as_markdown
from locdistill.training.build_cache import build_cache_of
from locdistill.training.separately import Train, run_apart, side_by_side
from locdistill.types import Tell
from locdistill.viz import report

FEW_IMAGES = 100
Show = Callable[[Comparison], list[report.Section]]
Remember = Callable[[Recipe], float]
"""Function that stores the predictions of a recipe's teacher on all images, and returns the seconds it took."""
_NEAR = 0.01  # relative difference of times up to which they count as equal


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """A checked plan of a comparison.

    Attributes:
        arms: Arms; the first is the baseline of the others.
        out: Folder of the comparison.
        equal_time: Whether to train the first recipe also for as long as each of the others took.
        resamples: Number of resamples of the images.
        command: Command that reproduces the comparison.
        cache: Whether to cache the teachers' predictions, so that each predicts on an image once for all seeds of a
            recipe.
        teacher: Arm trained before the others, with one seed, and shown beside them.
        jobs: Number of parallel trainings.
        title: Heading of the page. Default: the labels of the arms.
        about: Description of the data and the detectors, in a few sentences.
    """

    arms: tuple[Arm, ...]
    out: Path
    teacher: Arm | None = None
    jobs: int = 1
    title: str = ""
    about: str = ""
    equal_time: bool = False
    resamples: int = 2000
    command: str = ""
    cache: bool = False


def compare(  # noqa: PLR0913 - the words of the command line
    *recipes: str | Path | Recipe,
    seeds: int | Sequence[int] | None = None,
    data: str | Path | None = None,
    teacher: str | Path | None = None,
    out: str | Path | None = None,
    equal_time: bool = False,
    cache: bool = False,
    jobs: int = 1,
    resamples: int = 2000,
    overrides: Sequence[Override] = (),
    device: str | None = None,
    command: str = "",
    tell: Tell = print,
) -> Comparison:
    """Compare recipes, each with the first: train missing runs, evaluate, and write tables and a page.

    Finished runs in ``out`` are not trained again and interrupted ones are resumed: run the same command again. Recipes
    and seeds can be added later.

    Args:
        recipes: Names or files of recipes, recipes in memory, or folders of finished runs; folders of one recipe with
            different seeds are grouped. At least two different recipes.
        seeds: Number of seeds (0, 1, ...), or a list of them; missing runs are trained. Default: the seeds of the
            finished folders, or else three.
        data: Folder of the data set, for all recipes; for finished folders, the present path of their data.
        teacher: Weights of the teacher for recipes that distil and have no teacher.
        out: Folder of the comparison. Default: ``runs/compare-<names>``.
        equal_time: Train the first recipe also for as many steps as fit into the time of each other recipe.
        cache: Compute the predictions of a recipe's teacher on each image once, for all seeds, and store them in
            ``out``. At equal time the runs of the recipe share the time this takes.
        jobs: Number of parallel trainings, in processes that share the cores; for small detectors on a CPU.
        resamples: Number of resamples of the images for the intervals.
        overrides: Settings ``"key.path=value"`` for all recipes; without effect on finished folders.
        device: Device of the evaluation, such as ``cuda:0``. Default: a GPU if there is one.
        command: Command that reproduces the comparison, shown on the page.
        tell: Callback for progress messages.

    Raises:
        RecipeError: A recipe is invalid, or there is nothing to compare.
        RunError: A folder holds no finished run, or runs cannot be compared: other images, no common seed.
        TeacherError: A recipe needs a teacher and has none.
        DataError: The data cannot be read, or are not the same for all.
    """
    if resamples < 2:
        raise RecipeError(f"resamples: expected at least 2, better 1000 or more, came {resamples}")
    if jobs < 1:
        raise RecipeError(f"jobs: expected at least 1, came {jobs}")
    chosen = chosen_seeds(seeds)
    arms = arms_of(recipes, Request(data=data, teacher=teacher, overrides=overrides), chosen)
    name = "compare-" + "-".join(arm.name for arm in arms)
    plan = ComparisonPlan(
        arms=arms,
        out=Path(out) if out is not None else PARENT / name[:100],
        equal_time=equal_time,
        resamples=resamples,
        command=command,
        cache=cache,
        jobs=jobs,
    )
    _check_images(plan.arms, data)
    return carry_out(plan, data=data, device=device, tell=tell)


def carry_out(
    plan: ComparisonPlan,
    *,
    data: str | Path | None = None,
    device: str | None = None,
    tell: Tell = print,
    show: Show | None = None,
) -> Comparison:
    """Carry out a plan: train, evaluate and write the results; arguments and errors as for :func:`compare`.

    ``show`` returns the sections of the page that need the detectors; by default :func:`pictures`.
    """
    measure = functools.partial(measured_run, kept=plan.out / "detections", data=data, device=device)
    show = show or functools.partial(pictures, data=data)
    with side_by_side(plan.jobs) as train:
        return run_plan(
            plan,
            train=train,
            measure=measure,
            tell=tell,
            remember=lambda recipe: build_cache_of(recipe).seconds,
            show=show,
        )


def run_plan(
    plan: ComparisonPlan,
    *,
    train: Train,
    measure: Measure,
    tell: Tell = print,
    remember: Remember | None = None,
    show: Show | None = None,
) -> Comparison:
    """Train missing runs, evaluate, and write ``compare.json``, ``compare.md`` and ``report.html``.

    Args:
        plan: Plan of the comparison.
        train: Function that trains a recipe into a folder.
        measure: Function that evaluates a finished run.
        tell: Callback for progress messages.
        remember: Function that builds the cache of a recipe's teacher; without it the first run builds the cache.
        show: Function that returns the sections of the page that need the detectors.

    Raises:
        RunError: The folder holds a comparison of other recipes with these names, or runs cannot be compared.
    """
    _claim(plan)
    teachers = [] if plan.teacher is None else train_arms([plan.teacher], plan.out, train=run_apart, tell=tell)
    remembered = [_remembered(arm, plan, remember, tell) for arm in plan.arms]
    beforehand = {arm.name: seconds for arm, seconds in remembered}
    runs = train_arms([arm for arm, _ in remembered], plan.out, train=train, tell=tell, jobs=plan.jobs)
    trained = {arm.name: [r for r in runs if r.arm == arm.name] for arm in plan.arms}
    equal_time: dict[str, EqualTime] = {}
    for arm in plan.arms[1:] if plan.equal_time else ():
        equal_time[arm.name], longer = _at_equal_time(plan, arm, trained, beforehand[arm.name], train, tell)
        trained |= longer
    measured: dict[str, tuple[Measured, ...]] = {}
    for name, of_arm in trained.items():
        tell(f"measuring: {name}, {len(of_arm)} run(s)")
        measured[name] = tuple(measure(name, r.seed, r.folder) for r in of_arm)
    teacher = None if plan.teacher is None else measure(plan.teacher.name, teachers[0].seed, teachers[0].folder)
    _check_comparable(measured)
    result = Comparison(
        arms=plan.arms,
        runs=measured,
        equal_time=equal_time,
        settings={arm.name: changes(plan.arms[0], arm) for arm in plan.arms[1:]},
        resamples=plan.resamples,
        notes=tuple(_notes(plan, measured, beforehand)),
        teacher=teacher,
        out=plan.out,
        command=plan.command,
        title=plan.title,
        about=plan.about,
    )
    tell(f"resampling: {len(next(iter(measured.values()))[0].judgement.images)} images, {plan.resamples} times")
    write_text(plan.out / "compare.json", json.dumps(as_json(result), indent=1) + "\n")
    write_text(plan.out / "compare.md", as_markdown(result))
    tell("writing the page")
    page.write_page(result, [] if show is None else show(result))
    return result


def _remembered(arm: Arm, plan: ComparisonPlan, remember: Remember | None, tell: Tell) -> tuple[Arm, float]:
    """Add a cache of the teacher's predictions to an arm, if the plan and its teacher allow one, and build it.

    Returns:
        The arm, and the seconds it took to build the cache, once for all seeds; 0 without one, or if no run is trained.
    """
    teacher = arm.base.teacher
    if plan.cache and teacher is not None and not teacher.follows and teacher.cache is None:
        teacher = teacher.model_copy(update={"cache": CacheSettings(path=str(plan.out / f"{CACHE}-{arm.name}"))})
        arm = replace(arm, base=arm.base.model_copy(update={"teacher": teacher}))
    trains = any(seed not in arm.there for seed in arm.seeds)
    if remember is None or not trains or teacher is None or teacher.cache is None:
        return arm, 0.0
    recipe, stamp = arm.recipe(arm.seeds[0]), plan.out / f"{CACHE}-{arm.name}.json"
    if not stamp.is_file():
        tell(f"{recipe.name}: computing the teacher's predictions on all images, once for all seeds")
        write_text(stamp, json.dumps({"seconds": remember(recipe)}) + "\n")
    return arm, float(json.loads(stamp.read_text())["seconds"])


def _at_equal_time(
    plan: ComparisonPlan, other: Arm, trained: Mapping[str, list[Run]], beforehand: float, train: Train, tell: Tell
) -> tuple[EqualTime, dict[str, list[Run]]]:
    """Train the first recipe with as many steps as fit into the time of another; not again if it took the same time.

    Returns:
        The first recipe at equal time, and its new runs, by arm.
    """
    first = plan.arms[0]
    runs, stamp = trained[first.name], plan.out / f"equal_time-{other.name}.json"
    steps = equal_time_steps(stamp, runs, trained[other.name], beforehand=beforehand)
    if abs(steps - runs[0].steps) <= _NEAR * runs[0].steps:
        return EqualTime(first.name, runs[0].steps), {}
    recipe = first.base.model_copy(update={"engine": first.base.engine.model_copy(update={"steps": steps})})
    seeds = tuple(seed for seed in first.seeds if seed in other.seeds)
    name = f"{first.name}-as-long-as-{other.name}"
    longer = Arm(name, f"{first.label}, as long as {other.label}", recipe, seeds)
    return EqualTime(name, steps), {name: train_arms([longer], plan.out, train=train, tell=tell, jobs=plan.jobs)}


def _claim(plan: ComparisonPlan) -> None:
    """Record the settings of each arm in the folder.

    Raises:
        RunError: The folder has other settings under a name, or an arm shares no seed with the first.
    """
    for arm in plan.arms[1:]:
        if not set(arm.seeds) & set(plan.arms[0].seeds):
            raise RunError(
                f"{plan.arms[0].name} was trained with the seeds {list(plan.arms[0].seeds)} and {arm.name} with "
                f"{list(arm.seeds)}, but differences are taken seed by seed; train both with the same seeds "
                "(engine.seed), or pass --seeds N to train the missing runs"
            )
    make_folder(plan.out)
    stamp = plan.out / "arms.json"
    known: dict[str, Any] = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    for arm in (*plan.arms, *([] if plan.teacher is None else [plan.teacher])):
        settings = json.loads(json.dumps(flat(arm.recipe(0), without=USE)))
        before = known.setdefault(arm.name, settings)
        changed = [key for key in dict.fromkeys((*before, *settings)) if before.get(key) != settings.get(key)]
        if changed:
            raise RunError(
                f"{plan.out} holds a comparison in which {arm.name} has another {', '.join(changed[:3])} (see "
                f"{stamp}); pass another folder with --out, or rename the recipe"
            )
    write_text(stamp, json.dumps(known, indent=1) + "\n")


def _check_images(arms: Sequence[Arm], data: str | Path | None) -> None:
    """Check, before any training, that all arms are evaluated on the same images and classes.

    Raises:
        DataError: Images, objects or classes differ.
    """
    first: tuple[Arm, Dataset, str] | None = None
    for arm in arms:
        dataset = evaluation_images(arm.recipe(arm.seeds[0]), data)
        digest = data_digest(dataset, ordered=False)
        if first is None:
            first = (arm, dataset, digest)
            continue
        other, known, expected = first
        if set(dataset.classes) != set(known.classes):
            raise DataError(
                f"{other.name} and {arm.name} cannot be compared: their classes are {list(known.classes)} and "
                f"{list(dataset.classes)}; compare recipes of the same classes (data.classes)"
            )
        if digest != expected:
            raise DataError(
                f"{other.name} and {arm.name} cannot be compared: they are evaluated on different images or objects, "
                f"{known.name} ({len(known)} images) and {dataset.name} ({len(dataset)}); set the same data.path and "
                "data.val for both, or pass --data FOLDER for all"
            )


def _check_comparable(measured: Mapping[str, tuple[Measured, ...]]) -> None:
    """Check that all runs were evaluated on the same images, with objects on them.

    Raises:
        RunError: The images differ, or have no objects.
    """
    (first, known), *others = [(m.run.folder, m) for of_arm in measured.values() for m in of_arm]
    for folder, other in others:
        if other.images != known.images:
            raise RunError(
                f"{first} and {folder} cannot be compared: they are evaluated on different images, objects or classes"
            )
    if any(math.isnan(m.run.metrics["AP"]) for m in (known, *(m for _, m in others))):
        raise RunError(f"{first}: the evaluation images have no objects, so there is no AP to compare")


def _notes(
    plan: ComparisonPlan, measured: Mapping[str, tuple[Measured, ...]], beforehand: Mapping[str, float]
) -> Iterator[str]:
    """Yield the caveats of the results."""
    if plan.jobs > 1:
        yield (f"{plan.jobs} trainings ran in parallel and shared the cores, which made all of them slower.")
    images = len(measured[plan.arms[0].name][0].judgement.images)
    if images < FEW_IMAGES:
        yield (
            f"There are only {images} evaluation images: the estimate of their share of the error is itself uncertain, "
            "and probably too small."
        )
    if len(plan.arms) > 2:
        yield (
            f"{len(plan.arms) - 1} recipes are compared with the first, without correction for multiple comparisons: "
            "of twenty without effect, one is expected to look as if it had one."
        )
    for arm in plan.arms[1:]:
        alone = set(plan.arms[0].seeds) ^ set(arm.seeds)
        if alone:
            yield f"Seeds {sorted(alone)}, not common to {plan.arms[0].name} and {arm.name}, count in means only."
    facts = [read_facts(m.run.folder) for of_arm in measured.values() for m in of_arm]
    devices = sorted({str(fact["device"]) for fact in facts if "device" in fact})
    if len(devices) > 1:
        yield f"The runs were trained on different machines ({'; '.join(devices)}): their times cannot be compared."
    training = {fact.get("data", {}).get("train", {}).get("sha256") for fact in facts} - {None}
    if len(training) > 1:
        yield "The runs were not all trained on the same images, or not with classes in the same order."
    for name, seconds in beforehand.items():
        if seconds:
            yield (
                f"The predictions of the teacher of {name} were computed once, in {seconds:.1f} s, before its runs: "
                "this time is not part of their seconds, and is shared among them at equal time."
            )
