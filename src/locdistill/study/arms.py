"""Many trainings into one folder: an arm is a recipe at several seeds.

Differences between arms are taken seed by seed, because seeds alone change AP by more than most methods do. The weights
at the end of each run are compared: a best checkpoint would be selected on the images of the comparison. Finished runs
are reused and interrupted ones resumed, so starting a comparison again resumes it.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from locdistill.distillation.load import teacher_files
from locdistill.errors import RunError, RunInterrupted
from locdistill.files import write_text
from locdistill.recipe.load import build_recipe, laid_over
from locdistill.recipe.recipe import OF_TEACHER, Recipe
from locdistill.recipe.run_folder import clear_start
from locdistill.training.separately import Train
from locdistill.types import Tell

NOTHING = "–"  # noqa: RUF001 - shown for a number that one seed cannot give
METRICS = ("AP", "AP50", "AP75", "AP90")
CACHE = "cache"


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        arm: Name of the arm.
        seed: Seed of initial weights, image order and augmentation.
        steps: Number of optimiser steps.
        seconds: Training time in seconds, without evaluation.
        metrics: AP, AP50, AP75, AP90 of the weights at the end, in percent.
        folder: Run folder.
    """

    arm: str
    seed: int
    steps: int
    seconds: float
    metrics: dict[str, float]
    folder: Path

    @property
    def weights(self) -> Path:
        """File of the evaluated weights."""
        return self.folder / "last.safetensors"


@dataclass(frozen=True)
class Arm:
    """A recipe to train once per seed.

    Attributes:
        name: Name of the runs and, with the seed appended, of their folders.
        label: Display name.
        base: Recipe, whose own seed has no effect.
        seeds: Seeds of the runs.
        there: Folders of finished runs elsewhere, by seed.
    """

    name: str
    label: str
    base: Recipe
    seeds: tuple[int, ...]
    there: Mapping[int, Path] = field(default_factory=dict)

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe with a seed."""
        return self.base.model_copy(update={"engine": self.base.engine.model_copy(update={"seed": seed})})

    def folder(self, seed: int, out: Path) -> Path:
        """Return the folder of a run, below ``out`` unless it is a finished run elsewhere."""
        return self.there.get(seed, out / f"{self.name}-{seed}")


def without_teacher(recipe: Recipe) -> Recipe:
    """Return the recipe without teacher and without the terms that need one, with the same initial weights."""
    start = str(teacher_files(recipe.teacher, recipe.name)[0]) if recipe.start == OF_TEACHER else recipe.start
    name = f"{recipe.name}-alone"
    plain = laid_over(recipe.model_dump(mode="json"), [f"{setting}=null" for setting in recipe.of_teacher])
    return build_recipe(plain | {"name": name, "start": start}, name)


def equal_time_steps(stamp: Path, first: Sequence[Run], other: Sequence[Run], *, beforehand: float = 0.0) -> int:
    """Compute the number of steps for which the first arm takes as long as the runs of the other arm.

    It follows from the median over seeds of the seconds per step, so that every seed has the same schedule and one
    disturbed run has little effect. It is never lower than the number of steps of the other arm. It is computed once:
    a resumed comparison must not change it.

    Args:
        stamp: File that stores the number.
        first: Runs of the first arm.
        other: Runs of the other arm.
        beforehand: Seconds spent once for all runs of the other arm.
    """
    if not stamp.is_file():
        own, its = (statistics.median(run.seconds / run.steps for run in runs) for runs in (first, other))
        steps = max(other[0].steps, round((other[0].steps * its + beforehand / len(other)) / own))
        write_text(stamp, json.dumps({"steps": steps}) + "\n")
    return int(json.loads(stamp.read_text())["steps"])


def train_arms(arms: Sequence[Arm], out: Path, *, train: Train, tell: Tell, jobs: int = 1) -> list[Run]:
    """Train all runs that have not finished, each arm of a seed in turn, so that a slowdown of the machine affects all.

    Args:
        arms: Arms to train.
        out: Folder with a subfolder for each run; finished runs are reused, interrupted ones resumed.
        train: Function that trains a recipe into a folder; called from several threads if ``jobs`` is above 1.
        tell: Callback for progress messages.
        jobs: Number of parallel trainings.

    Raises:
        RunError: A folder with the name of a run belongs to something else.
        RunInterrupted: A training received a stop signal.
    """
    seeds = dict.fromkeys(seed for arm in arms for seed in arm.seeds)
    tasks = [(arm, seed) for seed in seeds for arm in arms if seed in arm.seeds]
    if jobs == 1:
        return [_finish(arm, seed, out, train, tell) for arm, seed in tasks]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_finish, arm, seed, out, train, tell) for arm, seed in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # running trainings continue to their end or checkpoint
            raise


def _finish(arm: Arm, seed: int, out: Path, train: Train, tell: Tell) -> Run:
    """Train an arm's recipe unless its run has finished; resume from a checkpoint if there is one."""
    recipe, folder = arm.recipe(seed), arm.folder(seed, out)
    length = f"{recipe.engine.epochs} epochs" if recipe.engine.steps is None else f"{recipe.engine.steps} steps"
    what = f"{arm.label}, seed {seed}, {length}"
    run, word = None, "finished"
    with suppress(RunError):
        run, word = finished_run(arm.name, seed, folder), "there already"
    if run is None:
        resume = (folder / "last.ckpt").is_file()
        if not resume:
            clear_start(folder)
        tell(f"{'resuming' if resume else 'training'}: {what}")
        try:
            train(recipe, folder, resume)
        except RunInterrupted as stop:
            again = f"{what}: stopped; start the same command again to continue"
            raise RunInterrupted(again, stop.signal_number) from stop
        run = finished_run(arm.name, seed, folder)
    numbers = ", ".join(f"{k} {v:.1f}" for k, v in run.metrics.items())
    tell(f"{word}: {what}: {numbers}, {run.seconds:.0f} s")
    return run


def finished_run(arm: str, seed: int, folder: Path) -> Run:
    """Read the finished run in a folder.

    Raises:
        RunError: The run has not finished.
    """
    file = folder / "metrics.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if not content.get("stopped"):
        raise RunError(f"{folder} holds an unfinished run; start the same command again to continue it")
    last = content["last"]
    return Run(
        arm=arm,
        seed=seed,
        steps=int(content["steps"]),
        seconds=float(content["train_seconds"]),
        metrics={name: math.nan if last[name] is None else 100 * float(last[name]) for name in METRICS},
        folder=folder,
    )


def spread(values: Sequence[float]) -> str:
    """Format the mean over seeds and, for several seeds, their standard deviation."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def environment() -> dict[str, str]:
    """Return the machine and the versions that affect times and numbers."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    threads = {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"device": device, **threads, **versions, "system": platform.system()}
