"""A student that teaches itself, begins with trained weights, or learns from a detector of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from locdistill.cli import main
from locdistill.distillation.compatible import check_start, check_teacher
from locdistill.distillation.needs import Needs
from locdistill.distillation.presets import ld_sharp, supervised
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.log import read_metrics
from locdistill.errors import LocdistillError, RecipeError, RunError, TeacherError, WeightsError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import build_recipe, dump_recipe, load_recipe, validate
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.yaml_io import read_yaml
from locdistill.training.train import distill, train

SMALL = DetectorSettings(
    backbone="test_resnet",
    pretrained=False,
    classes=("box", "disc", "bar"),
    channels=16,
    depth=1,
    norm_groups=4,
    levels=(3, 4, 5),
    input=InputSettings(short=64, long=96),
)
DETECTOR = tuple(
    f"detector.{key}={value}"
    for key, value in {"channels": 16, "depth": 1, "norm_groups": 4, "levels": [3, 4, 5], "pretrained": "false"}.items()
)
SHORT = ("engine.steps=2", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu", "data.workers=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small detector, its classes in another order than the data's."""
    torch.manual_seed(3)
    return Detector(SMALL).save(tmp_path_factory.mktemp("trained") / "best")


def with_(**changes: Any) -> DetectorSettings:
    return SMALL.model_copy(update=changes)


# ------------------------------------------------------------------------------------------------- what a recipe says


