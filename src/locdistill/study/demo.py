"""The demonstration: draw a data set, train a teacher, and compare a small student with and without distillation.

Everything fits two cores and a few minutes, and nothing is downloaded. Differences from the published settings, with
reasons:

- images of 64 pixels, levels P3 and P4 and anchors of four strides (32 and 64 pixels) for objects of 15 to 44;
- random initial weights, hence group normalisation, AdamW and an average of the weights;
- the terms of `presets.ld_sharp`: both regions with sixteen times the published weight of 0.25, at temperature 1
  instead of 10, and no class distillation. Temperature 10 gives all bins of an edge similar weight; in so few steps the
  student gains more from matching the few bins with high teacher probability. Weight and temperature were chosen by a
  few runs of the first seeds on images of this kind, so the gain is that of tuned LD;
- jitter and numbers of steps were chosen likewise, among four pairs of numbers of steps, by what these seeds showed.

The students train in parallel, with one thread each. No reported time includes the training of the teacher.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from locdistill.data.resources import cores
from locdistill.data.settings import DataSettings
from locdistill.data.shapes import ShapesSettings, write_shapes
from locdistill.distillation import presets
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError
from locdistill.files import write_text
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import TermSettings
from locdistill.settings import Settings
from locdistill.study.arms import Arm
from locdistill.study.compare.compare import ComparisonPlan, carry_out
from locdistill.study.compare.result import Comparison
from locdistill.training.pace import seconds_per_step
from locdistill.types import Tell

TITLE = "Localization distillation on drawn shapes"
ABOUT = (
    "Drawn images: soft ellipses, rectangles and stars, partly covered by bars. The hue gives the class, so the "
    "difficulty is to locate the edges; training boxes are jittered by 8 % of their side, evaluation boxes are exact."
)
TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
MINUTES = 4.0
STAMP = "demo.json"
Role = Literal["teacher", "student"]


class DemoSettings(Settings):
    """Size of the demonstration.

    Attributes:
        shapes: Settings of the images.
        teacher_steps: Training steps of the teacher.
        student_steps: Training steps of each student at equal steps.
        batch: Images per step.
        seeds: Number of seeds, counted from 0.
    """

    shapes: ShapesSettings = ShapesSettings(
        train=1000, val=200, size=64, radius=(0.12, 0.34), objects=(1, 3), jitter=0.12
    )
    teacher_steps: int = 500
    student_steps: int = 300
    batch: int = 16
    seeds: int = 3


FAST = DemoSettings(shapes=ShapesSettings(train=24, val=8, size=64), teacher_steps=4, student_steps=4, batch=4, seeds=1)


@dataclass(frozen=True)
class Pace:
    """Time per training step on this machine.

    Attributes:
        teacher: Seconds per step of the teacher, with all cores.
        student: Seconds per step of a student, with its share of the cores.
        jobs: Number of parallel students.
    """

    teacher: float
    student: float
    jobs: int

    def minutes(self, settings: DemoSettings) -> float:
        """Estimate the duration of a demonstration, in minutes."""
        run = settings.student_steps + _RUN_STEPS
        side_by_side = math.ceil(2 * settings.seeds / self.jobs) * run * (1 + _TAUGHT) / 2
        longer = math.ceil(settings.seeds / self.jobs) * run * _TAUGHT**2
        steps = side_by_side + longer + _RUN_STEPS + _OTHER_STEPS
        return (settings.teacher_steps * self.teacher + steps * self.student) / 60


_RUN_STEPS = 80
"""Cost of data loading, evaluation and pictures of a run, in steps of a student."""
_OTHER_STEPS = 400
"""Cost of the rest, in steps of a student: start of the processes, cache, intervals, page."""
_TAUGHT = 1.1
"""Ratio of the time of a step with the teacher's cache to that of a step without."""
_SHARES = (1.0, 0.75, 0.5)


def run_demo(
    out: Path,
    settings: DemoSettings,
    *,
    minutes: float | None = MINUTES,
    fixed_seeds: bool = False,
    command: str = "",
    tell: Tell = print,
) -> Comparison:
    """Draw the images, train, compare, and write the page; existing results are reused.

    Args:
        out: Folder of the demonstration.
        settings: Maximum size.
        minutes: Time limit: fewer steps, then fewer seeds, are run to meet it. None for no limit.
        fixed_seeds: Whether to keep the number of seeds.
        command: Command that reproduces the page, shown on it.
        tell: Callback for progress messages.

    Raises:
        RunError: The folder holds a demonstration with other settings.
    """
    shapes, count = settings.shapes, settings.shapes.train + settings.shapes.val
    tell(f"drawing: {count} images of {shapes.size} x {shapes.size} pixels")
    data = write_shapes(out / "shapes", shapes)
    jobs = min(cores(), 2 * settings.seeds)
    known = _known(out)
    if known is not None:
        settings = settings.model_copy(update=known | ({"seeds": settings.seeds} if fixed_seeds else {}))
    elif minutes is not None:
        settings = _fitting(settings, measured_pace(data, settings, jobs), minutes, fixed_seeds=fixed_seeds, tell=tell)
    write_text(out / STAMP, json.dumps({name: getattr(settings, name) for name in _CHOSEN}) + "\n")
    return carry_out(demo_plan(data, out, settings, jobs=jobs, command=command), tell=tell)


_CHOSEN = ("seeds", "teacher_steps", "student_steps")
"""Settings chosen for the machine; a resumed demonstration keeps them."""


