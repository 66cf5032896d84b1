"""Recipes train on photographs, resume and evaluate; see `tests.every_recipe`."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from locdistill.distillation.compatible import check_teacher
from locdistill.distillation.needs import Needs
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import recipe_names
from locdistill.training.prepare import objective_of
from tests.every_recipe import (
    STOPPED,
    TRAINED,
    as_it_is,
    check,
    check_refusal,
    made_small,
    parts,
    photographs,
    published,
    teacher_recipe,
)

CLASSES = {"classes": ("RBC", "WBC", "Platelets")}
pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographs(shared, tmp_path_factory.mktemp("recipes") / "cells")


def test_every_part_of_a_recipe_occurs_in_one_that_is_trained() -> None:
    trained = set().union(*map(parts, TRAINED))
    missing = {name: parts(name) - trained for name in recipe_names()}
    assert not {name: absent for name, absent in missing.items() if absent}


@pytest.mark.parametrize("name", TRAINED)
def test_recipe(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks of few channels."""
    check(name, made_small(name), data, tmp_path, monkeypatch, stopped=name in STOPPED)


@lru_cache(maxsize=16)
def without_values(settings: str) -> Detector:
    """A detector as large as published (its settings in JSON), on the meta device, where numbers take no memory."""
    with torch.device("meta"):
        return Detector(DetectorSettings.model_validate_json(settings), pretrained=False)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_built(name: str, tmp_path: Path) -> None:
    recipe = published(name)
    detector = without_values(recipe.detector.model_copy(update=CLASSES).model_dump_json())
    objective = objective_of(recipe, detector)
    assert set(objective.terms) == set(recipe.terms)
    assert objective.needs_teacher == recipe.distils
    if recipe.distils:
        check_refusal(name, tmp_path / "run")
        teacher = teacher_recipe(recipe, ()).detector.model_copy(update=CLASSES)
        assert without_values(teacher.model_dump_json()).bins.count == teacher.reg_max + 1
        bridge = check_teacher(detector.settings, teacher, "its teacher", needs=Needs.of(objective.terms.values()))
        assert bridge.comparable


@pytest.mark.long
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks as large as published."""
    check(name, as_it_is(name), data, tmp_path, monkeypatch)
