"""How fast a tiny detector is, with every engine, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Answer
from tests.unit.models.test_postprocess import detector_of

pytestmark = pytest.mark.journey


def test_a_detector_is_measured(cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights = detector_of("gflv2", detections={"score_threshold": 0.001}).save(tmp_path / "w")
    file = tmp_path / "speed.json"
    words = ["benchmark", weights, "--input", "96x64", "--batch", 2, "--steps", 3, "--data", tiny_coco / "images"]
    code, out, err = cli(
        *words, "--device", "cpu", "--engine", "eager", "--engine", "onnxruntime", "--out", file, "--json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found == json.loads(file.read_text())
    assert list(found["engines"]) == ["eager", "onnxruntime"]
    assert found["padded_input"] == {"height": 64, "width": 96}
    assert found["detections"] > 0
    for numbers in found["engines"].values():
        assert numbers["fps"] > 0
        assert numbers["throughput"]["batch"] == 2
        times = numbers["latency"]["milliseconds"]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
    apart = found["engines"]["onnxruntime"]["difference"]
    assert apart["detections"] > 0
    assert apart["unmatched"] == 0
    assert apart["score"] < 1e-4
    assert apart["edge_px"] < 0.01
    assert "exporting to ONNX for 2 images" in err


def test_a_recipe_is_measured_with_random_weights(cli: Callable[..., Answer]) -> None:
    words = ["benchmark", "gfl_r18_1x", "--input", "64x64", "--batch", 1, "--steps", 1, "--device", "cpu"]
    code, out, err = cli(*words, "--engine", "eager")
    assert code == 0, err
    assert "random weights and noise" in out
    assert "19.4" in out  # million parameters
    code, _, err = cli("benchmark", "gfl_r18_1x", "--input", "large")
    assert code == 2
    assert "such as 1333x800" in err
