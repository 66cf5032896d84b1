"""Result of a comparison: recipes at several seeds, each against the first, as tables and as plain data.

A difference is taken seed by seed. Its interval, from :mod:`locdistill.evaluation.paired`, covers other seeds and other
images. The images are resampled once, and every run is evaluated on the same resamples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from locdistill.evaluation.bootstrap import Judgement, Numbers, image_weights
from locdistill.evaluation.paired import OverImages, Paired, Wording, verdict
from locdistill.evaluation.tables import UNDEFINED, Table
from locdistill.settings import finite
from locdistill.study.arms import METRICS, NOTHING, Arm, Run, environment, spread

SIZES = ("APs", "APm", "APl")
_MARK = ", AP of class "
MetricValue = TypeVar("MetricValue")


@dataclass(frozen=True, eq=False)
class Measured:
    """A finished run and its evaluation.

    Attributes:
        run: The run, with all metrics in percent.
        classes: AP by class in percent, NaN for a class without objects.
        judgement: Matching of its detections to ground truth.
        images: Digest of images and objects; the same for all runs of a comparison.
    """

    run: Run
    classes: dict[str, float]
    judgement: Judgement
    images: str


@dataclass(frozen=True)
class EqualTime:
    """The first recipe, trained for as long as another one took.

    Attributes:
        name: Name of the arm with these runs; the first arm itself if both recipes take the same time.
        steps: Number of steps.
    """

    name: str
    steps: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of recipes at several seeds.

    Attributes:
        arms: Compared arms; the first is the baseline of the others.
        runs: Runs by arm, in the order of the seeds; including those at equal time.
        equal_time: First recipe at equal time, by other arm; empty unless requested.
        settings: Settings in which an arm differs from the first, by arm: name, value of the first, value of the arm.
        resamples: Number of resamples of the images.
        notes: Caveats.
        teacher: Run of the teacher, shown beside the others without comparison.
        out: Folder of ``compare.json``, ``compare.md`` and ``report.html``.
        command: Command that reproduces the comparison.
        title: Heading. Default: a heading from the labels.
        about: Description of the data and the detectors.
    """

    arms: tuple[Arm, ...]
    runs: Mapping[str, tuple[Measured, ...]]
    equal_time: Mapping[str, EqualTime] = field(default_factory=dict)
    settings: Mapping[str, tuple[tuple[str, str, str], ...]] = field(default_factory=dict)
    resamples: int = 2000
    notes: tuple[str, ...] = ()
    teacher: Measured | None = None
    out: Path = Path()
    command: str = ""
    title: str = ""
    about: str = ""

    @property
    def first(self) -> Arm:
        """Baseline arm."""
        return self.arms[0]

    @property
    def others(self) -> tuple[Arm, ...]:
        """Arms compared with the first."""
        return self.arms[1:]

    @property
    def labels(self) -> dict[str, str]:
        """Labels of all arms by name, including those at equal time."""
        labels = {arm.name: arm.label for arm in self.arms}
        longer = {time.name: f"{self.first.label}, as long as {labels[arm]}" for arm, time in self.equal_time.items()}
        return labels | {name: label for name, label in longer.items() if name not in labels}

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics: AP, AP50, AP75, AP90, and AP of each object size with objects."""
        everything = [m.run.metrics for measured in self.runs.values() for m in measured]
        sizes = (name for name in SIZES if not any(math.isnan(metrics.get(name, math.nan)) for metrics in everything))
        return (*METRICS, *sizes)

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Classes with ground-truth objects."""
        measured = self.runs[self.first.name][0]
        return tuple(name for name, value in measured.classes.items() if not math.isnan(value))

    def values(self, arm: str, metric: str = "AP") -> list[float]:
        """Return a metric for each seed of an arm, in percent; for a class, use ``class_metric``."""
        return [_of(metric, measured.run.metrics, measured.classes) for measured in self.runs[arm]]

    def difference(self, arm: str, metric: str = "AP", *, equal_time: bool = False) -> Paired:
        """Compute the difference of an arm from the first, seed by seed, over the common seeds.

        Args:
            arm: Name of the other arm.
            metric: Name of the metric, such as ``AP75``, ``APs`` or ``class_metric("cat")``.
            equal_time: Compare with the first recipe at equal time.
        """
        against = self.equal_time[arm].name if equal_time else self.first.name
        here, there = ({m.run.seed: m for m in self.runs[name]} for name in (arm, against))
        sides = [[side[seed] for seed in here if seed in there] for side in (here, there)]
        numbers = [[self._numbers[m.run.folder] for m in side] for side in sides]
        ours, theirs = (np.array([_of(metric, n.means, n.classes) for n in side]) for side in numbers)
        own, its = ([_of(metric, m.run.metrics, m.classes) for m in side] for side in sides)
        return Paired.of(own, its, OverImages.of(100 * np.mean(ours - theirs, 0)))

    @functools.cached_property
    def _numbers(self) -> dict[Path, Numbers]:
        """Metrics of every run on the same resamples, by run folder."""
        measured = [m for measured in self.runs.values() for m in measured]
        weights = image_weights(len(measured[0].judgement.images), self.resamples)
        return {m.run.folder: m.judgement.numbers(weights) for m in measured}

    @functools.cached_property
    def verdicts(self) -> dict[str, str]:
        """Conclusions in a sentence or two, by arm."""
        found = {}
        for arm in self.others:
            here, there = (self.runs[each.name][0].run.steps for each in (arm, self.first))
            condition = "At equal steps" if here == there else f"At {here} steps against {there}"
            words = Wording(arm.label, self.first.label, condition)
            timed = self.difference(arm.name, equal_time=True) if arm.name in self.equal_time else None
            conclusion = verdict(self.difference(arm.name), timed, words)
            found[arm.name] = f"{arm.label} against {self.first.label}: {conclusion}"
        return found

    @property
    def verdict(self) -> str:
        """All verdicts, one per line."""
        return "\n".join(self.verdicts.values())


