"""The demonstration from the command line, small enough for a test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.journey

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def _demo(out: Path) -> str:
    words = [sys.executable, "-m", "locdistill", "demo", "--fast", "--seeds", "2", "--out", str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo_draws_trains_compares_and_can_be_repeated(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    printed = _demo(out)
    for words in ("student alone", "student + LD", "student alone, equal time", "AP75", "95 % interval", "report.html"):
        assert words in printed
    assert "At equal steps" in printed
    assert "At equal time" in printed

    content = json.loads((out / "results.json").read_text())
    assert {(run["arm"], run["seed"]) for run in content["runs"]} == {
        (arm, seed) for arm in ("alone", "distilled", "alone_longer") for seed in (0, 1)
    }
    assert all(run["steps"] >= 4 and run["seconds"] > 0 for run in content["runs"])
    assert content["command"] == "locdistill demo --seeds 2 --fast"
    assert "| teacher |" in (out / "results.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("data:image/") >= 5
    assert "Where distillation acts" in page
    recipe = (out / "distilled-1" / "recipe.yaml").read_text()
    assert "ld_vlr:" in recipe
    assert "seed: 1" in recipe
    for run in ("teacher", "alone-0", "distilled-0", "alone_longer-1"):
        assert (out / run / "last.safetensors").is_file()

    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = _demo(out)
    assert "training:" not in again
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert json.loads((out / "results.json").read_text())["runs"] == content["runs"]
