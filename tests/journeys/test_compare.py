"""Recipes and finished runs compared from the command line: trained, measured, repeated, gone on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import locdistill
from locdistill.cli import main

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]

RECIPE = """
name: {name}
detector:
  {{backbone: resnet18, pretrained: false, channels: 32, depth: 1, norm_groups: 8, levels: [3, 4], anchor_scale: 4,
  backbone_args: {{channels: [8, 16, 32, 32], layers: [1, 1, 1, 1], norm_layer: "groupnorm:4"}}}}
data: {{path: {data}, batch_per_device: 4, workers: 0, sizes: [[128, 96]], cache: true}}
engine:
  {{steps: {steps}, schedule: cosine, optimizer: adamw, lr: 0.02, warmup_steps: 5, eval_every: 0, accelerator: cpu,
  progress: false, log_every: 10, precision: 32}}
terms:
  cls: {{of: quality_focal, on: counted, norm: positive_count, weight: 1}}
  bbox: {{of: overlap, on: positives, weight: 2}}
  dfl: {{of: distribution_focal, on: positives, weight: 0.25}}
"""
TAUGHT = """
base: alone.yaml
name: taught
teacher: {weights: TEACHER}
terms:
  ld: {of: {edge_kl: {temperature: 1}}, on: positives, weight: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_coco: Path) -> Path:
    """Two recipes, and a finished teacher."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "teacher.yaml").write_text(RECIPE.format(name="teacher", data=tiny_coco, steps=24))
    (folder / "alone.yaml").write_text(RECIPE.format(name="alone", data=tiny_coco, steps=16))
    (folder / "taught.yaml").write_text(TAUGHT.replace("TEACHER", str(folder / "teacher")))
    locdistill.run(locdistill.load_recipe(folder / "teacher.yaml"), folder / "teacher")
    return folder


@pytest.fixture
def cli(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run in this process; what is printed: JSON alone, or errors alone where an exit code is expected."""

    def call(*words: object, code: int = 0) -> str:
        stopped = 0
        with monkeypatch.context() as patch:
            patch.chdir(place)
            patch.delenv("LOCDISTILL_OUT", raising=False)
            try:
                main([str(word) for word in words])
            except SystemExit as stop:
                stopped = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert stopped == code, f"{words}: {stopped}\n{out}\n{err}"
        return err if code else out if "--json" in words else out + err

    return call


