"""Results of ``locdistill benchmark``: plain data, tables and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from locdistill.engine.speed import Precision
from locdistill.evaluation.tables import UNDEFINED, Table
from locdistill.inference.benchmark.measure import Difference, Times

RANDOM, NOISE = "random", "noise"
TOLERANCE: dict[str, float] = {"32": 1e-3, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.2}
"""Tolerance of the score difference between two engines, by the coarser of their precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """Measurements of one engine.

    Attributes:
        precision: Precision of its arithmetic.
        single: Times with one image per call.
        batched: Times with the requested batch size; None if that is one.
        memory_mb: Peak memory in 2^20 bytes; None if unknown.
        difference: Difference from the first engine's outputs; None for the first.
    """

    precision: Precision | Literal["int8"]
    single: Times
    batched: Times | None
    memory_mb: float | None
    difference: Difference | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "precision": self.precision,
            "fps": self.single.per_second,
            "latency": self.single.as_dict(),
            "throughput": None if self.batched is None else self.batched.as_dict(),
            "peak_memory_mb": self.memory_mb,
            "difference": None if self.difference is None else asdict(self.difference),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """Benchmark of a detector.

    Attributes:
        model: Name of the model as given.
        size: Height and width of the padded images.
        facts: Conditions of the measurement as plain data.
        parameters: Number of parameters, frozen ones included.
        multiply_adds: Number of multiply-adds in the forward pass of one image, without post-processing. One is two
            FLOPs.
        engines: Measurements by engine, in the order measured.
        missing: Engines that could not be measured, with the reason.
        notes: Caveats for the reader.
    """

    model: str
    size: tuple[int, int]
    facts: dict[str, Any]
    parameters: int
    multiply_adds: int
    engines: dict[str, EngineResult]
    missing: dict[str, str]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "model": self.model,
            "padded_input": {"height": self.size[0], "width": self.size[1]},
            **self.facts,
            "parameters": self.parameters,
            "gflops": {"multiply_adds": self.multiply_adds / 1e9, "flops": 2 * self.multiply_adds / 1e9},
            "engines": {name: result.as_dict() for name, result in self.engines.items()},
            "missing": self.missing,
            "notes": list(self.notes),
        }

    def tables(self) -> tuple[Table, ...]:
        """Build the tables of cost, speed, and differences between engines."""
        batch = self.facts["batch"]
        cost = Table(
            f"{self.model}, {self.size[1]}x{self.size[0]} (padded), {self.facts['device']}",
            ("parameters (M)", "multiply-adds (G)", "FLOPs (G)", "candidates an image", "detections an image"),
            (
                (
                    f"{self.parameters / 1e6:.2f}",
                    f"{self.multiply_adds / 1e9:.2f}",
                    f"{2 * self.multiply_adds / 1e9:.2f}",
                    f"{self.facts['candidates']:.1f}",
                    f"{self.facts['detections']:.1f}",
                ),
            ),
        )
        percentiles = (f"{name} ms" for name in next(iter(self.engines.values())).single.percentiles)
        header = ("engine", "precision", "FPS", *percentiles, f"images/s at {batch}", "peak MB")
        speeds, differences = [], []
        for name, result in self.engines.items():
            speeds.append(
                (
                    name,
                    result.precision,
                    f"{result.single.per_second:.2f}",
                    *(f"{value:.1f}" for value in result.single.percentiles.values()),
                    f"{(result.batched or result.single).per_second:.2f}",
                    UNDEFINED if result.memory_mb is None else f"{result.memory_mb:.0f}",
                )
            )
            numbers = (UNDEFINED,) * 4
            if (apart := result.difference) is not None:
                numbers = (f"{apart.score:.1e}", f"{apart.edge_px:.1e}", str(apart.detections), str(apart.unmatched))
            differences.append((name, *numbers))
        speed = Table("One image at a time, post-processing included", header, tuple(speeds))
        first, *others = self.engines
        columns = (f"against {first}", "score differs by", "edge by (px)", "detections", "without a partner")
        same = Table("Largest differences of the outputs at any location", columns, tuple(differences[1:]))
        return (cost, speed, same) if others else (cost, speed)


def notes(facts: Mapping[str, Any], engines: Mapping[str, EngineResult]) -> tuple[str, ...]:
    """Return caveats for the reader of the result."""
    found = [
        f"Timed from images in memory to boxes, without reading, resizing and the first {facts['warm_up']} images. FPS "
        "is images per second with one image at a time.",
        "Multiply-adds are what tools of the field print as FLOPs; PyTorch's counter counts each as two. They are for "
        "the network alone, without post-processing.",
    ]
    unreal = [what for what, of in (("random weights", "weights"), ("noise", "images")) if facts[of] in (RANDOM, NOISE)]
    if unreal:
        found.append(
            f"Measured with {' and '.join(unreal)}: the time of the network does not depend on these, but "
            "post-processing takes longer with more candidates. For a realistic number of candidates, use trained "
            "weights and --data FOLDER."
        )
    if "compiled" in engines:
        found.append("compiled: batch normalisation is folded into the convolutions; compiling is not in the times.")
    if "onnxruntime" in engines:
        found.append(
            "onnxruntime: the dense network runs in ONNX Runtime, in float32; normalisation and post-processing run in "
            "PyTorch."
        )
    if facts["device"] == "cpu":
        found.append("Peak MB is the growth of the process with the engine, its own copy of the weights included.")
    first = next(iter(engines))
    for name, result in engines.items():
        apart, allowed = result.difference, max(TOLERANCE[engines[some].precision] for some in (first, name))
        if apart is not None and (apart.score > allowed or apart.unmatched):
            found.append(
                f"{name} and {first} differ: scores by up to {apart.score:.1e} (expected: at most {allowed:g}), and "
                f"{apart.unmatched} of {apart.detections} detections have no partner."
            )
    return tuple(found)
