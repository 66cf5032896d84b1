"""How long does average precision take? Ours against pycocotools, on the same generated detections.

    python -m benchmarks.ap
    python -m benchmarks.ap --images 500 --rounds 1 --json

Each library is given what it takes by nature. Ours: a `Dataset` and `Detections` by image, as after a validation.
pycocotools: annotations and results as lists of dictionaries, as a JSON file would hold them, so that its own
`loadRes`, index and summary are part of its time, but not the reading of a file. All take turns in each round; what
counts is the shortest of the rounds, and the ratio of the two within each round is printed too. Both use one thread:
the processor's time beside that on the wall leaves out what else the machine does. The numbers are compared: the twelve
of COCO, and AP of each class. VOC's AP of the same content is timed beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import about
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.coco import CocoResult, coco_metrics
from locdistill.evaluation.tables import Table
from locdistill.evaluation.voc import VOC, average_precision
from locdistill.types import Detections

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SIZE = np.array([640, 480])
CROWDS = 0.01
"""Share of objects that are crowd regions, about as in COCO."""


def main() -> None:
    """Generate, measure in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of each image")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--objects", type=float, default=7.0, help="of an image, in the mean")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    report = measure(options)
    print(json.dumps(report, indent=2) if options.json else text(report))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each, and how far apart the numbers are."""
    dataset, detections = generate(options)
    truth, results = as_dicts(dataset, detections)
    inputs: tuple[Any, ...] = ()
    runs: dict[str, Callable[[], Any]] = {
        "locdistill": lambda: coco_metrics(dataset, detections),
        "pycocotools": lambda: pycocotools(*inputs),
        "locdistill, VOC": lambda: average_precision(dataset, detections, VOC, eleven_point=False),
    }
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in runs} for clock in clocks}
    answers: dict[str, Any] = {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            inputs = truth, [dict(entry) for entry in results]  # it writes into what it is given
            start = {clock: now() for clock, now in clocks.items()}
            answers[name] = run()
            for clock, now in clocks.items():
                seconds[clock][name].append(now() - start[clock])
    return {
        "machine": about(),
        "content": {k: getattr(options, k) for k in ("images", "detections", "classes", "objects", "seed")},
        "seconds": seconds,
        "times_faster_than_pycocotools": {clock: faster(by_name) for clock, by_name in seconds.items()},
        **compare(dataset, answers["locdistill"], *answers["pycocotools"]),
    }


def faster(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio of the shortest times, and that of each round."""
    ours, theirs = seconds["locdistill"], seconds["pycocotools"]
    return {"best": min(theirs) / min(ours), "rounds": [b / a for a, b in zip(ours, theirs, strict=True)]}


def generate(options: argparse.Namespace) -> tuple[Dataset, dict[int, Detections]]:
    """Images with objects of all sizes and frequent and rare classes; detections near them and elsewhere."""
    rng = np.random.default_rng(options.seed)
    frequency = 1 / np.arange(1, options.classes + 1)
    draw = {"a": options.classes, "p": frequency / frequency.sum()}
    records, detections = [], {}
    for image_id in range(1, options.images + 1):
        boxes = random_boxes(rng, int(rng.poisson(options.objects)))
        labels = rng.choice(size=len(boxes), **draw)
        record = Record(
            Path(f"{image_id}.jpg"),
            image_id,
            int(SIZE[0]),
            int(SIZE[1]),
            boxes,
            labels,
            rng.random(len(boxes)) < CROWDS,
        )
        # Outlines cover less than their boxes, which decides on an object's class of size.
        records.append(replace(record, areas=record.areas * rng.uniform(0.4, 1.0, len(boxes)).astype(np.float32)))
        detections[image_id] = detect(rng, boxes, labels, options.detections, draw)
    names = tuple(f"class {c}" for c in range(options.classes))
    category_ids = tuple(range(1, options.classes + 1))
    return Dataset("generated", names, tuple(records), "coco", category_ids), detections


def random_boxes(rng: np.random.Generator, number: int) -> NDArray[np.float32]:
    """Boxes within an image, from 8 pixels wide to most of it."""
    sides = np.exp(rng.uniform(np.log(8), np.log(0.8 * SIZE), (number, 2)))
    corners = rng.random((number, 2)) * (SIZE - sides)
    return np.concatenate((corners, corners + sides), 1).astype(np.float32)