def class_metric(name: str) -> str:
    """Return the metric name for AP of a class."""
    return f"{_MARK}{name}"


def _of(metric: str, means: Mapping[str, MetricValue], classes: Mapping[str, MetricValue]) -> MetricValue:
    """Return a metric of a class, or a mean over the classes."""
    return classes[metric.removeprefix(_MARK)] if metric.startswith(_MARK) else means[metric]


def summary_table(result: Comparison) -> Table:
    """Tabulate each arm: mean over seeds and standard deviation of each metric, training time and steps."""
    first = _seconds_per_step([m.run for m in result.runs[result.first.name]])
    shown = {label: result.runs[name] for name, label in result.labels.items()}
    if result.teacher is not None:
        shown = {"teacher": (result.teacher,)} | shown
    rows = []
    for label, measured in shown.items():
        runs = [each.run for each in measured]
        cells = [spread([run.metrics[metric] for run in runs]) for metric in result.metrics]
        cost = f"{_seconds_per_step(runs) / first:.2f}" if first > 0 else UNDEFINED
        seconds = spread([run.seconds for run in runs])
        steps = "/".join(map(str, sorted({run.steps for run in runs})))
        rows.append((label, *cells, seconds, cost, steps, str(len(runs))))
    header = ("", *result.metrics, "seconds", "per step", "steps", "seeds")
    title = "Mean over seeds ± standard deviation, in percent; time per step relative to the first"
    return Table(title, header, tuple(rows))


def _seconds_per_step(runs: list[Run]) -> float:
    return statistics.median(run.seconds / max(run.steps, 1) for run in runs)


def difference_table(result: Comparison) -> Table:
    """Tabulate the difference of each arm from the first, metric by metric."""
    rows = []
    for arm in result.others:
        own, its = (result.runs[each.name][0].run.steps for each in (arm, result.first))
        as_trained = "at equal steps" if own == its else "as trained"
        for timed in (False, True):
            if timed and arm.name not in result.equal_time:
                continue
            for metric in result.metrics:
                pair = result.difference(arm.name, metric, equal_time=timed)
                condition = "at equal time" if timed else as_trained
                rows.append((f"{arm.label}: {metric} {condition}", *_cells(pair)))
    return Table(f"Less {result.first.label}, in percentage points", (*_DIFFERENCE,), tuple(rows))


_DIFFERENCE = ("", "mean", "deviation", "95 % interval", "over images alone", "seed by seed")


def _cells(pair: Paired) -> tuple[str, ...]:
    """Format mean, standard deviation, both intervals, and the differences seed by seed."""
    deviation = NOTHING if math.isnan(pair.deviation) else f"{pair.deviation:.1f}"
    interval = NOTHING if math.isinf(pair.low) else f"{pair.low:+z.1f} to {pair.high:+z.1f}"
    images = NOTHING if pair.images is None else f"{pair.images.low:+z.1f} to {pair.images.high:+z.1f}"
    return f"{pair.mean:+z.1f}", deviation, interval, images, ", ".join(f"{value:+z.1f}" for value in pair.differences)


def class_table(result: Comparison) -> Table:
    """Tabulate AP by class: mean over seeds of each arm, and its difference from the first with the interval."""
    rows = []
    for name in result.classes:
        metric = class_metric(name)
        cells = [spread(result.values(arm.name, metric)) for arm in result.arms]
        for arm in result.others:
            mean, _, interval, _, _ = _cells(result.difference(arm.name, metric))
            cells.append(mean if interval == NOTHING else f"{mean} ({interval})")
        rows.append((name, *cells))
    gains = (f"{arm.label} less the first" for arm in result.others)
    return Table("AP by class", ("class", *(arm.label for arm in result.arms), *gains), tuple(rows))


