"""A distillation run is diagnosed, and its student mixed with one trained alone, from the command line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from locdistill.geometry.coding import DISTANCES
from locdistill.inference.evaluate import evaluate
from locdistill.models.detector import Detector
from locdistill.training.train import distill, train
from tests.conftest import Answer

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]

SMALL = (
    *("detector.channels=16", "detector.depth=1", "detector.levels=[3, 4, 5]", "data.sizes=[[128, 96]]"),
    *("data.batch_per_device=4", "data.workers=0", "data.flip=0", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.optimizer=adamw", "engine.lr=0.004", "engine.scale_lr=false", "engine.clip_norm=10"),
    *("engine.eval_every=0", "engine.log_every=5", "detector.norm_groups=4", "detector.pretrained=false"),
    *("engine.ema=null", "engine.schedule=step", "data.augment=none", "detector.anchor_scale=8"),
)


@pytest.fixture(scope="module")
def runs(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student that was taught, the same student alone, and one that taught itself."""
    folder = tmp_path_factory.mktemp("runs")
    words = {"backbone": "test_resnet", "data": tiny_coco}
    train(out=folder / "teacher", overrides=(*SMALL, "engine.steps=30"), **words)  # type: ignore[arg-type]
    own = (*SMALL, "engine.steps=15", "engine.seed=1")
    train(out=folder / "alone", overrides=own, **words)  # type: ignore[arg-type]
    for name, teacher, steps in (("student", folder / "teacher", 15), ("self", "ema", 3)):
        terms = ("terms.ld.on.positives.by=ones", f"engine.steps={steps}")
        distill(teacher, out=folder / name, overrides=(*own, *terms), **words)  # type: ignore[arg-type]
    return folder


def test_a_student_of_other_boxes_is_no_comparison(cli: Callable[..., Answer], runs: Path, tmp_path: Path) -> None:
    alone = Detector.load(runs / "alone").settings
    other = Detector(alone.model_copy(update={"model": "rotated_gfl", "pretrained": False})).save(tmp_path / "other")
    code, _, error = cli("diagnose", runs / "student", "--against", other, "--images", 1, "--out", tmp_path / "out")
    assert code == 2
    assert "pass a student of the same kind and settings, trained alone" in error
    assert "predicted numbers: the student has (Distances()" in error


