"""A divergence from outside of the package trains: on the command line, in two processes, as a script."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from locdistill.engine.log import read_metrics
from tests.conftest import CLASSES, Answer

from .engine_run import small_detector
from .test_resume import told

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TERM = "terms.edges={of: {own_term.EdgeDistance: {power: 2}}, on: positives, norm: per_image}"
STEPS = (
    *("engine.steps=4", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.checkpoint_every_steps=1", "data.workers=0", "data.batch_per_device=2", "data.sizes=[[128, 96]]"),
    *("detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, tiny_coco: Path) -> tuple[str, ...]:
    """The command line of a tiny run, without its folder."""
    teacher = small_detector(CLASSES, 3).save(tmp_path_factory.mktemp("teacher") / "best")
    own = ("--teacher", teacher, "--data", tiny_coco, "--backbone", "test_resnet", "--pretrained", "none")
    return tuple(map(str, ("distill", *own, TERM, *STEPS)))


@pytest.fixture
def _in_examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_term", None)


@pytest.mark.usefixtures("_in_examples")
def test_it_trains_and_goes_on(
    words: tuple[str, ...], tmp_path: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = cli(*words, "--out", tmp_path / "whole")
    assert code == 0, err
    assert "terms.edges.of is own_term.EdgeDistance, imported from" in " ".join(out.split())  # the look before it
    rows = [row for row in told(tmp_path / "whole") if "lr" in row]
    assert [row["train/edges"] > 0 for row in rows] == [True] * 4
    saved = yaml.safe_load((tmp_path / "whole" / "recipe.yaml").read_text())
    assert saved["terms"]["edges"]["of"] == {"own_term.EdgeDistance": {"power": 2.0}}
    assert "imported from" in (tmp_path / "whole" / "log.txt").read_text()

    divergence: Any = sys.modules["own_term"].EdgeDistance
    compare, calls = divergence.__call__, []

    def breaks(self: Any, scene: Any) -> torch.Tensor:
        calls.append(scene)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compare(self, scene)

    monkeypatch.setattr(divergence, "__call__", breaks)
    assert cli(*words, "--no-preflight", "--out", tmp_path / "cut")[0] == 130
    assert [row["step"] for row in told(tmp_path / "cut")] == [1, 2]
    monkeypatch.setattr(divergence, "__call__", compare)
    code, _, err = cli("distill", "--resume", "--out", tmp_path / "cut")
    assert code == 0, err
    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("launch", ["subprocess", pytest.param("fork", marks=pytest.mark.long)])
def test_two_processes_find_it_too(words: tuple[str, ...], tmp_path: Path, launch: str) -> None:
    own = ("engine.devices=2", f"engine.launch={launch}", "engine.eval_every=0", "--no-preflight")
    command = [sys.executable, "-m", "locdistill", *words, *own, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the recipe imports own_term.EdgeDistance, from ") == 1
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "lr" in row]
    assert [row["train/edges"] > 0 for row in rows] == [True] * 4


def test_the_example_runs(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "own_term.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in steps] == ["step 10", "step 20"]
    assert list(tmp_path.iterdir()) == []  # it cleans up