def runs_table(result: Comparison) -> Table:
    """Tabulate all runs."""
    labels, rows = result.labels, []
    for name, measured in result.runs.items():
        for run in (m.run for m in measured):
            numbers = (f"{run.metrics[metric]:.2f}" for metric in result.metrics)
            rows.append((labels[name], str(run.seed), str(run.steps), f"{run.seconds:.1f}", *numbers, str(run.folder)))
    return Table("Every run", ("", "seed", "steps", "seconds", *result.metrics, "folder"), tuple(rows))


def settings_table(result: Comparison) -> Table:
    """Tabulate the settings in which the recipes differ from the first."""
    labels = {arm.name: arm.label for arm in result.arms}
    rows = [(labels[arm], *row) for arm, changes in result.settings.items() for row in changes]
    return Table("What differs", ("", "setting", result.first.label, "here"), tuple(rows))


def explanation(result: Comparison) -> str:
    """Explain the numbers."""
    images = len(result.runs[result.first.name][0].judgement.images)
    return (
        f"Weights at the end of each run are compared, on {images} images. Differences are taken seed by seed. The 95 "
        f"% interval is for other seeds and other images: the error over seeds and that over {result.resamples} "
        "resamples of the images (the same for both sides), put together; the column beside it is for other images "
        "alone, with these very weights. Seconds are training time, without evaluation and the training of a teacher."
    )


def as_json(result: Comparison) -> dict[str, Any]:
    """Return all results as plain data, for JSON."""
    teacher = None if result.teacher is None else result.teacher.run
    content: dict[str, Any] = {
        "command": result.command,
        "environment": environment(),
        "first": result.first.label,
        "verdicts": {arm.label: result.verdicts[arm.name] for arm in result.others},
        "notes": list(result.notes),
        "resamples": result.resamples,
        "images": len(result.runs[result.first.name][0].judgement.images),
        "teacher": None if teacher is None else {**dataclasses.asdict(teacher), "folder": str(teacher.folder)},
        "arms": {label: _arm_json(result, name) for name, label in result.labels.items()},
        "differences": {arm.label: _difference_json(result, arm) for arm in result.others},
        "settings": {
            arm.label: {key: {"first": there, "here": here} for key, there, here in result.settings.get(arm.name, ())}
            for arm in result.others
        },
        "runs": [{**dataclasses.asdict(m.run), "folder": str(m.run.folder)} for of in result.runs.values() for m in of],
    }
    without_nan: dict[str, Any] = finite(content)
    return without_nan


def _arm_json(result: Comparison, name: str) -> dict[str, Any]:
    """Return the results of an arm as plain data, with mean and standard deviation over seeds."""
    measured = result.runs[name]
    values = {"seconds": [m.run.seconds for m in measured]}
    values |= {metric: result.values(name, metric) for metric in (*result.metrics, *map(class_metric, result.classes))}
    both = {
        metric: {"mean": statistics.fmean(v), "deviation": statistics.stdev(v) if len(v) > 1 else math.nan}
        for metric, v in values.items()
    }
    return {
        "seeds": [m.run.seed for m in measured],
        "steps": sorted({m.run.steps for m in measured}),
        "seconds": both["seconds"],
        "seconds_per_step": _seconds_per_step([m.run for m in measured]),
        "metrics": {metric: both[metric] for metric in result.metrics},
        "classes": {c: both[class_metric(c)] for c in result.classes},
    }


def _difference_json(result: Comparison, arm: Arm) -> dict[str, Any]:
    """Return the differences of an arm from the first as plain data."""
    of_all = {metric: metric for metric in result.metrics}
    asked = [("as_trained", of_all), ("classes", {name: class_metric(name) for name in result.classes})]
    if arm.name in result.equal_time:
        asked.append(("equal_time", of_all))
    content: dict[str, dict[str, Any]] = {kind: {} for kind, _ in asked}
    for kind, metrics in asked:
        for shown, metric in metrics.items():
            pair = result.difference(arm.name, metric, equal_time=kind == "equal_time")
            content[kind][shown] = {**dataclasses.asdict(pair), "finding": pair.finding}
    return content


def as_markdown(result: Comparison) -> str:
    """Render verdicts and tables as Markdown."""
    about = "; ".join(f"{key} {value}" for key, value in environment().items())
    tables = (summary_table, difference_table, class_table, settings_table, runs_table)
    about_data = [result.about] if result.about else []
    parts = [
        "# " + heading(result),
        *about_data,
        *result.verdicts.values(),
        *(f"Note: {note}" for note in result.notes),
    ]
    parts += [table(result).markdown() for table in tables]
    parts += [f"{explanation(result)} {about}."]
    if result.command:
        parts.append(f"```\n{result.command}\n```")
    return "\n\n".join(parts) + "\n"


def heading(result: Comparison) -> str:
    """Return the title of page and document."""
    return result.title or f"{', '.join(arm.label for arm in result.others)} against {result.first.label}"
