"""Reading and writing of detections as the JSON file of COCO's test servers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from locdistill.data.records import Dataset
from locdistill.errors import DataError
from locdistill.evaluation.arrays import found
from locdistill.files import replacing
from locdistill.geometry.kinds import kind_of
from locdistill.types import Detections

_SHOWN = 10  # invalid entries that an error lists


def write_results(path: str | Path, dataset: Dataset, detections: Mapping[int, Detections]) -> Path:
    """Write COCO's results format: a list of ``image_id, category_id, bbox [x, y, width, height], score``.

    Rotated boxes are written as ``rbox [cx, cy, width, height, angle in radians]``, which is not part of the format;
    ``bbox`` then circumscribes them. If the data set's format has no identifiers of classes and images, these depend on
    the chosen classes and images, and ``category_name`` and ``file_name`` are written too.

    Boxes are rounded to a hundredth of a pixel, angles and scores to five decimals, to limit the size of the file for a
    large test set; the order of detections is kept. The file is written atomically.

    Args:
        path: File to write; its folder is created.
        dataset: Data set with the identifier of each class (``category_ids``).
        detections: By image identifier, in pixels of the original image.

    Returns:
        The path of the file.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        separator = "["
        for entry in _entries(dataset, detections):
            file.write(separator + json.dumps(entry))
            separator = ",\n"
        file.write("[]\n" if separator == "[" else "]\n")
    return path


def _entries(dataset: Dataset, detections: Mapping[int, Detections]) -> Iterator[dict[str, Any]]:
    named = dataset.kind != "coco"
    files = {record.image_id: record.path.name for record in dataset.records}
    for image_id, here in found(dataset, detections).items():
        boxes = torch.from_numpy(here.boxes)
        hulls = kind_of(boxes).hull(boxes).tolist()
        for box, (x1, y1, x2, y2), score, label in zip(
            here.boxes.tolist(), hulls, here.scores.tolist(), here.labels.tolist(), strict=True
        ):
            yield {
                "image_id": image_id,
                "category_id": dataset.category_ids[label],
                **({"category_name": dataset.classes[label], "file_name": files[image_id]} if named else {}),
                "bbox": rounded((x1, y1, x2 - x1, y2 - y1)),
                **({"rbox": rounded(box)} if dataset.oriented else {}),
                "score": round(score, 5),
            }


def rounded(box: Sequence[float]) -> list[float]:
    """Round the numbers of a box for files: pixels to two decimals, the angle (the fifth number) to five."""
    return [round(v, 2) for v in box[:4]] + [round(v, 5) for v in box[4:]]


def read_results(path: str | Path, dataset: Dataset) -> dict[int, Detections]:
    """Read a file of COCO results, best score first within each image, to evaluate it on a data set.

    Detections with an ``rbox`` are rotated boxes, whatever the data set's objects are. A ``category_name`` takes
    precedence over a ``category_id``, and a ``file_name`` must be that of the image.

    Raises:
        DataError: The file is absent or not of that format, or has images or classes that the data set lacks, or some
            of its detections are rotated and others not; the message lists the first invalid entries.
    """
    path = Path(path)
    entries = _load(path)
    without = [i for i, entry in enumerate(entries) if isinstance(entry, dict) and "rbox" not in entry]
    rotated = any(isinstance(entry, dict) and "rbox" in entry for entry in entries)
    if rotated and without:
        raise DataError(
            f"{path}: {len(without)} of the {len(entries)} detections have no rbox, and the others have one (the first "
            f"without is entry {without[0]}); give one to all of them, or to none"
        )
    images = {record.image_id: record.path.name for record in dataset.records}
    label_of: _Labels = {identifier: label for label, identifier in enumerate(dataset.category_ids)}
    label_of |= {name: label for label, name in enumerate(dataset.classes)}
    problems = [(i, why) for i, entry in enumerate(entries) if (why := _problem(entry, images, label_of, rotated))]
    if problems:
        listed = "\n".join(f"  entry {i}: {why}" for i, why in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(
            f"{path}: {len(problems)} of {len(entries)} detections do not fit data set '{dataset.name}':\n"
            f"{listed}{more}\nGive the data set and split that these detections were made on"
        )
    by_image: dict[int, list[dict[str, Any]]] = {record.image_id: [] for record in dataset.records}
    for entry in entries:
        by_image[entry["image_id"]].append(entry)
    return {image_id: _detections(here, label_of, rotated) for image_id, here in by_image.items()}


_Labels: TypeAlias = dict[str | int, int]
"""Class index by the name and by the identifier of a class."""


def _load(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file of COCO results: {error}") from error
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: expected a list of detections, as 'locdistill evaluate WEIGHTS --format-only FILE' writes it, "
            f"came a {type(entries).__name__}; for the predictions.json of 'locdistill predict', use 'locdistill data "
            "merge'"
        )
    return entries


def _problem(entry: object, images: dict[int, str], label_of: _Labels, rotated: bool) -> str | None:
    """Return the problem of an entry of the file; None if it is valid."""
    if not isinstance(entry, dict) or not {"image_id", "category_id", "bbox", "score"} <= entry.keys():
        return f"expected image_id, category_id, bbox and score, found {str(entry)[:80]}"
    if not isinstance(entry["image_id"], int) or entry["image_id"] not in images:
        return f"image_id {entry['image_id']!r} is not in the data set"
    if entry.get("file_name", images[entry["image_id"]]) != images[entry["image_id"]]:
        expected = images[entry["image_id"]]
        return f"file_name is {entry['file_name']!r}, but image {entry['image_id']} is {expected!r}"
    category, is_one = ("category_name", str) if "category_name" in entry else ("category_id", int)
    if not isinstance(entry[category], is_one) or entry[category] not in label_of:
        known = sorted(key for key in label_of if isinstance(key, is_one))
        return f"{category} {entry[category]!r} is not one of {known[:_SHOWN]}"
    key, count, words = ("rbox", 5, "five") if rotated else ("bbox", 4, "four")
    box, score = entry.get(key), entry["score"]
    numbers = [*box, score] if isinstance(box, list) and len(box) == count else []
    if not numbers or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers):
        return f"expected {words} numbers as {key} and one as score, found {box!r} and {score!r}"
    return f"{key} has a negative width or height: {box!r}" if min(numbers[2:4]) < 0 else None


def _detections(entries: list[dict[str, Any]], label_of: _Labels, rotated: bool) -> Detections:
    entries = sorted(entries, key=lambda entry: -entry["score"])  # stable: equal scores stay in the file's order
    boxes = torch.tensor([entry["rbox" if rotated else "bbox"] for entry in entries], dtype=torch.float64)
    boxes = boxes.reshape(-1, 5 if rotated else 4)
    if not rotated:
        boxes[:, 2:] += boxes[:, :2]
    labels = [label_of[entry.get("category_name", entry["category_id"])] for entry in entries]
    return Detections(
        boxes=boxes.float(),
        scores=torch.tensor([entry["score"] for entry in entries], dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
    )
