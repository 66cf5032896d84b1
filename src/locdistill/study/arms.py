"""Many trainings into one folder: an arm is a recipe at several seeds.

Differences between arms are taken seed by seed, because seeds alone move AP by more than most methods do, and runs are
compared as they end: a best checkpoint would be chosen on the images it is then compared on. What has finished is taken
over, what was interrupted goes on, so a comparison is resumed by starting it again.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from locdistill.errors import RunError, RunInterrupted
from locdistill.evaluation.paired import Paired
from locdistill.files import write_text
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.run_folder import clear_start
from locdistill.training.separately import Train
from locdistill.types import Tell

NOTHING = "–"  # noqa: RUF001 - what one seed cannot tell
METRICS = ("AP", "AP50", "AP75", "AP90")
CACHE = "cache"

Remember = Callable[[Recipe], float]
"""Lets the teacher of a recipe look at all images and keeps what it says; returns the seconds that took."""


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        arm: Name of its arm.
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

    @classmethod
    def of(cls, name: str, label: str, recipe: Recipe, seeds: tuple[int, ...]) -> Arm:
        """A recipe at these seeds."""

        def at(seed: int) -> Recipe:
            return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"seed": seed})})

        return cls(name, label, at, seeds)

    def folder(self, seed: int, out: Path) -> Path:
        """Folder of a run, below ``out`` unless it lies elsewhere."""
        return self.there.get(seed, out / f"{self.name}-{seed}")


def equal_time_steps(first: Sequence[Run], other: Sequence[Run], *, beforehand: float = 0.0) -> int:
    """Steps of the first arm that take as long as the other one's runs did.

    From the median over seeds of the seconds per step, so that every seed gets the same schedule and one disturbed run
    does not decide it. Never fewer steps than the other arm had.

    Args:
        first: Runs that are to take longer.
        other: Those that show how long.
        beforehand: Seconds that were spent once for all runs of the other arm.
    """
    own, its = (statistics.median(run.seconds / run.steps for run in runs) for runs in (first, other))
    steps = other[0].steps
    return max(steps, round((steps * its + beforehand / len(other)) / own))


def remembered(recipe: Recipe, stamp: Path, *, remember: Remember, tell: Tell) -> float:
    """Seconds that the teacher of a recipe took to look at all images, now or when ``stamp`` was written."""
    if not stamp.is_file():
        tell(f"{recipe.name}: the teacher looks at all images, once for all seeds")
        write_text(stamp, json.dumps({"seconds": remember(recipe)}) + "\n")
    return float(json.loads(stamp.read_text())["seconds"])


def fixed_steps(stamp: Path, steps: int) -> int:
    """Steps of equal time as they were first found: a comparison that goes on must not change them half way."""
    if not stamp.is_file():
        write_text(stamp, json.dumps({"steps": steps}) + "\n")
    return int(json.loads(stamp.read_text())["steps"])


def train_arms(arms: Sequence[Arm], out: Path, *, train: Train, tell: Tell, jobs: int = 1) -> list[Run]:
    """Train what is not yet trained, each arm of a seed in turn, so that a machine that gets slower does so for all.

    Args:
        arms: What to train.
        out: Gets a folder for each run; what has finished there is taken over, what was interrupted goes on.
        train: Trains a recipe into a folder; called from several threads where there are several jobs.
        tell: Gets a line of progress now and then.
        jobs: Trainings at a time.

    Raises:
        RunError: A folder that is not of these runs is in the way.
        RunInterrupted: A training was asked to stop.
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
            pool.shutdown(wait=False, cancel_futures=True)  # those that train go on to their end or their checkpoint
            raise


def _finish(arm: Arm, seed: int, out: Path, train: Train, tell: Tell) -> Run:
    """Train an arm's recipe unless its folder says that this was done; go on where a checkpoint allows it."""
    recipe, folder = arm.recipe(seed), arm.folder(seed, out)
    length = f"{recipe.engine.epochs} epochs" if recipe.engine.steps is None else f"{recipe.engine.steps} steps"
    what = f"{arm.label}, seed {seed}, {length}"
    if read_metrics(folder) is None:
        resume = (folder / "last.ckpt").is_file()
        if not resume:
            clear_start(folder)
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
    content = read_metrics(folder)
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


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The content of ``metrics.json`` of a run that reached its end."""
    file = folder / "metrics.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content if content.get("stopped") else None


def spread(values: Sequence[float]) -> str:
    """The mean over seeds and, of several, their standard deviation."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def paired_cells(pair: Paired) -> tuple[str, str, str, str]:
    """Mean, standard deviation, interval, and the differences seed by seed."""
    seeds = ", ".join(f"{value:+z.1f}" for value in pair.differences)
    deviation = NOTHING if math.isnan(pair.deviation) else f"{pair.deviation:.1f}"
    interval = NOTHING if math.isinf(pair.low) else f"{pair.low:+z.1f} to {pair.high:+z.1f}"
    return f"{pair.mean:+z.1f}", deviation, interval, seeds


def environment() -> dict[str, str]:
    """The machine and the versions, as far as they matter to times and numbers."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    threads = {"cores": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return {"device": device, **threads, **versions, "system": platform.system()}
