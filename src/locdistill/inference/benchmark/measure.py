"""How long a detector takes with an engine, how much memory, and whether two engines detect the same."""

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
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from locdistill.engine.speed import Precision
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import kind_of
from locdistill.inference.benchmark.engines import Build, Network
from locdistill.models.detector import Detector
from locdistill.types import Dense, Detections, Tell

PERCENTILES = (50, 90, 99)
SAME_IOU = 0.9
COMPARED = 4
"""Pictures that the engines are compared on."""
AT_LEAST = 3
"""Calls with many images, if as many are asked for with one."""
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class ImagesInMemory(NamedTuple):
    """Images as a loader would hand them over, on the CPU.

    Attributes:
        images: Padded right and bottom.
        sizes: Height and width of each within the padding.
        originals: Height and width of each before resizing.
    """

    images: UInt8[Tensor, "n 3 h w"]
    sizes: Int[Tensor, "n 2"]
    originals: Int[Tensor, "n 2"]

    def some(self, first: int, count: int) -> ImagesInMemory:
        """So many from one place on; after the last comes the first."""
        chosen = torch.arange(first, first + count) % len(self.images)
        return ImagesInMemory(*(part[chosen] for part in self))


class Answer(NamedTuple):
    """What a detector says of some images: at all locations of the grid, before and after suppression."""

    dense: Dense
    grid: Grid
    candidates: list[Detections]
    detections: list[Detections]


@torch.no_grad()
def look(detector: Detector, network: Network, pictures: ImagesInMemory) -> Answer:
    """From images in memory to detections: sent to the device, normalised, looked at, post-processed."""
    images, sizes, originals = (part.to(detector.device) for part in pictures)
    dense, grid = detector.see(images, sizes, network)
    candidates = detector.candidates(dense, grid, sizes, originals)
    return Answer(dense, grid, candidates, detector.suppress([candidates]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long several calls took.

    Attributes:
        images: Number of images in a call.
        seconds: Of each call.
    """

    images: int
    seconds: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Images per second: of all calls together, as the reference counts."""
        return self.images * len(self.seconds) / math.fsum(self.seconds)

    @property
    def percentiles(self) -> dict[str, float]:
        """Of the milliseconds of a call, between calls interpolated: ``p50``, ``p90``, ``p99``."""
        values = np.percentile(1000 * np.array(self.seconds), PERCENTILES)
        return {f"p{p}": float(value) for p, value in zip(PERCENTILES, values, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        count, mean = len(self.seconds), 1000 * math.fsum(self.seconds) / len(self.seconds)
        times = {"mean": mean} | self.percentiles
        return {"batch": self.images, "calls": count, "images_per_second": self.per_second, "milliseconds": times}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What each engine is asked to do.

    Attributes:
        detector: In evaluation mode, on its device.
        pictures: What it looks at in turn.
        precision: What PyTorch multiplies in.
        batch: Images at once, beside one at a time.
        calls: How many calls are timed with one image.
        warm_up: How many images are looked at before them.
    """

    detector: Detector
    pictures: ImagesInMemory
    precision: Precision
    batch: int
    calls: int
    warm_up: int

    def measured(self, build: Build, tell: Tell) -> MeasuredEngine:
        """Ask an engine, which prepares for each number of images at the first call: that is not measured."""
        memory = MemoryWatch(self.detector.device)
        network = build(self.detector, self.precision, tell)
        answers = [look(self.detector, network, self.pictures.some(i, 1)) for i in range(COMPARED)]
        look(self.detector, network, self.pictures.some(0, self.batch))
        memory.restart()
        single = self._times(network, 1)
        batched = self._times(network, self.batch) if self.batch > 1 else None
        return MeasuredEngine(single, batched, memory.peak_mb(), answers)

    def _times(self, network: Network, batch: int) -> Times:
        """Time calls with different images, the first of which do not count."""
        seconds = []
        # With many images at once fewer calls look at as many.
        calls, warm_up = max(self.calls // batch, min(self.calls, AT_LEAST)), max(self.warm_up // batch, 1)
        for number in range(warm_up + calls):
            some = self.pictures.some(number * batch, batch)
            wait(self.detector.device)
            start = time.perf_counter()
            look(self.detector, network, some)
            wait(self.detector.device)
            seconds.append(time.perf_counter() - start)
        return Times(images=batch, seconds=tuple(seconds[warm_up:]))


class MeasuredEngine(NamedTuple):
    """What was measured with an engine, and its answers to compare; memory in 2^20 bytes, None where not told."""

    single: Times
    batched: Times | None
    memory_mb: float | None
    answers: list[Answer]


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class MemoryWatch:
    """Peak memory since `restart`: on CUDA what PyTorch had allocated, on a CPU how much the process grew.

    The growth is from the beginning of the watch, so that it contains what an engine keeps. It is told on Linux alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = self.restart()

    def restart(self) -> int | None:
        """Let the peak be counted anew; the memory of the process now, in KB."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.device.type != "cpu":
            return None
        try:
            # What was freed is given back to the system first: it is no part of what comes.
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
            _CLEAR.write_text("5", encoding="ascii")
            return _status("VmRSS")
        except (OSError, TypeError, KeyError):
            return None

    def peak_mb(self) -> float | None:
        """In 2^20 bytes; None where it cannot be told."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return None if self.before is None else max(_status("VmHWM") - self.before, 0) / 2**10


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text(encoding="ascii").splitlines())
    return int(lines[name].split()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far an engine's answer is from another's, on the same images.

    Attributes:
        score: Largest difference of a class score at a location.
        edge_px: Largest difference of a predicted edge position at a location, in pixels of the input.
        detections: Number of detections compared.
        unmatched: How many of them have no partner: a detection of the same class with an IoU of at least 0.9.
    """

    score: float
    edge_px: float
    detections: int
    unmatched: int


def difference(detector: Detector, answers: Sequence[Answer], others: Sequence[Answer]) -> Difference:
    """Compare two engines' answers about the same images."""
    score, edge, count, alone = 0.0, 0.0, 0, 0
    for pair in zip(answers, others, strict=True):
        scores = [answer.dense.score_logits.float().sigmoid() for answer in pair]
        edges = [_edges(detector, answer) for answer in pair]
        score = max(score, float((scores[0] - scores[1]).abs().max()))
        edge = max(edge, float((edges[0] - edges[1]).abs().max()))
        for ours, theirs in zip(*(answer.detections for answer in pair), strict=True):
            count += len(ours.scores) + len(theirs.scores)
            alone += _unmatched(ours, theirs) + _unmatched(theirs, ours)
    return Difference(score=score, edge_px=edge, detections=count, unmatched=alone)


def _edges(detector: Detector, answer: Answer) -> Float[Tensor, "b l 4"]:
    """The boxes of all locations in pixels of the input; of rotated ones those that circumscribe them."""
    coding = detector.coding
    boxes = coding.decode(answer.grid, detector.bins.expect(answer.dense.edge_logits.float()))
    return coding.kind.hull(boxes) * answer.grid.strides[:, None]


def _unmatched(found: Detections, others: Detections) -> int:
    """How many detections have no partner among the others."""
    overlaps = kind_of(found.boxes).pairwise_iou(found.boxes, others.boxes)
    partner = (overlaps >= SAME_IOU) & (found.labels[:, None] == others.labels)
    return int((~partner.any(1)).sum())
