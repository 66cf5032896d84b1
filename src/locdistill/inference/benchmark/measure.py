"""Measurement of time and memory of a detector with an engine, and comparison of two engines' outputs."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from locdistill.engine.speed import Precision
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.inference.benchmark.engines import Build, See
from locdistill.models.detector import Detector
from locdistill.types import Dense, Detections, Tell

PERCENTILES = (50, 90, 99)
SAME_IOU = 0.9
COMPARED = 4
"""Number of images for the comparison of engines."""
AT_LEAST = 3
"""Minimum number of calls with a batch, unless fewer calls are requested."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class ImagesInMemory(NamedTuple):
    """A batch of images as a loader would return it, on the CPU.

    Attributes:
        images: Images padded right and bottom.
        sizes: Height and width of each within the padding.
        originals: Height and width of each before resizing.
    """

    images: UInt8[Tensor, "n 3 h w"]
    sizes: Int[Tensor, "n 2"]
    originals: Int[Tensor, "n 2"]

    def some(self, first: int, count: int) -> ImagesInMemory:
        """Return ``count`` images from index ``first`` on, wrapping around after the last."""
        chosen = torch.arange(first, first + count) % len(self.images)
        return ImagesInMemory(*(part[chosen] for part in self))


class Answer(NamedTuple):
    """Outputs of a detector for some images: at all locations of the grid, before and after suppression."""

    dense: Dense
    grid: Grid
    candidates: list[Detections]
    detections: list[Detections]


@torch.no_grad()
def look(detector: Detector, see: See, pictures: ImagesInMemory) -> Answer:
    """Detect objects on images in memory: transfer to the device, predict with an engine, post-process."""
    images, sizes, originals = (part.to(detector.device) for part in pictures)
    dense, grid = see(images, sizes)
    candidates = detector.candidates(dense, grid, sizes, originals)
    return Answer(dense, grid, candidates, detector.suppress([candidates]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Durations of several calls.

    Attributes:
        images: Number of images in a call.
        seconds: Duration of each call.
    """

    images: int
    seconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Images per second over all calls together, as in the reference."""
        return self.images * len(self.seconds) / math.fsum(self.seconds)

    @property
    def percentiles(self) -> dict[str, float]:
        """Percentiles of the milliseconds per call, interpolated between calls: ``p50``, ``p90``, ``p99``."""
        values = np.percentile(1000 * np.array(self.seconds), PERCENTILES)
        return {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        count, mean = len(self.seconds), 1000 * math.fsum(self.seconds) / len(self.seconds)
        times = {"mean": mean} | self.percentiles
        return {"batch": self.images, "calls": count, "images_per_second": self.per_second, "milliseconds": times}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The workload of each engine.

    Attributes:
        detector: Detector in evaluation mode, on its device.
        pictures: Input images, used in turn.
        precision: Precision of PyTorch's arithmetic.
        batch: Number of images per batch, measured in addition to single images.
        calls: Number of timed calls with one image.
        warm_up: Number of images before the timed calls.
    """

    detector: Detector
    pictures: ImagesInMemory
    precision: Precision
    batch: int
    calls: int
    warm_up: int

    def measured(self, build: Build, tell: Tell) -> MeasuredEngine:
        """Measure an engine; its preparation at the first call with each batch size is not timed."""
        memory = MemoryWatch(self.detector.device)
        see = build(self.detector, self.precision, tell)
        answers = [look(self.detector, see, self.pictures.some(i, 1)) for i in range(COMPARED)]
        look(self.detector, see, self.pictures.some(0, self.batch))
        memory.restart()
        single = self._times(see, 1)
        batched = self._times(see, self.batch) if self.batch > 1 else None
        return MeasuredEngine(single, batched, memory.peak_mb(), answers)

    def _times(self, see: See, batch: int) -> Times:
        """Time calls with different images, after untimed warm-up calls."""
        seconds = []
        # With larger batches fewer calls process as many images.
        calls, warm_up = max(self.calls // batch, min(self.calls, AT_LEAST)), max(self.warm_up // batch, 1)
        for number in range(warm_up + calls):
            some = self.pictures.some(number * batch, batch)
            wait(self.detector.device)
            start = time.perf_counter()
            look(self.detector, see, some)
            wait(self.detector.device)
            seconds.append(time.perf_counter() - start)
        return Times(images=batch, seconds=tuple(seconds[warm_up:]))


class MeasuredEngine(NamedTuple):
    """Measurements of an engine, and its outputs to compare; memory in 2^20 bytes, None if unknown."""

    single: Times
    batched: Times | None
    memory_mb: float | None
    answers: list[Answer]


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class MemoryWatch:
    """Peak memory since `restart`: on CUDA PyTorch's allocations, on a CPU the growth of the process.

    The growth counts from the creation of the watch, so that it includes memory that an engine keeps. It is available
    on Linux only.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.restart()

    def restart(self) -> int | None:
        """Reset the peak; return the current memory of the process in KB, None if unknown."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.device.type != "cpu":
            return None
        try:
            # Freed memory is returned to the system first, so that it does not count.
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
            _CLEAR.write_text("5", encoding="ascii")
            return _status("VmRSS")
        except (OSError, TypeError, KeyError):
            return None

    def peak_mb(self) -> float | None:
        """Return the peak in 2^20 bytes; None if unknown."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return None if self.before is None else max(_status("VmHWM") - self.before, 0) / 2**10


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    return int(lines[name].split()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Differences between two engines' outputs for the same images.

    Attributes:
        score: Largest difference of a class score at a location.
        edge_px: Largest difference of a predicted edge position at a location, in pixels of the input.
        detections: Number of detections compared.
        unmatched: Number of detections without a partner: a detection of the same class with an IoU of at least 0.9.
    """

    score: float
    edge_px: float
    detections: int
    unmatched: int


def difference(detector: Detector, answers: Sequence[Answer], others: Sequence[Answer]) -> Difference:
    """Compare two engines' outputs for the same images."""
    score, edge, count, alone = 0.0, 0.0, 0, 0
    coding = detector.coding
    for pair in zip(answers, others, strict=True):
        scores = [answer.dense.score_logits.float().sigmoid() for answer in pair]
        # boxes of all locations in pixels of the input; for rotated boxes the circumscribed ones
        boxes = [coding.decode(each.grid, detector.bins.expect(each.dense.edge_logits.float())) for each in pair]
        edges = [coding.kind.hull(own) * each.grid.strides[:, None] for own, each in zip(boxes, pair, strict=True)]
        score = max(score, float((scores[0] - scores[1]).abs().max()))
        edge = max(edge, float((edges[0] - edges[1]).abs().max()))
        for ours, theirs in zip(*(answer.detections for answer in pair), strict=True):
            count += len(ours.scores) + len(theirs.scores)
            alone += _unmatched(ours, theirs) + _unmatched(theirs, ours)
    return Difference(score=score, edge_px=edge, detections=count, unmatched=alone)


def _unmatched(found: Detections, others: Detections) -> int:
    """Count the detections without a partner among the others."""
    overlaps = kind_of(found.boxes).pairwise_iou(found.boxes, others.boxes)
    partner = (overlaps >= SAME_IOU) & (found.labels[:, None] == others.labels)
    return int((~partner.any(1)).sum())
