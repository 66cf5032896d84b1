"""COCO metrics: hand-computed cases, and equality with pycocotools on random data."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.bootstrap import judge_coco
from locdistill.evaluation.coco import coco_metrics
from locdistill.evaluation.matching import match
from locdistill.types import Detections


def record(image_id: int, boxes: list, labels: list, ignored: list | None = None, size=(400, 400)) -> Record:
    return Record(
        path=Path(f"{image_id}.jpg"),
        image_id=image_id,
        width=size[0],
        height=size[1],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        ignored=np.array(ignored if ignored is not None else [False] * len(boxes), bool),
    )


def dataset(*records: Record, classes=("cat", "dog")) -> Dataset:
    # Identifiers of the file that fall with the class index: they must play no part.
    ids = tuple(range(len(classes), 0, -1))
    return Dataset(name="toy", classes=classes, records=records, kind="coco", category_ids=ids)


def detections(boxes: list, scores: list, labels: list) -> Detections:
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )


def test_perfect_detections_score_one_and_absent_classes_take_no_part() -> None:
    data = dataset(record(5, [[10, 10, 60, 60]], [0]), classes=("cat", "dog", "emu"))
    result = coco_metrics(data, {5: detections([[10, 10, 60, 60]], [0.9], [0])})
    assert [result.stats[k] for k in ("AP", "AP50", "AP75", "AP90", "APm", "AR1", "AR100")] == pytest.approx([1.0] * 7)
    assert result.stats["APs"] is None
    assert result.stats["APl"] is None
    assert result.per_class["cat"]["objects"] == 1
    assert result.per_class["dog"] == {"AP": None, "AP50": None, "AP75": None, "AP90": None, "objects": 0}


def test_overlap_decides_at_which_thresholds_a_detection_counts() -> None:
    # Boxes 100 x 100 and 100 x 78 inside it: overlap 0.78, which reaches 0.50 to 0.75, six of ten thresholds.
    data = dataset(record(1, [[0, 0, 100, 100]], [0]))
    stats = coco_metrics(data, {1: detections([[0, 0, 100, 78]], [0.5], [0])}).stats
    assert stats["AP"] == pytest.approx(0.6)
    assert (stats["AP50"], stats["AP75"], stats["AP90"]) == pytest.approx((1.0, 1.0, 0.0))
    assert stats["APl"] == pytest.approx(0.6)


def test_a_false_detection_ranked_first_halves_the_precision() -> None:
    data = dataset(record(1, [[0, 0, 50, 50]], [0]))
    found = detections([[200, 200, 250, 250], [0, 0, 50, 50]], [0.9, 0.8], [0, 0])
    assert coco_metrics(data, {1: found}).stats["AP"] == pytest.approx(0.5)


def test_a_crowd_is_not_to_be_found_and_forgives_what_lies_in_it() -> None:
    boxes = [[0, 0, 50, 50], [100, 100, 300, 300]]
    found = detections([[110, 110, 150, 150], [0, 0, 50, 50], [120, 120, 160, 170]], [0.9, 0.8, 0.7], [0, 0, 0])
    crowd = coco_metrics(dataset(record(1, boxes, [0, 0], [False, True])), {1: found})
    assert crowd.stats["AP"] == pytest.approx(1.0)
    assert crowd.per_class["cat"]["objects"] == 1
    plain = coco_metrics(dataset(record(1, boxes, [0, 0])), {1: found})
    assert plain.stats["AP"] < 0.5


def test_the_average_of_classes_is_the_mean_of_those_with_objects() -> None:
    data = dataset(record(1, [[0, 0, 50, 50], [100, 100, 150, 150]], [0, 1]), classes=("cat", "dog", "emu"))
    result = coco_metrics(data, {1: detections([[0, 0, 50, 50], [5, 5, 9, 9]], [0.9, 0.8], [0, 2])})
    assert result.per_class["cat"]["AP"] == pytest.approx(1.0)
    assert result.per_class["dog"]["AP"] == 0.0
    assert result.per_class["emu"]["AP"] is None
    assert result.stats["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("found", [{}, {1: detections([], [], [])}])
def test_no_detections_score_zero(found: dict) -> None:
    stats = coco_metrics(dataset(record(1, [[0, 0, 50, 50]], [0]), record(2, [], [])), found).stats
    assert stats["AP"] == stats["AR100"] == 0.0


def test_nothing_to_find_is_undefined_and_not_zero() -> None:
    for data in (dataset(), dataset(record(1, [], [])), dataset(record(1, [], []), classes=())):
        result = coco_metrics(data, {})
        assert set(result.stats.values()) == {None}
        assert set(result.metrics()) == {"AP", "AP50", "AP75", "AP90"}
        assert all(math.isnan(value) for value in result.metrics().values())
        assert "-" in result.tables()[0].text()
    false_alarm = coco_metrics(dataset(record(1, [], [])), {1: detections([[0, 0, 5, 5]], [0.9], [0])})
    assert false_alarm.stats["AP"] is None


def test_strangers_are_refused() -> None:
    data = dataset(record(1, [], []))
    with pytest.raises(ValueError, match="not in data set 'toy'"):
        coco_metrics(data, {2: detections([], [], [])})
    with pytest.raises(ValueError, match="class index 2"):
        coco_metrics(data, {1: detections([[0, 0, 5, 5]], [0.9], [2])})


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    coco_metrics(dataset(record(1, [[0, 0, 50, 50]], [0])), {1: detections([[0, 0, 50, 50]], [0.9], [0])})
    assert capfd.readouterr() == ("", "")


def test_tables_hold_every_class_and_the_mean() -> None:
    data = dataset(record(1, [[0, 0, 50, 50]], [0]))
    summary, by_class = coco_metrics(data, {1: detections([[0, 0, 50, 50]], [0.9], [0])}).tables()
    assert summary.header[:4] == ("AP", "AP50", "AP75", "AP90")
    assert by_class.rows[0] == ("cat", "1", "100.0", "100.0", "100.0", "100.0")
    assert by_class.rows[1] == ("dog", "0", "-", "-", "-", "-")
    assert by_class.rows[2][0] == "mean"
    assert "cat" in by_class.text()


def random_case(seed: int) -> tuple[Dataset, dict[int, Detections]]:
    """Random objects of all sizes, some of them crowds; detections near objects and elsewhere, with tied scores."""
    rng = np.random.default_rng(seed)
    records, found = [], {}
    for image_id in rng.permutation(1000)[:12]:
        n = int(rng.integers(0, 9))
        corner, side = rng.uniform(0, 300, (n, 2)), np.exp(rng.uniform(np.log(8), np.log(250), (n, 2)))
        boxes = np.concatenate((corner, corner + side), 1)
        labels, crowds = rng.integers(0, 4, n), rng.random(n) < 0.2
        plain = record(int(image_id), boxes.tolist(), labels.tolist(), crowds.tolist(), (640, 640))
        # Areas of outlines are smaller than boxes, which moves some objects to another size class.
        records.append(replace(plain, areas=plain.areas * rng.uniform(0.4, 1.0, n).astype(np.float32)))
        near = np.repeat(boxes, 3, 0)
        spread = 0.12 * np.tile(np.repeat(side, 3, 0), 2)
        near = near + rng.normal(size=near.shape) * spread * rng.random((len(near), 1))
        odd = rng.uniform(0, 300, (15, 2))
        odd = np.concatenate((odd, odd + rng.uniform(5, 200, (15, 2))), 1)
        all_boxes = np.concatenate((near, odd))
        all_labels = np.concatenate((np.repeat(labels, 3), rng.integers(0, 4, 15)))
        wrong = rng.random(len(all_labels)) < 0.1
        all_labels = np.where(wrong, rng.integers(0, 4, len(all_labels)), all_labels)
        scores = np.round(rng.random(len(all_labels)), 1 + seed % 3)
        if rng.random() < 0.85:
            found[int(image_id)] = detections(all_boxes.tolist(), scores.tolist(), all_labels.tolist())
    # The fifth class has no object.
    return dataset(*records, classes=("a", "b", "c", "d", "e")), found


def pycocotools_arrays(data: Dataset, found: dict[int, Detections]):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotation(number, image_id, box, label):
        x1, y1, x2, y2 = (float(v) for v in box)
        bbox = [x1, y1, x2 - x1, y2 - y1]
        entry = {"id": number, "image_id": image_id, "category_id": int(label) + 1, "bbox": bbox, "iscrowd": 0}
        return entry | {"area": bbox[2] * bbox[3]}

    images = [{"id": r.image_id, "width": r.width, "height": r.height} for r in data.records]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(data.classes)]
    truth, reported = [], []
    for r in data.records:
        for box, label, area, crowd in zip(r.boxes, r.labels, r.areas, r.ignored, strict=True):
            entry = annotation(len(truth) + 1, r.image_id, box, label)
            truth.append(entry | {"iscrowd": int(crowd), "area": float(area)})
    for image_id, d in found.items():
        for box, score, label in zip(d.boxes, d.scores, d.labels, strict=True):
            reported.append(annotation(len(reported) + 1, image_id, box, label) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"images": images, "annotations": truth, "categories": categories}
        gt.createIndex()
        evaluation = COCOeval(gt, gt.loadRes(reported), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed: int) -> None:
    data, found = random_case(seed)
    oracle = pycocotools_arrays(data, found)
    result = coco_metrics(data, found)
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert [result.stats[name] for name in names] == pytest.approx(oracle.stats.tolist(), abs=1e-9)
    assert all(oracle.stats > 0)  # every number is put to the test
    precision = oracle.eval["precision"][:, :, :, 0, 2]
    assert result.stats["AP90"] == pytest.approx(precision[8][precision[8] > -1].mean(), abs=1e-9)
    for c, name in enumerate(data.classes[:4]):
        expected = [precision[:, :, c].mean(), *(precision[i, :, c].mean() for i in (0, 5, 8))]
        assert [result.per_class[name][k] for k in ("AP", "AP50", "AP75", "AP90")] == pytest.approx(expected, abs=1e-9)
    assert result.per_class["e"]["AP"] is None


def test_more_than_a_hundred_objects_of_a_class_are_evaluated_whole() -> None:
    corners = [[20 * (i % 15), 20 * (i // 15)] for i in range(150)]
    boxes = [[x, y, x + 15, y + 15] for x, y in corners]
    data = dataset(record(1, boxes, [0] * 150))
    found = {1: detections(boxes, np.linspace(0.9, 0.1, 150).tolist(), [0] * 150)}
    result = coco_metrics(data, found)
    assert result.budget == 200
    assert result.stats["AP"] == pytest.approx(1)
    assert result.stats["AR200"] == pytest.approx(1)
    assert result.stats["AR100"] == pytest.approx(100 / 150)
    assert result.stats["AP@100"] == pytest.approx(0.663, abs=1e-3)
    assert "AP@100 is COCO's own AP" in result.tables()[0].title
    assert judge_coco(data, found).numbers().means["AP"][0] == pytest.approx(1)
    assert match(data, found).counted.sum() == 150
    few = coco_metrics(dataset(record(1, boxes[:100], [0] * 100)), {1: detections(boxes, [0.5] * 150, [0] * 150)})
    assert "AP@100" not in few.stats
