"""Images to evaluate on where the data set names none: held out, said, kept together, never those trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import locdistill
from locdistill.data.check import check
from locdistill.data.open import HELD_OUT_NOTE, open_dataset, with_holdout
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError, RecipeError
from locdistill.inference.evaluate import data_of, evaluate
from locdistill.models.detector import Detector
from locdistill.recipe.defaults import resolve
from locdistill.recipe.request import Request
from locdistill.training.prepare import compose
from tests.conftest import Answer
from tests.small import small_detector

TINY = (
    *("detector.backbone=test_resnet", "detector.pretrained=false", "engine.accelerator=cpu", "data.workers=0"),
    *("engine.steps=1", "engine.progress=false", "data.batch_per_device=2", "data.sizes=[[64, 64]]"),
)


def write(folder: Path, *names: str, file: str = "train.json", boxes: int = 1, **annotation: object) -> Path:
    """A COCO folder of noise, one object of one class or more in each picture."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 64)).save(folder / "images" / name)
    rows = [(image, row) for image in range(len(names)) for row in range(boxes)]
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": [8 + row % 40, 8, 20, 20], **annotation}
            for n, (i, row) in enumerate(rows)
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / file).write_text(json.dumps(content))
    return folder


def parts(path: Path, **words: object) -> tuple[list[str], list[str]]:
    """Names of the images that are trained on and evaluated on."""
    settings = with_holdout(DataSettings.model_validate({"path": str(path), **words}))
    found = [open_dataset(settings, split, training=False) for split in ("train", "val")]
    return tuple(sorted(record.path.name for record in dataset.records) for dataset in found)  # type: ignore[return-value]


NAMES = [f"{number:02}.png" for number in range(20)]


@pytest.mark.parametrize("file", ["train.json", "all.json"])
def test_a_tenth_is_held_out_where_there_is_no_other_split(tmp_path: Path, file: str) -> None:
    write(tmp_path, *NAMES, file=file)
    path = tmp_path if file == "train.json" else tmp_path / file
    train, val = parts(path)
    assert len(val) == 2
    assert sorted(train + val) == NAMES
    assert parts(path)[1] == val  # by name: always the same
    assert set(parts(path, holdout=0.2)[1]) > set(val)
    report = check(path)
    assert report.ok, report
    assert report.splits[1].notes[HELD_OUT_NOTE] == 2
    assert [(split.name, split.images) for split in report.splits] == [("train", 18), ("val", 2)]


def test_nothing_is_held_out_of_one_image(tmp_path: Path) -> None:
    write(tmp_path, "one.png")
    with pytest.raises(AnnotationError, match=r"no images can be held out .*data\.val=NAME, or set data\.holdout=0"):
        parts(tmp_path)
    assert len(check(tmp_path).problems) == 1
    with pytest.raises(AnnotationError, match="no split 'val'"):
        parts(tmp_path, holdout=0)


def test_images_of_a_group_stay_together(tmp_path: Path) -> None:
    names = [f"video{group}_{frame}.png" for group in range(5) for frame in range(4)]
    write(tmp_path, *names)
    train, val = parts(tmp_path, holdout=0.4, holdout_by="video[0-9]+")
    assert len(val) == 8
    assert not {name.partition("_")[0] for name in train} & {name.partition("_")[0] for name in val}
    with pytest.raises(RecipeError, match="no regular expression"):
        resolve(Request(data=tmp_path, overrides=["data.holdout_by=(", *TINY]))


