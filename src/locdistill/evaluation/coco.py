"""Average precision as COCO defines it, over ten overlaps, by size and by class.

Matching and accumulation are done by ``faster-coco-eval``; this module passes the data in memory and reads the metrics
from its arrays. They equal those of ``pycocotools`` on the same boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCOeval_faster, mask
from faster_coco_eval.core.cocoeval import Params
from numpy.typing import NDArray

from locdistill.data.records import Dataset
from locdistill.evaluation.arrays import Rows, found
from locdistill.evaluation.greedy import BUDGET, budget_of
from locdistill.evaluation.tables import Table, percent
from locdistill.types import Detections

# Axes of the evaluator's arrays: overlap 0.5 + 0.05 i; all, small, medium, large; 1, 10, 100 and more detections.
OVERLAPS = {"50": 0, "75": 5, "90": 8}
SIZES = {"": 0, "s": 1, "m": 2, "l": 3}
BUDGETS = (1, 10, BUDGET)
OF_COCO = f"AP@{BUDGET}"
"""AP with COCO's own limit of detections, where more are evaluated."""
PER_CLASS = ("AP", "AP50", "AP75", "AP90")
_DEFAULTS = Params("bbox")
_CATEGORY = 1  # the only one: classes are evaluated one at a time


@dataclass(frozen=True)
class CocoResult:
    """COCO metrics of one set of detections, each between 0 and 1, None where there is no object to find.

    Attributes:
        stats: AP, AP50, AP75, AP90, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl. A class without objects is left out
            of all means. With images of more than 100 objects of a class more detections are evaluated, as many as
            ``budget``; AP@100 is then COCO's own number.
        per_class: By class name: AP, AP50, AP75, AP90, and ``objects``, the number of objects to find (without crowds).
        budget: Detections of a class in an image that are evaluated.
    """

    stats: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    budget: int = BUDGET

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log: those that are defined, and always AP, AP50, AP75, AP90 (NaN if undefined)."""
        values = {name: math.nan if value is None else value for name, value in self.stats.items()}
        return {name: value for name, value in values.items() if name in PER_CLASS or not math.isnan(value)}

    def tables(self) -> tuple[Table, ...]:
        """Return a table of the metrics, and one of AP by class."""
        rows = [
            (name, f"{numbers['objects']:.0f}", *(percent(numbers[metric]) for metric in PER_CLASS))
            for name, numbers in self.per_class.items()
        ]
        total = sum(numbers["objects"] or 0 for numbers in self.per_class.values())
        rows.append(("mean", f"{total:.0f}", *(percent(self.stats[metric]) for metric in PER_CLASS)))
        by_class = Table("By class", ("class", "objects", *PER_CLASS), tuple(rows), emphasis=(len(rows) - 1,))
        means = tuple(percent(value) for value in self.stats.values())
        title = "COCO metrics (%)"
        if self.budget > BUDGET:
            title += f", {self.budget} detections of a class in an image; {OF_COCO} is COCO's own AP"
        return Table(title, tuple(self.stats), (means,)), by_class


def coco_metrics(dataset: Dataset, detections: Mapping[int, Detections]) -> CocoResult:
    """Compute the twelve COCO metrics, AP at overlap 0.90, and AP by class.

    Crowd regions (``Record.ignored``) follow COCO: they need not be found, and detections inside one are not counted as
    false. At most 100 detections per image and class are evaluated, or more where an image has more objects of a class
    (see :func:`locdistill.evaluation.greedy.budget_of`).

    Size classes (small up to 32², medium, large from 96² pixels) are determined by ``Record.areas``: the area of the
    object's outline where the annotations have one, as in the official evaluation of COCO, else of its box. Boxes were
    stored as corners in single precision, which can move an overlap by about 1e-7.

    Args:
        dataset: Images, ground truth and class names.
        detections: By image identifier, in pixels of the original image. An image without an entry has none.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
    """
    found_by_image = found(dataset, detections)
    # Detections of equal scores are ranked by the identifiers of their images.
    records = sorted(dataset.records, key=lambda record: record.image_id)
    objects = Rows.objects(records)
    reported = Rows.detections([found_by_image[record.image_id] for record in records])
    # Recall by overlap, class, size and budget; precision also by recall. Each class is evaluated on the images with
    # objects or detections of it, to save time and memory; a class without objects stays undefined (-1).
    budget = budget_of(records)
    budgets = [*BUDGETS, *([] if budget == BUDGET else [budget])]
    shape = (len(_DEFAULTS.iouThrs), len(dataset.classes), len(_DEFAULTS.areaRng), len(budgets))
    precision = np.full((shape[0], len(_DEFAULTS.recThrs), *shape[1:]), -1.0)
    recall = np.full(shape, -1.0)
    for c in np.unique(objects.labels).tolist():
        evaluation = _OneClass(objects.of_class(c), reported.of_class(c), budgets)
        evaluation.evaluate()
        evaluation.accumulate()
        precision[:, :, c] = evaluation.eval["precision"][:, :, 0]
        recall[:, c] = evaluation.eval["recall"][:, 0]

    stats = {"AP": _mean(precision[:, :, :, 0, -1])}
    stats |= {f"AP{name}": _mean(precision[i, :, :, 0, -1]) for name, i in OVERLAPS.items()}
    stats |= {f"AP{name}": _mean(precision[:, :, :, i, -1]) for name, i in SIZES.items() if name}
    stats |= {f"AR{number}": _mean(recall[:, :, 0, i]) for i, number in enumerate(budgets)}
    stats |= {f"AR{name}": _mean(recall[:, :, i, -1]) for name, i in SIZES.items() if name}
    if budget > BUDGET:
        stats[OF_COCO] = _mean(precision[:, :, :, 0, BUDGETS.index(BUDGET)])

    counts = np.zeros(len(dataset.classes), np.int64)
    for record in dataset.records:
        counts += np.bincount(record.labels[~record.ignored], minlength=len(counts))
    per_class = {}
    for c, name in enumerate(dataset.classes):
        numbers = {"AP": _mean(precision[:, :, c, 0, -1])}
        numbers |= {f"AP{overlap}": _mean(precision[i, :, c, 0, -1]) for overlap, i in OVERLAPS.items()}
        per_class[name] = numbers | {"objects": float(counts[c])}
    return CocoResult(stats, per_class, budget)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Compute the mean over defined values; the evaluator marks undefined ones with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


class _OneClass(COCOeval_faster):  # type: ignore[misc]  # the library has no types
    """The library's evaluation of one class, with objects and detections as arrays.

    Its own input, by `COCO`, builds an index of all entries and looks each up several times, for every image and class,
    which took as long as the evaluation itself.
    """

    def __init__(self, objects: Rows, reported: Rows, budgets: list[int]) -> None:
        # Nothing is printed: this is a library, and several processes may evaluate at once.
        super().__init__(iouType="bbox", print_function=lambda *_: None)
        self._objects, self._reported = objects, reported
        self._objects_of, self._reported_of = objects.by_image(), reported.by_image()
        self._boxes = [rows.boxes.astype(np.float64) for rows in (objects, reported)]
        for boxes in self._boxes:
            boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
        self.params.imgIds = sorted(self._objects_of.keys() | self._reported_of.keys())
        self.params.catIds = [_CATEGORY]
        self.params.maxDets = budgets

    def _prepare(self) -> None:
        """Pass the entries to the library, which calls this first."""
        truth = (self._objects, self.gt_dataset, ("iscrowd", "ignore"))
        for rows, into, names in (truth, (self._reported, self.dt_dataset, ("score",))):
            columns = zip(rows.images.tolist(), rows.areas.tolist(), rows.values.tolist(), strict=True)
            for number, (image, area, value) in enumerate(columns, 1):  # in the library 0 means no match
                into.append(image, _CATEGORY, {"id": number, "area": area, **dict.fromkeys(names, value)})

    def computeIoU(self, imgId: np.integer, catId: np.integer) -> NDArray[np.float64] | list[float]:  # noqa: ARG002, N802, N803
        """Return the overlaps of an image's detections, best first, with its objects; called by the library."""
        image = int(imgId)
        objects, reported = self._objects_of.get(image), self._reported_of.get(image)
        if objects is None or reported is None:
            return []
        truth, found = self._boxes
        crowds = self._objects.values[objects].tolist()
        overlaps: NDArray[np.float64] = mask.iou(found[reported][: self.params.maxDets[-1]], truth[objects], crowds)
        return overlaps
