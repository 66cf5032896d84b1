"""VOC metrics: the matching rule and both averages, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.voc import THRESHOLDS, VOC, average_precision
from locdistill.types import Detections

voc_metrics = partial(average_precision, rules=VOC)


def dataset(*images: list[tuple], classes=("cat",), folder="VOC2007") -> Dataset:
    """Images as lists of (box, label, difficult)."""
    records = tuple(
        Record(
            path=Path(folder) / f"{i}.jpg",
            image_id=i,
            width=500,
            height=500,
            boxes=np.array([o[0] for o in objects], np.float32).reshape(-1, 4),
            labels=np.array([o[1] for o in objects], np.int64),
            ignored=np.array([o[2] for o in objects], bool),
        )
        for i, objects in enumerate(images)
    )
    return Dataset(
        name="toy", classes=classes, records=records, kind="voc", category_ids=tuple(range(1, len(classes) + 1))
    )


def detections(*found: tuple) -> Detections:
    """Detections as (box, score, label)."""
    return Detections(
        torch.tensor([f[0] for f in found], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([f[1] for f in found], dtype=torch.float32),
        torch.tensor([f[2] for f in found], dtype=torch.int64),
    )


BOX, FAR = [0, 0, 100, 100], [200, 200, 300, 300]


def test_thresholds_are_clean() -> None:
    assert THRESHOLDS.tolist() == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], abs=1e-7)
    # 60 of 100 rows: an overlap of exactly 0.6, which a running sum of float steps would put below its 0.6000000000001.
    result = voc_metrics(dataset([(BOX, 0, False)]), {0: detections(([0, 0, 100, 60], 0.9, 0))}, eleven_point=True)
    assert result.ap[:, 0].tolist() == [1.0] * 3 + [0.0] * 7


@pytest.mark.parametrize(("eleven_point", "expected"), [(True, (6 + 5 * 2 / 3) / 11), (False, 0.5 + 0.5 * 2 / 3)])
def test_both_averages(eleven_point: bool, expected: float) -> None:
    # True, false, true of two objects: precision 1 at recall 1/2, then 2/3 at recall 1.
    found = detections((BOX, 0.9, 0), ([400, 400, 450, 450], 0.8, 0), (FAR, 0.7, 0))
    result = voc_metrics(dataset([(BOX, 0, False), (FAR, 0, False)]), {0: found}, eleven_point=eleven_point)
    assert result.ap[:, 0] == pytest.approx([expected] * 10)
    assert result.recall[0, 0] == 1.0


@pytest.mark.parametrize(("hits", "levels"), [(2, 3), (3, 3), (5, 6), (6, 6), (7, 7), (8, 9), (10, 11)])
def test_recalls_of_3_6_and_7_tenths_stay_short_of_their_level_as_in_all_published_numbers(
    hits: int, levels: int
) -> None:
    boxes = [[40 * i, 0, 40 * i + 30, 30] for i in range(10)]
    found = detections(*((box, 0.9, 0) for box in boxes[:hits]))
    result = voc_metrics(dataset([(box, 0, False) for box in boxes]), {0: found}, eleven_point=True)
    assert result.stats["AP"] == pytest.approx(levels / 11)


def test_a_second_detection_of_an_object_is_false_even_if_another_object_is_free() -> None:
    # The second detection overlaps the first object most; that it also reaches 0.5 with the second does not help it.
    truth = dataset([([0, 0, 100, 100], 0, False), ([0, 30, 100, 130], 0, False)])
    found = detections(([0, 0, 100, 100], 0.9, 0), ([0, 10, 100, 110], 0.8, 0))
    result = voc_metrics(truth, {0: found}, eleven_point=False)
    assert result.recall[0, 0] == 0.5
    assert result.ap[0, 0] == pytest.approx(0.5)


def test_difficult_objects_are_neither_asked_for_nor_false() -> None:
    truth = dataset([(BOX, 0, True), (FAR, 0, False)])
    found = detections((BOX, 0.9, 0), (BOX, 0.85, 0), (FAR, 0.8, 0))
    result = voc_metrics(truth, {0: found}, eleven_point=False)
    assert result.objects.tolist() == [1]
    assert result.reported.tolist() == [3]
    assert result.ap[:, 0].tolist() == [1.0] * 10
    # Below the threshold it does not belong to the difficult object, and is false.
    below = voc_metrics(truth, {0: detections(([0, 0, 100, 55], 0.9, 0), (FAR, 0.8, 0))}, eleven_point=False)
    assert below.ap[:, 0].tolist() == [1.0] * 2 + [0.5] * 8


def test_with_equal_overlap_the_object_to_find_comes_before_the_difficult_one() -> None:
    truth = dataset([(BOX, 0, True), (BOX, 0, False)])
    assert voc_metrics(truth, {0: detections((BOX, 0.9, 0))}, eleven_point=False).ap[0, 0] == 1.0


def test_classes_and_images_are_kept_apart() -> None:
    truth = dataset([(BOX, 0, False)], [(FAR, 1, False)], classes=("cat", "dog", "emu"))
    found = {0: detections((BOX, 0.9, 1), (FAR, 0.8, 1)), 1: detections((FAR, 0.7, 1), (BOX, 0.9, 2))}
    result = voc_metrics(truth, found, eleven_point=False)
    assert result.ap[0, :2] == pytest.approx([0.0, 1 / 3])
    assert math.isnan(result.ap[0, 2])
    assert result.stats["AP50"] == pytest.approx(1 / 6)
    assert result.objects.tolist() == [1, 1, 0]
    assert result.reported.tolist() == [0, 3, 1]


def test_empty_is_ordinary() -> None:
    no_objects = voc_metrics(dataset([]), {0: detections((BOX, 0.9, 0))}, eleven_point=True)
    assert set(no_objects.stats.values()) == {None}
    assert all(math.isnan(value) for value in no_objects.metrics().values())
    assert voc_metrics(dataset(), {}, eleven_point=True).stats["AP"] is None
    none_found = voc_metrics(dataset([(BOX, 0, False)]), {}, eleven_point=True)
    assert none_found.metrics() == dict.fromkeys(none_found.stats, 0.0)


def test_tables() -> None:
    truth = dataset([(BOX, 0, False)], classes=("cat", "dog"))
    result = voc_metrics(truth, {0: detections(([0, 0, 100, 78], 0.9, 0))}, eleven_point=True)
    summary, by_class = result.tables()
    assert dict(zip(summary.header, summary.rows[0], strict=True)) | {"AP": "60.0", "mAP": "100.0"} == dict(
        zip(summary.header, summary.rows[0], strict=True)
    )
    assert by_class.rows[0] == ("cat", "1", "1", *["100.0"] * 6, *["0.0"] * 4)
    assert by_class.rows[1] == ("dog", "0", "0", *["-"] * 10)
    assert by_class.rows[2] == ("mean", "1", "1", *["100.0"] * 6, *["0.0"] * 4)


def test_the_evaluator_averages_at_eleven_points_for_2007_and_by_area_later() -> None:
    found = {0: detections((BOX, 0.9, 0), ([400, 400, 450, 450], 0.8, 0), (FAR, 0.7, 0))}
    truth = dataset([(BOX, 0, False), (FAR, 0, False)])
    later = dataset([(BOX, 0, False), (FAR, 0, False)], folder="VOC2012")
    assert Evaluator(truth)(found)["mAP"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert Evaluator(later)(found)["mAP"] == pytest.approx(5 / 6)
    assert Evaluator(truth, False)(found)["mAP"] == pytest.approx(5 / 6)


def test_the_evaluator_uses_coco_metrics_elsewhere() -> None:
    truth = replace(dataset([(BOX, 0, False)]), kind="yolo")
    metrics = Evaluator(truth)({0: detections((BOX, 0.9, 0))})
    assert metrics["AP"] == pytest.approx(1.0)
    assert metrics["AR100"] == pytest.approx(1.0)
    assert "APs" not in metrics
