"""The monitor beside a run, through the real command line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from locdistill.data.shapes import ShapesSettings, write_shapes
from tests.conftest import Answer

pytestmark = pytest.mark.journey

TINY = (
    *("data.workers=0", "data.sizes=[[128, 128]]", "data.batch_per_device=2", "detector.pretrained=false"),
    *("detector.backbone=test_resnet", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.steps=3", "engine.log_every=1", "engine.accelerator=cpu", "engine.progress=false"),
)


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_is_shown_and_left_as_it_is(
    tmp_path: Path, cli: Callable[..., Answer], no_pictures_of_runs: None
) -> None:
    data = write_shapes(tmp_path / "shapes", ShapesSettings(train=2, val=2, size=128))
    code, _, err = cli("train", "--data", data, "--out", tmp_path / "runs" / "tiny", *TINY)
    assert code == 0, err
    before = contents(tmp_path)
    words = (sys.executable, "-m", "locdistill", "monitor", str(tmp_path / "runs"), "--port", "0")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[0]

        def get(path: str) -> Any:
            with urlopen(address + path) as answer:
                return json.load(answer)

        listed = get("api/runs")["runs"]
        run = get("api/run?run=tiny")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().strip() == ""
    assert process.returncode == 0
    assert [(each["name"], each["state"], each["step"], each["steps"]) for each in listed] == [
        ("tiny", "finished", 3, 3)
    ]
    assert run["curves"]["train/total"][0] == [1, 2, 3]
    assert run["settings"]["detector.backbone"] == "test_resnet"
    assert "step 3/3" in run["log"]
    assert contents(tmp_path) == before
    code, out, _ = cli("monitor", tmp_path / "runs", "--json")
    assert (code, json.loads(out)["runs"][0]["name"]) == (0, "tiny")


def test_a_run_that_ends_in_an_error_is_stopped(
    tmp_path: Path, cli: Callable[..., Answer], no_pictures_of_runs: None
) -> None:
    data = write_shapes(tmp_path / "shapes", ShapesSettings(train=2, val=2, size=128))
    words = (*TINY, "engine.lr=1e30", "engine.warmup_steps=0", "engine.steps=50")
    assert cli("train", "--data", data, "--out", tmp_path / "runs" / "tiny", *words)[0] != 0
    run = json.loads(cli("monitor", tmp_path / "runs", "--json")[1])["runs"][0]
    assert run["state"] == "stopped"
    assert "NonFiniteLossError" in run["why"]
