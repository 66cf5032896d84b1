"""Every kind of detector comes closer to its teacher, and the folder of the run shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from locdistill.engine.log import Row, read_metrics
from locdistill.training.train import distill, train
from locdistill.viz.curves import plot_run

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]

SMALL = (
    *("detector.channels=16", "detector.depth=1", "detector.levels=[3, 4, 5]", "data.sizes=[[96, 64]]"),
    *("data.batch_per_device=4", "data.workers=0", "data.flip=0", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.optimizer=adamw", "engine.lr=0.004", "engine.scale_lr=false", "engine.clip_norm=10"),
    *("engine.eval_every=0", "engine.log_every=5"),
)


@pytest.fixture(scope="module")
def teacher(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A detector of a kind that knows the training images."""
    folder = tmp_path_factory.mktemp("teachers")

    @cache
    def trained(model: str) -> Path:
        settings = (*SMALL, *norm(model), "engine.steps=30")
        result = train(
            tiny_coco, model=model, backbone="test_resnet", pretrained="none", out=folder / model, overrides=settings
        )
        return result.last

    return trained


def norm(model: str) -> tuple[str, ...]:
    return () if model == "retinanet" else ("detector.norm_groups=4",)


def mean(rows: list[Row], name: str) -> float:
    return math.fsum(row[name] for row in rows) / len(rows)


@pytest.mark.parametrize(
    ("student", "teacher_of"),
    [
        ("gfl", "gfl"),
        pytest.param("gflv2", "gfl", marks=pytest.mark.long),
        pytest.param("atss", "gfl", marks=pytest.mark.long),
        ("fcos", "fcos"),
        ("retinanet", "retinanet"),
    ],
)
def test_a_student_comes_closer(
    student: str, teacher_of: str, teacher: Callable[[str], Path], tiny_coco: Path, tmp_path: Path
) -> None:
    settings = (*SMALL, *norm(student), "engine.steps=20", "engine.seed=1", "terms.ld.on.positives.by=ones")
    result = distill(
        teacher(teacher_of),
        tiny_coco,
        model=student,
        backbone="test_resnet",
        pretrained="none",
        out=tmp_path / "run",
        overrides=settings,
    )
    rows = [row for row in read_metrics(result.out / "metrics.csv") if "lr" in row]
    assert [row["step"] for row in rows] == list(range(5, 21, 5))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    first, last = rows[:1], rows[-2:]
    assert mean(last, "train/total") < 0.9 * mean(first, "train/total")
    assert mean(last, "train/ld") < 0.7 * mean(first, "train/ld")
    assert mean(last, "agree/edge_kl") < 0.5 * mean(first, "agree/edge_kl")
    assert mean(last, "agree/box_iou") > mean(first, "agree/box_iou") + 0.1
    if student == "gfl":
        with Image.open(plot_run(result.out / "metrics.csv")) as picture:
            assert picture.size == (3300, 840)  # a panel more than without a teacher
    assert {"agree/edge_kl", "agree/box_iou"} <= set(result.metrics["last"])
