"""AP on resampled images: that of the library on data in which images are left out or come several times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.bootstrap import image_weights, judge_coco, judge_voc
from locdistill.evaluation.coco import coco_metrics
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.voc import VOC as RULES
from locdistill.evaluation.voc import average_precision
from locdistill.types import Detections
from tests.unit.evaluation.test_coco import dataset, detections, random_case, record

Found = dict[int, Detections]
VOC = ("AP", "AP50", "AP75", "AP90")
COCO = (*VOC, "APs", "APm", "APl")


def repeated(data: Dataset, found: Found, counts: np.ndarray) -> tuple[Dataset, Found]:
    """The data set with each image (by identifier) as often as it counts."""
    records: list[Record] = []
    again: Found = {}
    for original, count in zip(sorted(data.records, key=lambda r: r.image_id), counts, strict=True):
        for _ in range(count):
            records.append(replace(original, image_id=len(records) + 1))
            if original.image_id in found:
                again[len(records)] = found[original.image_id]
    return replace(data, records=tuple(records)), again


def untied(found: Found) -> Found:
    """The same with scores of which no two are equal: a resample puts the copies of one detection side by side."""
    number = 0
    for image_id, here in found.items():
        steps = 1e-5 * torch.arange(number, number + len(here.scores))
        found = found | {image_id: here._replace(scores=here.scores + steps)}
        number += len(here.scores)
    return found


def or_nan(value: float | None) -> float:
    return np.nan if value is None else value


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_library_where_every_image_counts_once(seed: int) -> None:
    data, found = random_case(seed)
    expected, numbers = coco_metrics(data, found), judge_coco(data, found).numbers()
    assert [numbers.means[k][0] for k in COCO] == pytest.approx([expected.stats[k] for k in COCO], abs=1e-9)
    by_class = [or_nan(expected.per_class[name]["AP"]) for name in data.classes]
    assert [numbers.classes[name][0] for name in data.classes] == pytest.approx(by_class, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_library_on_resampled_images(seed: int) -> None:
    data, found = random_case(seed)
    found = untied(found)
    weights = image_weights(len(data), 5, seed=seed)
    assert weights.sum(1).tolist() == [len(data)] * 5
    numbers = judge_coco(data, found).numbers(weights)
    for b, counts in enumerate(weights):
        expected = coco_metrics(*repeated(data, found, counts))
        stats = [or_nan(expected.stats[k]) for k in COCO]
        assert [numbers.means[k][b] for k in COCO] == pytest.approx(stats, abs=1e-9, nan_ok=True)
        by_class = [or_nan(expected.per_class[name]["AP"]) for name in data.classes]
        assert [numbers.classes[n][b] for n in data.classes] == pytest.approx(by_class, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("eleven_point", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_equals_voc(seed: int, eleven_point: bool) -> None:
    data, found = random_case(seed)
    data = replace(data, kind="voc", records=tuple(sorted(data.records, key=lambda r: r.image_id)))
    judged = judge_voc(data, found, eleven_point=eleven_point)
    once = average_precision(data, found, RULES, eleven_point=eleven_point)
    numbers = judged.numbers()
    assert [numbers.means[k][0] for k in VOC] == pytest.approx([once.stats[k] for k in VOC], abs=1e-9)
    assert [v[0] for v in numbers.classes.values()] == pytest.approx(once.ap.mean(0), abs=1e-9, nan_ok=True)
    assert Evaluator(data, eleven_point).judge(found).numbers().means["AP"] == numbers.means["AP"]
    found = untied(found)
    weights = image_weights(len(data), 3, seed=seed)
    numbers = judge_voc(data, found, eleven_point=eleven_point).numbers(weights)
    for b, counts in enumerate(weights):
        stats = average_precision(*repeated(data, found, counts), RULES, eleven_point=eleven_point).stats
        assert [numbers.means[k][b] for k in VOC] == pytest.approx([or_nan(stats[k]) for k in VOC], abs=1e-9)


def test_by_hand() -> None:
    # One object each: found in the first image, missed in the second.
    data = dataset(record(1, [[0, 0, 50, 50]], [0]), record(2, [[0, 0, 50, 50]], [0]))
    judged = judge_coco(data, {1: detections([[0, 0, 50, 50]], [0.9], [0])})
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    # Precision 1 up to recall 0.5: the levels 0.00, 0.01, ... 0.50 of 101.
    assert judged.numbers(weights).means["AP"] == pytest.approx([51 / 101, 1.0, 0.0])


def test_a_resample_without_objects_is_undefined() -> None:
    data = dataset(record(1, [[0, 0, 50, 50]], [0]), record(2, [], []), classes=("cat", "dog"))
    numbers = judge_coco(data, {2: detections([[0, 0, 9, 9]], [0.9], [1])}).numbers(np.array([[0, 2], [1, 1]]))
    assert np.isnan(numbers.means["AP"][0])
    assert numbers.means["AP"][1] == 0.0
    assert np.isnan(numbers.classes["dog"]).all()
    assert np.isnan(judge_coco(dataset(), {}).numbers().means["AP"]).all()


def test_resamples_are_repeatable() -> None:
    first = image_weights(20, 4, seed=1)
    assert (first == image_weights(20, 4, seed=1)).all()
    assert (first != image_weights(20, 4, seed=2)).any()
