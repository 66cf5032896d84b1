"""The full look without training: problems, warnings, counts."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.data.check import check
from locdistill.data.settings import DataSettings
from locdistill.geometry.rotated import hull


@pytest.fixture
def folder(tiny_coco: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set to break."""
    return Path(shutil.copytree(tiny_coco, tmp_path / "set"))


def edit(folder: Path, split: str) -> dict[str, list[dict[str, object]]]:
    content: dict[str, list[dict[str, object]]] = json.loads((folder / f"{split}.json").read_text())
    return content


def test_a_clean_data_set(folder: Path) -> None:
    report = check(folder)
    assert report.ok
    assert report.kind == "coco"
    assert [(split.name, split.images, split.empty) for split in report.splits] == [("train", 8, 1), ("val", 4, 0)]
    content = edit(folder, "train")
    assert report.splits[0].boxes == len(content["annotations"]) == sum(report.splits[0].per_class.values())
    for index, name in enumerate(("disc", "box", "bar"), start=1):
        expected = sum(entry["category_id"] == index for entry in content["annotations"])
        assert report.splits[0].per_class[name] == expected
    assert report.splits[0].notes == {"images without objects, left out": 1}
    assert "no problems" in str(report)
    assert "8 images (1 without boxes)" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


def test_damage_within_an_image_that_training_would_only_meet_later(folder: Path) -> None:
    path = folder / "images" / "train_003.png"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF  # a PNG carries checksums; its header and ending are fine
    path.write_bytes(bytes(raw))
    report = check(folder)
    assert not report.ok
    assert len(report.problems) == 1
    assert report.problems[0].image
    assert "train_003.png" in str(report)
    assert report.splits[0].images == 7


def test_odd_but_harmless_things_are_warnings(folder: Path) -> None:
    content = edit(folder, "train")
    first = content["annotations"][0]
    extra = [dict(first), {**first, "bbox": [1, 1, 3, 30]}, {**first, "bbox": [100, 50, 60, 20]}]
    content["annotations"] += [{**entry, "id": 9000 + i} for i, entry in enumerate(extra)]
    content["categories"].append({"id": 77, "name": "unused"})
    (folder / "train.json").write_text(json.dumps(content))
    val = edit(folder, "val")
    val["categories"].append({"id": 77, "name": "unused"})
    (folder / "val.json").write_text(json.dumps(val))
    shutil.copy(folder / "images" / "train_000.png", folder / "images" / "val_001.png")
    report = check(folder)
    assert report.ok
    text = "\n".join(report.warnings)
    assert "train: 1 boxes drawn twice: train_000.png" in text
    assert "train: 1 boxes with a side below 4 pixels: train_000.png" in text
    assert "train: 1 boxes that reach beyond the image by more than a pixel: train_000.png" in text
    assert "1 images are in train and val: train_000.png = val_001.png" in text
    assert "train: no boxes of unused" in text


def test_problems_of_all_splits_are_listed_together(folder: Path) -> None:
    for split in ("train", "val"):
        content = edit(folder, split)
        content["annotations"][0]["bbox"] = [0, 0, -1, 1]
        content["images"][-1]["width"] = 5
        (folder / f"{split}.json").write_text(json.dumps(content))
    report = check(str(folder))
    assert len(report.problems) == 4
    assert str(report).endswith("4 problems")
    for problem in report.problems:
        assert str(problem) in str(report)


def test_a_split_that_cannot_be_read_does_not_hide_the_other(folder: Path) -> None:
    (folder / "val.json").write_text("{")
    report = check(folder)
    assert [split.name for split in report.splits] == ["train"]
    assert len(report.problems) == 1
    assert "val.json" in report.problems[0].file
    assert "not valid JSON" in report.problems[0].what


def test_splits_with_different_classes_are_a_problem(folder: Path) -> None:
    content = edit(folder, "val")
    content["categories"] = [{**entry, "id": 4 - int(str(entry["id"]))} for entry in content["categories"]]
    (folder / "val.json").write_text(json.dumps(content))
    report = check(folder)
    assert "split val: has the classes ['bar', 'box', 'disc'], but train has ['disc', 'box', 'bar']" in str(report)
    assert check(DataSettings(path=str(folder), classes=("disc", "box", "bar"))).ok


