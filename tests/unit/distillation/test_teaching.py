"""Methods by name, several teachers, and teachers that do not match, up to a few steps of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from locdistill.cli import main
from locdistill.distillation.bridges import AdaptedTeacher, SeveralTeachers
from locdistill.distillation.load import teacher_files
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import ld_sharp, supervised
from locdistill.distillation.settings import TeacherSettings
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.log import read_metrics
from locdistill.errors import RecipeError, TeacherError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.publishing.publish import shareable
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import build_recipe, dump_recipe, validate
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.terms import TermSettings, method_terms
from locdistill.recipe.yaml_io import read_yaml
from locdistill.study.diagnose.reopen import reopen
from locdistill.training.prepare import objective_of, with_teacher
from locdistill.training.train import run
from locdistill.types import Batch, Instances

SMALL = DetectorSettings(
    backbone="test_resnet",
    pretrained=False,
    classes=("box", "disc", "bar"),
    channels=16,
    depth=2,
    norm_groups=4,
    levels=(3, 4, 5),
    reg_max=7,
    input=InputSettings(short=96, long=128),
)
OWN = {"channels": 16, "depth": 2, "norm_groups": 4, "levels": [3, 4, 5], "pretrained": "false"}
DETECTOR = tuple(f"detector.{key}={value}" for key, value in OWN.items())
SHORT = (
    *("engine.steps=3", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu"),
    *("data.workers=0", "data.batch_per_device=2", "data.sizes=[[128, 96]]"),
)


def saved(folder: Path, name: str, seed: int, **changes: Any) -> Path:
    torch.manual_seed(seed)
    return Detector(SMALL.model_copy(update=changes)).save(folder / name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("trained"), "best", 3)


def a_batch(height: int = 64, width: int = 96) -> Batch:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[height, width]] * 2)
    nothing = torch.zeros(2, 0)
    truth = Instances(torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    return Batch(images=images, sizes=sizes, original_sizes=sizes, image_ids=torch.tensor([1, 2]), instances=truth)


# ---------------------------------------------------------------------------------------------------- methods by name


def test_methods_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    both = method_terms(["ld", "pkd", "ld"], "gfl")
    assert list(both) == ["ld", "ld_vlr", "pkd"]
    assert {n: t.build() for n, t in both.items()} == ld_sharp() | METHODS["pkd"]("gfl")
    monkeypatch.setitem(
        METHODS, "other", lambda model: {"kd": METHODS["kd"](model)["kd"], "more": METHODS["kd"](model)["kd"]}
    )
    assert list(method_terms(["kd", "other"], "gfl")) == ["kd_kd", "other_kd", "more"]
    with pytest.raises(RecipeError, match=r"no method is called 'crosskdd'; did you mean 'crosskd'"):
        method_terms(["crosskdd"], "gfl")


def test_methods_take_the_place_of_a_recipes_distillation(tiny_coco: Path, trained: Path) -> None:
    mine = resolve(Request(data=tiny_coco, teacher=trained, methods=("bckd", "kd")))
    assert {n: t.build() for n, t in mine.terms.items()} == supervised() | METHODS["bckd"]("gfl") | METHODS["kd"]("gfl")
    default, named = (resolve(Request(data=tiny_coco, teacher=trained, methods=m)) for m in ((), ("ld",)))
    assert default == named
    published = resolve(Request(recipe="ld_r50_from_r101", methods=("pkd", "kd"), overrides=("terms.kd.weight=3",)))
    assert list(published.terms) == [*supervised(), "kd", "pkd"]
    assert published.terms["kd"].weight == 3
    other = resolve(Request(recipe="atss_r50_1x", teacher=trained, methods=("crosskd",)))
    assert {n: t.build() for n, t in other.terms.items()} == supervised("atss") | METHODS["crosskd"]("atss")


def test_methods_on_the_command_line(tiny_coco: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        assert not ended.value.code
        return capsys.readouterr().out

    text = printed("config", "--data", tiny_coco, "--teacher", trained, "--method", "ld", "-m", "pkd", "--balance", 1)
    recipe = build_recipe(read_yaml(text, "standard output"))
    assert recipe.balance == 1
    assert list(recipe.terms) == [*supervised(), "ld", "ld_vlr", "pkd"]
    listed = json.loads(printed("methods", "--json"))
    assert [entry["name"] for entry in listed] == list(METHODS)
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["crosskd"]["needs"]["teachers_head"]
    assert by_name["pkd"]["needs"] == {
        "features": True,
        "teachers_head": False,
        "learned_parts": True,
        "distributions": False,
    }
    assert not any(by_name["bckd"]["needs"].values())
    for entry in listed:
        for term in entry["terms"].values():
            assert TermSettings.model_validate(term).needs_teacher
    assert "Yang et al. 2023" in by_name["bckd"]["what"]
    assert "the teacher's head" in printed("methods")


def test_one_setting_balances_all_that_is_taught(trained: Path, tiny_coco: Path) -> None:
    def objective(*overrides: str) -> dict[str, float | None]:
        recipe = resolve(Request(data=tiny_coco, teacher=trained, methods=("ld", "pkd"), overrides=overrides))
        detector = Detector(SMALL)
        return {name: term.balance for name, term in objective_of(recipe, detector).terms.items()}

    labels = dict.fromkeys(supervised())
    assert objective() == labels | {"ld": None, "ld_vlr": None, "pkd": None}
    assert objective("balance=0.5", "terms.pkd.balance=2") == labels | {"ld": 0.5, "ld_vlr": 0.5, "pkd": 2}
    with pytest.raises(RecipeError, match=r"balance: expected greater than 0, came 0"):
        objective("balance=0")
    with pytest.raises(RecipeError, match=r"balance is set, but no term compares with a teacher.*balance=null"):
        resolve(Request(data=tiny_coco, overrides=("balance=1",)))


# --------------------------------------------------------------------------------------------------- several teachers


def test_several_teachers_in_a_recipe() -> None:
    short = validate(TeacherSettings, {"weights": ["runs/a", "runs/b"]}, "teacher")
    assert short.weights == "runs/a"
    assert [other.weights for other in short.more] == ["runs/b"]
    assert validate(TeacherSettings, short.model_dump(), "teacher") == short
    for values, words in (
        ({"weights": "ema", "more": [{"weights": "a"}]}, "teacher.more"),
        ({"weights": "a", "more": [{"weights": "b", "share": 0}]}, "more.0.share"),
        ({"weights": "a", "scale": 3}, "expected scale 1, 2 or 4"),
    ):
        with pytest.raises(RecipeError, match=words):
            validate(TeacherSettings, values, "teacher")


def recipe_of(teacher: dict[str, Any], terms: dict[str, TermSettings] | None = None, **detector: Any) -> Recipe:
    return Recipe(
        name="x",
        detector=SMALL.model_copy(update=detector),
        teacher=TeacherSettings.model_validate(teacher),
        terms=terms or method_terms(["ld"], "gfl"),
    )


def test_several_teachers_are_averaged_in_the_students_terms(trained: Path, tmp_path: Path) -> None:
    other = saved(tmp_path, "other", 5, classes=("disc", "cat"), reg_max=4)
    recipe = recipe_of({"weights": str(trained), "share": 3, "more": [{"weights": str(other)}]})
    known, teacher = with_teacher(recipe, teacher_files(recipe.teacher, recipe.name))
    assert isinstance(teacher, SeveralTeachers)
    assert teacher.shares == (0.75, 0.25)
    said = teacher(a_batch())
    first = LiveTeacher(Detector.load(trained))(a_batch())
    second = LiveTeacher(Detector.load(other))(a_batch())
    torch.testing.assert_close(said.cls_logits[..., [0, 2]], first.cls_logits[..., [0, 2]])
    want = 0.75 * first.cls_logits[..., 1].sigmoid() + 0.25 * second.cls_logits[..., 0].sigmoid()
    torch.testing.assert_close(said.cls_logits[..., 1].sigmoid(), want)
    assert not said.edge_logits.requires_grad
    assert known.teacher is not None
    digests = {known.teacher.sha256, known.teacher.more[0].sha256}
    assert len(digests) == 2
    assert None not in digests
    assert shareable(known).teacher.more[0].weights is None  # type: ignore[union-attr]
    with pytest.raises(TeacherError, match="the terms pkd use a teacher's feature maps or head"):
        with_teacher(
            recipe_of(recipe.teacher.model_dump(), method_terms(["ld", "pkd"], "gfl")),
            teacher_files(recipe.teacher, recipe.name),
        )
    two = recipe_of({"weights": str(trained), "more": [{}]})
    with pytest.raises(TeacherError, match="has 2 teachers; name all of them"):
        teacher_files(two.teacher, two.name)


# ---------------------------------------------------------------------------------------- levels, and what is looked at


def test_levels_that_only_the_teacher_has_are_left_out(trained: Path) -> None:
    recipe = recipe_of({"weights": str(trained)}, levels=(4, 5))
    teacher = with_teacher(recipe, teacher_files(recipe.teacher, recipe.name))[1]
    whole = LiveTeacher(Detector.load(trained))(a_batch(), features=True, towers=True)
    part = teacher(a_batch(), features=True, towers=True)
    assert torch.equal(part.cls_logits, whole.cls_logits[:, 8 * 12 :])
    assert torch.equal(part.edge_logits, whole.edge_logits[:, 8 * 12 :])
    assert [m.shape for m in part.features] == [m.shape for m in whole.features[1:]]
    crossed = teacher.cross(part, part)  # the coarser levels have factors of their own
    torch.testing.assert_close(crossed.edge_logits, part.edge_logits, atol=1e-4, rtol=1e-4)


def test_a_teacher_that_looks_at_larger_images(tmp_path: Path) -> None:
    deep = saved(tmp_path, "deep", 5, levels=(4, 5))
    recipe = recipe_of({"weights": str(deep), "scale": 2}, levels=(3, 4))
    teacher = with_teacher(recipe, teacher_files(recipe.teacher, recipe.name))[1]
    assert teacher(a_batch()).cls_logits.shape == (2, 8 * 12 + 4 * 6, 3)
    with pytest.raises(TeacherError, match=r"strides \[8, 16\], it has \[16, 32\].*teacher.scale=2"):
        with_teacher(recipe_of({"weights": str(deep)}, levels=(3, 4)), (deep,))
    with pytest.raises(TeacherError, match=r"strides \[32, 64\], it has \[16, 32\]"):
        with_teacher(recipe_of({"weights": str(deep), "scale": 4}, levels=(3, 4)), (deep,))


# ------------------------------------------------------------------------------------------------------------- in a run


@pytest.mark.journey
def test_a_run_with_a_teacher_of_other_classes_bins_and_locations(tiny_coco: Path, tmp_path: Path) -> None:
    classes = (*(f"other {k}" for k in range(20)), "Bar", "disc")
    file = saved(tmp_path, "other", 7, model="fcos", classes=classes, levels=(3, 4, 5, 6), channels=32)
    recipe = resolve(
        Request(
            data=tiny_coco,
            teacher=file,
            model="gfl",
            backbone="test_resnet",
            methods=("ld", "kd", "bckd", "pkd"),
            overrides=(*DETECTOR, *SHORT, "detector.reg_max=16"),
        )
    )
    result = run(recipe, tmp_path / "run")
    said = (result.out / "log.txt").read_text()
    for words in (
        "2 of the student's 3 and the teacher's 22",
        "does not know ['box']",
        "the teacher's 8, up to 7 strides, are put into the student's 17",
        "+0.5 strides from the student's",
        "of the teacher's strides [8, 16, 32, 64], [8, 16, 32] are used",
    ):
        assert words in said
    rows = [row for row in read_metrics(result.out / "metrics.csv") if "lr" in row]
    assert all(0 < rows[-1][f"train/{name}"] < 1e4 for name in ("ld", "kd", "bckd_cls", "bckd_box", "pkd"))
    saved_again = dump_recipe(build_recipe(read_yaml((result.out / "recipe.yaml").read_text(), "r")))
    assert "share: 1.0" in saved_again


@pytest.mark.journey
def test_maps_teach_a_detector_of_another_kind_width_and_number_of_levels(tiny_coco: Path, tmp_path: Path) -> None:
    file = saved(tmp_path, "other", 7, model="fcos", classes=("cat",), levels=(4, 5), channels=32)
    methods = ("pkd", "mgd", "fgd")
    retina = Request(
        data=tiny_coco,
        teacher=file,
        model="retinanet",
        backbone="test_resnet",
        methods=methods,
        overrides=(*DETECTOR, *SHORT),
    )
    result = run(resolve(retina), tmp_path / "run")
    said = (result.out / "log.txt").read_text()
    for words in (
        "the teacher's have 32 channels, the student's 16",
        "the teacher has strides [16, 32], expected are [8, 16, 32]",
        "only its feature maps are compared",
    ):
        assert words in said
    rows = [row for row in read_metrics(result.out / "metrics.csv") if "lr" in row]
    assert all(row[f"train/{name}"] > 0 for row in rows for method in methods for name in METHODS[method]("retinanet"))
    assert not any("agree" in key for row in rows for key in row)  # there is nothing to agree about
    with pytest.raises(TeacherError, match="cannot be compared with the student's"):
        reopen(result.out, device=torch.device("cpu"))


def test_what_matches_has_no_bridge(trained: Path) -> None:
    recipe = recipe_of({"weights": str(trained)})
    assert isinstance(with_teacher(recipe, (trained,))[1], LiveTeacher)
    fewer = recipe_of({"weights": str(trained)}, classes=("bar", "disc"))
    assert isinstance(with_teacher(fewer, (trained,))[1], AdaptedTeacher)
