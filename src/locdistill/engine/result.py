"""Progress and results of a run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locdistill.files import replacing
from locdistill.settings import finite


@dataclass(slots=True)
class RunState:
    """Progress and results in a run's state.

    Attributes:
        step: Optimiser steps done.
        history: One entry per evaluation: ``step``, ``epoch``, the metrics, and the quantities monitored in training
            since the previous evaluation.
        best_at: Index in ``history`` of the best AP; None before the first evaluation.
        bad_evaluations: Number of evaluations since the best.
        stopped: Reason for the end of the run (``finished``, ``patience``, ``time``, ``enough``); empty before the end.
        interrupted: The signal that stopped it early; 0 if none. Not saved: a resumed run is not interrupted.
        wall_before: Seconds of earlier parts of the run, evaluation and saving included.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_at: int | None = None
    bad_evaluations: int = 0
    stopped: str = ""
    interrupted: int = 0
    wall_before: float = 0.0
    _begun: float = field(default_factory=time.monotonic)

    def note(self, epoch: float, metrics: Mapping[str, float]) -> bool:
        """Add an evaluation; return whether it is the best so far. NaN (no objects) is worse than any number."""
        entry = {"step": self.step, "epoch": epoch, **{name: float(value) for name, value in metrics.items()}}
        self.history.append(entry)
        if self.best_at is None or rank_of(entry) > rank_of(self.history[self.best_at]):
            self.best_at, self.bad_evaluations = len(self.history) - 1, 0
            return True
        self.bad_evaluations += 1
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values, the arguments of a `RunState` that continues it."""
        return {
            "step": self.step,
            "history": self.history,
            "best_at": self.best_at,
            "bad_evaluations": self.bad_evaluations,
            "stopped": self.stopped,
            "wall_before": self.wall_before + time.monotonic() - self._begun,
        }

    def write(self, path: Path, train_seconds: float) -> None:
        """Write ``metrics.json``."""
        content = {
            "best": None if self.best_at is None else self.history[self.best_at],
            "last": self.history[-1] if self.history else None,
            "seconds": self.state_dict()["wall_before"],
            "train_seconds": train_seconds,
            "steps": self.step,
            "stopped": self.stopped or None,
            "history": self.history,
        }
        text = json.dumps(finite(content), indent=2) + "\n"
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Result of a run.

    Attributes:
        best: Weights of the best evaluation; None if nothing was evaluated.
        last: Weights at the end.
        seconds: Seconds of the whole run, over all its parts.
        train_seconds: Seconds of training only, without evaluation and saving.
        steps: Optimiser steps done.
        stopped: ``finished``, ``patience``, ``time`` or ``enough``.
        history: One entry per evaluation: ``step``, ``epoch``, and the metrics.
        metrics: The entry of the best evaluation; empty if nothing was evaluated.
    """

    best: Path | None
    last: Path
    seconds: float
    train_seconds: float
    steps: int
    stopped: str
    history: tuple[dict[str, float], ...]
    metrics: dict[str, float]

    @classmethod
    def read(cls, out: Path) -> FitResult:
        """Read the result of the run in this folder from its ``metrics.json``."""
        content = json.loads((out / "metrics.json").read_text())
        history = tuple(
            {name: math.nan if value is None else value for name, value in entry.items()}
            for entry in content["history"]
        )
        best = out / "best.safetensors"
        return cls(
            best=best if content["best"] is not None else None,
            last=out / "last.safetensors",
            seconds=content["seconds"],
            train_seconds=content["train_seconds"],
            steps=content["steps"],
            stopped=content["stopped"] or "",
            history=history,
            metrics=max(history, key=rank_of) if history else {},
        )


def rank_of(entry: Mapping[str, float]) -> float:
    """Return AP to compare evaluations by; NaN (no objects) is worse than any number."""
    return -math.inf if math.isnan(entry["AP"]) else entry["AP"]
