"""The look at a distillation run before its first step: what will not work, and what to do about it.

Most runs that gain nothing fail for a reason that could be seen at once: a teacher that finds little on these data, one
that sees the images in other colours than it was trained on, classes that only share their names, regions without
locations. What the recipe's checks can tell from settings alone (see :mod:`locdistill.distillation.compatible`) is
shown together with what only a look at the data can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from locdistill.distillation.cache.teacher import CachedTeacher
from locdistill.distillation.onnx_teacher import OnnxTeacher
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.engine.devices import default_device
from locdistill.engine.settings import EngineSettings
from locdistill.engine.stream import torch_rng_kept
from locdistill.errors import TeacherError
from locdistill.recipe.own import imports_of
from locdistill.recipe.recipe import Recipe
from locdistill.training.preflight.data import in_words, look_at_data, look_at_regions, region_problems
from locdistill.training.preflight.judge import Suspect, baseline, doubts, no_better_than_start, stopping
from locdistill.training.preflight.report import (
    Column,
    PreflightReport,
    Problem,
    facts_of_network,
    facts_of_settings,
    network,
)
from locdistill.training.preflight.teacher import Heard, Hearing, measure, members
from locdistill.training.prepare import Parts
from locdistill.types import Progress


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """How closely to look.

    Attributes:
        images: Validation images on which the teacher is measured, spread evenly over the split; 0 leaves that out.
        seconds: After so long no further images are looked at; the report says how many were.
        progress: Shows how far the measuring is.
        show: Gets the report; what stops the run is raised afterwards. None prints it, unless ``engine.progress`` is
            off.
    """

    images: int = 200
    seconds: float = 45.0
    progress: Progress | None = None
    show: Callable[[PreflightReport], None] | None = None

    def tell(self, report: PreflightReport, recipe: Recipe) -> None:
        """Show the report.

        Raises:
            TeacherError: It says that the run cannot work.
        """
        if self.show is not None:
            self.show(report)
        elif recipe.engine.progress:
            print(report.text(), flush=True)
        if report.stops:
            raise TeacherError("\n  ".join(map(str, report.stops)))


LOOK = Preflight()


def examine(parts: Parts, how: Preflight) -> PreflightReport:
    """Look at a run before its first step. Random generators and the student are left as they were."""
    notes = [*imports_of(parts.recipe.model_dump(mode="json")), *(parts.teacher.notes if parts.teacher else ())]
    if isinstance(parts.teacher, CachedTeacher):  # it is the teacher itself that is looked at
        parts = replace(parts, teacher=parts.teacher.teacher)
    assert parts.recipe.teacher is not None, "there is nothing to look at without a teacher"
    teachers = {} if parts.recipe.teacher.follows else _named(parts)
    facts = {"student": facts_of_settings(parts.detector.settings)}
    facts |= {name: facts_of_network(network(each)) for name, each in teachers.items()} or {"teacher": _average()}
    looked, counts, warnings = look_at_data(parts)
    with torch_rng_kept():
        regions = look_at_regions(parts)
        hearings = _measured(parts, teachers, how)
    looked |= in_words(regions)
    per_image = {"locations": regions.locations, "main": regions.main, "valuable": regions.valuable}
    counts |= {"objects": len(regions.sides), "objects_without_location": len(regions.missed)}
    ap = {name: _numbers(hearing) for name, hearing in hearings.items()}
    warnings += region_problems(parts, regions, _last_bin(teachers), seen=_seen(teachers))
    stops: list[Problem] = []
    there = len(parts.datasets["val"])
    for name, hearing in hearings.items():
        looked[f"{name}'s own AP" if name in teachers else f"AP of {name}"] = _in_words(hearing.heard, there)
    for position, (name, each) in enumerate(teachers.items()):
        if name in hearings:
            suspect = Suspect(parts, name, hearings[name], network(each), position)
            stops += stopping(suspect)
            warnings += [] if stops else doubts(suspect)
    warnings += no_better_than_start(hearings)
    notes += [baseline(parts)] if hearings else []
    return PreflightReport(
        facts=facts,
        looked=looked,
        numbers={**counts, "regions_per_image": per_image, "ap": ap},
        notes=tuple(notes),
        warnings=tuple(warnings),
        stops=tuple(stops),
    )


def _named(parts: Parts) -> dict[str, FrozenTeacher]:
    """The single teachers, by what to call them."""
    assert parts.teacher is not None
    each = members(parts.teacher)
    return {f"teacher {i + 1}" if len(each) > 1 else "teacher": teacher for i, teacher in enumerate(each)}


def _average() -> Column:
    return {"head": "the running average of the student itself"}


def _last_bin(teachers: dict[str, FrozenTeacher]) -> float | None:
    """Position of the last bin, in strides, of the teacher with the fewest; None without any bins."""
    found = []
    for teacher in teachers.values():
        net = network(teacher)
        if isinstance(net, LiveTeacher):
            found.append(float(net.detector.settings.reg_max))
        elif net.facts.bins is not None:
            found.append(float(net.facts.bins.reg_max))
    return min(found, default=None)


def _seen(teachers: dict[str, FrozenTeacher]) -> float:
    """Longest side of the images, as the student sees them, that all teachers can look at."""
    nets = [net for net in map(network, teachers.values()) if isinstance(net, OnnxTeacher) and net.size is not None]
    return min((max(net.size or ()) / net.scale for net in nets), default=math.inf)


def _measured(parts: Parts, teachers: dict[str, FrozenTeacher], how: Preflight) -> dict[str, Hearing]:
    """AP of whom there is something to measure of."""
    heard = parts.teacher is not None and parts.teacher.comparable and bool(teachers) and how.images > 0
    if not heard or not any(len(record.boxes) for record in parts.datasets["val"].records):
        return {}
    device = _device(parts.recipe.engine)
    return measure(parts, teachers, images=how.images, seconds=how.seconds, device=device, progress=how.progress)


def _device(engine: EngineSettings) -> torch.device:
    """The first device of the training, unless it is one that only Lightning knows."""
    if engine.accelerator not in ("auto", "cuda") or default_device() == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", 0 if isinstance(engine.devices, int | str) else engine.devices[0])


def _in_words(heard: Heard, there: int) -> str:
    on = f"on {heard.images} of {there} validation images with {heard.objects} objects"
    return f"{str(heard).removeprefix('AP ')} {on}"


def _numbers(hearing: Hearing) -> dict[str, object]:
    trials = {t.name: {"ap": t.heard.ap, "ap_with_its_own": t.own.ap} for t in hearing.trials}
    return asdict(hearing.heard) | {"other_normalisations": trials}
