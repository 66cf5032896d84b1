"""The demonstration: draw a data set, train a teacher, and see whether it helps a small student.

Everything is small enough for two cores and a few minutes, and none of it comes from the network. What differs from the
published settings, and why:

- images of 128 pixels, levels P3 to P5 and anchors of four strides (32, 64 and 128 pixels) for objects of 18 to 72;
- random weights, so group normalisation, AdamW and an average of the weights;
- the terms of `presets.ld_sharp`: both regions with sixteen times the published weight of 0.25 and at temperature 1
  instead of 10, and no class distillation. Temperature 10 weighs all bins of an edge alike; in so few steps the student
  does better to match the few bins that the teacher believes in. Weight and temperature were chosen by a few runs of
  the first seeds on images of this kind, so the gain is what LD can do here, not what it does untuned.

What it shows with these settings is in ``docs/results.md``; the training of the teacher is in none of its times.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from locdistill.data.settings import DataSettings
from locdistill.data.shapes import ShapesSettings, write_shapes
from locdistill.distillation import presets
from locdistill.engine.settings import EngineSettings
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.recipes.apart import run_apart
from locdistill.recipes.cache import cache_seconds
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.terms import TermSettings
from locdistill.recipes.trial import TrialResult, TrialSettings, run_trial
from locdistill.recipes.trial_page import write_page
from locdistill.settings import Settings

ABOUT = (
    "Drawn images: soft ellipses, rectangles and stars, partly covered by bars. The class shows in the hue, so what is "
    "hard is where the edges are; boxes to train on are jittered by 8 % of their side, those to evaluate on are exact."
)
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

    shapes: ShapesSettings = ShapesSettings(val=400)
    teacher_steps: int = 600
    student_steps: int = 250
    batch: int = 16
    seeds: int = 3


FAST = DemoSettings(shapes=ShapesSettings(train=24, val=8), teacher_steps=4, student_steps=4, batch=4, seeds=2)


def run_demo(
    out: Path, settings: DemoSettings, *, command: str = "", tell: Callable[[str], None] = print
) -> TrialResult:
    """Draw, train, compare, and write the page; what is there already is taken over.

    Raises:
        RunError: The folder holds a demonstration with other settings.
    """
    shapes, count = settings.shapes, settings.shapes.train + settings.shapes.val
    tell(f"drawing: {count} images of {shapes.size} x {shapes.size} pixels")
    data = write_shapes(out / "shapes", shapes)
    result = run_trial(
        demo_trial(data, settings, command=command), out, train=run_apart, tell=tell, remember=cache_seconds
    )
    tell("writing the page")
    write_page(result, out)
    return result


def demo_trial(data: Path, settings: DemoSettings, *, command: str = "") -> TrialSettings:
    """The comparison as data."""
    return TrialSettings(
        name="Localization distillation on drawn shapes",
        about=ABOUT,
        teacher=_recipe("teacher", data, settings, steps=settings.teacher_steps),
        student=_recipe("student", data, settings, steps=settings.student_steps),
        terms=demo_terms(),
        cache=True,
        seeds=tuple(range(settings.seeds)),
        command=command,
    )


def demo_terms() -> dict[str, TermSettings]:
    """Main LD and LD on the valuable region, without class distillation."""
    return {name: TermSettings.of_term(term) for name, term in presets.ld_sharp().items()}


def _recipe(role: Role, data: Path, settings: DemoSettings, *, steps: int) -> Recipe:
    size = settings.shapes.size
    # A student sees an image once or twice: always as it is, so that its teacher has to look at it once for all seeds.
    views = None if role == "teacher" else 1
    return Recipe(
        name=f"shapes-{role}",
        detector=small_detector(role, size=(size, size)),
        data=DataSettings(
            path=str(data),
            sizes=((size, size),),
            views=views,
            batch_per_device=settings.batch,
            workers=0,
            cache=True,
        ),
        engine=short_run(steps),
    )


def short_run(steps: int, *, lr: float = 2e-3) -> EngineSettings:
    """How small detectors are trained from random weights in a few hundred steps; evaluated at the end only."""
    return EngineSettings(
        steps=steps,
        optimizer="adamw",
        lr=lr,
        scale_lr=False,
        weight_decay=0.05,
        norm_bias_decay=False,
        warmup_steps=50,
        schedule="cosine",
        ema=0.99,
        eval_every=0,
        progress=False,
    )


def small_detector(role: Role, *, size: tuple[int, int]) -> DetectorSettings:
    """Residual networks with one block to a stage: 1.6 million parameters that teach 0.4 million.

    ``size`` is the long and the short limit of the images.
    """
    widths, head = {"teacher": ([32, 64, 128, 256], 64), "student": ([16, 32, 64, 96], 48)}[role]
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
        depth=2,
        norm_groups=16,
        levels=(3, 4, 5),
        anchor_scale=4.0,
        input=InputSettings(short=size[1], long=size[0]),
    )