def test_another_folder_is_evaluated_whole(tiny_coco: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Detector(small_detector()).save(run / "best")
    assert data_of(run / "best", tiny_coco) == {"path": str(tiny_coco)}
    (run / "recipe.yaml").write_text(f"data: {{path: {tiny_coco}, holdout: 0.1, holdout_by: v}}")
    assert data_of(run / "best", tiny_coco) == {"path": str(tiny_coco), "holdout": 0.1, "holdout_by": "v"}
    assert data_of(run / "best", tmp_path) == {"path": str(tmp_path)}
    assert data_of(run / "best", tiny_coco / "val.json") == {"path": str(tiny_coco / "val.json")}


def test_the_file_of_the_training_images_is_the_data_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By whatever path it is named; and it is said which images count."""
    folder, run = write(tmp_path / "data", *NAMES, file="labels.json"), tmp_path / "run"
    Detector(small_detector(classes=("cat",))).save(run / "best.safetensors")
    (run / "recipe.yaml").write_text(f"data: {{path: {folder}, holdout: 0.1}}")
    own = {"holdout": 0.1, "holdout_by": None}
    assert data_of(run / "best", folder / "labels.json") == {"path": str(folder / "labels.json"), **own}
    with caplog.at_level("INFO", "locdistill"):
        result = evaluate(run / "best", folder / "labels.json", overrides=["data.workers=0"])
    assert len(result.dataset) == 2
    assert "evaluated are the 2 images that the run held out of its training images" in caplog.text
    whole = evaluate(run / "best", folder / "labels.json", overrides=["data.workers=0", "data.holdout=0"])
    assert len(whole.dataset) == 20


def test_images_that_are_trained_on_are_not_evaluated_on(
    tiny_coco: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = shutil.copytree(tiny_coco, tmp_path / "data")
    recipe = resolve(Request(data=whole, overrides=["data.val=train", *TINY]))
    with pytest.raises(AnnotationError, match=r"8 of the 8 images to evaluate on are trained on .*data\.holdout=0\.1"):
        compose(recipe, fresh=True)
    content = json.loads((whole / "val.json").read_text())
    other = json.loads((whole / "train.json").read_text())
    content["images"].append({**other["images"][0], "id": 999})
    (whole / "val.json").write_text(json.dumps(content))
    compose(resolve(Request(data=whole, overrides=TINY)), fresh=True)
    assert "1 of the 5 images to evaluate on are trained on" in caplog.text


def test_pictures_that_look_alike_are_found(tmp_path: Path) -> None:
    write(tmp_path, *NAMES[:6])
    write(tmp_path, "copy.png", "other.png", file="val.json")
    with Image.open(tmp_path / "images" / NAMES[2]) as picture:
        picture.resize((96, 96)).save(tmp_path / "images" / "copy.png")
    noise = np.random.default_rng(99).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(tmp_path / "images" / "other.png")
    (alike,) = [warning for warning in check(tmp_path).warnings if "look like" in warning]
    assert alike.startswith("1 images of val look like images of train: copy.png ~ 02.png; ")


def test_a_data_set_without_images_to_train_on(tmp_path: Path) -> None:
    write(tmp_path, *NAMES[:2], file="val.json")
    assert check(tmp_path).warnings[0].startswith("there is no split train to train on (it has val); ")


def test_crowds_alone_and_many_objects_are_said(tmp_path: Path, cli: Callable[..., Answer]) -> None:
    write(tmp_path / "crowds", *NAMES[:4], iscrowd=1)
    assert "train: no image has an object to learn or to find" in check(tmp_path / "crowds").warnings
    write(tmp_path / "many", *NAMES[:4], boxes=130)
    assert any("up to 130 objects in an image, where 100 are detected" in w for w in check(tmp_path / "many").warnings)
    assert resolve(Request(data=tmp_path / "many")).detector.detections.max_detections == 200
    assert resolve(Request(data=tmp_path / "crowds")).detector.detections.max_detections == 100
    code, _, err = cli("train", "--data", tmp_path / "crowds", "--out", tmp_path / "a", *TINY)
    assert code == 0, err
    assert "no training image has an object to learn" in (tmp_path / "a" / "log.txt").read_text()
    limited = ("--data", tmp_path / "many", "--out", tmp_path / "b", "detector.detections.max_detections=100", *TINY)
    code, _, err = cli("train", *limited)
    assert code == 0, err
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "images have up to 130 objects, of which at most 100 are detected" in log
    assert "val: 1 images held out of train by name" in log
    assert "AP@100" in locdistill.evaluate(tmp_path / "b").metrics
