"""How good detections are: COCO's and VOC's metrics and those of rotated boxes, result files, tables.

``evaluator_for(dataset)`` gives the function that the engine calls; ``.result(...)`` of it has everything by class.
"""

from __future__ import annotations

from locdistill.evaluation.bootstrap import Judgement, image_weights
from locdistill.evaluation.coco import CocoResult, coco_metrics
from locdistill.evaluation.evaluator import Evaluator, evaluator_for
from locdistill.evaluation.results import read_results, write_results
from locdistill.evaluation.rotated import published_sum, published_table, rotated_metrics
from locdistill.evaluation.tables import Table
from locdistill.evaluation.task1 import read_task1, write_task1
from locdistill.evaluation.voc import VocResult, voc_metrics

__all__ = [
    "CocoResult",
    "Evaluator",
    "Judgement",
    "Table",
    "VocResult",
    "coco_metrics",
    "evaluator_for",
    "image_weights",
    "published_sum",
    "published_table",
    "read_results",
    "read_task1",
    "rotated_metrics",
    "voc_metrics",
    "write_results",
    "write_task1",
]
