"""A first look that can fail: a few training images are learnt by heart within about a minute.

A detector that cannot learn four images will not learn four thousand, and the reason is quicker to find on four. The
recipe's own data, detector, terms and assigner are used; augmentation is off, optimiser and schedule are those that
learn by heart quickly, and boxes are weighted alike. Only a learning rate far from the usual one is kept in proportion,
so that its fault shows.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from torch.nn.modules.batchnorm import _BatchNorm

from locdistill.data.loader import training_loader
from locdistill.data.records import Dataset
from locdistill.data.settings import ColourSettings
from locdistill.engine.launch import process_count
from locdistill.engine.log import duration, read_metrics
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.errors import NonFiniteLossError, RunError
from locdistill.evaluation.evaluator import Evaluator
from locdistill.files import write_text
from locdistill.inference.evaluate import validation_loader
from locdistill.inference.evaluation_files import truth_layer
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Positives
from locdistill.recipe import run_folder
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request, TrainWords, takes
from locdistill.settings import finite
from locdistill.training.overfit.before import Before, blank_images, measure
from locdistill.training.overfit.images import choose
from locdistill.training.overfit.matches import compare
from locdistill.training.overfit.verdict import (
    CANNOT,
    ENOUGH,
    IDLE,
    After,
    ImageFacts,
    data_problems,
    not_finite,
    own_rate,
    rate_problems,
    reasons,
    relative_rate,
    start_problems,
)
from locdistill.training.preflight.data import look_at_regions, missed_objects
from locdistill.training.preflight.look import first_device
from locdistill.training.preflight.report import Finding
from locdistill.training.prepare import Parts, compose
from locdistill.training.train import recipe_for
from locdistill.types import Batch, Detections
from locdistill.viz.draw import Layer, draw_layers
from locdistill.viz.mosaic import mosaic

log = logging.getLogger("locdistill")
SECONDS = 60.0
"""Seconds of training, unless engine.time_limit_seconds is set."""
LEAST, MOST = 120, 600
"""Steps of training: at least, however long they take, and at most."""
EVALUATIONS = 15
"""Number of evaluations."""
RATE = 2e-3
"""Learning rate of AdamW."""
BATCH = 8
"""Largest number of images in a step."""
MOMENTUM = 0.5
"""Share of a batch in the running statistics of batch normalisation, which must keep up with so few steps."""
PICTURE, CELL, SHOWN = "overfit.png", 420, 0.3
PLAIN: dict[str, Any] = {
    "size_mode": "value",
    "flip": 0.0,
    "flip_vertical": 0.0,
    "turns": False,
    "rotate": 0.0,
    "scale": None,
    "translate": 0.0,
    "mosaic": 0.0,
    "colour": ColourSettings(),
    "erase": 0.0,
    "augment": "none",
    "views": None,
    "workers": 0,
    "cache": 1.0,
}
"""Data settings of a look: no augmentation, and the images in memory."""


@dataclass(frozen=True, kw_only=True)
class OverfitResult:
    """Result of a look.

    Attributes:
        out: Folder of the look.
        passed: Whether the images were learnt by heart.
        verdict: One line.
        findings: Reasons, the likeliest first; after a pass, what is odd all the same.
        ap50: AP50 on the images; NaN without an evaluation.
        seconds: Seconds of training and evaluation.
        images: Names of the images.
        picture: Truth and predictions side by side; None where nothing was trained.
    """

    out: Path
    passed: bool
    verdict: str
    findings: tuple[Finding, ...]
    ap50: float
    seconds: float
    images: tuple[str, ...]
    picture: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {"out": str(self.out), "picture": self.picture and str(self.picture)}

    def text(self) -> str:
        """Format the result as plain text."""
        lines = [self.verdict]
        for finding in self.findings:
            remedy = ": ".join(filter(None, (finding.remedy, " ".join(finding.settings))))
            lines += [f"- {finding.what}", *([f"  -> {remedy}"] if remedy else [])]
        if self.passed:
            lines.append(f"{CANNOT}.")
        if self.picture is not None:
            lines.append(f"truth and predictions: {self.picture}")
        return "\n".join(lines)


@dataclass
class Judge:
    """Evaluation that remembers.

    Attributes:
        evaluator: Evaluator of the images.
        detections: Detections of the last evaluation.
        ap50: AP50 of each evaluation.
    """

    evaluator: Evaluator
    detections: dict[int, Detections] = field(default_factory=dict)
    ap50: list[float] = field(default_factory=list)

    def __call__(self, detections: dict[int, Detections]) -> dict[str, float]:
        """Evaluate."""
        self.detections, metrics = detections, self.evaluator(detections)
        self.ap50.append(metrics["AP50"])
        return metrics


class Repeated:
    """Loader and sampler of the same few batches, kept in memory: each epoch is a number of passes over them.

    Args:
        batches: The batches of a pass.
        passes: Number of passes in an epoch, each between two evaluations.
        batch_size: Images of a batch.
    """

    def __init__(self, batches: list[Batch], passes: int, batch_size: int) -> None:
        self.batches, self.passes, self.batch_size, self.sampler = batches, passes, batch_size, self

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.batches) * self.passes

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        for _ in range(self.passes):
            yield from self.batches

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: all epochs are the same."""

    def skip(self, batches: int) -> None:
        """Do nothing: a look is not resumed."""