def test_a_run_is_diagnosed(cli: Callable[..., Answer], runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--against", runs / "alone", "--images", 3, "--batches", 2, "--out", out, "--device", "cpu")
    code, shown, err = cli("diagnose", runs / "student", *words)
    assert code == 0, err
    assert "closer to its teacher" in shown
    assert str(out / "report.html") in shown
    assert (runs / "student" / "diagnosis").exists() is False  # pictures of the data are where the user wants them
    found = json.loads((out / "diagnose.json").read_text())
    assert found["images"] == 3
    assert found["notes"] == []
    student, alone = (found["agreement"][who]["main"] for who in ("student", "student alone"))
    assert student["locations"] == alone["locations"] > 0
    assert student["mean_edge_kl"] < alone["mean_edge_kl"]
    assert all(0 < who["box_iou"] <= 1 for who in (student, alone))  # a few steps lower the divergence, not surely more
    assert set(student["edge_kl"]) == set(DISTANCES.names)
    assert student["mean_edge_kl"] == pytest.approx(sum(student["edge_kl"].values()) / 4)
    locations = {region: here["locations"] for region, here in found["agreement"]["student"].items()}
    assert sum(locations.values()) == 3 * (12 * 16 + 6 * 8 + 3 * 4)  # of P3 to P5 of 96 x 128 pixels
    assert set(found["reliability"]) == {"teacher", "student", "student alone"}
    assert sum(b["count"] for b in found["reliability"]["student"]["bins"]) == found["reliability"]["student"]["count"]
    for moment in ("student before", "student"):
        targets = found["gradients"][moment]
        assert set(targets) == {"edge logits", "class logits", "features"}
        for terms in targets.values():
            assert sum(of["share"] for of in terms.values()) == pytest.approx(1)
        assert targets["edge logits"]["ld"]["norm"] > 0
        assert targets["class logits"]["ld"]["norm"] == 0
        assert targets["features"]["cls"]["norm"] > 0
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert {"calibration.png", "gradients.png", "regions-1.png", "object-1.png"} <= set(pictures)
    assert {f"edges-1-{who}.png" for who in ("student", "student-alone", "student-before")} <= set(pictures)
    for name in pictures:
        with Image.open(out / name) as picture:
            picture.verify()
    page = (out / "report.html").read_text()
    assert "Gradient of each term" in page
    assert page.count("<img") == len(pictures)


def test_json_and_a_student_that_taught_itself(cli: Callable[..., Answer], runs: Path) -> None:
    code, shown, err = cli("diagnose", runs / "self", "--images", 2, "--batches", 1, "--json", "--device", "cpu")
    assert code == 0, err
    found = json.loads(shown)
    assert found["teacher"] == "the running average of the student"
    assert set(found["gradients"]) == {"student"}  # at first it was its own teacher
    assert found["agreement"]["student"]["main"]["mean_edge_kl"] > 0  # the average lags behind
    assert (runs / "self" / "diagnosis" / "report.html").is_file()


def test_a_run_whose_terms_learned(cli: Callable[..., Answer], runs: Path, tiny_coco: Path, tmp_path: Path) -> None:
    terms = ("terms.ld={weight: 0.1}", "terms.mgd={of: masked_generation, on: everywhere, norm: per_image, weight: 1}")
    settings = (*SMALL, *terms, "terms.ld.balance=0.5", "engine.steps=3")
    out = tmp_path / "run"
    distill(runs / "teacher", tiny_coco, backbone="test_resnet", out=out, overrides=settings)
    code, shown, err = cli("diagnose", out / "last", "--images", 2, "--batches", 1, "--json", "--device", "cpu")
    assert code == 0, err
    gradients = json.loads(shown)["gradients"]["student"]
    assert gradients["features"]["mgd"]["norm"] > 0
    assert gradients["edge logits"]["mgd"]["norm"] == 0
    (out / "last.ckpt").unlink()  # where the weights of the term are, and nowhere else
    code, _, err = cli("diagnose", out / "last", "--images", 2, "--batches", 1, "--device", "cpu")
    assert code == 2
    assert "last.ckpt is missing" in err


def test_what_cannot_be_diagnosed(cli: Callable[..., Answer], runs: Path, tmp_path: Path) -> None:
    code, _, err = cli("diagnose", runs / "alone")
    assert code == 2
    assert "has no teacher" in err
    lonely = shutil.copy(runs / "student" / "last.safetensors", tmp_path / "x.safetensors")
    assert "is not a run folder" in cli("diagnose", lonely)[2]
    assert "is not the teacher that the recipe was run with" not in cli("diagnose", runs / "absent")[2]
    moved = tmp_path / "moved"
    shutil.copytree(runs / "student", moved)
    recipe = (moved / "recipe.yaml").read_text()
    (moved / "recipe.yaml").write_text(recipe.replace(str(runs / "teacher"), str(tmp_path / "gone")))
    code, _, err = cli("diagnose", moved)
    assert code == 2
    assert "gone" in err
    assert "--teacher" in err


def test_a_landscape(cli: Callable[..., Answer], runs: Path, tiny_coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "map"
    code, shown, err = cli("landscape", runs / "student", runs / "teacher", "--grid", 3, "--out", out, "--json")
    assert code == 0, err
    points = {(p["gamma1"], p["gamma2"]): p["AP"] for p in json.loads(shown)["points"]}
    assert len(points) == 9
    assert points[1.0, 0.0] == evaluate(runs / "student", tiny_coco).metrics["AP"]
    assert all(math.isfinite(ap) for ap in points.values())
    assert sorted(path.name for path in out.iterdir()) == ["landscape.csv", "landscape.json", "landscape.png"]
    code, _, err = cli("landscape", runs / "student", runs / "teacher", "--gamma1", "1:0", "--out", out)
    assert code == 2
    assert "RecipeError: gamma1" in err
