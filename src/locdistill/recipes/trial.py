"""Did it help? A student with and without localization distillation, over several seeds.

A trial trains one teacher and then, for each seed, the student alone, the student with the distillation terms for the
same number of steps, and the student alone for as many steps as fit into the *time* that the distilled one took (a live
teacher makes a step dearer, and the honest alternative to a dearer step is more steps). Differences are taken seed by
seed, because seeds alone move AP by more than most methods do. Runs are compared as they end: a best checkpoint would
be chosen on the images it is then compared on.

Everything lies in one folder, one sub-folder per training. What has finished is taken over, what was interrupted goes
on, so a trial is resumed by starting it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator

from locdistill.errors import RunError, RunInterrupted
from locdistill.evaluation.tables import Table
from locdistill.recipes.folder import make_folder
from locdistill.recipes.paired import Paired, verdict
from locdistill.recipes.recipe import CacheSettings, Recipe, TeacherSettings
from locdistill.recipes.terms import TermSettings
from locdistill.settings import Settings, finite

NOTHING = "–"  # noqa: RUF001 - what one seed cannot tell
METRICS = ("AP", "AP50", "AP75", "AP90")
TEACHER, ALONE, DISTILLED, LONGER = "teacher", "alone", "distilled", "alone_longer"
LABELS = {
    TEACHER: "teacher",
    ALONE: "student alone",
    DISTILLED: "student + LD",
    LONGER: "student alone, equal time",
}

Train = Callable[[Recipe, Path, bool], object]
"""Trains a recipe into a folder, or goes on with what is there, and leaves ``metrics.json`` when it has finished."""
Tell = Callable[[str], None]
Remember = Callable[[Recipe], float]
"""Lets the teacher of a recipe look at all images and keeps what it says; returns the seconds that took."""
CACHE = "cache"


class TrialSettings(Settings):
    """What is compared.

    Attributes:
        name: Heading of the page.
        about: What the data and the two detectors are, in a few sentences.
        teacher: How the teacher is trained, and what it is evaluated on if it is not.
        teacher_weights: Weights of a finished teacher, which is then only used.
        student: How the student is trained alone; ``engine.steps`` has to be set and the schedule to be a cosine, so
            that a longer run stretches the schedule with it.
        terms: Added to the student's terms for distillation.
        seeds: Each gives a triple of runs.
        equal_time: Whether to train the third of each triple.
        cache: Whether the teacher's predictions are kept in the trial's folder, so that it looks at each image once for
            all seeds. The time that takes is shared by the distilled runs.
        pictures: Images of the validation split that are shown, from the first.
        command: What the reader types to get the same.
    """

    name: str
    about: str = ""
    teacher: Recipe
    teacher_weights: str | None = None
    student: Recipe
    terms: dict[str, TermSettings] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    equal_time: bool = True
    cache: bool = False
    pictures: int = Field(default=6, ge=1)
    command: str = ""

    @model_validator(mode="after")
    def _check(self) -> TrialSettings:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must differ, came {self.seeds}")
        if self.student.engine.steps is None or self.student.engine.schedule != "cosine":
            raise ValueError("student.engine needs steps=... and schedule=cosine: equal time stretches the schedule")
        if self.student.teacher is not None:
            raise ValueError("student is the recipe without a teacher; distillation comes from 'terms'")
        both = sorted(set(self.terms) & set(self.student.terms))
        if both:
            raise ValueError(f"terms are added to those of the student, which has {', '.join(both)} already")
        return self

    def recipe(
        self, arm: str, seed: int, *, weights: Path, steps: int | None = None, cache: Path | None = None
    ) -> Recipe:
        """The recipe of a student's run; ``weights`` are those of the teacher, ``cache`` where it is remembered."""
        student = self.student
        engine = student.engine.model_copy(update={"seed": seed, "steps": steps or student.engine.steps})
        changes: dict[str, Any] = {"name": f"{student.name}-{arm}-{seed}", "engine": engine}
        if arm == DISTILLED:
            kept = None if cache is None else CacheSettings(path=str(cache))
            teacher = TeacherSettings(weights=str(weights), name=self.teacher.name, cache=kept)
            changes |= {"terms": student.terms | self.terms, "teacher": teacher}
        return student.model_copy(update=changes)


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        arm: ``teacher``, ``alone``, ``distilled`` or ``alone_longer``.
        seed: Of weights, order of images and augmentation.
        steps: Optimiser steps.
        seconds: Time spent training, evaluation left out.
        metrics: AP, AP50, AP75, AP90 of the weights at the end, in percent.
        folder: Where it lies.
    """

    arm: str
    seed: int
    steps: int
    seconds: float
    metrics: dict[str, float]
    folder: Path

    @property
    def weights(self) -> Path:
        """The weights that were evaluated."""
        return self.folder / "last.safetensors"


@dataclass(frozen=True)
class Arm:
    """Something to train once per seed.

    Attributes:
        name: Of its runs and, with the seed behind it, of their folders.
        label: What it is, in words.
        recipe: Of a seed.
        seeds: For which it is run.
        there: By seed, folders of finished runs that lie elsewhere.
    """

    name: str
    label: str
    recipe: Callable[[int], Recipe]
    seeds: tuple[int, ...]
    there: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialResult:
    """What came out.

    Attributes:
        settings: What was compared.
        teacher: Its run, or None where finished weights were given.
        teacher_weights: The teacher that taught.
        runs: The students' runs.
        beforehand: Seconds that the teacher took to look at all images, once for all distilled runs.
    """

    settings: TrialSettings
    teacher: Run | None
    teacher_weights: Path
    runs: tuple[Run, ...]
    beforehand: float = 0.0

    def arm(self, name: str) -> list[Run]:
        """The runs of an arm in the order of the seeds."""
        return [run for run in self.runs if run.arm == name]

    def values(self, name: str, metric: str) -> list[float]:
        """A metric over the seeds of an arm."""
        return [run.metrics[metric] for run in self.arm(name)]

    def difference(self, against: str, metric: str = "AP") -> Paired:
        """The distilled student less another arm, seed by seed."""
        return Paired.of(self.values(DISTILLED, metric), self.values(against, metric))

    @property
    def arms(self) -> list[str]:
        """The students' arms that were run."""
        return [name for name in (ALONE, DISTILLED, LONGER) if self.arm(name)]

    @property
    def verdict(self) -> str:
        """What may be concluded, in a sentence or two."""
        return verdict(self.difference(ALONE), self.difference(LONGER) if self.arm(LONGER) else None)


