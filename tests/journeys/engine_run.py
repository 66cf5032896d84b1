"""A training run as a process of its own: `main`, or ``python -m tests.journeys.engine_run OUT '{"settings": {...}}'``.

It can be told to kill itself at a batch, or to wait at one until it was signalled: until a file ``go`` lies beside OUT.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from locdistill.data.loader import evaluation_loader, training_loader
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.teacher import AverageTeacher, LiveTeacher
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.errors import LocdistillError, RunInterrupted
from locdistill.evaluation.agreement import agreement
from locdistill.evaluation.evaluator import Evaluator
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.objective.schedules import Linear
from locdistill.objective.term import Term
from tests.unit.engine.fakes import FakeDetector, FakeObjective, FakePupil, FakeTeacher, Judge, Loaders, watch


class Fated(FakeObjective):
    """Kills its process, as a crash or the kernel would, when it is called for the n-th time."""

    def __init__(self, kill_at: int | None, go: Callable[[], bool], hold_at: int | None, breaks_on: int | None) -> None:
        super().__init__(needs_teacher=True, breaks_on=breaks_on)
        self.kill_at, self.go, self.hold_at, self.calls = kill_at, go, hold_at, 0

    def losses(self, scene: Any) -> dict[str, torch.Tensor]:
        if self.kill_at == self.calls:
            os.kill(os.getpid(), signal.SIGKILL)
        while self.hold_at == self.calls and not self.go():
            time.sleep(0.01)
        self.calls += 1
        return super().losses(scene)


def run(
    out: Path,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    kill_at: int | None = None,
    hold_at: int | None = None,
    breaks_on: int | None = None,
    plain: bool = False,
    batch: int = 4,
    pupil: bool = False,
) -> FitResult:
    """Train the tiny detector; ``plain`` leaves out what depends on how a batch is cut (dropout, batch statistics).

    Its teacher is frozen, or with ``pupil`` follows it.
    """
    detector = FakeDetector(dropout=0.0, norm_eval=True).train() if plain else FakeDetector()
    values = {"log_every": 1, "accelerator": "cpu", "precision": "32", "lr": 0.2, "epochs": 3} | settings
    teacher = FakePupil() if pupil else FakeTeacher()
    objective = Fated(kill_at, out.with_name("go").exists, hold_at, breaks_on)
    module = TrainingModule(detector, objective, teacher, EngineSettings(**values), watch=watch)
    judge = Judge()
    result = fit(
        module,
        make_train_loader=Loaders(batch=batch),
        make_val_loader=Loaders(count=8, batch=2, shuffle=False),
        evaluate=judge,
        out=out,
        resume=resume,
    )
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    if os.environ.get("LOCDISTILL_TEST_RANKS"):
        state = {name: value.tolist() for name, value in detector.state_dict().items()}
        images = sorted(judge.seen[-1]) if judge.seen else None
        (out / f"rank{rank}.json").write_text(json.dumps({"weights": state, "images": images, "steps": result.steps}))
    return result


class Fatal(Objective):
    """A real objective that kills its process when it is called for the n-th time."""

    __setattr__ = object.__setattr__

    def __init__(self, objective: Objective, kill_at: int | None) -> None:
        super().__init__(terms=objective.terms, bins=objective.bins)
        self.kill_at, self.calls = kill_at, 0

    def losses(self, scene: Any) -> dict[str, torch.Tensor]:
        if self.kill_at == self.calls:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return super().losses(scene)


def small_detector(classes: tuple[str, ...], seed: int, *, norm_eval: bool = True, channels: int = 16) -> Detector:
    torch.manual_seed(seed)
    settings = {
        "backbone": "test_resnet",
        "pretrained": False,
        "classes": classes,
        "channels": channels,
        "depth": 1,
        "norm_groups": 4,
        "levels": (3, 4, 5),
        "norm_eval": norm_eval,
        "input": {"short": 96, "long": 128},
    }
    return Detector(DetectorSettings.model_validate(settings))


def taught(methods: tuple[str, ...], balance: float | None) -> dict[str, Term]:
    """The terms of the methods, all of them with adapters."""
    if not methods:
        return ld_full()
    terms = {name: term for method in methods for name, term in METHODS[method]("gfl").items()}
    fading = Linear(first=1.0, last=0.5, start=0.25)
    return {name: replace(term, balance=balance, schedule=fading if balance else None) for name, term in terms.items()}


def distill(
    out: Path,
    settings: dict[str, Any],
    *,
    data: str,
    batch: int,
    workers: int = 0,
    resume: bool = False,
    kill_at: int | None = None,
    average: float | None = None,
    methods: tuple[str, ...] = (),
    balance: float | None = None,
) -> FitResult:
    """Distil the real thing at its smallest: every logit term of the paper, a live teacher, real files.

    With ``average``, a decay, the teacher is the student's average, and batch normalisation is trained. With
    ``methods``, their terms take the place of the paper's, and the teacher's maps are twice as wide; with ``balance``
    they are balanced, and fade away.
    """
    where = DataSettings(path=data, sizes=((128, 96),), batch_per_device=batch, workers=workers, filter_empty=False)
    train, val = open_dataset(where, "train"), open_dataset(where, "val")
    student = small_detector(train.classes, 0, norm_eval=average is None)
    wide = small_detector(train.classes, 1, channels=32 if methods else 16)
    teacher = AverageTeacher(student, average) if average else LiveTeacher(wide)
    objective = Fatal(Objective(terms=supervised() | taught(methods, balance), bins=student.bins), kill_at)
    values = {"log_every": 1, "accelerator": "cpu", "precision": "32", "lr": 0.01, "ema": 0.9} | settings
    module = TrainingModule(student, objective, teacher, EngineSettings(**values), watch=agreement)
    return fit(
        module,
        make_train_loader=lambda rank, world: training_loader(train, where, seed=0, rank=rank, world_size=world),
        make_val_loader=lambda rank, world: evaluation_loader(
            val, student.settings.input, batch=2, workers=workers, rank=rank, world_size=world
        ),
        evaluate=Evaluator(val),
        out=out,
        resume=resume,
    )


def main(out: Path, arguments: dict[str, Any]) -> None:
    """Run, and end as the command line does."""
    try:
        (distill if "data" in arguments else run)(out, **arguments)
    except RunInterrupted as interrupted:
        print(interrupted)
        sys.exit(interrupted.exit_code)
    except LocdistillError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
