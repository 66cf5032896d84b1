"""Mixtures of two detectors' features: corners, what is taken over, and what is refused."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.errors import LocdistillError, RecipeError, RunError, WeightsError
from locdistill.inference.evaluate import evaluate
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.study import landscape as module
from locdistill.study.landscape import landscape, parse_weights
from locdistill.viz.landscape import plot_landscape
from tests.conftest import CLASSES

SMALL = {
    "backbone": "test_resnet",
    "pretrained": False,
    "classes": CLASSES,
    "channels": 8,
    "depth": 1,
    "norm_groups": 4,
    "levels": (3, 4),
    "input": {"short": 64, "long": 96},
    "detections": {"score_threshold": 0.0},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained detectors, of different kinds, whose scores spread so that detections differ."""
    folder, files = tmp_path_factory.mktemp("models"), []
    for seed, model in enumerate(("gfl", "retinanet")):
        torch.manual_seed(seed)
        own = {"model": model} | ({"norm_groups": 0} if model == "retinanet" else {})
        detector = Detector(DetectorSettings.model_validate(SMALL | own))
        torch.nn.init.normal_(detector.head.cls.weight, std=0.5)
        torch.nn.init.normal_(detector.head.reg.weight, std=0.3)
        files.append(detector.save(folder / f"m{seed}"))
    return files


def found_by(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, list[float]]]:
    """Scores by image, of each point that is evaluated, in order."""
    seen: list[dict[int, list[float]]] = []
    plain = module.Evaluator.__call__

    def call(self, detections):  # type: ignore[no-untyped-def]
        seen.append({k: [*v.scores.tolist(), *v.boxes.flatten().tolist()] for k, v in detections.items()})
        return plain(self, detections)

    monkeypatch.setattr(module.Evaluator, "__call__", call)
    return seen


