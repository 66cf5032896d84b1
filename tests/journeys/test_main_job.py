"""The main job through the real command line: train, distil, kill, resume, evaluate, predict; and all of it in Python.

Training runs in processes of its own, which Python starts for the teacher and the run that is killed; what only reads
weights is called in this process, which saves start-up time.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from PIL import Image

import locdistill
from locdistill.cli import main
from locdistill.models.weights import read_metadata
from tests.processes import STUCK, Child

pytestmark = pytest.mark.journey

DETECTOR = (
    "detector.channels=32",
    "detector.depth=1",
    "detector.norm_groups=8",
    "detector.levels=[3,4,5]",
    "detector.anchor_scale=4",
)
RUN = ("data.workers=0", "engine.log_every=1", "engine.accelerator=cpu")
WORDS = ("--backbone", "mobilenetv3_small_050", "--pretrained", "none", "--batch", "4")
FILES = {
    *("recipe.yaml", "run.json", "log.txt", "metrics.json", "metrics.csv", "curves.png", "train_batch.png"),
    *("val_predictions.png", "best.safetensors", "last.safetensors", "last.ckpt"),
    *("labels.png", "pr_curves.png", "confusion.png", "errors.png", "val_best_worst.png", "per_class.csv"),
}


KILLED = """
import os, signal

def replace(source, target, do=os.replace):
    do(source, target)
    if str(target).endswith("last.ckpt"):
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace
from locdistill.cli import main

main()
"""
"""The command line, killed from within as soon as it has saved for the first time."""


def start(folder: Path, *words: object, program: tuple[str, str] = ("-m", "locdistill")) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *program, *map(str, words)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(folder: Path, *words: object) -> str:
    """Run as a process of its own; its standard output."""
    process = start(folder, *words)
    out, err = process.communicate(timeout=STUCK)
    assert process.returncode == 0, f"{words}: {process.returncode}\n{out}\n{err}"
    return out


def beside(folder: Path, *words: object) -> None:
    """The same without a start of Python: in a process that has imported the package, where nothing checks types."""
    code, output = Child(_in_folder, folder, [str(word) for word in words]).end()
    assert code == 0, output


def _in_folder(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    main(words)


@pytest.fixture
def here(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run in this process; standard output, or standard error where an exit code is expected."""

    def run(*words: object, code: int = 0) -> str:
        stopped = 0
        with monkeypatch.context() as patch:
            patch.chdir(place)
            try:
                main([str(word) for word in words])
            except SystemExit as stop:
                stopped = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert stopped == code, f"{words}: {stopped}\n{out}\n{err}"
        return err if code else out

    return run


