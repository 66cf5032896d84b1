"""Runs that make use of the machine end where plain ones do, on one process and on two."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from locdistill.engine.settings import EngineSettings
from locdistill.engine.speed import Machine, choose

from .engine_run import distill
from .test_ddp import two_processes
from .test_resume import told

pytestmark = pytest.mark.journey

EVERYTHING = {
    "channels_last": True,
    "teacher": True,
    "fused": True,
    "checkpointing": True,
}


def assert_same(ours: Path, theirs: Path, tolerance: float) -> None:
    mine, its = load_file(ours / "last.safetensors"), load_file(theirs / "last.safetensors")
    assert list(mine) == list(its)
    for name, value in its.items():
        torch.testing.assert_close(mine[name], value, rtol=tolerance, atol=tolerance / 100, msg=name)
    for row, expected in zip(told(ours), told(theirs), strict=True):
        assert row == pytest.approx(expected, rel=tolerance, nan_ok=True)


def test_everything_at_once_gives_the_losses_and_weights_of_plain_training(tmp_path: Path, tiny_coco: Path) -> None:
    """On two processes, with an average of the weights, accumulation and learned adapters."""
    job: dict[str, Any] = {"data": str(tiny_coco), "methods": ("ld", "pkd")}
    shape = {"epochs": 4, "warmup_steps": 0, "ema": 0.9, "accumulate": 2}
    plain = {"settings": {"speed": "off"} | shape, "batch": 2} | job
    code, output = two_processes(tmp_path / "plain", **plain)
    assert code == 0, output
    fast = {"settings": {"speed": EVERYTHING} | shape, "batch": 2} | job
    code, output = two_processes(tmp_path / "fast", **fast)
    assert code == 0, output
    assert "speed: float32, channels-last, fused SGD, frozen teacher folded, checkpointing" in output
    assert_same(tmp_path / "fast", tmp_path / "plain", 1e-3)


def test_a_run_goes_on_with_other_parts_of_speed(tmp_path: Path, tiny_coco: Path) -> None:
    shape = {"epochs": 2, "warmup_steps": 0}
    distill(tmp_path / "plain", shape | {"speed": "off", "epochs": 4}, data=str(tiny_coco), batch=4)
    first = shape | {"speed": "off", "milestones": (16, 22)}
    distill(tmp_path / "both", first, data=str(tiny_coco), batch=4)
    again = first | {"speed": {"channels_last": True, "fused": True}, "epochs": 4}
    distill(tmp_path / "both", again, data=str(tiny_coco), batch=4, resume=True)
    assert_same(tmp_path / "both", tmp_path / "plain", 1e-3)


def test_bf16_comes_close(tmp_path: Path, tiny_coco: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = {"epochs": 2, "warmup_steps": 0, "deterministic": True}
    distill(tmp_path / "plain", shape | {"speed": "off"}, data=str(tiny_coco), batch=4)
    with caplog.at_level(logging.INFO, "locdistill.engine"):
        distill(tmp_path / "half", shape | {"precision": "bf16"}, data=str(tiny_coco), batch=4)
    assert "speed: bf16, fused SGD, frozen teacher folded" in caplog.text
    losses = [row["train/total"] for row in told(tmp_path / "half") if "train/total" in row]
    expected = [row["train/total"] for row in told(tmp_path / "plain") if "train/total" in row]
    assert losses == pytest.approx(expected, rel=0.02, nan_ok=True)
    assert losses != expected


def test_the_recipe_of_a_run_holds_the_precision_that_was_chosen(cli: Any, tmp_path: Path, tiny_coco: Path) -> None:
    out = tmp_path / "run"
    small = [f"detector.{part}" for part in ("channels=16", "depth=1", "norm_groups=4", "levels=[3,4,5]")]
    words = ["train", "--data", str(tiny_coco), "--backbone", "test_resnet", "--pretrained", "none", "--out", str(out)]
    for setting in (*small, "engine.steps=2", "engine.speed.fused=false", "engine.accelerator=cpu", "data.workers=0"):
        words += ["--set", setting]
    code, _, error = cli(*words)
    assert code == 0, error
    chosen = choose(EngineSettings(), Machine.here(EngineSettings(accelerator="cpu")))
    saved = yaml.safe_load((out / "recipe.yaml").read_text())["engine"]
    assert saved["precision"] == chosen.precision
    assert saved["speed"]["fused"] is False
    assert saved["speed"]["compile"] == "auto"
    facts = json.loads((out / "run.json").read_text())["speed"]
    assert facts["precision"] == chosen.precision
    assert facts["fused"] is False
    assert "speed: " in (out / "log.txt").read_text()
    code, _, error = cli(
        "train", "--resume", "--out", str(out), "--set", "engine.precision=auto", "--set", "engine.speed=off"
    )
    assert code == 0, error