@takes(TrainWords)
def overfit(
    data: str | Path | None = None,
    *,
    images: int = 4,
    out: str | Path | None = None,
    **words: Unpack[TrainWords],
) -> OverfitResult:
    """Learn a few training images by heart, and say whether data, labels and loss fit together.

    Args:
        data: As for :func:`locdistill.train`.
        images: Number of images.
        out: Folder of the look, which must be new. Default: ``runs/overfit-<name>``.
        words: See :class:`Request`.

    Raises:
        LocdistillError: Recipe, data, weights or folder are invalid; a subclass for each cause.
    """
    recipe = recipe_for(Request(data=data, teacher=None, methods=(), **words), "train")
    path = run_folder.new_folder(out, f"overfit-{recipe.name}")
    parts = compose(by_heart(recipe), fresh=True)
    if process_count(parts.recipe.engine) > 1:
        raise RunError("a look at a few images takes one process; start it without torchrun")
    few = choose(parts.datasets["train"], images)
    batch = {"batch_per_device": max(1, min(len(few), BATCH)), "repeat": 1}
    parts = replace(
        parts,
        datasets={"train": few, "val": few},
        recipe=parts.recipe.model_copy(update={"data": parts.recipe.data.model_copy(update=batch)}),
        objective=alike(parts.objective),
    )
    run_folder.write_start(path, recipe, run_folder.facts_of(parts.datasets, parts.recipe.engine))
    with run_folder.logged_to(path):
        result = _Look(parts, recipe, path).result()
        logging.getLogger(f"{log.name}.overfit").info("%s", result.text())  # printed by the verb
    write_text(path / "overfit.txt", result.text() + "\n")
    write_text(path / "overfit.json", json.dumps(finite(result.as_dict()), indent=1) + "\n")
    return result


def by_heart(recipe: Recipe) -> Recipe:
    """Return the recipe with settings that learn a few images by heart quickly."""
    engine, limits = recipe.engine, recipe.detector.input
    sizes = ((limits.long, limits.short),)
    changed = {
        "steps": LEAST,
        "optimizer": "adamw",
        "lr": RATE * own_rate(relative_rate(engine, recipe.data.batch_per_device)),
        "scale_lr": False,
        "weight_decay": 0.0,
        "warmup_steps": LEAST // 10,
        "schedule": "cosine",
        "accumulate": 1,
        "ema": None,
        "eval_every": 1,
        "patience": None,
        "checkpoint_every_steps": None,
        "checkpoint_every_minutes": None,
        "devices": "auto",
        "nodes": 1,
        "log_every": 5,
        "profile": False,
        "speed": engine.speed.model_copy(update={"compile": False, "cuda_graphs": False}),
    }
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=PLAIN | {"sizes": sizes}),
            "engine": engine.model_copy(update=changed),
        }
    )


def alike(objective: Objective) -> Objective:
    """Return the objective with all boxes weighted alike, whatever their scores.

    GFL weights the losses of a box by its score, and trains the score towards the overlap of the box: an object that is
    late in both, such as a small one with a single location, would need far more than a minute.
    """
    terms = {
        name: replace(term, on=Positives()) if term.on == Positives(by="student_confidence") else term
        for name, term in objective.terms.items()
    }
    return replace(objective, terms=terms)


