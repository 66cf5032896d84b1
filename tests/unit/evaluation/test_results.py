"""Result files for test servers: format, rounding, round trip, errors."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.errors import DataError, RecipeError
from locdistill.evaluation.coco import coco_metrics
from locdistill.evaluation.results import read_results, write_results
from locdistill.inference.evaluate import EvaluationResult
from locdistill.types import Detections


@pytest.fixture
def data() -> Dataset:
    records = tuple(
        Record(
            path=Path(f"{i}.jpg"),
            image_id=i,
            width=100,
            height=80,
            boxes=np.array([[10, 10, 50, 40]], np.float32),
            labels=np.array([1]),
            ignored=np.array([False]),
        )
        for i in (42, 7)
    )
    return Dataset(name="toy", classes=("a", "b"), records=records, kind="coco", category_ids=(18, 3))


@pytest.fixture
def found() -> dict[int, Detections]:
    boxes = torch.tensor([[10.0, 10.0, 50.003, 40.0], [1.23456, 2.0, 3.5, 4.0]])
    return {7: Detections(boxes, torch.tensor([0.912345678, 0.5]), torch.tensor([1, 0]))}


def test_the_file_is_what_the_server_expects(tmp_path: Path, data: Dataset, found: dict[int, Detections]) -> None:
    path = write_results(tmp_path / "new" / "results.json", data, found)
    assert json.loads(path.read_text()) == [
        {"image_id": 7, "category_id": 3, "bbox": [10.0, 10.0, 40.0, 30.0], "score": 0.91235},
        {"image_id": 7, "category_id": 18, "bbox": [1.23, 2.0, 2.27, 2.0], "score": 0.5},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_round_trip(tmp_path: Path, data: Dataset, found: dict[int, Detections]) -> None:
    again = read_results(write_results(tmp_path / "r.json", data, found), data)
    assert again.keys() == {42, 7}
    assert again[42].boxes.shape == (0, 4)
    assert again[7].labels.tolist() == [1, 0]
    torch.testing.assert_close(again[7].boxes, found[7].boxes, atol=0.011, rtol=0)
    assert coco_metrics(data, again).stats == coco_metrics(data, found).stats


def test_nothing_detected_is_an_empty_list(tmp_path: Path, data: Dataset) -> None:
    path = write_results(tmp_path / "r.json", data, {})
    assert json.loads(path.read_text()) == []
    assert all(len(d.scores) == 0 for d in read_results(path, data).values())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, data: Dataset, found: dict[int, Detections]) -> None:
    path = write_results(tmp_path / "r.json", data, found)
    before = path.read_text()
    with pytest.raises(ValueError, match="class index 5"):
        write_results(path, data, {7: Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([5]))})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_reading_sorts_by_score(tmp_path: Path, data: Dataset) -> None:
    entry = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps([entry | {"score": 0.1}, entry | {"score": 0.7}]))
    assert read_results(path, data)[7].scores.tolist() == pytest.approx([0.7, 0.1])


GOOD = {"image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (GOOD | {"image_id": 8}, "image_id 8 is not in the data set"),
        (GOOD | {"image_id": [8]}, r"image_id \[8\] is not in the data set"),
        (GOOD | {"category_id": 1}, r"category_id 1 is not one of \[3, 18\]"),
        (GOOD | {"bbox": [1, 2, 3]}, "expected four numbers as bbox"),
        (GOOD | {"score": float("nan")}, "expected four numbers as bbox and one as score"),
        (4, "expected image_id, category_id, bbox and score, found 4"),
        ({"image_id": 7}, "expected image_id, category_id, bbox and score"),
    ],
)
def test_offenders_are_named(tmp_path: Path, data: Dataset, entry: dict, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps([GOOD, entry]))
    with pytest.raises(DataError, match="1 of 2 detections do not fit") as caught:
        read_results(path, data)
    assert caught.match("entry 1: " + message)


def test_files_of_another_kind_are_refused(tmp_path: Path, data: Dataset) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match="not a readable JSON file"):
        read_results(path, data)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"came a dict; for the predictions.json of 'locdistill predict', use"):
        read_results(path, data)
    path.write_text(json.dumps([GOOD | {"image_id": 1}] * 30))
    with pytest.raises(DataError, match=r"\.\.\. and 20 more"):
        read_results(path, data)


def test_the_official_tool_reads_the_same_numbers_off_the_two_files(tmp_path: Path, tiny_coco: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data = open_dataset(DataSettings(path=str(tiny_coco)), "val")
    rng = np.random.default_rng(3)
    found = {}
    for record in data.records:
        moved = np.repeat(record.boxes, 2, 0)
        moved = moved + rng.normal(size=moved.shape) * 3
        labels = np.repeat(record.labels, 2)
        scores = torch.from_numpy(rng.random(len(labels)))
        found[record.image_id] = Detections(torch.from_numpy(moved), scores, torch.from_numpy(labels))
    path = write_results(tmp_path / "r.json", data, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tiny_coco / "val.json"))
        oracle = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    stats = coco_metrics(data, read_results(path, data)).stats
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert 0 < oracle.stats[0] < 1
    for name, official in zip(names, oracle.stats, strict=True):
        assert stats[name] == (None if official == -1 else pytest.approx(official, abs=1e-6))


ROTATED = torch.tensor([[50.0, 40.0, 30.0, 10.0, 0.7853981634], [20.126, 60.0, 8.0, 24.0, -1.234567]])


@pytest.fixture
def turned(data: Dataset) -> tuple[Dataset, dict[int, Detections]]:
    return data.as_oriented(True), {7: Detections(ROTATED, torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))}


def test_rotated_boxes_stand_beside_the_boxes_around_them(
    tmp_path: Path, turned: tuple[Dataset, dict[int, Detections]]
) -> None:
    data, found = turned
    first, second = json.loads(write_results(tmp_path / "r.json", data, found).read_text())
    side = 40 / 2**0.5  # of the box around a box of 30 x 10 turned by 45 degrees
    assert first == {
        "image_id": 7,
        "category_id": 3,
        "bbox": [round(50 - side / 2, 2), round(40 - side / 2, 2), round(side, 2), round(side, 2)],
        "rbox": [50.0, 40.0, 30.0, 10.0, 0.7854],
        "score": 0.9,
    }
    assert second["rbox"] == [20.13, 60.0, 8.0, 24.0, -1.23457]
    again = read_results(tmp_path / "r.json", data)
    torch.testing.assert_close(again[7].boxes, ROTATED, atol=0.006, rtol=0)
    assert again[7].labels.tolist() == [1, 0]
    assert again[42].boxes.shape == (0, 5)


def test_a_file_has_boxes_of_one_kind(tmp_path: Path, turned: tuple[Dataset, dict[int, Detections]]) -> None:
    data, found = turned
    path = write_results(tmp_path / "r.json", data, found)
    entries = json.loads(path.read_text())
    del entries[1]["rbox"]
    path.write_text(json.dumps(entries))
    with pytest.raises(
        DataError,
        match=r"1 of the 2 detections have no rbox, .* \(the first without is entry 1\); give one to all",
    ):
        read_results(path, data)


def test_the_errors_of_a_wrong_kind_name_the_data(tmp_path: Path, data: Dataset, found: dict[int, Detections]) -> None:
    with pytest.raises(ValueError, match="expected rotated boxes, as the objects of data set 'toy' are"):
        write_results(tmp_path / "r.json", data.as_oriented(True), found)


def test_where_identifiers_depend_on_the_choice_of_classes_the_name_counts(
    tmp_path: Path, data: Dataset, found: dict[int, Detections]
) -> None:
    chosen = replace(data, kind="dota", category_ids=(1, 2))
    path = write_results(tmp_path / "r.json", chosen, found)
    assert [entry["category_name"] for entry in json.loads(path.read_text())] == ["b", "a"]
    other = replace(chosen, classes=("c", "b", "a"), category_ids=(1, 2, 3))
    assert read_results(path, other)[7].labels.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"entry 1: category_name 'a' is not one of \['b'\]"):
        read_results(path, replace(data, classes=("b",), category_ids=(1,)))


def test_what_is_not_to_be_asked_of_upright_boxes_says_what_to_leave_out(data: Dataset) -> None:
    result = EvaluationResult({}, {}, (), {}, data)
    with pytest.raises(RecipeError, match="which have one average; leave out --eleven-point and --area"):
        result.judged(eleven_point=True)
    with pytest.raises(RecipeError, match="those of toy are upright; leave out --published-sum"):
        result.judged(published=True)