def detect(
    rng: np.random.Generator, boxes: NDArray[np.float32], labels: NDArray[np.int64], number: int, draw: dict[str, Any]
) -> Detections:
    """What a fair detector would say: a few boxes around each object, the rest somewhere; best score first."""
    near = np.repeat(np.arange(len(boxes)), 4)[:number]
    sides = np.tile(boxes[near, 2:] - boxes[near, :2], 2)
    around = boxes[near] + rng.normal(size=(len(near), 4)) * sides * rng.uniform(0, 0.15, (len(near), 1))
    elsewhere = random_boxes(rng, number - len(near))
    found = np.concatenate((around, elsewhere)).astype(np.float32)
    classes = np.concatenate((labels[near], rng.choice(size=len(elsewhere), **draw)))
    scores = np.concatenate((rng.beta(2, 2, len(near)), rng.beta(1, 6, len(elsewhere)))).astype(np.float32)
    order = np.argsort(-scores, kind="stable")
    return Detections(*(torch.from_numpy(part[order]) for part in (found, scores, classes)))


def as_dicts(dataset: Dataset, detections: dict[int, Detections]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same content as the JSON files of COCO would hold it."""
    annotations, results = [], []
    for record in dataset.records:
        objects = (record.boxes.tolist(), record.labels.tolist(), record.areas.tolist(), record.ignored.tolist())
        for box, label, area, crowd in zip(*objects, strict=True):
            entry = {"id": len(annotations) + 1, "area": area, "iscrowd": int(crowd)}
            annotations.append(entry | placed(record.image_id, box, label))
    for image_id, found in detections.items():
        for box, score, label in zip(*(part.tolist() for part in found), strict=True):
            results.append(placed(image_id, box, label) | {"score": score})
    images = [{"id": r.image_id, "width": r.width, "height": r.height} for r in dataset.records]
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(dataset.classes)]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def placed(image_id: int, box: list[float], label: int) -> dict[str, Any]:
    """The part of an entry that objects and detections share."""
    x1, y1, x2, y2 = box
    return {"image_id": image_id, "category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}


def pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From dictionaries to the twelve numbers, as its documentation has it; and precision by overlap and class."""
    with contextlib.redirect_stdout(io.StringIO()):
        objects = COCO()
        objects.dataset = truth
        objects.createIndex()
        evaluation = COCOeval(objects, objects.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"][:, :, :, 0, 2].copy()


def compare(
    dataset: Dataset, ours: CocoResult, stats: NDArray[np.float64], precision: NDArray[np.float64]
) -> dict[str, Any]:
    """Both sets of numbers, and the largest difference of any two that belong together."""
    numbers = {name: [ours.stats[name], float(value)] for name, value in zip(NAMES, stats, strict=True)}
    by_class = []
    for c, name in enumerate(dataset.classes):
        defined = precision[:, :, c][precision[:, :, c] > -1]
        by_class.append([ours.per_class[name]["AP"], float(defined.mean()) if defined.size else None])
    return {
        "numbers": numbers,
        "largest_difference": max(difference(*pair) for pair in numbers.values()),
        "largest_difference_of_a_class": max(difference(*pair) for pair in by_class),
    }


def difference(ours: float | None, theirs: float | None) -> float:
    """How far apart; what is undefined in one only is infinitely far from the other."""
    if ours is None or theirs is None or theirs == -1:
        return 0.0 if ours is None and theirs in (None, -1) else float("inf")
    return abs(ours - theirs)


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    content = ", ".join(f"{value:g} {name}" for name, value in report["content"].items())
    wall, processor = report["seconds"].values()
    rows = [(name, f"{min(wall[name]):.2f}", f"{min(processor[name]):.2f}") for name in wall]
    ratios = report["times_faster_than_pycocotools"]
    numbers = [(name, *(f"{100 * v:.4f}" for v in pair)) for name, pair in report["numbers"].items()]
    return "\n".join(
        (
            Table(content, ("seconds, shortest round", *ratios), tuple(rows)).text(),
            Table("Percent", ("", "locdistill", "pycocotools"), tuple(numbers)).text(),
            *(
                f"{ratio['best']:.1f} times faster than pycocotools by {clock} time "
                f"(in each round: {', '.join(f'{r:.1f}' for r in ratio['rounds'])})."
                for clock, ratio in ratios.items()
            ),
            f"Largest difference: {report['largest_difference']:.1e} of the twelve numbers, "
            f"{report['largest_difference_of_a_class']:.1e} of a class.",
            json.dumps(report["machine"]),
        )
    )


if __name__ == "__main__":
    main()
