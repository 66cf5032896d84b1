"""What a run keeps of its evaluations, and judges at its end."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.inference.evaluation_files import Findings
from locdistill.models.detector import Detector
from locdistill.models.weights import read_metadata
from locdistill.training import pictures

# Bound before the fixture of all unit tests replaces them by nothing.
from locdistill.training.fit import KeepingEvaluator, Kept, _draw_labels, _draw_results
from locdistill.training.prepare import Parts
from locdistill.types import Detections
from tests.conftest import CLASSES
from tests.small import small_detector


def test_the_best_and_the_last_detections_are_kept() -> None:
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    aps, called = iter([math.nan, 0.2, 0.4, 0.4, math.nan, 0.3]), []
    evaluate = KeepingEvaluator(lambda _: {"AP": next(aps)}, lambda: called.append(1))
    seen = []
    for i in range(6):
        evaluate({i: nothing})
        assert evaluate.best is not None
        assert evaluate.last is not None
        seen.append((*evaluate.best.detections, *evaluate.last.detections))
    assert seen == [(0, 0), (1, 1), (2, 2), (2, 3), (2, 4), (2, 5)]
    assert called == [1]


def test_scores_are_stored_with_both_weights(
    tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was evaluated in another process, or before the run was resumed, is detected on again."""
    tiny = small_detector(backbone="mobilenetv3_small_050")
    best, last = (Detector(tiny).save(tmp_path / name) for name in ("best", "last"))
    settings = DataSettings(path=str(tiny_coco), batch_per_device=2, workers=0)
    data = open_dataset(settings, "val")
    engine = EngineSettings(accelerator="cpu")
    parts = Mock(spec=Parts, datasets={"val": data}, recipe=SimpleNamespace(engine=engine, data=settings))
    history = ({"AP": 0.5}, {"AP": 0.25})
    rest = {"seconds": 1.0, "train_seconds": 1.0, "steps": 2, "stopped": "finished", "metrics": history[0]}
    fitted = FitResult(best=best, last=last, history=history, **rest)  # type: ignore[arg-type]
    judged: list[Findings] = []
    monkeypatch.setattr(pictures, "judgement", lambda _, findings: judged.append(findings))
    monkeypatch.setattr(pictures, "predictions", lambda *_: None)
    box = torch.from_numpy(data.records[0].boxes[:1])
    exact = {
        data.records[0].image_id: Detections(box, torch.tensor([0.75]), torch.from_numpy(data.records[0].labels[:1]))
    }
    evaluate = KeepingEvaluator(lambda _: {}, best=Kept(0.5, exact), last=Kept(0.125, {}))
    _draw_results(parts, tmp_path, fitted, evaluate)
    name = CLASSES[int(data.records[0].labels[0])]
    assert read_metadata(best)["extra"]["thresholds"] == {name: 0.75}
    assert read_metadata(last)["extra"] == {"thresholds": {}}  # detected anew: of another AP, and nothing is found
    assert len(judged) == 1
    assert judged[0].thresholds == {name: 0.75}
    assert "curves.png could not be written (RunError" in caplog.text  # there is no log of the run here
    _draw_results(parts, tmp_path, replace(fitted, best=None), evaluate)
    assert len(judged[1].detections) == len(data)


def test_labels_are_drawn(tiny_coco: Path, tmp_path: Path) -> None:
    data = open_dataset(DataSettings(path=str(tiny_coco)), "train")
    _draw_labels(data, tmp_path / "labels.png")
    _draw_labels(data, tmp_path / "absent" / "labels.png")  # a warning
    assert [path.name for path in tmp_path.iterdir()] == ["labels.png"]
