"""Preflight check of a distillation run, before its first step: problems and their remedies.

Most runs without a gain fail for a reason that is visible from the start: a teacher with low AP on these data, a wrong
normalisation of the teacher's images, classes that share only their names, regions without locations. The report
combines checks of the settings alone (see :mod:`locdistill.distillation.compatible`) with checks of the data.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from locdistill.distillation.cache.teacher import CachedTeacher
from locdistill.distillation.onnx_teacher import OnnxTeacher
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.engine.devices import default_device
from locdistill.engine.settings import EngineSettings
from locdistill.errors import TeacherError
from locdistill.recipe.own import imports_of
from locdistill.recipe.recipe import Recipe
from locdistill.training.preflight.data import in_words, look_at_data, look_at_regions, region_problems
from locdistill.training.preflight.judge import (
    Suspect,
    baseline,
    doubts,
    no_better_than_start,
    stopping,
    unlike_assigners,
)
from locdistill.training.preflight.report import (
    Finding,
    PreflightReport,
    facts_of_network,
    facts_of_settings,
    network,
)
from locdistill.training.preflight.teacher import Measurement, measure, members
from locdistill.training.prepare import Parts
from locdistill.types import Progress


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """Extent and output of the preflight check.

    Attributes:
        images: Number of validation images on which the teacher is evaluated, spread evenly over the split; 0 for no
            evaluation.
        seconds: Time limit of the evaluation; no further images are read after it. The report states their number.
        progress: Progress display of the evaluation.
        show: Callback for the report, called before an error that stops the run is raised. None for printing the
            report, unless ``engine.progress`` is off.
    """

    images: int = 200
    seconds: float = 45.0
    progress: Progress | None = None
    show: Callable[[PreflightReport], None] | None = None

    def tell(self, report: PreflightReport, recipe: Recipe) -> None:
        """Show the report.

        Raises:
            TeacherError: The report has a problem that stops the run.
        """
        if self.show is not None:
            self.show(report)
        elif recipe.engine.progress:
            print(report.text(), file=sys.stderr, flush=True)
        if report.stops:
            raise TeacherError("\n  ".join(map(str, report.stops)))


LOOK = Preflight()


def examine(parts: Parts, how: Preflight) -> PreflightReport:
    """Check a run before its first step. Random generators and the student stay unchanged."""
    notes = [*imports_of(parts.recipe.model_dump(mode="json")), *(parts.teacher.notes if parts.teacher else ())]
    if isinstance(parts.teacher, CachedTeacher):  # the check is of the teacher itself
        parts = replace(parts, teacher=parts.teacher.teacher)
    assert parts.recipe.teacher is not None, "the check is for runs with a teacher"
    assert parts.teacher is not None
    single = () if parts.recipe.teacher.follows else members(parts.teacher)
    teachers = {f"teacher {i + 1}" if len(single) > 1 else "teacher": teacher for i, teacher in enumerate(single)}
    facts = {"student": facts_of_settings(parts.detector.settings)}
    facts |= {name: facts_of_network(network(each)) for name, each in teachers.items()} or {
        "teacher": {"head": "the running average of the student itself"}
    }
    looked, counts, warnings = look_at_data(parts)
    with torch.random.fork_rng(devices=[]):
        regions = look_at_regions(parts)
        measurements = _measured(parts, teachers, how)
    looked |= in_words(regions)
    per_image = {"locations": regions.locations, "main": regions.main, "valuable": regions.valuable}
    counts |= {"objects": len(regions.sides), "objects_without_location": len(regions.missed)}
    last_bin, seen = _limits(teachers)
    warnings += region_problems(parts, regions, last_bin, seen=seen)
    warnings += unlike_assigners(parts, {name: network(each) for name, each in teachers.items()})
    stops: list[Finding] = []
    ap: dict[str, object] = {}
    there = len(parts.datasets["val"])
    for name, measurement in measurements.items():
        score = measurement.score
        trials = {t.name: {"ap": t.score.ap, "ap_with_its_own": t.own.ap} for t in measurement.trials}
        ap[name] = asdict(score) | {"other_normalisations": trials}
        on = f"on {score.images} of {there} validation images with {score.objects} objects"
        looked[f"{name}'s own AP" if name in teachers else f"AP of {name}"] = f"{str(score).removeprefix('AP ')} {on}"
    for position, (name, each) in enumerate(teachers.items()):
        if name in measurements:
            suspect = Suspect(parts, name, measurements[name], network(each), position)
            stops += stopping(suspect)
            warnings += [] if stops else doubts(suspect)
    warnings += no_better_than_start(measurements)
    notes += [baseline(parts)] if measurements else []
    return PreflightReport(
        facts=facts,
        looked=looked,
        numbers={**counts, "regions_per_image": per_image, "ap": ap},
        notes=tuple(notes),
        warnings=tuple(warnings),
        stops=tuple(stops),
    )


def _limits(teachers: dict[str, FrozenTeacher]) -> tuple[float | None, float]:
    """Return the limits of all teachers together.

    Returns:
        The position of the last bin, in strides, of the teacher with the fewest bins; None without any bins. And the
        largest image side, in pixels of the student's input, that fits the input sizes of all.
    """
    last_bins, sides = [], []
    for net in map(network, teachers.values()):
        if isinstance(net, LiveTeacher):
            last_bins.append(float(net.detector.settings.reg_max))
        elif net.facts.bins is not None:
            last_bins.append(float(net.facts.bins.reg_max))
        if isinstance(net, OnnxTeacher) and net.size is not None:
            sides.append(max(net.size) / net.scale)
    return min(last_bins, default=None), min(sides, default=math.inf)


def _measured(parts: Parts, teachers: dict[str, FrozenTeacher], how: Preflight) -> dict[str, Measurement]:
    """Measure the AP of the teachers on the first device of the training; empty if undefined or not wanted."""
    comparable = parts.teacher is not None and parts.teacher.comparable and bool(teachers) and how.images > 0
    if not comparable or not any(len(record.boxes) for record in parts.datasets["val"].records):
        return {}
    device = first_device(parts.recipe.engine)
    return measure(parts, teachers, images=how.images, seconds=how.seconds, device=device, progress=how.progress)


def first_device(engine: EngineSettings) -> torch.device:
    """Return the first device of the training, or the CPU if only Lightning supports the accelerator."""
    if engine.accelerator not in ("auto", "cuda") or default_device() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", 0 if isinstance(engine.devices, int | str) else engine.devices[0])