def losses(run: Path) -> list[dict[str, str]]:
    """Losses and AP of every logged step, to the last digit; times are left out."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k == "step" or k.startswith(("train/", "val/"))} for row in rows]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journey")


@pytest.fixture(scope="module")
def teacher(place: Path, tiny_coco: Path) -> Path:
    out = command(place, "train", "--data", tiny_coco, "--model", "gfl", *WORDS, "--epochs", 2, *DETECTOR, *RUN)
    run = place / "runs" / "train-gfl_mobilenetv3_small_050"
    assert str(run.relative_to(place)) in out
    assert "AP75" in out
    return run


@pytest.fixture(scope="module")
def student(place: Path, tiny_coco: Path, teacher: Path) -> Path:
    run = place / "student"
    beside(place, "distill", *distill_words(tiny_coco, teacher), "--out", run)
    return run


def distill_words(data: Path, teacher: Path) -> tuple[object, ...]:
    return ("--teacher", teacher / "best", "--data", data, *WORDS, "--epochs", 6, *DETECTOR[:3], *RUN)


def test_training_leaves_a_whole_folder(teacher: Path) -> None:
    assert {path.name for path in teacher.iterdir()} >= FILES
    for picture in teacher.glob("*.png"):
        with Image.open(picture) as image:
            image.load()
            assert min(image.size) > 100
    for weights in ("best", "last"):
        assert "thresholds" in read_metadata(teacher / f"{weights}.safetensors")["extra"]
    assert "could not be written" not in (teacher / "log.txt").read_text()
    metrics = json.loads((teacher / "metrics.json").read_text())
    assert {"AP", "AP50", "AP75", "AP90"} <= set(metrics["best"])
    assert metrics["steps"] == 4
    assert {"train/cls", "train/bbox", "train/dfl", "train/total"} <= set(losses(teacher)[0])
    recipe = locdistill.load_recipe(teacher)
    assert recipe.data.classes == ("disc", "box", "bar")
    assert recipe.data.sizes == ((128, 96),)
    assert "8 training images" in (teacher / "log.txt").read_text()


def test_a_folder_is_not_overwritten(here: Callable[..., str], tiny_coco: Path, teacher: Path) -> None:
    before = (teacher / "metrics.csv").read_bytes()
    words = ("train", "--data", tiny_coco, *WORDS, *DETECTOR, *RUN, "--out", teacher)
    error = here(*words, code=2)
    assert "--resume" in error
    assert "Traceback" not in error
    assert (teacher / "metrics.csv").read_bytes() == before


def test_the_resolved_recipe_gives_the_same_run(here: Callable[..., str], place: Path, teacher: Path) -> None:
    here("train", teacher / "recipe.yaml", "--out", place / "again")
    assert losses(place / "again") == losses(teacher)
    assert (place / "again" / "recipe.yaml").read_text() == (teacher / "recipe.yaml").read_text()


def test_the_student_stands_alone(student: Path, teacher: Path) -> None:
    assert {"train/ld", "train/ld_vlr"} <= set(losses(student)[0])
    recipe = locdistill.load_recipe(student)
    assert recipe.detector.levels == (3, 4, 5)
    assert recipe.detector.anchor_scale == 4
    assert recipe.teacher is not None
    assert recipe.teacher.sha256 is not None
    # The same architecture has the same tensors: nothing of the teacher is in the student's file.
    mine = safetensors.torch.load_file(student / "best.safetensors")
    its = safetensors.torch.load_file(teacher / "best.safetensors")
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in its.items()}


def test_killed_and_resumed_equals_uninterrupted(
    here: Callable[..., str], tiny_coco: Path, teacher: Path, student: Path
) -> None:
    place = student.parent
    run = place / "killed"
    words = ("distill", *distill_words(tiny_coco, teacher), "--out", run, "engine.checkpoint_every_steps=3")
    process = start(place, *words, program=("-c", KILLED))
    _, err = process.communicate(timeout=STUCK)
    assert process.returncode == -signal.SIGKILL, err
    assert (run / "last.ckpt").exists()
    assert len(losses(run)) < len(losses(student))
    error = here("distill", "--resume", "--out", run, "engine.lr=1", code=2)
    assert "engine.lr" in error
    beside(place, *words, "--resume")
    assert losses(run) == losses(student)
    same = (
        safetensors.torch.load_file(run / "last.safetensors"),
        safetensors.torch.load_file(student / "last.safetensors"),
    )
    assert all((same[0][name] == same[1][name]).all() for name in same[1])


def test_evaluate(here: Callable[..., str], place: Path, tiny_coco: Path, student: Path) -> None:
    words = ("evaluate", student / "best", "--data", tiny_coco)
    assert "AP75" in here(*words)
    content = json.loads(here(*words, "--json"))
    best = json.loads((student / "metrics.json").read_text())["best"]
    assert content["metrics"]["AP"] == best["AP"]
    assert set(content["per_class"]) == {"disc", "box", "bar"}
    results = place / "results.json"
    settings = ("detections.score_threshold=0.0001", "detections.max_detections=5")
    here("evaluate", student, "--format-only", results, *settings)
    entries = json.loads(results.read_text())
    images = {image["id"] for image in json.loads((tiny_coco / "val.json").read_text())["images"]}
    assert len(entries) == 5 * len(images)
    assert {entry["image_id"] for entry in entries} == images
    assert {entry["category_id"] for entry in entries} <= {1, 2, 3}


def test_predict(here: Callable[..., str], place: Path, tiny_coco: Path, student: Path) -> None:
    image = tiny_coco / "images" / "train_000.png"
    (place / "folder").mkdir()
    (place / "folder" / "b.png").write_bytes((tiny_coco / "images" / "val_000.png").read_bytes())
    out = here("predict", student / "best", image, "folder", "--save", "out", "--threshold", 0.02)
    assert "folder/b.png" in out
    assert {path.name for path in (place / "out").iterdir()} == {"train_000.png", "b.png", "predictions.json"}
    content = json.loads((place / "out" / "predictions.json").read_text())
    assert [entry["image"] for entry in content["images"]] == [str(image), "folder/b.png"]
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (128, 96)
    with Image.open(place / "out" / "b.png") as drawn:
        assert drawn.size == (128, 96)


def test_config_shows_the_run_to_come(here: Callable[..., str], place: Path, tiny_coco: Path, teacher: Path) -> None:
    text = here("config", *distill_words(tiny_coco, teacher))
    (place / "mine.yaml").write_text(text)
    recipe = locdistill.load_recipe(place / "mine.yaml")
    assert recipe.data.classes == ("disc", "box", "bar")
    assert set(recipe.terms) == {"cls", "bbox", "dfl", "ld", "ld_vlr"}


def test_the_same_in_python(place: Path, tiny_coco: Path, teacher: Path) -> None:
    settings = [*DETECTOR, *RUN, "data.batch_per_device=4", "engine.progress=false"]
    alone = locdistill.train(
        tiny_coco,
        model="gfl",
        backbone="mobilenetv3_small_050",
        pretrained="none",
        epochs=2,
        out=place / "api_teacher",
        overrides=settings,
    )
    assert losses(alone.out) == losses(teacher)  # the command line does nothing else
    assert alone.best is not None
    taught = locdistill.distill(
        teacher=alone.best,
        data=tiny_coco,
        backbone="mobilenetv3_small_050",
        pretrained=False,
        epochs=1,
        out=place / "api_student",
        overrides=[*settings, "terms.ld_vlr=null", "terms.ld.weight=2"],
    )
    assert "train/ld_vlr" not in losses(taught.out)[0]
    assert taught.best is not None
    result = locdistill.evaluate(weights=taught.best, data=tiny_coco)
    assert result.metrics["AP"] == taught.metrics["best"]["AP"]
    found = locdistill.predict(taught.best, tiny_coco / "images" / "val_000.png", threshold=0.05)
    detector = locdistill.Detector.load(taught.best)
    (same,) = detector.detect(tiny_coco / "images" / "val_000.png")
    assert (same.boxes == found[0].detections.boxes).all()
    with pytest.raises(locdistill.LocdistillError, match="not overwritten"):
        locdistill.train(tiny_coco, out=taught.out)
