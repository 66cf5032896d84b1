"""Result of a search: ranked trials, verdict, and output files."""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from locdistill.errors import RunError
from locdistill.evaluation.tables import Table
from locdistill.recipe.recipe import Recipe
from locdistill.settings import finite
from locdistill.study.arms import METRICS, NOTHING, Run, environment, spread
from locdistill.study.tune.space import Searched, Values
from locdistill.viz.search import SettingAxis, plot_search
from locdistill.viz.style import save_picture

ALONE, AS_IS, BEST = "alone", "as_is", "best"
LABELS = {ALONE: "student alone", AS_IS: "the recipe as it is"}


@dataclass(frozen=True)
class Trial:
    """Values, and the runs trained with them.

    Attributes:
        name: ``alone``, ``as_is``, or ``trial-`` and its number.
        values: Values of the searched settings; for ``as_is`` those of the recipe, if they are in the space.
        runs: Runs, one per seed.
        failed: Reason of a failure; empty otherwise.
    """

    name: str
    values: Values
    runs: tuple[Run, ...] = ()
    failed: str = ""

    @property
    def label(self) -> str:
        """Display name."""
        return LABELS.get(self.name, self.name.replace("-", " "))

    def of(self, metric: str = "AP") -> list[float]:
        """Return a metric for each seed, in percent."""
        return [run.metrics[metric] for run in self.runs]

    @property
    def ap(self) -> float:
        """AP in percent, mean over the seeds; NaN for a failed trial."""
        return statistics.fmean(self.of()) if self.runs else math.nan


