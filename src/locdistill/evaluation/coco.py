"""Average precision as COCO defines it, over ten overlaps, by size and by class.

Matching and accumulation are done by ``faster-coco-eval``; this file hands the data over in memory and reads the
numbers off its arrays. The numbers equal those of ``pycocotools`` on the same boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from locdistill.data.records import Dataset
from locdistill.evaluation.arrays import Found, found
from locdistill.evaluation.tables import Table, metrics_table, percent
from locdistill.types import Detections

# Places in the arrays that the evaluator fills: overlap 0.5 + 0.05 i; all, small, medium, large; 1, 10, 100 detections.
OVERLAPS = {"50": 0, "75": 5, "90": 8}
SIZES = {"": 0, "s": 1, "m": 2, "l": 3}
BUDGETS = {"1": 0, "10": 1, "100": 2}
PER_CLASS = ("AP", "AP50", "AP75", "AP90")


@dataclass(frozen=True)
class CocoResult:
    """COCO metrics of one set of detections, each between 0 and 1, None where there is no object to find.

    Attributes:
        stats: AP, AP50, AP75, AP90, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. A class without objects takes no
            part in any mean.
        per_class: By class name: AP, AP50, AP75, AP90, and ``objects``, the number of objects to find (crowds apart).
    """

    stats: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]

    def metrics(self) -> dict[str, float]:
        """The numbers to log: those that are defined, and in any case AP, AP50, AP75, AP90 (NaN if undefined)."""
        values = {name: math.nan if value is None else value for name, value in self.stats.items()}
        return {name: value for name, value in values.items() if name in PER_CLASS or not math.isnan(value)}

    def tables(self) -> tuple[Table, ...]:
        """The metrics in one row, and AP class by class."""
        rows = [
            (name, f"{numbers['objects']:.0f}", *(percent(numbers[metric]) for metric in PER_CLASS))
            for name, numbers in self.per_class.items()
        ]
        total = sum(numbers["objects"] or 0 for numbers in self.per_class.values())
        rows.append(("mean", f"{total:.0f}", *(percent(self.stats[metric]) for metric in PER_CLASS)))
        by_class = Table("By class", ("class", "objects", *PER_CLASS), tuple(rows), emphasis=(len(rows) - 1,))
        return metrics_table(self.stats, "COCO metrics (%)"), by_class


def coco_metrics(dataset: Dataset, detections: Mapping[int, Detections]) -> CocoResult:
    """The twelve COCO numbers, AP at overlap 0.90, and AP by class.

    Crowd regions (``Record.ignored``) follow COCO: they are not to be found, and detections inside one are not counted
    as false. At most 100 detections per image and class count.

    Size classes (small up to 32², medium, large from 96² pixels) go by ``Record.areas``: the area of the object's
    outline where the annotations have one, as in the official evaluation of COCO, else of its box. Boxes were stored
    as corners in single precision, which can move an overlap by about 1e-7.

    Args:
        dataset: Images, ground truth and class names.
        detections: By image identifier, in pixels of the original image. An image without an entry has none.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    precision, recall = _evaluate(dataset, found(dataset, detections))
    stats = {"AP": _mean(precision[:, :, :, 0, 2])}
    stats |= {f"AP{name}": _mean(precision[i, :, :, 0, 2]) for name, i in OVERLAPS.items()}
    stats |= {f"AP{name}": _mean(precision[:, :, :, i, 2]) for name, i in SIZES.items() if name}
    stats |= {f"AR{name}": _mean(recall[:, :, 0, i]) for name, i in BUDGETS.items()}
    stats |= {f"AR{name}": _mean(recall[:, :, i, 2]) for name, i in SIZES.items() if name}

    counts = np.zeros(len(dataset.classes), np.int64)
    for record in dataset.records:
        counts += np.bincount(record.labels[~record.ignored], minlength=len(counts))
    per_class = {}
    for c, name in enumerate(dataset.classes):
        numbers = {"AP": _mean(precision[:, :, c, 0, 2])}
        numbers |= {f"AP{overlap}": _mean(precision[i, :, c, 0, 2]) for overlap, i in OVERLAPS.items()}
        per_class[name] = numbers | {"objects": float(counts[c])}
    return CocoResult(stats, per_class)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Mean over what is defined; the evaluator marks the undefined with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _evaluate(dataset: Dataset, found_by_image: Mapping[int, Found]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (overlap, recall, class, size, budget) and recall (overlap, class, size, budget)."""
    images = [{"id": r.image_id, "width": r.width, "height": r.height} for r in dataset.records]
    # The class index, plus one, is the category here: the data set's own identifiers may be in any order.
    categories = [{"id": c + 1, "name": name} for c, name in enumerate(dataset.classes)]
    truth: list[dict[str, Any]] = []
    for record in dataset.records:
        objects = (record.boxes.tolist(), record.labels.tolist(), record.areas.tolist(), record.ignored.tolist())
        for box, label, area, crowd in zip(*objects, strict=True):
            entry = _annotation(len(truth) + 1, record.image_id, box, label)
            truth.append(entry | {"area": area, "iscrowd": int(crowd)})
    reported: list[dict[str, Any]] = []
    for image_id, here in found_by_image.items():
        for box, score, label in zip(here.boxes.tolist(), here.scores.tolist(), here.labels.tolist(), strict=True):
            reported.append(_annotation(len(reported) + 1, image_id, box, label) | {"iscrowd": 0, "score": score})

    def coco(annotations: list[dict[str, Any]]) -> COCO:
        return COCO({"images": images, "annotations": annotations, "categories": categories}, print_function=_silent)

    evaluation = COCOeval_faster(coco(truth), coco(reported), "bbox", print_function=_silent)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _annotation(number: int, image_id: int, box: list[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    return {
        "id": number,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [x1, y1, width, height],
        "area": width * height,
    }


def _silent(*_: object) -> None:
    """Say nothing: this is a library, and it may run in several processes at once."""