def test_what_is_no_data_set(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert not report.ok
    assert report.kind == ""
    assert "not recognised" in str(report)
    assert "problem" in str(check(tmp_path / "absent"))


def test_yolo_and_voc_are_checked_too(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "y" / "images" / split).mkdir(parents=True)
        (tmp_path / "y" / "labels" / split).mkdir(parents=True)
        noise = np.random.default_rng(len(split)).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "y" / "images" / split / "a.jpg")
        (tmp_path / "y" / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "y" / "data.yaml").write_text("names: [thing]\ntrain: images/train\nval: images/val\n")
    report = check(tmp_path / "y")
    assert report.ok, str(report)
    assert [split.name for split in report.splits] == ["train", "val"]
    assert report.splits[0].notes == {"label lines written twice": 1}
    year = tmp_path / "v"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (year / folder).mkdir(parents=True)
    shutil.copy(tmp_path / "y" / "images" / "val" / "a.jpg", year / "JPEGImages" / "a.jpg")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    (year / "Annotations" / "a.xml").write_text(f"<annotation><object><name>dog</name>{box}</object></annotation>")
    (year / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    report = check(DataSettings(path=str(year), holdout=0))
    assert report.ok, str(report)
    assert report.kind == "voc"
    assert [(split.name, split.boxes) for split in report.splits] == [("train", 1)]


def rotated_coco(folder: Path, annotations: list[dict[str, object]]) -> Path:
    (folder / "images").mkdir()
    Image.new("RGB", (64, 60), (9, 9, 9)).save(folder / "images" / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, **each} for i, each in enumerate(annotations)],
        "categories": [{"id": 1, "name": "bar"}, {"id": 2, "name": "unsure"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def around(rbox: list[float]) -> dict[str, object]:
    """An annotation with a rotated box and the box around it."""
    x1, y1, x2, y2 = hull(torch.tensor(rbox, dtype=torch.float64)).tolist()
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "rbox": rbox}


NO_VAL = (
    "there is no split val to evaluate on; name another with data.val=NAME, or hold out some of the training images "
    "with data.holdout=0.1"
)


def test_how_rotated_objects_lie(tmp_path: Path) -> None:
    boxes = [[30, 30, 20, 10, 0], [30, 30, 10, 20, 0], [30, 30, 20, 10, math.pi + 0.5], [30, 30, 10, 30, 0.5]]
    unsure = {**around([30, 30, 8, 8, 0.1]), "category_id": 2}
    folder = rotated_coco(tmp_path, [*map(around, boxes), unsure])
    report = check(DataSettings(path=str(folder), ignore_classes=("unsure",), holdout=0))
    assert report.ok
    assert report.warnings == [NO_VAL]
    (split,) = report.splits
    assert split.turned is not None
    assert split.turned.directions == {-60: 1, -30: 0, 0: 2, 30: 1, 60: 0, 90: 1}
    assert split.turned.upright == 2
    assert split.turned.ratios == (1.2, 2, 2.8)
    assert split.box_sides[1] == 14.1
    assert (split.boxes, split.ignored, split.per_class) == (5, 1, {"bar": 4})
    assert "40% upright" in str(report)
    assert "-60 20%, -30 0%, 0 40%, 30 20%, 60 0%, 90 20%" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["splits"][0]["turned"]["upright"] == 2


def test_odd_rotated_objects_are_warnings(tmp_path: Path) -> None:
    degrees = {**around([30, 30, 20, 10, math.pi / 3]), "rbox": [30, 30, 20, 10, 6]}
    thin, beside, beyond = [30, 30, 20, 3, 0.7], [80, 30, 10, 8, 0.1], [2, 30, 20, 10, 0.3]
    flat = around([30, 30, 20, 0, 0.7])
    twice = around([40, 30, 10, 8, 0.2])
    folder = rotated_coco(tmp_path, [degrees, *map(around, (thin, beside, beyond)), flat, twice, twice])
    report = check(DataSettings(path=str(folder), classes=("bar",), holdout=0))
    assert report.ok
    assert report.warnings == [
        NO_VAL,
        "train: 1 boxes drawn twice: a.png",
        "train: 2 boxes with a side below 4 pixels: a.png",
        "train: 2 boxes that reach beyond the image by more than a pixel: a.png",
        "train: 1 quadrilaterals without an area: a.png",
        "train: 1 quadrilaterals beside the image: a.png",
        "train: 1 boxes that differ by more than 2 pixels from those around their rotated boxes (whose angle is in "
        "radians, clockwise): a.png",
    ]
    assert report.splits[0].notes == {
        "boxes outside the image, left out": 1,
        "boxes with a side below 1 px, left out": 1,
    }


@pytest.mark.parametrize("pack", ["bccd"])
def test_a_real_data_set_is_clean(pack: str, shared: Path) -> None:
    if not (shared / "data" / pack).is_dir():
        pytest.skip(f"no data pack {pack} in {shared / 'data'}")
    report = check(shared / "data" / pack)
    assert report.ok, str(report)
    assert {split.name for split in report.splits} == {"train", "val", "test"}
    assert report.warnings == []


def test_real_rotated_data_are_clean(shared: Path) -> None:
    if not (shared / "data" / "hit-uav-half").is_dir():
        pytest.skip(f"no data pack hit-uav-half in {shared / 'data'}")
    settings = DataSettings(path=str(shared / "data" / "hit-uav-half"), train="val", val="val")
    report = check(settings.model_copy(update={"ignore_classes": ("DontCare",)}))
    assert report.ok, str(report)
    assert report.splits[0].turned is not None
    assert not any("rotated boxes" in warning or "quadrilaterals" in warning for warning in report.warnings)
