"""A run of limited time: steps and evaluations follow from the time of a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from locdistill.errors import RecipeError
from locdistill.recipe.request import Request
from locdistill.training import pace
from locdistill.training.pace import fitted_to, seconds_per_step

TINY = (
    *("detector.backbone=test_resnet", "detector.pretrained=false", "detector.channels=32", "detector.depth=1"),
    *("data.workers=0", "data.batch_per_device=4", "engine.accelerator=cpu"),
)


def at(monkeypatch: pytest.MonkeyPatch, *, step: float, evaluation: float, per_pass: float = 2.0) -> None:
    monkeypatch.setattr(pace.RunPace, "of", lambda _: pace.RunPace(step, evaluation, per_pass))


def request(tiny_coco: Path, minutes: float, *more: str) -> Request:
    return Request(data=tiny_coco, minutes=minutes, overrides=[*TINY, *more])


def test_steps_and_evaluations_share_the_time(monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    at(monkeypatch, step=1.0, evaluation=2.0)
    engine = fitted_to(request(tiny_coco, 2)).engine
    assert engine.steps == 108  # 120 s less six evaluations, a tenth of the time
    assert engine.eval_every == 9  # 54 passes, six times


def test_a_slow_evaluation_is_the_only_one(monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    at(monkeypatch, step=1.0, evaluation=20.0)
    engine = fitted_to(request(tiny_coco, 1)).engine
    assert (engine.steps, engine.eval_every, engine.patience) == (40, 0, None)


def test_no_time_is_one_step(monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    at(monkeypatch, step=100.0, evaluation=100.0)
    assert fitted_to(request(tiny_coco, 1)).engine.steps == 1


def test_augmentation_follows_the_passes_there_is_time_for(monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    at(monkeypatch, step=1.0, evaluation=1.0)
    strengths = [fitted_to(request(tiny_coco, minutes)).data.augment for minutes in (0.1, 0.5, 3)]
    assert strengths == ["none", "light", "strong"]


def test_a_recipe_keeps_its_settings(monkeypatch: pytest.MonkeyPatch, tiny_coco: Path) -> None:
    at(monkeypatch, step=1.0, evaluation=1.0)
    recipe = fitted_to(Request(recipe="gfl_r18_1x", data=tiny_coco, minutes=1))
    assert (recipe.data.augment, recipe.engine.optimizer, recipe.engine.milestones) == ("none", "sgd", (8, 11))
    assert recipe.engine.steps == 54


def test_several_processes_are_refused(tiny_coco: Path) -> None:
    with pytest.raises(RecipeError, match=r"with several give --epochs or engine\.steps"):
        fitted_to(request(tiny_coco, 1, "engine.devices=2"))


def test_the_steps_are_timed(tiny_coco: Path) -> None:
    recipe = fitted_to(request(tiny_coco, 0.1, "data.sizes=[[64, 48]]", "detector.levels=[3, 4]"))
    assert recipe.engine.steps is not None
    assert recipe.engine.steps >= 1
    assert seconds_per_step(recipe) > 0
