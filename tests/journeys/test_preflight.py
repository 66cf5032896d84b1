"""The look before the first step on the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from locdistill.engine.log import read_metrics
from locdistill.models.detector import Detector
from tests.conftest import Answer, write_tiny_coco
from tests.small import small_detector

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]
SHORT = (
    *("engine.steps=2", "engine.log_every=1", "engine.accelerator=cpu", "engine.progress=false", "data.workers=0"),
    *("detector.channels=16", "detector.depth=1", "detector.norm_groups=4", "--batch", "2", "--pretrained", "none"),
)
SMALL = small_detector(channels=32, reg_max=7)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return Detector(SMALL).save(tmp_path_factory.mktemp("teacher") / "best")


def test_what_was_found_is_printed_and_kept_with_the_run(
    cli: Callable[..., Answer], tiny_coco: Path, teacher: Path, tmp_path: Path
) -> None:
    words = ("distill", "--teacher", teacher, "--data", tiny_coco, "--backbone", "test_resnet", *SHORT)
    code, out, err = cli(*words, "--out", tmp_path / "run", "detector.reg_max=16", "-m", "ld", "-m", "pkd")
    assert code == 0, err
    kept = (tmp_path / "run" / "preflight.txt").read_text()
    plain = json.loads((tmp_path / "run" / "preflight.json").read_text())
    logged = (tmp_path / "run" / "log.txt").read_text()
    for words_of_it in (
        "Before the first step",
        "gfl on test_resnet",
        "8, 0 to 7 strides",
        "17, 0 to 16 strides",
        "main region",
        "valuable region",
        "teacher's own AP",
        "the teacher's have 32 channels, the student's 16",
        "(detector.reg_max=7 gives both the same)",
        "teacher cannot be assessed: only",
    ):
        assert words_of_it in " ".join(out.split())
        assert words_of_it in " ".join(kept.split())
        assert words_of_it in " ".join(logged.split())
    assert plain["numbers"]["ap"]["teacher"]["images"] == 4
    assert plain["stops"] == []
    note = next(n for n in plain["notes"] if "locdistill train RUN/recipe.yaml" in n)
    alone = note.split("RUN/recipe.yaml ")[1].split(" --out")[0].split()
    code, resolved, _ = cli("config", tmp_path / "run" / "recipe.yaml", *alone)
    assert code == 0
    assert "teacher: null" in resolved
    assert "pkd" not in resolved
    (tmp_path / "run" / "preflight.txt").unlink()
    code, out, _ = cli("distill", "--resume", "--out", tmp_path / "run")
    assert code == 0
    assert "Before the first step" not in out
    assert not (tmp_path / "run" / "preflight.txt").exists()

    code, out, _ = cli(
        *words, "--out", tmp_path / "unseen", "detector.reg_max=16", "-m", "ld", "-m", "pkd", "--no-preflight"
    )
    assert code == 0
    assert "Before the first step" not in out
    rows = [
        [row["train/total"] for row in read_metrics(tmp_path / name / "metrics.csv") if "lr" in row]
        for name in ("run", "unseen")
    ]
    assert rows[0] == rows[1]


def test_a_dry_run_says_by_its_exit_code_whether_it_would_stop(
    cli: Callable[..., Answer], tiny_coco: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("distill", "--teacher", teacher, "--backbone", "test_resnet", *SHORT)
    code, out, _ = cli(*words, "--data", tiny_coco, "--dry-run")
    assert code == 0
    assert "teacher's own AP" in out
    code, out, _ = cli(*words, "--data", tiny_coco, "--dry-run", "--preflight-images", 0)
    assert code == 0
    assert "teacher's own AP" not in out
    many = write_tiny_coco(tmp_path / "many", val=40)
    code, out, err = cli(*words, "--data", many, "--dry-run")
    assert code == 1, err
    assert "Stop\n- teacher is at chance level" in "\n".join(line.rstrip() for line in out.splitlines())
    code, out, err = cli(*words, "--data", many)
    assert code == 2
    assert "teacher's own AP" in out
    assert "Stop" not in out
    assert "\nTeacherError: teacher is at chance level" in err
    assert "--no-preflight" in err
    code, out, err = cli(*words, "--data", tiny_coco, "--dry-run", "teacher.classes=[cat,dog,cow]")
    assert code == 1
    assert "the teacher knows none of the student's; it has ['cat', 'dog', 'cow']" in " ".join(out.split())
    assert not (tmp_path / "runs").exists()