def _known(out: Path) -> dict[str, Any] | None:
    """Read the settings chosen at the start of the demonstration; return None if it is new.

    Raises:
        RunError: The file is damaged.
    """
    stamp = out / STAMP
    if not stamp.is_file():
        return None
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
        return {name: int(known[name]) for name in _CHOSEN}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{stamp} cannot be read ({error}); remove it, or choose another folder with --out") from error


def measured_pace(data: Path, settings: DemoSettings, jobs: int) -> Pace:
    """Time a few steps of the teacher with all cores, and of a student with its share of them."""
    threads = torch.get_num_threads()
    teacher = seconds_per_step(_recipe("teacher", data, settings, steps=1))
    try:
        torch.set_num_threads(max(cores() // jobs, 1))
        student = seconds_per_step(_recipe("student", data, settings, steps=1))
    finally:
        torch.set_num_threads(threads)
    return Pace(teacher, student, jobs)


def _fitting(settings: DemoSettings, pace: Pace, minutes: float, *, fixed_seeds: bool, tell: Tell) -> DemoSettings:
    """Return the largest demonstration that fits the time limit, or the smallest one."""
    seeds = [settings.seeds] if fixed_seeds else list(range(settings.seeds, 0, -1))
    sizes = [*((share, seeds[0]) for share in _SHARES), *((_SHARES[-1], fewer) for fewer in seeds[1:])]
    smaller = [
        settings.model_copy(
            update={
                "teacher_steps": max(round(settings.teacher_steps * share), 1),
                "student_steps": max(round(settings.student_steps * share), 1),
                "seeds": count,
            }
        )
        for share, count in sizes
    ]
    chosen = next((each for each in smaller if pace.minutes(each) <= minutes), smaller[-1])
    tell(
        f"timing: {pace.teacher * 1e3:.0f} ms a step of the teacher, {pace.student * 1e3:.0f} ms of a student, "
        f"{pace.jobs} at a time"
    )
    takes = pace.minutes(chosen)
    less = "" if chosen == settings else f" instead of {settings.seeds} and {settings.student_steps}"
    tell(
        f"about {takes:.1f} minutes for {chosen.seeds} seed{'s' if chosen.seeds > 1 else ''} and "
        f"{chosen.student_steps} steps of each student{less}"
        + (f"; --minutes {minutes:g} is too short even for the smallest demonstration" if takes > minutes else "")
    )
    return chosen


def demo_plan(data: Path, out: Path, settings: DemoSettings, *, jobs: int, command: str = "") -> ComparisonPlan:
    """Plan the demonstration as a comparison of two arms."""
    teacher = Arm(TEACHER, "teacher", _recipe("teacher", data, settings, steps=settings.teacher_steps), (0,))
    alone = _recipe("student", data, settings, steps=settings.student_steps)
    # main LD and LD on the valuable region, without class distillation
    taught = alone.model_copy(
        update={
            "name": "shapes-student-ld",
            "terms": alone.terms | {name: TermSettings.of_term(term) for name, term in presets.ld_sharp().items()},
            "teacher": TeacherSettings(weights=str(teacher.folder(0, out) / "last.safetensors"), name="shapes-teacher"),
        }
    )
    seeds = tuple(range(settings.seeds))
    return ComparisonPlan(
        arms=(Arm(ALONE, "student alone", alone, seeds), Arm(DISTILLED, "student + LD", taught, seeds)),
        out=out,
        teacher=teacher,
        equal_time=True,
        cache=True,
        jobs=jobs,
        title=TITLE,
        about=ABOUT,
        command=command,
    )


def _recipe(role: Role, data: Path, settings: DemoSettings, *, steps: int) -> Recipe:
    """Return a recipe of a detector with one residual block per stage, with few channels where the maps are large."""
    size = settings.shapes.size
    widths, head = {"teacher": ([24, 48, 96, 128], 64), "student": ([16, 24, 48, 64], 32)}[role]
    detector = DetectorSettings(
        backbone="resnet18",
        backbone_args={
            "channels": widths,
            "layers": [1, 1, 1, 1],
            "stem_type": "deep",
            "stem_width": 8,
            "replace_stem_pool": True,
            "norm_layer": "groupnorm:8",
        },
        pretrained=False,
        channels=head,
        depth=1,
        norm_groups=8,
        levels=(3, 4),
        anchor_scale=4.0,
        input=InputSettings(short=size, long=size),
    )
    # A student trains on an image once or twice: without augmentation, so that its teacher predicts on it once for all
    # seeds.
    views = None if role == "teacher" else 1
    return Recipe(
        name=f"shapes-{role}",
        detector=detector,
        data=DataSettings(
            path=str(data),
            sizes=((size, size),),
            views=views,
            batch_per_device=settings.batch,
            workers=0,
            cache=True,
        ),
        engine=short_run(steps, warmup=20).model_copy(update={"accelerator": "cpu", "ema": 0.98, "precision": "32"}),
    )


def short_run(steps: int, *, lr: float = 2e-3, warmup: int = 50) -> EngineSettings:
    """Return settings to train a small detector from random weights in a few hundred steps, evaluated at the end."""
    return EngineSettings(
        steps=steps,
        optimizer="adamw",
        lr=lr,
        scale_lr=False,
        weight_decay=0.05,
        norm_bias_decay=False,
        warmup_steps=warmup,
        schedule="cosine",
        ema=0.99,
        eval_every=0,
        progress=False,
    )
