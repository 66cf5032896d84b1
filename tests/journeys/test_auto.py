"""From a data set to a checked file, with one command."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from locdistill.cli import main
from tests.conftest import write_tiny_coco
from tests.processes import Child, wait_until

SMALL = (
    *("--pretrained", "none", "--teacher-size", "n", "data.workers=0", "data.batch_per_device=2"),
    *("detector.backbone=test_resnet", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.progress=false", "engine.accelerator=cpu", "data.sizes=[[96, 96]]"),
)


def _go(data: str, out: str, *words: str) -> None:
    main(["auto", "--data", data, "--out", out, *SMALL, *words])


@pytest.mark.usefixtures("no_pictures_of_runs")
def test_a_data_set_becomes_a_checked_file(tiny_coco: Path, tmp_path: Path, cli: Callable[..., Any]):
    out = tmp_path / "all"
    words = ("auto", "--data", tiny_coco, "--out", out, *SMALL, "engine.steps=2", "--format", "torch", "--fixed")

    code, _, told = cli(*words, "--dry-run")
    assert code == 0
    assert "then the comparison" in told
    assert not out.exists()

    code, printed, errors = cli(*words, "--json")
    assert code == 0, errors
    result = json.loads(printed)
    assert Path(result["file"]).suffix == ".pt2"
    assert Path(result["file"]).is_file()
    assert all(check["equal"] for check in result["export"]["checks"])
    assert result["comparison"]["teacher"]["steps"] == 2
    assert set(result["comparison"]["arms"]) == {"student alone", "student with its teacher"}
    page = (out / "report.html").read_text()
    for section in ("The file", "The data", "The same images", "Differences"):
        assert f"<h2>{section}</h2>" in page, section

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} | {
        Path(result["file"]): Path(result["file"]).stat().st_mtime_ns
    }
    code, printed, told = cli(*words)
    assert code == 0
    assert told.count("there already") == 4, told  # teacher, two students, file
    assert "AP of the weights" in printed
    code, printed, told = cli("--quiet", *words)
    assert code == 0
    assert told == ""
    assert "AP of the weights" in printed
    assert before == {path: path.stat().st_mtime_ns for path in before}

    code, _, errors = cli(*words, "--no-alone")
    assert code == 2
    assert "another alone" in errors
    assert "--out" in errors


def test_broken_data_train_nothing(tmp_path: Path, cli: Callable[..., Any]):
    data = write_tiny_coco(tmp_path / "data")
    picture = next(data.rglob("*.jpg"), None) or next(data.rglob("*.png"))
    picture.write_bytes(picture.read_bytes()[:50])
    code, _, errors = cli("auto", "--data", data, "--out", tmp_path / "all", *SMALL, "engine.steps=2")
    assert code == 2
    assert picture.name in errors
    assert not (tmp_path / "all").exists()


def test_a_folder_of_something_else_is_left_alone(tiny_coco: Path, tmp_path: Path, cli: Callable[..., Any]):
    (tmp_path / "letter.txt").write_text("mine")
    code, _, errors = cli("auto", "--data", tiny_coco, "--out", tmp_path, *SMALL)
    assert code == 2
    assert "not empty" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_three_times_it_ends_like_an_undisturbed_one(tiny_coco: Path, tmp_path: Path, seed: int):
    words = ("engine.steps=12", "engine.checkpoint_every_steps=2", "engine.eval_every=1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended = Child(_go, str(tiny_coco), str(whole), *words).end()
    assert ended.code == 0, ended.output[-3000:]
    rng = random.Random(seed)
    traces = ("teacher-0/last.ckpt", "cache-distilled", "alone-0/last.ckpt", "distilled-0/last.ckpt", "compare.json")
    for trace in sorted(rng.sample(traces, 3), key=traces.index):
        child = Child(_go, str(tiny_coco), str(killed), *words)
        wait_until((killed / trace).exists, child)
        time.sleep(rng.uniform(0, 0.5))
        child.signal(signal.SIGKILL, group=True)
        assert child.end().code == -signal.SIGKILL
    ended = Child(_go, str(tiny_coco), str(killed), *words).end()
    assert ended.code == 0, ended.output[-3000:]
    for run in ("teacher-0", "alone-0", "distilled-0"):
        one, other = (folder / run / "last.safetensors" for folder in (whole, killed))
        first, second = load_file(one), load_file(other)
        assert first.keys() == second.keys()
        assert all(first[name].equal(second[name]) for name in first), run
    one, other = (json.loads((folder / "export.json").read_text()) for folder in (whole, killed))
    assert one["metrics"] == other["metrics"]
    assert one["form"] == other["form"], "not the same weights"
    assert (killed / "student.onnx").is_file()
