"""Pictures and files of an evaluation, stored results of any program, and minimum scores that weights bring along."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.errors import DataError, RecipeError
from locdistill.evaluation.results import write_results
from locdistill.inference import evaluation_files
from locdistill.inference.evaluate import evaluate
from locdistill.inference.evaluation_files import Findings, best_and_worst, class_table, labels_picture, pair
from locdistill.inference.predict import predict
from locdistill.models.detector import Detector
from locdistill.models.settings import InputSettings
from locdistill.models.weights import add_extra, read_metadata, read_thresholds
from locdistill.publishing.publish import publish
from locdistill.training import pictures
from locdistill.types import Detections
from tests.conftest import CLASSES, Answer
from tests.small import small_detector

SAVED = {
    *("confusion.png", "detections.json", "errors.png", "images", "labels.png", "per_class.csv", "pr_curves.png"),
    *("thresholds.json", "val_best_worst.png"),
}


@pytest.fixture(scope="module")
def data(tiny_coco: Path) -> Dataset:
    return open_dataset(DataSettings(path=str(tiny_coco)), "val")


def shaken(data: Dataset, by: float = 4.0) -> dict[int, Detections]:
    """Detections near the objects, and one that is false in each image."""
    rng, found = np.random.default_rng(0), {}
    for record in data.records:
        boxes = record.boxes + rng.normal(size=record.boxes.shape) * by
        boxes = torch.from_numpy(np.concatenate((boxes, [[1, 1, 9, 9]])).astype(np.float32))
        scores = torch.from_numpy(rng.uniform(0.4, 0.9, len(boxes)).astype(np.float32))
        scores[-1] = 0.2
        found[record.image_id] = Detections(boxes, scores, torch.tensor([*record.labels.tolist(), 0]))
    return found


@pytest.fixture(scope="module")
def results(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results") / "results.json", data, shaken(data))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = small_detector(backbone="mobilenetv3_small_050", input=InputSettings(short=64, long=96))
    return Detector(tiny).save(tmp_path_factory.mktemp("weights") / "w", extra={"note": 1})


def test_stored_results_are_judged_as_the_detections_are(tiny_coco: Path, data: Dataset, results: Path) -> None:
    result = evaluate(results, tiny_coco)
    assert 0.5 < result.metrics["AP50"] <= 1
    assert set(result.per_class) == set(CLASSES)
    table = list(csv.DictReader(class_table(Findings(data, shaken(data))).splitlines()))
    assert [row["class"] for row in table] == list(CLASSES)
    for row in table:
        assert float(row["AP50"]) == pytest.approx(result.per_class[row["class"]]["AP50"], abs=1e-4)
        assert 0.2 < float(row["threshold"]) < 0.9  # without the false ones


def test_evaluate_saves_and_prints(cli: Callable[..., Answer], tiny_coco: Path, results: Path, tmp_path: Path) -> None:
    code, out, err = cli(
        *("evaluate", results, "--data", tiny_coco, "--save", tmp_path / "out", "--save-images", 2, "--json")
    )
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["saved"] == str(tmp_path / "out")
    assert content["data"]["images"] == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == SAVED
    assert [path.name for path in sorted((tmp_path / "out" / "images").iterdir())] == ["val_000.jpg", "val_002.jpg"]
    with Image.open(tmp_path / "out" / "images" / "val_000.jpg") as image:
        assert image.width > 2 * image.height  # truth beside detections
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out" / "detections.json", results)]
    assert all(entry in stored[0] for entry in stored[1])  # best first
    again = json.loads(cli("evaluate", tmp_path / "out" / "detections.json", "--data", tiny_coco, "--json")[1])
    assert again["metrics"] == content["metrics"]
    code, out, _ = cli("evaluate", results, "--data", tiny_coco)
    assert code == 0
    assert "By class" in out


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"image_id": 7}, "image_id 7 is not in the data set"),
        ({"image_id": "val_000"}, "image_id 'val_000' is not in"),
        ({"category_id": 9}, r"category_id 9 is not one of \[1, 2, 3\]"),
        ({"bbox": [1, 2, -3, 4]}, "negative width or height"),
        ({"bbox": [1, 2, 3]}, "expected four numbers as bbox"),
        ({"score": None}, "one as score"),
    ],
)
def test_results_that_do_not_fit_are_refused(tiny_coco: Path, results: Path, tmp_path: Path, entry: dict, says: str):
    entries = json.loads(results.read_text())
    entries[1] |= entry
    (tmp_path / "r.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=rf"(?s)1 of {len(entries)} detections do not fit.*entry 1: .*{says}"):
        evaluate(tmp_path / "r.json", tiny_coco)


def test_what_cannot_be_judged_says_why(tiny_coco: Path, results: Path, tmp_path: Path, cli: Callable[..., Answer]):
    (tmp_path / "dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"a list of detections.*came a dict"):
        evaluate(tmp_path / "dict.json", tiny_coco)
    with pytest.raises(DataError, match="not a readable JSON file"):
        evaluate(tmp_path / "absent.json", tiny_coco)
    with pytest.raises(RecipeError, match="pass --data FOLDER"):
        evaluate(results)
    with pytest.raises(RecipeError, match="detections: stored results can be adjusted in data only"):
        evaluate(results, tiny_coco, overrides=["detections.nms_iou=0.5"])
    with pytest.raises(RecipeError, match="holds results"):
        evaluate(results, tiny_coco, format_only=tmp_path / "x.json")
    code, _, err = cli("evaluate", results, "--data", tiny_coco, "--save", tmp_path / "s", "--format-only", "x.json")
    assert code == 2
    assert "leave one of them out" in err
    (tmp_path / "empty.json").write_text("[]")
    assert evaluate(tmp_path / "empty.json", tiny_coco).metrics["AP"] == 0


def test_rotated_results_are_judged_as_rotated_boxes(tiny_coco: Path, data: Dataset, tmp_path: Path) -> None:
    oriented, found = data.as_oriented(True), {}
    for image_id, (boxes, scores, labels) in shaken(data, 0.0).items():
        centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        found[image_id] = Detections(torch.cat((centre, sides, torch.zeros(len(boxes), 1)), 1), scores, labels)
    result = evaluate(write_results(tmp_path / "r.json", oriented, found), tiny_coco)
    assert result.dataset.oriented
    assert result.metrics["AP50"] == pytest.approx(1.0)
    assert pair(Findings(oriented, found), oriented.records[0], 200).width == 2 * 128 + 4
    assert best_and_worst(Findings(oriented, found)).width > 800


def test_images_without_anything_are_neither_best_nor_worst(data: Dataset) -> None:
    empty = Dataset(
        "empty", data.classes, tuple(r.of(np.zeros(len(r.labels), bool)) for r in data.records), "coco", (1, 2, 3)
    )
    assert best_and_worst(Findings(empty, {})).height < 100
    assert labels_picture(empty).width == 2600
    assert class_table(Findings(empty, {})).splitlines()[1].startswith("disc,0,,")
    assert best_and_worst(Findings(data, {})).width > 300


def test_drawings_of_images_of_the_same_name(data: Dataset) -> None:
    records = [data.records[0], data.records[1], data.records[0]]
    names = evaluation_files._names(records)
    assert names == ["val_000-1001.jpg", "val_001.jpg", "val_000-1001.jpg"]


def test_scores_in_the_weights_are_what_predict_begins_with(
    weights: Path, tiny_coco: Path, tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    image = tiny_coco / "images" / "val_000.png"
    before = Detector.load(weights).state_dict()
    assert read_thresholds(weights) == {}
    assert len(predict(weights, image)[0].detections.scores) == 0  # untrained: all scores are about 0.01
    everything = predict(weights, image, threshold=0.0)[0].detections
    label = int(everything.labels[0])
    middle, name = 0.99 * float(everything.scores[0]), CLASSES[label]
    add_extra(weights, {"thresholds": {name: middle, "gone": 0.5}})
    assert read_metadata(weights)["extra"] == {"note": 1, "thresholds": {name: middle, "gone": 0.5}}
    assert all(torch.equal(value, before[name]) for name, value in Detector.load(weights).state_dict().items())
    found = predict(weights, image)[0].detections
    assert set(found.labels.tolist()) == {label}
    assert found.scores.min() >= middle
    assert len(predict(weights, image, threshold=0.5)[0].detections.scores) == 0  # an explicit one wins
    assert len(predict(Detector.load(weights), image)[0].detections.scores) == 0
    code, out, err = cli("predict", weights, image, "--save", tmp_path / "out", "--json")
    assert code == 0
    assert len(json.loads(out)[0]["detections"]) == len(found.scores)
    assert err.count("\n") == 1
    assert "by the best F1" in err
    assert f"{name} 0.0" in err
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["thresholds"][name] == content["threshold"] == middle
    assert cli("predict", weights, image, "--threshold", "0.5")[2] == ""
    published = publish(weights, out=tmp_path / "published")
    assert read_thresholds(published.weights)[name] == middle


@pytest.mark.parametrize("wrong", [{"box": "high"}, {"box": 2.0}, [0.5], None])
def test_scores_of_another_form_are_not_used(weights: Path, wrong: object) -> None:
    add_extra(weights, {"thresholds": wrong})
    assert read_thresholds(weights) == {}


def test_a_picture_that_fails_is_a_warning(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> Image.Image:
        raise ZeroDivisionError("no such colour")

    monkeypatch.setattr(pictures, "pictures_of", lambda _: {"a.png": fails, "b.png": lambda: Image.new("RGB", (3, 3))})
    with caplog.at_level(logging.WARNING, "locdistill"):
        pictures.judgement(tmp_path, Findings(data, {}))
    assert "a.png could not be written (ZeroDivisionError: no such colour)" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"b.png", "per_class.csv"}
