"""How long do overlap and suppression of rotated boxes take? ``python -m benchmarks.rotated [--rounds N] [--json]``.

Boxes are drawn at random. Everything takes its turn in each round; seconds are the shortest of the rounds, and a ratio
is the median of those within a round, which the machine's other work changes least. ``OMP_NUM_THREADS`` sets the number
of threads. What is timed is also compared: the overlaps of all pairs, of overlapping hulls alone, and of shapely.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import shapely
import torch
from benchmarks.machine import about
from torch import Tensor

from locdistill.geometry import boxes as upright
from locdistill.geometry.nms import class_nms, rotated_class_nms
from locdistill.geometry.rotated import corners, hull, paired_iou, pairwise_iou

DENSE, SPARSE, SHAPELY = "all pairs", "overlapping hulls alone", "shapely, all pairs"
RATIOS = ((DENSE, SPARSE), (SHAPELY, SPARSE), (SHAPELY, DENSE))
"""What is how many times faster than what: the slower one first."""


def random_boxes(rng: torch.Generator, count: int, extent: float, sides: tuple[float, float] = (10.0, 200.0)) -> Tensor:
    """Centres in a square, sides even on a log scale, any angle; in float64."""
    place, size = torch.rand(2, count, 2, generator=rng, dtype=torch.float64)
    low, high = (math.log(side) for side in sides)
    angle = (torch.rand(count, 1, generator=rng, dtype=torch.float64) - 0.5) * 2 * math.pi
    return torch.cat((place * extent, (low + (high - low) * size).exp(), angle), 1)


def around(rng: torch.Generator, objects: Tensor, count: int) -> Tensor:
    """Boxes near some objects, as a detector reports them before suppression."""
    noise = torch.randn(count, 5, generator=rng, dtype=torch.float64) * torch.tensor([3, 3, 2, 2, 0.05])
    boxes = objects[torch.randint(len(objects), (count,), generator=rng)] + noise
    boxes[:, 2:4].clamp_(min=1)
    return boxes


def shapely_iou(a: Tensor, b: Tensor) -> Tensor:
    """All with all."""
    first, second = (shapely.polygons(corners(boxes).numpy()) for boxes in (a, b))
    shared = shapely.area(shapely.intersection(first[:, None], second))
    return torch.from_numpy(shared / (shapely.area(first)[:, None] + shapely.area(second) - shared))


def overlaps(rng: torch.Generator) -> dict[str, Callable[[], Tensor]]:
    """Of 2000 detections with 100 objects in an image of 1024 pixels."""
    a, b = random_boxes(rng, 2000, 1024), random_boxes(rng, 100, 1024)
    short, objects = a.float(), b.float()
    return {
        DENSE: lambda: paired_iou(a[:, None], b),
        SPARSE: lambda: pairwise_iou(a, b),
        f"{DENSE}, float32": lambda: paired_iou(short[:, None], objects),
        f"{SPARSE}, float32": lambda: pairwise_iou(short, objects),
        SHAPELY: lambda: shapely_iou(a, b),
        "their hulls, all pairs": lambda: upright.pairwise_iou(hull(a), hull(b)),
    }


def suppressions(rng: torch.Generator) -> dict[str, Callable[[], Tensor]]:
    """At an overlap of 0.1, as the published detectors and the merging of tiles do."""
    sets = {
        "2000 boxes": (random_boxes(rng, 2000, 1024), 1),
        "2000 boxes around 60 objects": (around(rng, random_boxes(rng, 60, 1024), 2000), 1),
        "20 000 boxes of 15 classes, 8192 pixels": (random_boxes(rng, 20_000, 8192), 15),
        "20 000 boxes around one object": (around(rng, random_boxes(rng, 1, 100, (80, 100)), 20_000), 1),
    }

    def run(boxes: Tensor, classes: int, suppress: Callable[..., Tensor]) -> Callable[[], Tensor]:
        scores = torch.rand(len(boxes), generator=rng, dtype=boxes.dtype)
        labels = torch.randint(classes, (len(boxes),), generator=rng)
        return lambda: suppress(boxes, scores, labels, 0.1)

    runs = {name: run(*found, rotated_class_nms) for name, found in sets.items()}
    boxes, classes = sets["2000 boxes"]
    return runs | {"the hulls of 2000 boxes, by torchvision": run(hull(boxes), classes, class_nms)}


def measure(runs: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds in each round, after one that does not count, and the answers."""
    answers = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds, answers


def report(rounds: int, seed: int) -> dict[str, Any]:
    """All numbers."""
    rng = torch.Generator().manual_seed(seed)
    iou, values = measure(overlaps(rng), rounds)
    nms, kept = measure(suppressions(rng), rounds)
    ratios = {
        f"{quick} against {slow}": statistics.median(a / b for a, b in zip(iou[slow], iou[quick], strict=True))
        for slow, quick in RATIOS
    }
    exact = values[DENSE]
    return {
        "about": about(),
        "rounds": rounds,
        "iou_seconds": iou,
        "times_faster": ratios,
        "largest_difference": {
            name: float((value - exact).abs().max()) for name, value in values.items() if "hulls, all" not in name
        },
        "overlapping_share": float((exact > 0).double().mean()),
        "nms_seconds": nms,
        "nms_kept": {name: len(places) for name, places in kept.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """Two tables, and the ratios."""
    machine = ", ".join(f"{key} {value}" for key, value in found["about"].items())
    lines = [f"{found['rounds']} rounds; {machine}", ""]
    lines += ["| IoU of 2000 x 100 boxes | ms | largest difference |", "|---|---:|---:|"]
    for name, seconds in found["iou_seconds"].items():
        far = found["largest_difference"].get(name)
        lines.append(f"| {name} | {min(seconds) * 1e3:.2f} | {'' if far is None else f'{far:.0e}'} |")
    lines += ["", "| NMS at 0.1 | ms | kept |", "|---|---:|---:|"]
    for name, seconds in found["nms_seconds"].items():
        lines.append(f"| {name} | {min(seconds) * 1e3:.1f} | {found['nms_kept'][name]} |")
    lines += ["", "| IoU | times faster |", "|---|---:|"]
    lines += [f"| {name} | {ratio:.1f} |" for name, ratio in found["times_faster"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args()
    found = report(options.rounds, options.seed)
    print(json.dumps(found, indent=2) if options.json else markdown(found))


if __name__ == "__main__":
    main()