def timed(engine: EngineSettings, step: float) -> EngineSettings:
    """Return the settings with a length that fits the seconds of a step."""
    limit = engine.time_limit_seconds or SECONDS
    steps = max(LEAST, min(MOST, int(limit / max(step, 1e-4))))
    length = {"steps": steps, "warmup_steps": steps // 20, "time_limit_seconds": max(limit, 1.5 * steps * step)}
    return engine.model_copy(update=length)


class _Look:
    """A look in progress.

    Args:
        parts: The prepared run, on the few images.
        recipe: The recipe as it was asked for.
        path: Folder of the look.
    """

    def __init__(self, parts: Parts, recipe: Recipe, path: Path) -> None:
        self.parts, self.recipe, self.path = parts, recipe, path
        self.data = parts.datasets["train"]
        self.judge = Judge(Evaluator(self.data))
        self.module = TrainingModule(parts.detector, parts.objective, None, parts.recipe.engine, speed=parts.speed)
        settings = parts.recipe.data
        self.batches = [*training_loader(self.data, settings, seed=parts.recipe.engine.seed)]
        self.begun = time.monotonic()

    def result(self) -> OverfitResult:
        """Look, and judge."""
        facts, missed = self._facts()
        relative = relative_rate(self.recipe.engine, self.recipe.data.batch_per_device)
        rate = rate_problems(self.recipe.engine, relative)
        stops = data_problems(facts, missed)
        if stops:
            return self._result(None, stops)
        before = measure(self.module, self.batches[0], first_device(self.parts.recipe.engine))
        stops = start_problems(before) or (rate if relative < IDLE else [])
        if stops:
            return self._result(None, stops)
        self.module.settings = engine = timed(self.parts.recipe.engine, before.seconds)
        steps = engine.steps or LEAST
        log.info("learning %d images by heart: %s", len(self.data), ", ".join(r.path.name for r in self.data.records))
        log.info(
            "a step takes %.2g s: %d steps, %s at most, less if AP50 reaches %g",
            *(before.seconds, steps, duration(steps * before.seconds), ENOUGH),
        )
        try:
            self._train()
        except NonFiniteLossError as error:
            return self._result(None, [*rate, not_finite(error.terms, f"at step {error.step}")])
        after = self._after(before)
        return self._result(after, reasons(after, facts, missed, rate))

    def _facts(self) -> tuple[ImageFacts, Finding | None]:
        """Look at images and objects; return the report on objects without a location too."""
        settings = self.parts.detector.settings
        regions = look_at_regions(self.parts)
        facts = ImageFacts(
            images=len(self.data),
            kind=self.data.kind,
            classes=self.data.classes,
            blank=blank_images(self.data),
            regions=regions,
            strides=settings.strides,
            anchors=tuple(settings.anchor_scale * stride for stride in settings.strides),
        )
        return facts, missed_objects(self.parts, regions) if len(regions.missed) else None

    def _train(self) -> FitResult:
        passes = max(1, (self.module.settings.steps or LEAST) // EVALUATIONS // len(self.batches))
        loader = Repeated(self.batches, passes, self.parts.recipe.data.batch_per_device)
        for module in self.parts.detector.modules():
            if isinstance(module, _BatchNorm) and module.momentum is not None:
                module.momentum = MOMENTUM
        self.begun = time.monotonic()
        try:
            return fit(
                self.module,
                make_train_loader=lambda *_: loader,
                make_val_loader=lambda *_: validation_loader(
                    self.data, self.parts.detector.settings, batch=BATCH, workers=0
                ),
                evaluate=self.judge,
                out=self.path,
                resume=False,
                enough=lambda metrics: metrics["AP50"] >= ENOUGH,
            )
        finally:
            for name in ("last.ckpt", "last.safetensors", "best.safetensors"):
                (self.path / name).unlink(missing_ok=True)  # nobody uses weights that know four images

    def _after(self, before: Before) -> After:
        rows = [row["train/total"] for row in read_metrics(self.path / "metrics.csv") if "train/total" in row]
        ap50 = [0.0 if math.isnan(value) else value for value in self.judge.ap50]
        return After(
            ap50=ap50[-1],
            rising=len(ap50) < 2 or ap50[-1] > ap50[-2],
            first=before.total,
            last=rows[-1] if rows else math.nan,
            matches=compare(self.data, self.judge.detections),
            frozen=1 - before.learning / before.parameters,
            random=self.recipe.detector.pretrained is False and self.parts.start is None,
        )

    def _result(self, after: After | None, findings: list[Finding]) -> OverfitResult:
        seconds, passed = time.monotonic() - self.begun, after is not None and after.passed
        ap50 = after.ap50 if after is not None else math.nan
        head = f"AP50 {ap50:.2f} on" if after is not None else "stopped on"
        says = "data, labels and loss fit together" if passed else findings[0].what
        draw(self.path / PICTURE, self.data, self.judge.detections)
        return OverfitResult(
            out=self.path,
            passed=passed,
            verdict=f"{head} {len(self.data)} images after {seconds:.0f} s: {says}",
            findings=tuple(findings),
            ap50=ap50,
            seconds=seconds,
            images=tuple(str(record.path) for record in self.data.records),
            picture=self.path / PICTURE,
        )


def draw(path: Path, dataset: Dataset, detections: Mapping[int, Detections]) -> None:
    """Draw the truth of each image, and beside it what is detected."""
    sheets, captions = [], []
    for record in dataset.records:
        image, truth, found = dataset.picture(record), truth_layer(record), detections.get(record.image_id)
        shown = [truth._replace(style="predicted")]
        sheets.append(draw_layers(image, shown, classes=dataset.classes, min_side=CELL))
        kept = []
        if found is not None:
            high = found.scores >= SHOWN
            kept = [Layer(found.boxes[high], found.labels[high], found.scores[high])]
        sheets.append(draw_layers(image, kept, classes=dataset.classes, min_side=CELL))
        captions.append(f"{record.path.name}: truth, objects: {len(truth.labels)}")
        captions.append(f"detected: {len(kept[0].labels)}" if kept else "nothing was trained")
    title = f"left: truth; right: detections with a score of at least {SHOWN}"
    mosaic(sheets, captions, columns=2 if len(dataset) < 3 else 4, cell=CELL, title=title).save(path)
