"""Profile of training: time spent waiting for the loader, and time of each part of a step."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from locdistill.engine.checkpoint import gathered
from locdistill.types import Batch

TEXT, TRACE = "profile.txt", "profile.json"
WARM_UP = 10
"""Batches before measurement, during which workers start, kernels are selected and the step is compiled."""
LOOKED_INTO = 3
"""Batches with every operation recorded, which slows them down: they are not measured either."""
OPERATIONS = 25
MUCH = 0.1
"""Fraction of the time spent waiting for the loader from which a remedy is suggested."""
PARTS = {
    "loader": "waiting for the loader",
    "copy": "copying to the device",
    "student": "student",
    "teacher": "teacher",
    "losses": "assignment and losses",
    "backward": "backward",
    "update": "update",
    "between": "between steps",
}


@dataclass(slots=True)
class Laps:
    """Seconds of the parts of a step, recorded as each part ends.

    On CUDA they are seconds of the device, between events in its queue; only `settle` synchronises. The process runs
    ahead of the device, so loading is measured only while the device is idle.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _marks: list[tuple[str | None, Any]] = field(default_factory=list)

    def lap(self, part: str | None) -> None:
        """Assign the time since the last lap to this part; None discards it."""
        now: Any
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((part, now))

    def settle(self) -> None:
        """Sum the laps after synchronisation with the device."""
        for (_, start), (part, end) in pairwise(self._marks):
            if part is None:
                continue
            if self.device.type == "cuda":
                end.synchronize()
                seconds = float(start.elapsed_time(end)) / 1e3
            else:
                seconds = end - start
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self._marks = self._marks[-1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Measured times.

    Attributes:
        steps: Measured batches, on each process.
        images: Images in a batch, over all processes.
        parts: Seconds of each part summed over these batches, on the process that waited longest for its loader.
        workers: Worker processes that read images, per process.
        memory: Peak number of bytes in use on the device, or by the process on a CPU; 0 if unknown.
    """

    steps: int
    images: int
    parts: dict[str, float]
    workers: int
    memory: int

    def verdict(self) -> str:
        """Return one line with the bottleneck and a remedy."""
        if not self.steps:
            return f"too few steps to measure; train for {WARM_UP + LOOKED_INTO + 2} batches or more"
        total = sum(self.parts.values())
        waiting = self.parts.get("loader", 0.0) / total if total else 0.0
        found = f"training waited for the loader {waiting:.0%} of the time".replace("%", " %")
        if waiting <= MUCH:
            return found
        more = f"raise data.workers (now {self.workers})" if self.workers else "set data.workers (now 0)"
        return f"{found}: {more} if there are cores left, or keep decoded images in memory (data.cache=true)"

    def table(self) -> str:
        """Return a table of seconds per step and fractions."""
        if not self.steps:
            return self.verdict()
        total = sum(self.parts.values())
        lines = [f"{'':24}{'seconds per step':>18}{'share':>9}"]
        for name, what in PARTS.items():
            if name in self.parts:
                seconds = self.parts[name]
                lines.append(f"{what:24}{seconds / self.steps:18.6f}{seconds / total:9.1%}")
        lines.append(f"{'together':24}{total / self.steps:18.6f}")
        lines.append(
            f"{self.steps} steps; {self.images / (total / self.steps):.1f} images per second; "
            f"peak memory {self.memory / 1e9:.2f} GB; {self.workers} workers"
        )
        return "\n".join([*lines, self.verdict()])


class Profile:
    """Measurement of a run, with ``profile.txt`` and ``profile.json`` (a trace for Chrome or Perfetto) as output.

    Evaluations and checkpoints are left out, and so are the first batches and those with recorded operations.

    The batches recorded are the first ones after the warm-up, or earlier ones in a short run. Recording begins at once.

    Args:
        training: The run, an `engine.training.Training`, which owns the profile; its stream begins where it resumes.
    """

    def __init__(self, training: Any) -> None:
        self._training = training
        self._profiler: profile | None = None
        self._operations = ""
        self._done = 0
        self.laps = Laps(training.fabric.device)
        training.module.lap = self.lap
        batches = max(0, training.stream.end - training.stream.start)
        skipped, looked = min(WARM_UP, batches // 4), min(LOOKED_INTO, max(batches // 4, 1))
        self._first = skipped + 1 + looked
        if training.fabric.is_global_zero:
            os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it reports an error on a machine without a GPU
            on_cuda = training.fabric.device.type == "cuda"
            self._profiler = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])],
                schedule=schedule(wait=skipped, warmup=1, active=looked, repeat=1),
                on_trace_ready=self._keep,
            )
            self._profiler.start()

    def watched(self, stream: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, measuring the time to load each and the time between them."""
        batches, clock = iter(stream), self._training.clock
        every = self._training.settings.log_every * self._training.plan.accumulate
        paused = clock.seconds
        while True:
            self.laps.lap("between" if clock.seconds == paused else None)  # None after an evaluation or a checkpoint
            paused = clock.seconds
            if self._done % every == 0:  # already synchronised to write the log
                self.laps.settle()
            batch = next(batches, None)
            self.laps.lap("loader")
            if batch is None:
                return
            yield batch

    def lap(self, part: str) -> None:
        """Record the end of a part; the update ends a step, and measurement starts after enough steps."""
        self.laps.lap(part)
        if part != "update":
            return
        self._done += 1
        if self._profiler is not None:
            self._profiler.step()
        if self._done == self._first:
            self.stop()
            self.laps = Laps(self.laps.device)

    def stop(self) -> None:
        """Stop recording."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _keep(self, found: profile) -> None:
        """Write the trace, and keep the slowest operations."""
        found.export_chrome_trace(str(self._training.around.out / TRACE))
        by = f"self_{'device' if ProfilerActivity.CUDA in found.activities else 'cpu'}_time_total"
        self._operations = found.key_averages().table(sort_by=by, row_limit=OPERATIONS, max_name_column_width=60)

    def write(self) -> None:
        """Write the measurements, and log a summary."""
        self.stop()
        self.laps.settle()
        every, training = gathered(self.laps.seconds), self._training
        memory, device = 0, training.fabric.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device)
        else:
            with suppress(ImportError):
                import resource  # noqa: PLC0415  # not on Windows

                unit = 1 if sys.platform == "darwin" else 1024
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        times = StepTimes(
            steps=max(self._done - self._first, 0),
            images=training.plan.images_per_step // training.plan.accumulate,
            parts=max(every, key=lambda parts: parts.get("loader", 0.0)),
            workers=getattr(training.stream.loader, "num_workers", 0),
            memory=memory,
        )
        if training.fabric.is_global_zero:
            path = training.around.out / TEXT
            path.write_text(f"{times.table()}\n\n{self._operations}".rstrip() + "\n", encoding="utf-8")
            training.terminal.line(f"profile: {times.verdict()} (more in {path})")
