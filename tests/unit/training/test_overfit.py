"""The first look: which images, which verdict, and which remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import locdistill
from locdistill.data.records import Dataset, Record
from locdistill.data.shapes import ShapesSettings, write_shapes
from locdistill.engine.log import read_metrics
from locdistill.engine.module import blank_batch
from locdistill.engine.settings import EngineSettings
from locdistill.errors import LocdistillError
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Positives
from locdistill.recipe.defaults import resolve
from locdistill.recipe.request import Request
from locdistill.training.overfit import overfit as look
from locdistill.training.overfit.before import Before
from locdistill.training.overfit.images import choose
from locdistill.training.overfit.matches import Compared, compare
from locdistill.training.overfit.overfit import Repeated, alike, by_heart, timed
from locdistill.training.overfit.verdict import (
    After,
    ImageFacts,
    data_problems,
    own_rate,
    rate_problems,
    reasons,
    relative_rate,
    start_problems,
    training_problems,
)
from locdistill.training.preflight.data import Regions
from locdistill.training.preflight.report import Finding
from locdistill.types import Detections
from tests.conftest import Answer

TINY = (
    *("detector.channels=16", "detector.depth=1", "detector.norm_groups=4", "detector.levels=[3,4,5]"),
    *("detector.anchor_scale=4", "engine.accelerator=cpu", "engine.precision=32", "engine.progress=false"),
)
MISSED = Finding(what="no location", remedy="enlarge the images", settings=("data.sizes=[[256,256]]",))


def record(number: int, labels: list[int], size: tuple[int, int] = (64, 48)) -> Record:
    boxes = np.array([[8, 8, 28, 28]] * len(labels), np.float32).reshape(-1, 4)
    ignored = np.zeros(len(labels), bool)
    return Record(Path(f"{number}.png"), number, *size, boxes, np.array(labels, np.int64), ignored)


def dataset(*records: Record) -> Dataset:
    return Dataset("drawn/train", ("cat", "dog", "cow"), records, "coco", (1, 2, 3))


def regions(sides: list[float], labels: list[int], answered: list[bool]) -> Regions:
    return Regions(
        images=2,
        locations=100.0,
        main=3.0,
        valuable=9.0,
        sides=torch.tensor(sides),
        labels=torch.tensor(labels, dtype=torch.long),
        answered=torch.tensor(answered, dtype=torch.bool),
        distances=torch.zeros(0, 4),
    )


def facts(own: Regions, blank: tuple[str, ...] = ()) -> ImageFacts:
    return ImageFacts(
        images=2,
        kind="coco",
        classes=("cat", "dog", "cow"),
        blank=blank,
        regions=own,
        strides=(8, 16),
        anchors=(64.0, 128.0),
    )


GOOD = facts(regions([20.0, 40.0], [0, 1], [True, True]))


def after(**values: Any) -> After:
    settings: dict[str, Any] = {"ap50": 0.1, "rising": True, "first": 3.0, "last": 0.5, "matches": Compared(objects=10)}
    return After(**settings | values)


# --------------------------------------------------------------------------------------------------------- the images


def test_images_show_most_classes_and_have_one_size() -> None:
    data = dataset(
        record(1, []),
        record(2, [0]),
        record(3, [0, 1]),
        record(4, [0, 1, 2], (48, 64)),
        record(5, [2, 2, 2]),
        record(6, [2]),
    )
    assert [one.image_id for one in choose(data, 2).records] == [3, 6]
    assert [one.image_id for one in choose(data, 3).records] == [2, 3, 6]
    assert [one.image_id for one in choose(data, 9).records] == [2, 3, 5, 6]
    assert len(choose(dataset(record(1, []), record(2, [])), 1)) == 1


def test_batches_are_repeated_between_evaluations() -> None:
    batches = [blank_batch(torch.device("cpu")) for _ in range(2)]
    loader = Repeated(batches, 3, 4)
    assert [one is batches[i % 2] for i, one in enumerate(loader)] == [True] * 6
    assert (len(loader), loader.batch_size) == (6, 4)


# ---------------------------------------------------------------------------------------------------------- detections


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_detections_are_placed_named_mistaken_or_beside() -> None:
    data = dataset(record(1, [0]), record(2, [0]), record(3, [1]), record(4, [1]))
    seen = {
        1: found((8, 8, 28, 28, 0.9, 0)),
        2: found((8, 8, 28, 28, 0.9, 2), (8, 8, 28, 28, 0.01, 0)),
        3: found((20, 8, 40, 28, 0.9, 1)),
    }
    matches = compare(data, seen)
    assert (matches.objects, matches.detections, matches.placed, matches.named, matches.beside) == (4, 3, 2, 1, 1)
    assert matches.shift == (12, 0)
    assert matches.growth == 1
    assert matches.mistaken == {(0, 2): 1}
    assert compare(data, {}) == Compared(objects=4)


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_data_that_cannot_be_learnt_are_named() -> None:
    assert data_problems(GOOD, None) == []
    (empty,) = data_problems(facts(regions([], [], [])), None)
    assert "none of the 2 images has an object" in empty.what
    (blank,) = data_problems(replace(GOOD, blank=("a.png", "b.png")), None)
    assert blank.what == "2 of 2 images are of a single colour: a.png, b.png"
    assert data_problems(replace(GOOD, blank=()), None) == []
    (points,) = data_problems(facts(regions([1.0, 0.5], [0, 1], [False, False])), MISSED)
    assert "2 of 2 boxes are of a pixel or two: their sides are 0.5 to 1 pixels" in points.what
    assert "x, y, width, height] in pixels" in points.remedy
    (lost,) = data_problems(facts(regions([6.0, 4.0, 5.0], [0, 1, 0], [False] * 3)), MISSED)
    assert "assigned to 3 of 3 objects: cat (2, side 5 to 6), dog (1, side 4) pixels" in lost.what
    assert "strides are 8, 16, anchors 64, 128 pixels" in lost.what
    assert lost.settings == MISSED.settings


def test_what_is_wrong_before_the_first_step_is_named() -> None:
    good = Before(losses={"cls": 1.0, "bbox": 2.0})
    assert start_problems(good) == []
    assert good.total == 3
    (broken,) = start_problems(replace(good, losses={"cls": 1.0, "mine": math.nan}))
    assert "mine became NaN or infinite before the first step" in broken.what
    (frozen,) = start_problems(replace(good, learning=0))
    assert "all parameters of the detector are frozen" in frozen.what
    (dead,) = start_problems(replace(good, gradient=0.0))
    assert "no weight has a gradient: the terms cls, bbox" in dead.what
    (wild,) = start_problems(replace(good, gradient=math.inf))
    assert "gradient is not" in wild.what


def test_a_learning_rate_far_from_the_usual_one_is_kept_in_proportion() -> None:
    usual = EngineSettings()
    assert own_rate(relative_rate(usual, 4)) == 1
    assert rate_problems(usual, 1.0) == []
    assert relative_rate(EngineSettings(lr=0.01, scale_lr=False), 4) == 4
    wild = EngineSettings(lr=1e6)
    assert own_rate(relative_rate(wild, 4)) == pytest.approx(1e8)
    (high,) = rate_problems(wild, 1e8)
    assert high.what == "engine.lr is 1e+06, 1e+08 times above the usual one"
    assert high.settings == ("engine.lr=0.01",)


def test_where_training_stopped_is_named() -> None:
    assert training_problems(after(ap50=0.9), GOOD) == []
    (flat,) = training_problems(after(last=2.9), GOOD)
    assert "the loss did not fall: 3 before the first step, 2.9 at the end" in flat.what
    (flat,) = training_problems(after(last=math.nan), GOOD)
    assert "did not fall" in flat.what
    (frozen,) = training_problems(after(last=2.9, frozen=0.6, random=True), GOOD)
    assert "60% of the parameters are frozen, with random weights" in frozen.what
    mixed = Compared(objects=10, detections=10, placed=9, named=2, mistaken={(0, 1): 5, (1, 0): 2})
    (confused,) = training_problems(after(matches=mixed), GOOD)
    assert "5 x cat are taken for dog" in confused.what
    (beside,) = training_problems(after(matches=Compared(objects=10, beside=8, shift=(12.0, -3.0))), GOOD)
    assert "8 of 10 have one with too little overlap only, shifted by +12, -3 pixels" in beside.what
    (none,) = training_problems(after(), GOOD)
    assert "none of the 10 objects is found" in none.what
    (late,) = training_problems(after(matches=Compared(objects=10, placed=6, named=6)), GOOD)
    assert "6 of 10 objects are found when the time is over, and AP was still rising" in late.what


def test_the_likeliest_reason_comes_first() -> None:
    rate = rate_problems(EngineSettings(lr=10), 1000.0)
    few, many = (facts(regions([20.0] * 20, [0] * 20, [i >= lost for i in range(20)])) for lost in (1, 10))
    assert [one.what[:9] for one in reasons(after(), many, MISSED, rate)] == ["engine.lr", "no locati", "the loss "]
    assert [one.what[:9] for one in reasons(after(), few, MISSED, [])] == ["the loss ", "no locati"]
    assert [one.what[:9] for one in reasons(after(ap50=0.9), few, MISSED, rate)] == ["no locati"]
    assert reasons(after(ap50=0.9), GOOD, None, rate) == []


# ------------------------------------------------------------------------------------------------------------- settings


def test_a_look_neither_augments_nor_averages() -> None:
    words = ["data.flip=0.5", "data.rotate=30", "data.scale=[0.5,2]", "engine.ema=0.99", "engine.accumulate=4"]
    recipe = by_heart(resolve(Request(recipe="gfl_r50_1x", data="nowhere", overrides=words)))
    assert (recipe.data.flip, recipe.data.rotate, recipe.data.scale) == (0, 0, None)
    assert recipe.data.sizes == ((1333, 800),)
    assert (recipe.engine.ema, recipe.engine.accumulate, recipe.engine.optimizer) == (None, 1, "adamw")
    assert recipe.engine.lr == look.RATE


def test_the_length_fits_the_seconds_of_a_step() -> None:
    quick, slow = timed(EngineSettings(), 0.01), timed(EngineSettings(), 10.0)
    assert (quick.steps, slow.steps) == (look.MOST, look.LEAST)
    assert slow.time_limit_seconds == 1.5 * look.LEAST * 10
    assert timed(EngineSettings(time_limit_seconds=30), 0.1).steps == 300


def test_boxes_are_weighted_alike() -> None:
    recipe = resolve(Request(recipe="gfl_r50_1x", data="nowhere"))
    terms = {name: term.build() for name, term in recipe.terms.items()}
    assert terms["bbox"].on == Positives(by="student_confidence")
    same = alike(Objective(terms=terms)).terms
    assert (same["bbox"].on, same["dfl"].on, same["cls"]) == (Positives(), Positives(), terms["cls"])


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ShapesSettings(train=6, val=1, size=96, jitter=0.0, bars=0, radius=(0.2, 0.3))
    return write_shapes(tmp_path_factory.mktemp("shapes"), settings)


def looked(data: Path, out: Path, *overrides: str) -> locdistill.OverfitResult:
    words = {"backbone": "test_resnet", "pretrained": "none"}
    return locdistill.overfit(data, images=2, out=out, overrides=[*TINY, *overrides], **words)


def changed(shapes: Path, folder: Path, change: Any) -> Path:
    """A copy of the labels with other boxes; the images stay where they are."""
    folder.mkdir()
    for split in ("train", "val"):
        content = json.loads((shapes / f"{split}.json").read_text())
        change(content)
        (folder / f"{split}.json").write_text(json.dumps(content))
    if not (folder / "images").exists():
        (folder / "images").symlink_to(shapes / "images")
    return folder


def test_a_good_data_set_passes(shapes: Path, tmp_path: Path) -> None:
    result = looked(shapes, tmp_path / "look", "engine.time_limit_seconds=300")
    assert result.passed, result.text()
    assert result.ap50 >= 0.8
    assert "data, labels and loss fit together" in result.verdict
    assert "This look cannot find labels that are wrong but can be learnt by heart" in result.text()
    assert result.picture is not None
    assert Image.open(result.picture).width > 2 * 96
    assert {path.name for path in result.out.iterdir()} >= {"overfit.txt", "overfit.json", "log.txt", "recipe.yaml"}
    assert not list(result.out.glob("*.safetensors")) + list(result.out.glob("*.ckpt"))
    assert json.loads((result.out / "overfit.json").read_text())["passed"] is True
    assert read_metrics(result.out / "metrics.csv")[-1]["step"] < look.MOST  # it ends when the images are known


def test_boxes_of_a_pixel(shapes: Path, tmp_path: Path) -> None:
    def shrink(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["bbox"], one["area"] = [*one["bbox"][:2], 1.2, 1.2], 1.44

    result = looked(changed(shapes, tmp_path / "data", shrink), tmp_path / "look")
    assert not result.passed
    assert "boxes are of a pixel" in result.verdict


def test_no_location_for_any_object(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "LEAST", 20)

    def shrink(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["bbox"], one["area"] = [41.0, 41.0, 4.0, 4.0], 16.0

    result = looked(changed(shapes, tmp_path / "data", shrink), tmp_path / "look", "engine.time_limit_seconds=1")
    assert not result.passed
    assert "no location is assigned to" in result.verdict
    assert result.findings[0].settings[0].startswith("data.sizes=")


def test_blank_images(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text((shapes / f"{split}.json").read_text())
    for path in (shapes / "images").iterdir():
        Image.new("RGB", (96, 96), (7, 7, 7)).save(folder / "images" / path.name)
    assert "2 of 2 images are of a single colour" in looked(folder, tmp_path / "look").verdict


def test_images_without_objects(shapes: Path, tmp_path: Path) -> None:
    folder = changed(shapes, tmp_path / "data", lambda content: content["annotations"].clear())
    assert "has an object" in looked(folder, tmp_path / "look").verdict
    with pytest.raises(LocdistillError, match="images without objects"):
        looked(folder, tmp_path / "other", "data.filter_empty=true")


def test_learning_rates_that_cannot_work(shapes: Path, tmp_path: Path) -> None:
    idle = looked(shapes, tmp_path / "idle", "engine.lr=1e-12")
    assert "engine.lr is 1e-12, 5e+08 times below the usual one" in idle.verdict
    wild = looked(shapes, tmp_path / "wild", "engine.lr=1e6", "engine.time_limit_seconds=1")
    assert "engine.lr is 1e+06" in wild.verdict
    assert not wild.passed


def test_frozen_weights_and_losses_that_are_not_finite(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = look.compose

    def frozen(*args: Any, **words: Any) -> Any:
        parts = composed(*args, **words)
        parts.detector.requires_grad_(False)
        return parts

    with monkeypatch.context() as patch:
        patch.setattr(look, "compose", frozen)
        assert "all parameters of the detector are frozen" in looked(shapes, tmp_path / "frozen").verdict
    losses = Objective.losses
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "losses", lambda self, scene: losses(self, scene) | {"bbox": torch.tensor(math.nan)})
        assert "the loss is not finite: bbox" in looked(shapes, tmp_path / "nan").verdict


def test_the_command_prints_the_verdict(shapes: Path, tmp_path: Path, cli: Callable[..., Answer]) -> None:
    words = ("--backbone", "test_resnet", "--pretrained", "none", "--overfit", 1, *TINY)
    code, out, _ = cli("train", "--data", shapes, "--out", tmp_path / "idle", *words, "engine.lr=1e-12")
    assert code == 1
    assert "stopped on 1 images after" in out
    assert "engine.lr=0.001" in out
    code, out, err = cli("train", "--data", shapes, "--out", tmp_path / "good", *words, "engine.time_limit_seconds=300")
    assert code == 0, out
    assert (out + err).count("data, labels and loss fit together") == 1
    assert f"truth and predictions: {tmp_path / 'good' / 'overfit.png'}" in out
