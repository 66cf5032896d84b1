"""The demonstration: draw a data set, train a teacher, and compare a small student without and with it.

Everything is small enough for two cores and a few minutes, and none of it comes from the network. What differs from the
published settings, and why:

- images of 64 pixels, levels P3 and P4 and anchors of four strides (32 and 64 pixels) for objects of 15 to 44;
- random weights, so group normalisation, AdamW and an average of the weights;
- the terms of `presets.ld_sharp`: both regions with sixteen times the published weight of 0.25 and at temperature 1
  instead of 10, and no class distillation. Temperature 10 weighs all bins of an edge alike; in so few steps the student
  does better to match the few bins that the teacher believes in. Weight and temperature were chosen by a few runs of
  the first seeds on images of this kind, so the gain is what LD can do here, not what it does untuned.

The students train side by side, one thread each. The training of the teacher is in none of the times.
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
from locdistill.study.pace import seconds_per_step
from locdistill.types import Tell

TITLE = "Localization distillation on drawn shapes"
ABOUT = (
    "Drawn images: soft ellipses, rectangles and stars, partly covered by bars. The class shows in the hue, so what is "
    "hard is where the edges are; boxes to train on are jittered by 8 % of their side, those to evaluate on are exact."
)
TEACHER, ALONE, DISTILLED = "teacher", "alone", "distilled"
MINUTES = 4.0
STAMP = "demo.json"
Role = Literal["teacher", "student"]


class DemoSettings(Settings):
    """How large the demonstration is.

    Attributes:
        shapes: The images.
        teacher_steps: Of the teacher.
        student_steps: Of each student at equal steps.
        batch: Images per step.
        seeds: Number of seeds, counted from 0.
    """

    shapes: ShapesSettings = ShapesSettings(train=1000, val=200, size=64, radius=(0.12, 0.34), objects=(1, 3))
    teacher_steps: int = 700
    student_steps: int = 240
    batch: int = 16
    seeds: int = 3


FAST = DemoSettings(shapes=ShapesSettings(train=24, val=8, size=64), teacher_steps=4, student_steps=4, batch=4, seeds=1)


@dataclass(frozen=True)
class Pace:
    """Seconds of a step on this machine.

    Attributes:
        teacher: Of the teacher, with all cores.
        student: Of a student, beside others.
        jobs: Students at a time.
    """

    teacher: float
    student: float
    jobs: int

    def minutes(self, settings: DemoSettings) -> float:
        """Minutes that a demonstration takes, about."""
        run = settings.student_steps + _RUN_STEPS
        side_by_side = math.ceil(2 * settings.seeds / self.jobs) * run * (1 + _TAUGHT) / 2
        longer = math.ceil(settings.seeds / self.jobs) * run * _TAUGHT**2
        steps = side_by_side + longer + _RUN_STEPS + _OTHER_STEPS
        return (settings.teacher_steps * self.teacher + steps * self.student) / 60


_RUN_STEPS = 80
"""What opening, evaluation and pictures of a run cost, in steps of a student."""
_OTHER_STEPS = 600
"""The same of the rest: beginning the processes, the cache, the intervals, the page."""
_TAUGHT = 1.2
"""Time of a step with the teacher's cache, over that of one without."""
_SECONDS = 30.0
"""Beginning the processes, the cache, the intervals, the page."""
_BESIDE = 1.2
"""Time of a step beside other trainings, over that of one alone."""
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
    """Draw, train, compare, and write the page; what is there already is taken over.

    Args:
        out: Folder of the demonstration.
        settings: How large it is at most.
        minutes: It takes fewer steps, then fewer seeds, where it would take longer than that; None takes all.
        fixed_seeds: Whether the number of seeds stays.
        command: What the reader of the page types to get the same.
        tell: Gets a line of progress now and then.

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
"""What is chosen for the machine, and stays when the demonstration goes on."""


def _known(out: Path) -> dict[str, Any] | None:
    """What was chosen when the demonstration began.

    Raises:
        RunError: The file is not as it was written.
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
    return Pace(teacher, student * (_BESIDE if jobs > 1 else 1.0), jobs)


def _fitting(settings: DemoSettings, pace: Pace, minutes: float, *, fixed_seeds: bool, tell: Tell) -> DemoSettings:
    """The largest demonstration that fits into the minutes, or the smallest one."""
    seeds = [settings.seeds] if fixed_seeds else list(range(settings.seeds, 0, -1))
    smaller = [_share(settings, share, seeds[0]) for share in _SHARES]
    smaller += [_share(settings, _SHARES[-1], fewer) for fewer in seeds[1:]]
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
        + (f"; that is as little as it takes here, --minutes {minutes:g} is less" if takes > minutes else "")
    )
    return chosen


def _share(settings: DemoSettings, share: float, seeds: int) -> DemoSettings:
    steps = {name: max(round(getattr(settings, name) * share), 1) for name in ("teacher_steps", "student_steps")}
    return settings.model_copy(update=steps | {"seeds": seeds})


def demo_plan(data: Path, out: Path, settings: DemoSettings, *, jobs: int, command: str = "") -> ComparisonPlan:
    """The demonstration as a comparison of two arms."""
    teacher = Arm.of(TEACHER, "teacher", _recipe("teacher", data, settings, steps=settings.teacher_steps), (0,))
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
        arms=(Arm.of(ALONE, "student alone", alone, seeds), Arm.of(DISTILLED, "student + LD", taught, seeds)),
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
    size = settings.shapes.size
    # A student sees an image once or twice: always as it is, so that its teacher has to look at it once for all seeds.
    views = None if role == "teacher" else 1
    return Recipe(
        name=f"shapes-{role}",
        detector=_detector(role, size),
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


def _detector(role: Role, size: int) -> DetectorSettings:
    """Residual networks of one block to a stage, narrow where the maps are large."""
    widths, head = {"teacher": ([24, 48, 96, 128], 64), "student": ([16, 24, 48, 64], 32)}[role]
    return DetectorSettings(
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


def short_run(steps: int, *, lr: float = 2e-3, warmup: int = 50) -> EngineSettings:
    """How small detectors are trained from random weights in a few hundred steps; evaluated at the end only."""
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
