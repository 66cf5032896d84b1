"""A search from the command line: short runs, interrupted, gone on with; and the recipes that it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import locdistill
from locdistill.recipe.recipe import Recipe
from locdistill.study.tune import tune as module
from locdistill.training.train import run
from tests.conftest import Answer

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]

RECIPE = """
name: {name}
detector:
  {{backbone: resnet18, pretrained: false, channels: 16, depth: 1, norm_groups: 4, levels: [3, 4], anchor_scale: 4,
  backbone_args: {{channels: [8, 8, 16, 16], layers: [1, 1, 1, 1], norm_layer: "groupnorm:4"}}}}
data: {{path: {data}, batch_per_device: 4, workers: 0, sizes: [[128, 96]], cache: true}}
engine:
  {{steps: 12, schedule: cosine, optimizer: adamw, lr: 0.02, warmup_steps: 4, eval_every: 0, accelerator: cpu,
  progress: false, log_every: 10, precision: 32}}
terms:
  cls: {{of: quality_focal, on: counted, norm: positive_count, weight: 1}}
  bbox: {{of: overlap, on: positives, weight: 2}}
"""
TAUGHT = """
base: teacher.yaml
name: student
teacher: {weights: teacher}
terms:
  ld: {of: {edge_kl: {temperature: 2}}, on: positives, weight: 4}
  ld_vlr: {of: {edge_kl: {temperature: 2}}, on: valuable_locations, weight: 1}
"""
WORDS = ("tune", "student.yaml", "--trials", 2, "--steps", 3, "--holdout", 0.4, "--out", "found")


def test_a_search_is_interrupted_goes_on_and_is_used(
    cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCDISTILL_OUT", raising=False)
    Path("teacher.yaml").write_text(RECIPE.format(name="teacher", data=tiny_coco))
    Path("student.yaml").write_text(TAUGHT)
    assert cli("train", "teacher.yaml", "--out", "teacher")[0] == 0

    def killed(recipe: Recipe, folder: Path, resume: bool) -> object:
        if folder.name == "trial-002-0":
            raise KeyboardInterrupt
        return run(recipe, folder, resume)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_apart", killed)
        assert cli(*WORDS)[0] == 130
    noted = json.loads(Path("found/study.json").read_text())["trials"]
    assert len(noted) == 2
    assert not Path("found/tune.json").exists()

    code, out, err = cli(*WORDS)
    assert code == 0, err
    assert err.count("training:") == 1
    assert "training: trial-002" in err
    printed = " ".join(out.split())
    for expected in ("on 3 held-out training images of", "4 are trained on", "student alone", "locdistill compare"):
        assert expected in printed, out
    found = json.loads(Path("found/tune.json").read_text())
    assert {trial["name"] for trial in found["trials"]} == {"alone", "as_is", "trial-001", "trial-002"}
    settings = {trial["name"]: trial["settings"] for trial in found["trials"]}
    assert [settings["trial-001"], settings["trial-002"]] == noted
    assert settings["as_is"]["terms.ld.weight"] == 4
    tried = locdistill.load_recipe("found/trial-001-0/recipe.yaml")
    assert tried.terms["ld"].weight == noted[0]["terms.ld.weight"]
    assert ("ld_vlr" in tried.terms) == (noted[0]["terms.ld_vlr"] == "on")
    facts = json.loads(Path("found/trial-001-0/run.json").read_text())["data"]
    assert (facts["train"]["images"], facts["val"]["images"]) == (4, 3)  # the image without boxes is held out

    again = json.loads(cli(*WORDS, "--json")[1])
    assert again["trials"] == found["trials"]
    assert cli("distill", "found/best.yaml", "--out", "final")[0] == 0
    final = json.loads(Path("final/run.json").read_text())["data"]
    assert (final["train"]["images"], final["val"]["images"]) == (7, 4)  # all of them, and the validation images

    code, _, err = cli(*WORDS, "terms.ld.weight=3")
    assert code == 2
    assert "found holds a search with another" in err
    code, _, err = cli("tune", "teacher.yaml")
    assert code == 2
    assert "no term that compares with a teacher" in err


def test_a_recipe_without_teacher_is_searched_too(
    cli: Callable[..., Answer], tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCDISTILL_OUT", raising=False)
    Path("plain.yaml").write_text(RECIPE.format(name="plain", data=tiny_coco))
    words = ("tune", "plain.yaml", "--search", "engine.lr=0.001..0.1:log", "--trials", 1, "--steps", 2, "--holdout", 0)
    code, out, err = cli(*words)
    assert code == 0, err
    assert "which are no longer unseen" in " ".join(out.split())
    found = json.loads(Path("runs/tune-plain/tune.json").read_text())
    assert {trial["name"] for trial in found["trials"]} == {"as_is", "trial-001"}
    assert found["held_out"] is False
