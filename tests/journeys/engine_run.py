"""A training run as a script of its own: ``python -m tests.journeys.engine_run OUT '{"settings": {...}}'``.

It can be told to kill itself at a batch, or to dawdle so that it can be signalled.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from locdistill.engine import EngineSettings, FitResult, RunInterrupted, TrainingModule, fit
from locdistill.errors import LocdistillError
from tests.unit.engine_fakes import FakeDetector, FakeObjective, FakeTeacher, Judge, Loaders


class Fated(FakeObjective):
    """Kills its process, as a crash or the kernel would, when it is called for the n-th time."""

    def __init__(self, kill_at: int | None, dawdle: float, breaks_on: int | None = None) -> None:
        super().__init__(needs_teacher=True, breaks_on=breaks_on)
        self.kill_at, self.dawdle, self.calls = kill_at, dawdle, 0

    def __call__(self, *arguments: Any, **keywords: Any) -> dict[str, torch.Tensor]:
        if self.kill_at == self.calls:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        time.sleep(self.dawdle)
        return super().__call__(*arguments, **keywords)


def run(
    out: Path,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    kill_at: int | None = None,
    dawdle: float = 0.0,
    breaks_on: int | None = None,
    plain: bool = False,
    batch: int = 4,
) -> FitResult:
    """Train the tiny detector; ``plain`` leaves out what depends on how a batch is cut (dropout, batch statistics)."""
    detector = FakeDetector(dropout=0.0, norm_eval=True).train() if plain else FakeDetector()
    values = {"log_every": 1, "accelerator": "cpu", "lr": 0.2, "epochs": 3} | settings
    module = TrainingModule(detector, Fated(kill_at, dawdle, breaks_on), FakeTeacher(), EngineSettings(**values))
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


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    except RunInterrupted as interrupted:
        print(interrupted)
        sys.exit(interrupted.exit_code)
    except LocdistillError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)