@dataclass(frozen=True)
class TuneResult:
    """Result of a search.

    Attributes:
        recipe: Recipe at full length, with the best values.
        space: Searched settings.
        alone: Trial of the student without teacher; None if the recipe has no teacher.
        as_is: Trial of the recipe as it is.
        trials: Other trials, in chronological order.
        judged_on: Description of the evaluation images.
        held_out: Whether these are held-out training images.
        out: Folder of the search.
    """

    recipe: Recipe
    space: tuple[Searched, ...]
    alone: Trial | None
    as_is: Trial
    trials: tuple[Trial, ...]
    judged_on: str
    held_out: bool
    out: Path

    @property
    def best(self) -> Trial:
        """Trial with the highest AP, including the recipe as it is."""
        return best_of((self.as_is, *self.trials))

    @property
    def ranked(self) -> list[Trial]:
        """All trials in descending order of AP, failed ones last."""
        everything = [*([self.alone] if self.alone else []), self.as_is, *self.trials]
        return sorted(everything, key=lambda trial: -math.inf if math.isnan(trial.ap) else trial.ap, reverse=True)

    @property
    def verdict(self) -> str:
        """Summary of the result, with the bias by chance of the best trial."""
        best, run = self.best, next(run for trial in self.ranked for run in trial.runs)
        rivals = [trial for trial in (self.as_is, self.alone) if trial is not None and trial is not best]
        said = " and ".join(f"{trial.label} {trial.ap:.1f}" for trial in rivals)
        count = f"{len(self.trials)} trial{'s' if len(self.trials) != 1 else ''}"
        first = (
            f"None of {count} is better than the recipe as it is: AP {best.ap:.1f}"
            if best is self.as_is
            else f"The highest of {count} is {best.label} with {describe(self.space, best.values)}: AP {best.ap:.1f}"
        )
        seeds = f", mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
        parts = [f"{first}{f'; {said}' if said else ''} (on {self.judged_on}, after {run.steps} steps{seeds})."]
        if self.alone is not None and self.alone.ap >= best.ap:
            parts.append("None of these settings is better than the student alone.")
        # the upward bias of the best of several trials
        finished = [trial for trial in (self.as_is, *self.trials) if trial.runs]
        noise = seed_noise([trial.of() for trial in finished])
        bias = "an estimate of the bias needs several seeds and trials (--seeds 3)."
        if not math.isnan(noise):
            above = expected_best(len(finished)) * noise
            bias = (
                f"the mean of a setting varies by {noise:.1f} with the seeds (standard deviation), so that of "
                f"{len(finished)} equally good settings the best would be about {above:.1f} above their mean."
            )
        return " ".join([*parts, f"The AP of the best of several trials is biased upwards: {bias}"])

    @property
    def commands(self) -> tuple[str, str]:
        """Commands to train with the best settings, and to compare them with the baselines."""
        names = [*([ALONE] if self.alone else []), AS_IS, *([BEST] if self.best is not self.as_is else [])]
        files = [str(self.out / f"{name}.yaml") for name in names]
        use = shlex.join(["locdistill", "distill" if self.recipe.distils else "train", str(self.out / f"{BEST}.yaml")])
        judge = ["locdistill", "compare", *files, "--seeds", "3", "--out", str(self.out / "compared")]
        return use, shlex.join(judge) if len(names) > 1 else ""

    def table(self) -> Table:
        """Tabulate the trials, one per row, in descending order of AP."""
        rows = [
            (
                trial.label,
                *((spread(trial.of(metric)) for metric in METRICS) if trial.runs else ("failed", *[NOTHING] * 3)),
                *(_number(trial.values.get(searched.name)) for searched in self.space),
                f"{statistics.fmean(run.seconds for run in trial.runs):.0f}" if trial.runs else NOTHING,
            )
            for trial in self.ranked
        ]
        header = ("", *METRICS, *self.labels, "seconds")
        return Table(f"AP in percent, on {self.judged_on}", header, tuple(rows), (self.ranked.index(self.best),))

    @property
    def labels(self) -> list[str]:
        """Labels of the searched settings; short ones if they are unique."""
        short = [searched.label for searched in self.space]
        return short if len(set(short)) == len(short) else [searched.name for searched in self.space]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        use, compare = self.commands
        trials = []
        for trial in self.ranked:
            runs = [
                {"seed": run.seed, "steps": run.steps, "seconds": run.seconds, **finite(dict(run.metrics))}
                for run in trial.runs
            ]
            ap = None if math.isnan(trial.ap) else trial.ap
            trials.append(
                {"name": trial.name, "AP": ap, "settings": trial.values, "failed": trial.failed, "runs": runs}
            )
        return {
            "recipe": self.recipe.name,
            "search": [str(searched) for searched in self.space],
            "judged_on": self.judged_on,
            "held_out": self.held_out,
            "best": self.best.name,
            "verdict": self.verdict,
            "commands": {"use": use, "compare": compare},
            "trials": trials,
            "environment": environment(),
            "out": str(self.out),
        }

    def as_csv(self) -> str:
        """Format as CSV, one line per trial and seed, in the order of the table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [searched.name for searched in self.space]
        writer.writerow(["trial", "seed", *METRICS, "steps", "seconds", *names])
        for trial in self.ranked:
            values = [trial.values.get(name, "") for name in names]
            for run in trial.runs:
                numbers = [f"{run.metrics[metric]:.3f}" for metric in METRICS]
                writer.writerow([trial.name, run.seed, *numbers, run.steps, f"{run.seconds:.1f}", *values])
        return text.getvalue()

    def draw(self, path: Path) -> Path:
        """Plot AP against each searched setting; return the path of the picture."""
        shown = [t for t in (self.as_is, *self.trials) if not math.isnan(t.ap) and t.values]
        lines = {t.label: t.ap for t in (self.alone, self.as_is) if t is not None and not math.isnan(t.ap)}
        settings = [
            SettingAxis(label, [trial.values.get(one.name) for trial in shown], one.log, one.choices)
            for label, one in zip(self.labels, self.space, strict=True)
        ]
        return save_picture(plot_search(settings, [trial.ap for trial in shown], lines), path)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest AP.

    Raises:
        RunError: No trial has an AP.
    """
    known = [trial for trial in trials if not math.isnan(trial.ap)]
    if not known:
        why = next((trial.failed for trial in trials if trial.failed), "the evaluation images have no objects")
        raise RunError(f"no trial has an AP: {why}")
    return max(known, key=lambda trial: trial.ap)


def describe(space: Sequence[Searched], values: Values) -> str:
    """Describe values."""
    return ", ".join(f"{one.label} {_number(values[one.name])}" for one in space if one.name in values)


def seed_noise(ap: Sequence[Sequence[float]]) -> float:
    """Estimate the standard deviation of a setting's mean over seeds, without effects of seeds common to all settings.

    All settings have the same seeds, and a seed effect common to all does not change their order. The estimate is
    therefore the residual standard deviation of a two-way table (setting, seed), divided by the square root of the
    number of seeds; NaN for fewer than two settings or seeds.

    Args:
        ap: AP by setting and seed.
    """
    table = np.asarray(ap, dtype=np.float64)
    settings, seeds = table.shape
    if settings < 2 or seeds < 2:
        return math.nan
    residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    return math.sqrt(float((residual**2).sum()) / ((settings - 1) * (seeds - 1)) / seeds)


def expected_best(count: int) -> float:
    """Approximate the expected maximum of ``count`` draws from the standard normal distribution (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)