def equal_time_steps(alone: list[Run], distilled: list[Run], *, beforehand: float = 0.0) -> int:
    """Steps of the student alone that take as long as its distilled runs did.

    From the median over seeds of the seconds per step, so that every seed gets the same schedule and one disturbed run
    does not decide it. Never fewer steps than the distilled run had.

    Args:
        alone: Runs of the student alone.
        distilled: Those with distillation.
        beforehand: Seconds that were spent once for all distilled runs.
    """
    own, taught = (statistics.median(run.seconds / run.steps for run in runs) for runs in (alone, distilled))
    steps = distilled[0].steps
    return max(steps, round((steps * taught + beforehand / len(distilled)) / own))


def run_trial(
    settings: TrialSettings, out: Path, *, train: Train, tell: Tell = print, remember: Remember | None = None
) -> TrialResult:
    """Train what is not yet trained, compare, and write ``results.json`` and ``results.md``.

    Args:
        settings: What to compare.
        out: Folder of the trial; an unfinished trial with equal settings goes on.
        train: Trains a recipe into a folder.
        tell: Gets a line of progress now and then.
        remember: Builds the cache of a recipe's teacher; without it the first distilled run does.

    Raises:
        RunError: The folder holds a trial with other settings.
    """
    _claim(settings, out)
    teacher = None
    weights = Path(settings.teacher_weights or "")
    if settings.teacher_weights is None:
        seed = settings.teacher.engine.seed
        arm = Arm(TEACHER, LABELS[TEACHER], lambda _: settings.teacher, (seed,), {seed: out / TEACHER})
        (teacher,) = train_arms([arm], out, train=train, tell=tell)
        weights = teacher.weights
    cache = out / CACHE if settings.cache else None
    arms = [_arm(settings, name, weights, cache=cache) for name in (ALONE, DISTILLED)]
    beforehand = 0.0
    if cache is not None and remember is not None:
        beforehand = remembered(arms[1].recipe(settings.seeds[0]), out / f"{CACHE}.json", remember=remember, tell=tell)
    runs = train_arms(arms, out, train=train, tell=tell)
    if settings.equal_time:
        alone, distilled = ([run for run in runs if run.arm == name] for name in (ALONE, DISTILLED))
        steps = equal_time_steps(alone, distilled, beforehand=beforehand)
        steps = fixed_steps(out / "equal_time.json", steps)
        runs += train_arms([_arm(settings, LONGER, weights, steps)], out, train=train, tell=tell)
    result = TrialResult(settings, teacher, weights, tuple(runs), beforehand)
    (out / "results.json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    (out / "results.md").write_text(as_markdown(result))
    return result


def remembered(recipe: Recipe, stamp: Path, *, remember: Remember, tell: Tell) -> float:
    """Seconds that the teacher of a recipe took to look at all images, now or when ``stamp`` was written."""
    if not stamp.is_file():
        tell(f"{recipe.name}: the teacher looks at all images, once for all seeds")
        stamp.write_text(json.dumps({"seconds": remember(recipe)}) + "\n")
    return float(json.loads(stamp.read_text())["seconds"])


def _arm(settings: TrialSettings, name: str, weights: Path, steps: int | None = None, cache: Path | None = None) -> Arm:
    def recipe(seed: int) -> Recipe:
        return settings.recipe(name, seed, weights=weights, steps=steps, cache=cache)

    return Arm(name, LABELS[name], recipe, settings.seeds)


def train_arms(arms: Sequence[Arm], out: Path, *, train: Train, tell: Tell) -> list[Run]:
    """Train what is not yet trained, each arm of a seed in turn, so that a machine that gets slower does so for all.

    Args:
        arms: What to train.
        out: Gets a folder for each run; what has finished there is taken over, what was interrupted goes on.
        train: Trains a recipe into a folder.
        tell: Gets a line of progress now and then.
    """
    seeds = dict.fromkeys(seed for arm in arms for seed in arm.seeds)
    return [_finish(arm, seed, out, train, tell) for seed in seeds for arm in arms if seed in arm.seeds]


def _claim(settings: TrialSettings, out: Path) -> None:
    """Note in the folder which trial it belongs to; refuse one that belongs to another. Seeds may be added later."""
    told = {"command", "seeds", "pictures", "about"}
    stamp, content = out / "trial.json", settings.model_dump(mode="json", exclude=told)
    if stamp.is_file():
        if json.loads(stamp.read_text()) != json.loads(json.dumps(content)):
            raise RunError(f"{out} holds a trial with other settings (see {stamp}); choose another folder with --out.")
        return
    make_folder(out)
    stamp.write_text(json.dumps(content, indent=1) + "\n")


def fixed_steps(stamp: Path, steps: int) -> int:
    """Keep the number of steps of equal time once it is known: a resumed trial must not change it half way."""
    if not stamp.is_file():
        stamp.write_text(json.dumps({"steps": steps}) + "\n")
    return int(json.loads(stamp.read_text())["steps"])


def _finish(arm: Arm, seed: int, out: Path, train: Train, tell: Tell) -> Run:
    """Train an arm's recipe unless its folder says that this was done; go on where a checkpoint allows it."""
    recipe, folder = arm.recipe(seed), arm.there.get(seed, out / f"{arm.name}-{seed}")
    length = f"{recipe.engine.epochs} epochs" if recipe.engine.steps is None else f"{recipe.engine.steps} steps"
    what = f"{arm.label}, seed {seed}, {length}"
    if _metrics(folder) is None:
        resume = (folder / "last.ckpt").is_file()
        if folder.exists() and not resume:
            shutil.rmtree(folder)  # it was stopped before its first checkpoint
        tell(f"{'resuming' if resume else 'training'}: {what}")
        try:
            train(recipe, folder, resume)
        except RunInterrupted as stop:
            again = f"{what}: stopped; start the same command again to go on"
            raise RunInterrupted(again, stop.signal_number) from stop
        word = "finished"
    else:
        word = "there already"
    run = finished_run(arm.name, seed, folder)
    numbers = ", ".join(f"{k} {v:.1f}" for k, v in run.metrics.items())
    tell(f"{word}: {what}: {numbers}, {run.seconds:.0f} s")
    return run


def finished_run(arm: str, seed: int, folder: Path) -> Run:
    """The run in a folder.

    Raises:
        RunError: It did not reach its end.
    """
    content = _metrics(folder)
    if content is None:
        raise RunError(
            f"{folder} holds a run that did not reach its end; start the same command again to go on with it."
        )
    last = content["last"]
    return Run(
        arm=arm,
        seed=seed,
        steps=int(content["steps"]),
        seconds=float(content["train_seconds"]),
        metrics={name: math.nan if last[name] is None else 100 * float(last[name]) for name in METRICS},
        folder=folder,
    )


def _metrics(folder: Path) -> dict[str, Any] | None:
    """The content of ``metrics.json`` of a run that reached its end."""
    file = folder / "metrics.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content if content.get("stopped") else None


def summary_table(result: TrialResult) -> Table:
    """One row per arm: mean over seeds and standard deviation."""
    rows = []
    if result.teacher is not None:
        rows.append(_row(LABELS[TEACHER], [result.teacher]))
    rows += [_row(LABELS[name], result.arm(name)) for name in result.arms]
    header = ("", *METRICS, "seconds", "steps", "seeds")
    return Table("Mean over seeds ± standard deviation, in percent", header, tuple(rows))


def _row(label: str, runs: list[Run]) -> tuple[str, ...]:
    cells = [spread([run.metrics[metric] for run in runs]) for metric in METRICS]
    return (label, *cells, spread([run.seconds for run in runs]), str(runs[0].steps), str(len(runs)))


def spread(values: Sequence[float]) -> str:
    """The mean over seeds and, of several, their standard deviation."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def difference_table(result: TrialResult) -> Table:
    """The distilled student less the others, seed by seed."""
    rows = []
    for against, label in ((ALONE, "at equal steps"), (LONGER, "at equal time")):
        if result.arm(against):
            for metric in METRICS:
                pair = result.difference(against, metric)
                rows.append((f"{metric} {label}", *paired_cells(pair)))
    header = ("student + LD less student alone", "mean", "deviation", "95 % interval", "seed by seed")
    return Table("Paired differences, in percentage points", header, tuple(rows))


def paired_cells(pair: Paired) -> tuple[str, str, str, str]:
    """Mean, standard deviation, interval, and the differences seed by seed."""
    seeds = ", ".join(f"{value:+z.1f}" for value in pair.differences)
    deviation = NOTHING if math.isnan(pair.deviation) else f"{pair.deviation:.1f}"
    interval = NOTHING if math.isinf(pair.low) else f"{pair.low:+z.1f} to {pair.high:+z.1f}"
    return f"{pair.mean:+z.1f}", deviation, interval, seeds


def runs_table(result: TrialResult) -> Table:
    """Every run."""
    runs = ([result.teacher] if result.teacher else []) + list(result.runs)
    rows = [
        (LABELS[r.arm], str(r.seed), str(r.steps), f"{r.seconds:.1f}", *(f"{r.metrics[m]:.2f}" for m in METRICS))
        for r in runs
    ]
    return Table("Every run", ("", "seed", "steps", "seconds", *METRICS), tuple(rows))


def environment() -> dict[str, str]:
    """The machine and the versions, as far as they matter to times and numbers."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    threads = {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"device": device, **threads, **versions, "system": platform.system()}


def as_json(result: TrialResult) -> dict[str, Any]:
    """Everything measured, as plain data."""

    def plain(run: Run) -> dict[str, Any]:
        return {**dataclasses.asdict(run), "folder": run.folder.name}

    against = [name for name in (ALONE, LONGER) if result.arm(name)]
    return {
        "name": result.settings.name,
        "command": result.settings.command,
        "environment": environment(),
        "verdict": result.verdict,
        "differences": {
            name: {metric: finite(dataclasses.asdict(result.difference(name, metric))) for metric in METRICS}
            for name in against
        },
        "cache_seconds": result.beforehand,
        "teacher": plain(result.teacher) if result.teacher else str(result.teacher_weights),
        "runs": [plain(run) for run in result.runs],
    }


def times_note(result: TrialResult) -> str:
    """What the seconds are, in words."""
    note = "Seconds are training time without evaluation."
    if not result.beforehand:
        return note
    return (
        f"{note} The teacher looked at all images once, in {result.beforehand:.1f} s, before the distilled runs, which "
        "share that time where times are made equal."
    )


def as_markdown(result: TrialResult) -> str:
    """The tables and the verdict, to be put into a document."""
    about = "; ".join(f"{key} {value}" for key, value in environment().items())
    parts = [f"# {result.settings.name}", result.settings.about, result.verdict]
    parts += [table(result).markdown() for table in (summary_table, difference_table, runs_table)]
    terms = ", ".join(f"{name} with weight {term.weight:g}" for name, term in result.settings.terms.items())
    parts += [f"Distillation terms: {terms}.", f"{times_note(result)} {about}."]
    if result.settings.command:
        parts.append(f"```\n{result.settings.command}\n```")
    return "\n\n".join(part for part in parts if part) + "\n"
