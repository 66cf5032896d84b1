"""One way to evaluate, whatever the data set: detections in, named numbers and tables out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from locdistill.data.records import Dataset
from locdistill.evaluation.bootstrap import Judgement, judge_coco, judge_voc
from locdistill.evaluation.coco import CocoResult, coco_metrics
from locdistill.evaluation.rotated import ROTATED
from locdistill.evaluation.voc import VOC, Rules, VocResult, average_precision
from locdistill.types import Detections


@dataclass(frozen=True)
class Evaluator:
    """Metrics of detections on one data set: of rotated boxes DOTA's, on a VOC data set VOC's, else COCO's.

    Attributes:
        dataset: Images, ground truth and class names.
        eleven_point: How AP is averaged by the rules of VOC and DOTA. None: at eleven points on rotated objects of DOTA
            and HRSC2016 and on images of VOC 2007, as their published numbers are, else by area.
    """

    dataset: Dataset
    eleven_point: bool | None = None

    def __call__(self, detections: Mapping[int, Detections]) -> dict[str, float]:
        """The numbers to log, by name; AP, AP50, AP75 and AP90 always among them (NaN without any object)."""
        return self.result(detections).metrics()

    def result(self, detections: Mapping[int, Detections]) -> CocoResult | VocResult:
        """All there is to say, also class by class; ``.tables()`` of it are ready to print."""
        if (rules := self._rules) is None:
            return coco_metrics(self.dataset, detections)
        return average_precision(self.dataset, detections, rules, eleven_point=self._eleven_point)

    def judge(self, detections: Mapping[int, Detections]) -> Judgement:
        """Which detections are true, for AP on any choice of the images."""
        if (rules := self._rules) is None:
            return judge_coco(self.dataset, detections)
        return judge_voc(self.dataset, detections, eleven_point=self._eleven_point, rules=rules)

    @property
    def _rules(self) -> Rules | None:
        """None: COCO's, which are another program."""
        if self.dataset.oriented:
            return ROTATED
        return VOC if self.dataset.kind == "voc" else None

    @property
    def _eleven_point(self) -> bool:
        if self.eleven_point is not None:
            return self.eleven_point
        # whether all images lie in a folder ``VOC2007``, which is how the reference implementation tells the year
        return self.dataset.kind in ("dota", "hrsc") or (
            bool(self.dataset.records) and all("VOC2007" in str(record.path) for record in self.dataset.records)
        )


def evaluator_for(dataset: Dataset, *, eleven_point: bool | None = None) -> Evaluator:
    """The evaluator that suits a data set: a function from detections by image identifier to named numbers."""
    return Evaluator(dataset, eleven_point)
