"""The full look without training: problems, warnings, counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locdistill.data.check import check
from locdistill.data.settings import DataSettings


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
    report = check(year)
    assert report.ok, str(report)
    assert report.kind == "voc"
    assert [(split.name, split.boxes) for split in report.splits] == [("train", 1)]


@pytest.mark.parametrize("pack", ["bccd"])
def test_a_real_data_set_is_clean(pack: str, shared: Path) -> None:
    if not (shared / "data" / pack).is_dir():
        pytest.skip(f"no data pack {pack} in {shared / 'data'}")
    report = check(shared / "data" / pack)
    assert report.ok, str(report)
    assert {split.name for split in report.splits} == {"train", "val", "test"}
    assert report.warnings == []