def no_pictures_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the detectors see, which takes longer than the rest and is looked at once."""
    monkeypatch.setattr("locdistill.study.compare.compare.pictures", lambda *_, **__: [])


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pictures_of(monkeypatch)


WORDS = ("compare", "alone.yaml", "taught.yaml", "--seeds", 2, "--resamples", 50, "--out", "all", "--equal-time")


def test_recipes_are_trained_compared_and_not_trained_again(
    place: Path, cli: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = cli(*WORDS)
    for expected in ("training: alone, seed 0", "AP75", "95 % interval", "over images alone", "AP by class", "Note:"):
        assert expected in printed, printed
    out = place / "all"
    content = json.loads((out / "compare.json").read_text())
    given = "locdistill compare alone.yaml taught.yaml --seeds 2 --out all --equal-time --resamples 50"
    assert content["command"] == given
    assert content["arms"]["taught"]["seeds"] == [0, 1]
    assert set(content["arms"]["alone"]["classes"]) == {"disc", "box", "bar"}
    pair = content["differences"]["taught"]["as_trained"]["AP"]
    assert len(pair["differences"]) == 2
    assert pair["images"]["low"] <= pair["images"]["high"]
    assert "equal_time" in content["differences"]["taught"]
    assert content["settings"]["taught"]["terms.ld"]["here"].startswith("edge_kl")
    # What is compared is what the run itself measured at its end.
    last = json.loads((out / "taught-1" / "metrics.json").read_text())["last"]
    (run,) = (r for r in content["runs"] if (r["arm"], r["seed"]) == ("taught", 1))
    assert last["AP50"] > 0
    assert run["metrics"]["AP50"] == pytest.approx(100 * last["AP50"], abs=1e-6)
    assert "| taught |" in (out / "compare.md").read_text()
    assert (out / "report.html").read_text().count("data:image/") == 6  # nothing was evaluated on the way: no curves

    no_pictures_of(monkeypatch)
    shutil.rmtree(out / "alone-1")
    stamps = {path: path.stat().st_mtime_ns for path in (*out.rglob("*.safetensors"), *out.rglob("*.npz"))}
    again = cli(*WORDS)
    assert again.count("training:") == 1
    assert "training: alone, seed 1" in again
    changed = {path.relative_to(out).parts[:2] for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed <= {("detections", "alone-1.npz")}
    repeated = json.loads((out / "compare.json").read_text())
    assert repeated["differences"]["taught"]["as_trained"] == content["differences"]["taught"]["as_trained"]


@pytest.mark.usefixtures("no_pictures")
def test_finished_folders_are_grouped_by_recipe(place: Path, cli: Callable[..., str]) -> None:
    if not (place / "all").exists():
        cli(*WORDS)
    folders = [place / "all" / name for name in ("alone-0", "alone-1", "taught-0", "taught-1")]
    result = json.loads(cli("compare", *folders, "--resamples", 20, "--out", "folders", "--json"))
    assert list(result["arms"]) == ["alone", "taught"]
    assert {(run["arm"], run["seed"], run["folder"]) for run in result["runs"]} == {
        (folder.name[:-2], int(folder.name[-1]), str(folder)) for folder in folders
    }
    same = cli("compare", folders[0], folders[1], code=2)
    assert "came runs of a single recipe" in same
    unpaired = cli("compare", folders[0], folders[3], code=2)
    assert "differences are taken seed by seed" in unpaired


def test_bad_input_is_said_before_anything_is_trained(place: Path, cli: Callable[..., str], tiny_coco: Path) -> None:
    (place / "orphan.yaml").write_text(TAUGHT.replace("TEACHER", "null").replace("taught", "orphan"))
    assert "orphan needs its teacher" in cli("compare", "alone.yaml", "orphan.yaml", code=2)
    assert "at least two" in cli("compare", "alone.yaml", code=2)
    assert "no recipe is called" in cli("compare", "alone.yaml", "alnoe", code=2)
    (place / "other.yaml").write_text("base: alone.yaml\nname: other\ndata: {classes: [disc, box]}\n")
    assert "their classes are ['disc', 'box', 'bar'] and" in cli("compare", "alone.yaml", "other.yaml", code=2)
    (place / "other.yaml").write_text("base: alone.yaml\nname: other\ndata: {val: train}\n")
    assert "different images or objects" in cli("compare", "alone.yaml", "other.yaml", code=2)
    assert not list(place.glob("runs/*"))
    (place / "stopped").mkdir()
    (place / "stopped" / "recipe.yaml").write_text((place / "teacher" / "recipe.yaml").read_text())
    message = cli("compare", "teacher", "stopped", code=2)
    assert "stopped is not finished" in message
    assert "locdistill train --resume --out stopped" in message
    (place / "empty").mkdir()
    assert "is not a run folder" in cli("compare", "teacher", "empty", code=2)


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_trainings_of_several_processes_have_a_command_of_their_own(cli: Callable[..., str], place: Path) -> None:
    """Each process begins with the command that was given, which must not be the whole comparison."""
    two = "engine.devices=2", "engine.launch=subprocess", "engine.steps=2"
    found = json.loads(cli("compare", "teacher", "taught.yaml", *two, "--seeds", 1, "--out", "both", "--json"))
    assert {run["arm"]: run["steps"] for run in found["runs"]} == {"teacher": 24, "taught": 2}
    assert (place / "both" / "taught-0.yaml").is_file()
    facts = json.loads((place / "both" / "taught-0" / "metrics.json").read_text())
    assert facts["stopped"] == "finished"