def test_the_decay_belongs_to_an_average_and_the_digest_to_a_file() -> None:
    assert TeacherSettings(weights="ema", decay=0.99).follows
    assert not TeacherSettings(weights="./ema").follows
    for values, words in (
        ({"weights": "runs/a", "decay": 0.9}, "teacher.weights=ema"),
        ({"decay": 0.9}, "teacher.weights=ema"),
        ({"weights": "ema", "sha256": "00"}, "teacher.sha256=null"),
        ({"weights": "ema", "decay": 1.0}, "less than 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            validate(TeacherSettings, values, "teacher")


def test_a_student_can_begin_with_its_teachers_weights_only_if_they_are_in_a_file() -> None:
    with pytest.raises(RecipeError, match="start is 'teacher', but there is no teacher"):
        load_recipe("gfl_r18_1x", ["start=teacher"])
    with pytest.raises(RecipeError, match="start is 'teacher', but the teacher is the student's running average"):
        load_recipe("self_ld_r18", ["start=teacher", "teacher.weights=ema"])
    assert load_recipe("self_ld_r18", ["start=teacher"]).start == "teacher"
    assert load_recipe("gfl_r18_1x", ["start=runs/x/best"]).start == "runs/x/best"


def test_zero_configuration_with_the_students_average(tiny_coco: Path) -> None:
    recipe = resolve(Request(data=tiny_coco, teacher="ema", backbone="resnet34"))
    assert recipe.name == "ld_resnet34_from_ema"
    assert recipe.teacher is not None
    assert recipe.teacher.follows
    assert recipe.data.classes is None  # those of the data, as without a teacher
    assert recipe.data.sizes == ((128, 96),)
    assert {name: term.build() for name, term in recipe.terms.items()} == supervised() | ld_sharp()
    assert "weights: ema" in dump_recipe(recipe)


@pytest.mark.parametrize("teacher", [True, False])
def test_zero_configuration_from_trained_weights_takes_their_architecture(
    tiny_coco: Path, trained: Path, teacher: bool
) -> None:
    request = (
        Request(data=tiny_coco, teacher=trained, start="teacher") if teacher else Request(data=tiny_coco, start=trained)
    )
    recipe = resolve(request)
    own = {"classes", "pretrained", "input", "detections"}
    expected = Detector.load(trained).settings
    assert expected.mean is not None  # also how images are normalised
    assert recipe.detector.model_dump(exclude=own) == expected.model_dump(exclude=own)
    assert recipe.data.classes == ("box", "disc", "bar")  # in the order of the weights
    assert (recipe.detector.input.short, recipe.detector.input.long) == (64, 96)
    assert recipe.start == ("teacher" if teacher else str(trained))
    assert recipe.distils == teacher
    other = resolve(Request(data=tiny_coco, start=trained, overrides=("detector.frozen_stages=2",)))
    assert other.detector.frozen_stages == 2


def test_the_words_of_the_command_line(tiny_coco: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: object) -> Recipe:
        with pytest.raises(SystemExit) as ended:
            main(["config", *map(str, words)])
        assert not ended.value.code
        return build_recipe(read_yaml(capsys.readouterr().out, "standard output"))

    average = printed("--data", tiny_coco, "--teacher", "ema", "teacher.decay=0.99")
    assert average.teacher is not None
    assert (average.teacher.weights, average.teacher.decay) == ("ema", 0.99)
    begun = printed("--data", tiny_coco, "--teacher", trained, "--start", "teacher", "--epochs", 3)
    assert (begun.start, begun.detector.channels, begun.engine.epochs) == ("teacher", 16, 3)
    assert printed("gfl_r18_1x", "--start", trained).start == str(trained)


# --------------------------------------------------------------------------------------------------- what goes together


@pytest.mark.parametrize("student", ["gfl", "gflv2", "atss", "fcos", "retinanet"])
@pytest.mark.parametrize("teacher", ["gfl", "gflv2", "atss", "fcos", "retinanet"])
def test_kinds_with_as_many_locations_teach_each_other(student: str, teacher: str) -> None:
    pair = with_(model=student, anchor_scale=4.0), with_(model=teacher)
    if (student == "retinanet") == (teacher == "retinanet"):
        bridge = check_teacher(*pair, "t")
        grids = [Detector(settings).grid_for((64, 96)) for settings in pair]
        shift = bridge.steps[0].shift if bridge.steps else 0.0  # type: ignore[attr-defined]
        assert torch.equal(grids[0].points, grids[1].points + shift * grids[1].strides[:, None])
        return
    with pytest.raises(TeacherError, match="locations: ") as caught:
        check_teacher(*pair, "t")
    message = str(caught.value)
    kinds = "retinanet" if student == "retinanet" else "gfl, gflv2, atss, fcos"
    assert f"take a teacher of kind {kinds}, or set detector.model={teacher}" in message
    theirs, mine = (9 if model == "retinanet" else 1 for model in (teacher, student))
    assert f"of kind {teacher}, has {theirs} in each cell, the student, of kind {student}, {mine};" in message


def test_maps_that_are_compared_may_have_two_widths() -> None:
    assert check_teacher(with_(channels=32), SMALL, "t", needs=Needs(features=True)).steps == ()


def test_weights_to_begin_with_must_mean_the_same() -> None:
    check_start(SMALL, with_(anchor_scale=4.0, frozen_stages=1, backbone="test_resnet.r160_in1k"), "w")
    different: dict[str, dict[str, Any]] = {
        r"classes: the weights have \['disc', 'box', 'bar'\]": {"classes": ("disc", "box", "bar")},
        "detector.model=atss": {"model": "atss"},
        "detector.bgr=True": {"bgr": True},
        r"detector.mean=\[1.0, 2.0, 3.0\]": {"mean": (1.0, 2.0, 3.0)},
        "detector.style=caffe": {"style": "caffe"},
        "detector.norm_groups=8": {"norm_groups": 8},
        "detector.backbone=resnet18": {"backbone": "resnet18"},
    }
    for words, change in different.items():
        with pytest.raises(WeightsError, match=words):
            check_start(SMALL, with_(**change), "w")


# ------------------------------------------------------------------------------------------------------------- in a run


def test_a_run_begins_with_the_weights_it_is_given(tiny_coco: Path, trained: Path, tmp_path: Path) -> None:
    still = ("engine.lr=1e-12", "engine.steps=1", *SHORT[1:])
    result = train(tiny_coco, start=trained, out=tmp_path / "run", overrides=still)
    before, after = load_file(trained), load_file(result.last)
    learning = [name for name, value in Detector.load(trained).named_parameters()]
    for name in learning:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-9)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["start"]["weights"] == str(trained)
    assert len(facts["start"]["sha256"]) == 64
    alone = train(tiny_coco, out=tmp_path / "alone", backbone="test_resnet", overrides=[*DETECTOR, *still])
    assert not torch.equal(load_file(alone.last)["fpn.laterals.0.weight"], before["fpn.laterals.0.weight"])
    assert "start" not in json.loads((tmp_path / "alone" / "run.json").read_text())


def test_a_student_that_begins_as_its_teacher_agrees_with_it(tiny_coco: Path, trained: Path, tmp_path: Path) -> None:
    # With the statistics of the file: a student that normalises by those of the batch says something else at once.
    settings = ("detector.norm_eval=true", "engine.precision=32", *SHORT)
    result = distill(trained, tiny_coco, start="teacher", out=tmp_path / "run", overrides=settings)
    rows = [row for row in read_metrics(result.out / "metrics.csv") if "lr" in row]
    assert rows[0]["agree/edge_kl"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["agree/box_iou"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["train/ld"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["agree/edge_kl"] > rows[0]["agree/edge_kl"]
    assert result.metrics["last"]["agree/box_iou"] < 1


def test_maps_reach_a_term_that_compares_them(tiny_coco: Path, trained: Path, tmp_path: Path) -> None:
    imitation = "terms.gi={of: feature_l2, on: general_instances, norm: level_mean, weight: 2}"
    result = distill(trained, tiny_coco, start="teacher", out=tmp_path / "run", overrides=[*SHORT, imitation])
    assert read_metrics(result.out / "metrics.csv")[0]["train/gi"] > 0
    other = [*DETECTOR, *SHORT, imitation, "detector.channels=32"]
    wide = distill(trained, tiny_coco, backbone="test_resnet", out=tmp_path / "wide", overrides=other)
    assert read_metrics(wide.out / "metrics.csv")[0]["train/gi"] > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("detector.reg_max=8",), "set detector.reg_max=16"),
        (("detector.backbone=resnet18",), "set detector.backbone=test_resnet"),
        (("data.classes=[disc, box, bar]",), "set data.classes"),
    ],
)
def test_weights_of_another_detector_stop_a_run_before_it_begins(
    tiny_coco: Path, trained: Path, tmp_path: Path, settings: tuple[str, ...], words: str
) -> None:
    with pytest.raises(WeightsError, match=words):
        train(tiny_coco, start=trained, out=tmp_path / "run", overrides=settings)
    with pytest.raises(WeightsError, match="no such weights"):
        train(tiny_coco, start=tmp_path / "absent", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_teaches_itself(tiny_coco: Path, tmp_path: Path) -> None:
    settings = [*DETECTOR, *SHORT, "teacher.decay=0.5", "engine.ema=null"]
    result = distill("ema", tiny_coco, backbone="test_resnet", out=tmp_path / "run", overrides=settings)
    rows = [row for row in read_metrics(result.out / "metrics.csv") if "lr" in row]
    assert {"agree/edge_kl", "agree/box_iou"} <= set(rows[0])
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    saved = torch.load(result.out / "last.ckpt", weights_only=True)
    learned = saved["run"]["teacher"]
    names = set(Detector.load(result.last).state_dict())
    assert learned["updates"] == 2
    assert set(learned["model"]) == names
    assert set(saved["state_dict"]) == {f"detector.{name}" for name in names}
    for file in (result.best, result.last):
        assert file is not None
        assert set(load_file(file)) == names
    assert not torch.equal(learned["model"]["fpn.laterals.0.weight"], load_file(result.last)["fpn.laterals.0.weight"])


def test_the_kind_of_teacher_stays_when_a_run_is_resumed(tiny_coco: Path, trained: Path, tmp_path: Path) -> None:
    settings = [*DETECTOR, *SHORT, "data.classes=[box, disc, bar]", "data.sizes=[[96, 64]]"]
    distill("ema", tiny_coco, backbone="test_resnet", out=tmp_path / "ema", overrides=settings)
    with pytest.raises(RunError, match="teacher: follows the student then, frozen now"):
        distill(trained, out=tmp_path / "ema", resume=True)
    distill(trained, tiny_coco, backbone="test_resnet", out=tmp_path / "file", overrides=settings)
    with pytest.raises(LocdistillError, match=r"teacher\.sha256=null"):
        distill("ema", out=tmp_path / "file", resume=True)
