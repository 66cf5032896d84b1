"""Common interface of evaluation for all data sets: from detections to named metrics and tables."""

from __future__ import annotations

from collections.abc import Mapping

from locdistill.data.records import Dataset
from locdistill.evaluation.bootstrap import COCO_LEVELS, Judgement, judge_coco, judge_voc
from locdistill.evaluation.coco import CocoResult, coco_metrics
from locdistill.evaluation.rotated import ROTATED
from locdistill.evaluation.voc import RECALL_LEVELS, VOC, VocResult, average_precision
from locdistill.types import Detections


class Evaluator:
    """Metrics of detections on one data set: DOTA's for rotated boxes, VOC's for a VOC data set, else COCO's.

    Args:
        dataset: Images, ground truth and class names.
        eleven_point: Whether AP by the rules of VOC and DOTA is averaged at eleven points instead of by area. None: at
            eleven points on rotated objects of DOTA and HRSC2016 and on images of VOC 2007, as in their published
            numbers, else by area.

    Attributes:
        rules: Rules of matching; None for COCO's, which are implemented elsewhere.
        levels: Recalls at which AP samples precision; None for the area under its envelope.
    """

    def __init__(self, dataset: Dataset, eleven_point: bool | None = None) -> None:
        self.dataset = dataset
        self.rules = ROTATED if dataset.oriented else VOC if dataset.kind == "voc" else None
        if eleven_point is None:
            # the year is 2007 if all images are in a folder ``VOC2007``, as in the reference implementation
            of_2007 = bool(dataset.records) and all("VOC2007" in str(record.path) for record in dataset.records)
            eleven_point = dataset.kind in ("dota", "hrsc") or of_2007
        self.eleven_point = eleven_point
        self.levels = COCO_LEVELS if self.rules is None else RECALL_LEVELS if eleven_point else None

    def __call__(self, detections: Mapping[int, Detections]) -> dict[str, float]:
        """Return the metrics to log, by name, always including AP, AP50, AP75 and AP90 (NaN without any object)."""
        return self.result(detections).metrics()

    def result(self, detections: Mapping[int, Detections]) -> CocoResult | VocResult:
        """Return all metrics, also by class; its ``.tables()`` are ready to print."""
        if self.rules is None:
            return coco_metrics(self.dataset, detections)
        return average_precision(self.dataset, detections, self.rules, eleven_point=self.eleven_point)

    def judge(self, detections: Mapping[int, Detections]) -> Judgement:
        """Match the detections, for AP on any weighting of the images."""
        if self.rules is None:
            return judge_coco(self.dataset, detections)
        return judge_voc(self.dataset, detections, eleven_point=self.eleven_point, rules=self.rules)


def per_class(result: CocoResult | VocResult) -> dict[str, dict[str, float | None]]:
    """Return AP (None without objects) and number of objects of each class."""
    if isinstance(result, CocoResult):
        return result.per_class
    return {
        name: {
            "AP": float(result.ap[:, c].mean()) if result.objects[c] else None,
            **{f"AP{50 + 5 * t}": float(v) if result.objects[c] else None for t, v in enumerate(result.ap[:, c])},
            "objects": float(result.objects[c]),
        }
        for c, name in enumerate(result.classes)
    }
