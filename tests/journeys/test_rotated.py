"""Rotated boxes through the command line: train, distil with a cache, evaluate, predict, compare kinds of boxes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from locdistill.errors import TeacherError
from locdistill.geometry.rotated import corners
from locdistill.models.detector import Detector
from locdistill.training.train import distill
from tests.conftest import Answer

pytestmark = pytest.mark.journey
Cli = Callable[..., Answer]
SIZE = (160, 128)
SMALL = (
    *("detector.channels=32", "detector.depth=1", "detector.norm_groups=8", "detector.levels=[3,4,5]"),
    *("detector.anchor_scale=4", "data.workers=0", "engine.log_every=1", "engine.accelerator=cpu"),
    *("engine.progress=false", "data.sizes=[[160,128]]", "data.flip_vertical=0.5", "data.turns=true"),
)
WORDS = ("--backbone", "test_resnet", "--pretrained", "none", "--batch", "4")


def draw(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Pictures of boats and cars in the layout of DOTA; one object in a corner is difficult, one picture is empty."""
    (folder / "images").mkdir(parents=True)
    (folder / "labelTxt").mkdir()
    for number in range(count):
        picture, lines = Image.new("RGB", SIZE, (60, 70, 60)), ["imagesource:drawn", "gsd:1"]
        canvas = ImageDraw.Draw(picture)
        for column in range(2 if number else 0):
            box = torch.tensor([40 + 80 * column, rng.uniform(40, 90), rng.uniform(30, 60), rng.uniform(12, 20), 0])
            box[4] = rng.uniform(0, math.pi)
            quad = corners(box)
            canvas.polygon([tuple(corner) for corner in quad.tolist()], fill=((220, 60, 60), (60, 90, 220))[column])
            numbers = " ".join(f"{value:.1f}" for value in quad.flatten().tolist())
            lines.append(f"{numbers} {('car', 'boat')[column]} {int(number == 1 and column == 1)}")
        picture.save(folder / "images" / f"P{number:04d}.png")
        (folder / "labelTxt" / f"P{number:04d}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("rotated"), np.random.default_rng(0)
    draw(folder / "train", 13, rng)
    draw(folder / "val", 6, rng)
    return folder


def ran(cli: Cli, *words: object) -> str:
    code, out, err = cli(*words)
    assert code == 0, f"{words}: {code}\n{out}\n{err}"
    return out


@pytest.fixture(scope="module")
def place(data: Path) -> Path:
    return data.parent / "runs"


def test_train_distil_evaluate_predict(data: Path, place: Path, cli: Cli, tmp_path: Path) -> None:
    """Nothing says that boxes are rotated but the data; a cached teacher speaks of turned images, too."""
    teacher, student = place / "teacher", place / "student"
    ran(cli, "train", "--data", data, *WORDS, "--epochs", 2, "--out", teacher, *SMALL)
    detector = Detector.load(teacher)
    assert (detector.settings.model, detector.settings.angles) == ("rotated_gfl", "le135")
    assert detector.settings.classes == ("boat", "car")
    words = ("--teacher", teacher, "--data", data, *WORDS, "--epochs", 2, "--no-preflight", "--out", student)
    ran(cli, "distill", *words, f"teacher.cache={place / 'cache'}", *SMALL)
    with (student / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(math.isfinite(float(row["train/ld"])) for row in rows if row["train/ld"])
    assert {"AP", "AP50", "AP75", "AP90"} <= set(json.loads((student / "metrics.json").read_text())["last"])
    assert (student / "train_batch.png").stat().st_size > 0

    found = json.loads(ran(cli, "evaluate", student, "--data", data, "--json"))
    assert set(found["metrics"]) >= {"AP", "AP50"}
    pictures = data / "val" / "images"
    words = ("--save", tmp_path / "drawn", "--threshold", 0.001, "--json", "--set", "detections.score_threshold=0.001")
    answer = json.loads(ran(cli, "predict", student, pictures, *words))
    boxes = [one["box"] for picture in answer for one in picture["detections"]]
    assert boxes
    assert all(len(box) == 5 for box in boxes)
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 6


def test_an_upright_teacher_is_refused(data: Path, place: Path) -> None:
    """Axis-aligned boxes have four numbers and rotated ones five: an error that says so, and no NaN."""
    from locdistill.training.train import train

    upright = ["engine.steps=1", "engine.epochs=1", "data.batch_per_device=4", *SMALL]
    train(data, model="gfl", backbone="test_resnet", pretrained="none", out=place / "upright", overrides=upright)
    with pytest.raises(TeacherError, match="the teacher has axis-aligned ones, the student rotated ones"):
        distill(
            place / "upright",
            data,
            model="rotated_gfl",
            backbone="test_resnet",
            pretrained="none",
            out=place / "refused",
            overrides=upright,
        )
