"""Every block of code on the page 'A method of your own' is run, as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from locdistill.engine.log import read_metrics
from locdistill.objective.term import Need
from locdistill.recipe.own import ROLES
from tests.conftest import CLASSES, Answer

from .engine_run import small_detector

pytestmark = pytest.mark.journey
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own_method.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TINY = (
    *("engine.steps=2", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu", "data.workers=0"),
    *("data.batch_per_device=2", "data.sizes=[[128, 96]]", "detector.channels=16", "detector.depth=1"),
    *(
        "detector.norm_groups=4",
        "detector.levels=[3, 4, 5]",
        "detector.backbone=test_resnet",
        "detector.pretrained=false",
        "data.format=coco",
    ),
)


def test_every_block_runs(
    tmp_path: Path, tiny_coco: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are written under the name in their first line, commands are given in their order."""
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "data").symlink_to(tiny_coco)
    small_detector(CLASSES, 3, channels=32).save(tmp_path / "runs" / "teacher" / "best")
    commands: list[list[str]] = []
    for language, text in BLOCKS:
        if language == "sh":
            commands += map(shlex.split, text.splitlines())
            continue
        assert language in ("python", "yaml")
        name = text.splitlines()[0].removeprefix("# ")
        with (tmp_path / name).open("a") as file:
            file.write(text)
    assert [words[0] for words in commands] == ["locdistill"] * 4 + ["python"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    output = []
    for words in commands[:-1]:
        code, out, err = cli(*words[1:], *(TINY if "my_recipe.yaml" in words else ()))
        assert code == 0, err + out
        output.append(out)
    sys.modules.pop("my_method")
    assert output[0].startswith("# terms.small_edges.of is my_method.EdgeDistance, imported from ")
    command = [sys.executable, *commands[-1][1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 passed" in done.stdout
    rows = [row for row in read_metrics(tmp_path / "runs" / "mine" / "metrics.csv") if "lr" in row]
    assert [{"train/small_edges", "train/angle"} <= set(row) for row in rows] == [True, True]
    assert all(0 < row["train/angle"] < 6 for row in rows)  # at most 2 on each of three levels


def test_its_tables_are_whole() -> None:
    first = [cell for row in re.findall(r"^\| (`[^|]+) \|", PAGE, re.MULTILINE) for cell in re.findall(r"`(\w+)`", row)]
    assert {need.name for need in Need} == {name for name in first if name.isupper()}
    bases = re.findall(r"^\| `([a-z]+)` \| `([\w.]+)`", PAGE, re.MULTILINE)
    homes = {key: f"{role.__module__}.{role.__name__}".removeprefix("locdistill.") for key, role in ROLES.items()}
    assert dict(bases) == homes
