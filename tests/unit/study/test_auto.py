"""Recipes of the whole way from a data set to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from locdistill.errors import RecipeError, RunError
from locdistill.recipe.request import Request
from locdistill.study.auto import AutoPlan, Stages, auto, stages_of
from locdistill.study.compare.arms import USE, flat
from tests.conftest import write_tiny_coco

CPU = ["engine.accelerator=cpu", "data.workers=0"]


def _stages(data: Path, *settings: str, **plan: Any) -> Stages:
    student = {name: plan.pop(name) for name in ("size", "methods", "epochs", "teacher") if name in plan}
    request = Request(data=str(data), pretrained="none", overrides=[*CPU, *settings], **student)
    return stages_of(AutoPlan(student=request, **plan), Path("out"))


def test_the_student_alone_differs_by_the_teacher_alone(tiny_coco: Path):
    stages = _stages(tiny_coco)
    assert stages.alone is not None
    taught, alone = (flat(recipe, without=USE | {"name"}) for recipe in (stages.distilled, stages.alone))
    terms = {f"terms.{name}" for name in stages.distilled.terms if stages.distilled.terms[name].needs_teacher}
    differing = {key for key in taught.keys() | alone.keys() if taught.get(key) != alone.get(key)}
    assert {key for key in differing if not key.startswith("teacher")} == terms | {"data.views"}
    assert terms == {"terms.ld", "terms.ld_vlr"}


def test_teacher_and_student_see_inputs_of_one_size_and_share_levels_and_bins(tiny_coco: Path):
    stages = _stages(tiny_coco, "data.sizes=[[160, 96]]")
    assert stages.teacher is not None
    teacher, student = stages.teacher, stages.distilled
    assert teacher.data.sizes == student.data.sizes == ((160, 96),)
    for name in ("model", "levels", "reg_max", "anchor_scale"):
        assert getattr(teacher.detector, name) == getattr(student.detector, name), name
    assert student.teacher is not None
    assert student.teacher.weights == str(Path("out") / "teacher-0" / "best.safetensors")


@pytest.mark.parametrize(("size", "larger"), [("n", "resnet34"), ("s", "resnet50"), ("l", "resnet50")])
def test_the_teacher_is_larger(tiny_coco: Path, size: str, larger: str):
    teacher = _stages(tiny_coco, size=size).teacher
    assert teacher is not None
    assert teacher.detector.backbone == larger


def test_settings_of_data_and_engine_are_for_both_and_of_the_detector_for_the_student(tiny_coco: Path):
    stages = _stages(tiny_coco, "engine.lr=0.003", "detector.channels=32", "terms.ld.weight=2")
    assert stages.teacher is not None
    assert stages.teacher.engine.lr == stages.distilled.engine.lr == 0.003
    assert stages.distilled.detector.channels == 32
    assert stages.teacher.detector.channels == 128
    assert stages.distilled.terms["ld"].weight == 2


def test_a_method_is_for_the_distilled_student_alone(tiny_coco: Path):
    stages = _stages(tiny_coco, methods=["pkd"])
    assert stages.alone is not None
    assert stages.teacher is not None
    assert "pkd" in stages.distilled.terms
    assert not any(term.needs_teacher for recipe in (stages.alone, stages.teacher) for term in recipe.terms.values())


def test_views_are_limited_for_a_cache(tiny_coco: Path):
    assert _stages(tiny_coco).distilled.data.views == 8
    assert _stages(tiny_coco, epochs=3).distilled.data.views == 3
    assert _stages(tiny_coco, "data.views=2").distilled.data.views == 2
    assert _stages(tiny_coco, cache=False).distilled.data.views is None
    assert _stages(tiny_coco, teacher="ema").distilled.data.views is None


def test_wrong_sizes_are_named(tiny_coco: Path):
    with pytest.raises(RecipeError, match="--teacher-size x: expected one of n, s, m, l"):
        _stages(tiny_coco, teacher_size="x")
    with pytest.raises(RecipeError, match="--size x"):
        _stages(tiny_coco, size="x")


def test_an_earlier_start_is_continued_with_its_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, out = write_tiny_coco(tmp_path / "data"), tmp_path / "out"
    asked = AutoPlan(student=Request(data=str(data), pretrained="none", overrides=[*CPU, "engine.steps=1"]))
    seen: list[Any] = []

    def stop(plan: Any, **_: Any) -> None:
        seen.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("locdistill.study.auto.carry_out", stop)
    monkeypatch.setattr("locdistill.study.auto._foretell", lambda *_: None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            auto(asked, out, tell=lambda _: None)
    first, second = ([arm.base for arm in (*plan.arms, plan.teacher)] for plan in seen)
    assert [flat(recipe, without=set()) for recipe in first] == [flat(recipe, without=set()) for recipe in second]
    with pytest.raises(RunError, match="another alone"):
        auto(AutoPlan(student=asked.student, alone=False), out, tell=lambda _: None)