@pytest.mark.parametrize("head", [1, 2])
def test_corners_are_the_plain_evaluations(
    head: int, models: list[Path], tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = evaluate(models[head - 1], tiny_coco)
    seen = found_by(monkeypatch)
    result = landscape(*models, tiny_coco, gamma1=[0, 1], gamma2=[0, 1], head=head, out=tmp_path / "out")
    corner = (1.0, 0.0) if head == 1 else (0.0, 1.0)
    assert result.metrics[corner] == pytest.approx(plain.metrics, nan_ok=True, abs=0)
    own, other = (seen[list(result.metrics).index(point)] for point in (corner, corner[::-1]))
    expected = {k: [*v.scores.tolist(), *v.boxes.flatten().tolist()] for k, v in plain.detections.items()}
    assert own == expected
    assert any(own[k] for k in own)
    assert other != own  # features of the other detector tell the head something else
    with (tmp_path / "out" / "landscape.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["gamma1"], row["gamma2"], row["head"]) for row in rows] == [
        (a, b, str(head)) for a in "01" for b in "01"
    ]
    aps = [metrics["AP"] for metrics in result.metrics.values()]
    assert [float(row["AP"]) for row in rows] == pytest.approx(aps, abs=1e-6)
    with Image.open(tmp_path / "out" / "landscape.png") as picture:
        assert picture.size == (1200, 1040)
    assert f"Head {head}" in result.in_words
    assert "is the same everywhere: AP 0.0" in result.in_words  # of detectors that have learned nothing
    assert not (tmp_path / "out" / "partial").exists()


def test_points_are_added_and_an_interrupted_landscape_goes_on(
    models: list[Path], tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    whole = landscape(*models, tiny_coco, gamma1="0.5:1:0.5", gamma2=[0.5], out=tmp_path / "whole", batch=1)
    calls, looked = {"left": 2}, []
    plain = module.Mixture.maps

    def maps(self, batch):  # type: ignore[no-untyped-def]
        if not calls["left"]:
            raise KeyboardInterrupt
        calls["left"] -= 1
        looked.extend(batch.image_ids.tolist())
        return plain(self, batch)

    monkeypatch.setattr(module.Mixture, "maps", maps)
    parts = {"gamma1": [0.5, 1], "gamma2": [0.5], "out": tmp_path / "parts", "batch": 1}
    with pytest.raises(KeyboardInterrupt):
        landscape(*models, tiny_coco, **parts)
    calls["left"] = 99
    again = landscape(*models, tiny_coco, **parts)
    assert again.metrics.keys() == whole.metrics.keys()
    for point, metrics in whole.metrics.items():
        assert again.metrics[point] == pytest.approx(metrics, nan_ok=True, abs=0)
    assert sorted(looked) == [1001, 1002, 1003, 1004]  # each image once, over both attempts
    looked.clear()
    landscape(*models, tiny_coco, **parts)
    assert looked == []  # all points are known
    more = landscape(*models, tiny_coco, **(parts | {"gamma2": [0.5, 0.7]}))
    assert len(looked) == 4  # once for both new points
    assert len(more.metrics) == 4


def test_another_landscape_is_not_overwritten(models: list[Path], tiny_coco: Path, tmp_path: Path) -> None:
    landscape(*models, tiny_coco, gamma1=[1], gamma2=[0], images=2, out=tmp_path / "out")
    with pytest.raises(RunError, match="differs in head"):
        landscape(*models, tiny_coco, gamma1=[1], gamma2=[0], images=2, head=2, out=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("x")
    with pytest.raises(RunError, match="holds no landscape"):
        landscape(*models, tiny_coco, out=tmp_path / "mine")
    assert len(json.loads((tmp_path / "out" / "landscape.json").read_text())["points"]) == 1


def test_detectors_that_cannot_be_mixed(models: list[Path], tiny_coco: Path, tmp_path: Path) -> None:
    wide = Detector(DetectorSettings.model_validate(SMALL | {"channels": 16, "levels": (3, 4, 5)})).save(tmp_path / "w")
    with pytest.raises(WeightsError, match="cannot be mixed") as error:
        landscape(models[0], wide, tiny_coco, out=tmp_path / "out")
    assert "pyramid levels: " in str(error.value)
    assert "has [3, 4]" in str(error.value)
    assert "has 16" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_features() -> None:
    assert parse_weights("0:1:0.25", 5, "gamma1") == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert parse_weights("0:1:0.3", 5, "gamma1") == pytest.approx((0, 0.3, 0.6, 0.9))
    assert parse_weights("0.5", 5, "gamma1") == (0.5,)
    assert parse_weights("1,-0.5,1", 5, "gamma1") == (-0.5, 1)
    assert parse_weights(None, 3, "gamma1") == (0, 0.5, 1)
    for wrong in ("0:1", "0:1:0", "1:0:0.1", "a", "", "0:1:x"):
        with pytest.raises(RecipeError, match="gamma1: expected start:stop:step"):
            parse_weights(wrong, 5, "gamma1")


@pytest.mark.parametrize(
    ("words", "message"),
    [({"head": 3}, "head: expected 1 or 2"), ({"grid": 1}, "at least 2"), ({"gamma1": [math.inf]}, "finite")],
)
def test_what_is_asked_for_is_checked_first(words: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(LocdistillError, match=message):
        landscape(tmp_path / "absent", tmp_path / "absent", **words)  # type: ignore[arg-type]


def test_a_landscape_of_one_row_is_a_line_and_holes_stay_empty() -> None:
    assert plot_landscape([0.5], [0, 1], [[1.0, 2.0]]).size == (1200, 800)
    holes = plot_landscape([0, 1], [0, 1], [[math.nan, 2.0], [1.0, 3.0]])
    nothing = plot_landscape([0, 1], [0, 1], np.full((2, 2), math.nan))
    blue = [int((np.asarray(p, int)[..., 2] > np.asarray(p, int)[..., 0] + 60).sum()) for p in (holes, nothing)]
    assert blue[0] > 10000
    assert blue[1] < 100
