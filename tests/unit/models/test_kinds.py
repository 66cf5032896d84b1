"""One record for each kind of detector: names, settings, terms and help texts follow from it."""

from __future__ import annotations

import re
from typing import Any, get_args, get_type_hints

import pytest

from locdistill.cli import options
from locdistill.distillation.presets import supervised
from locdistill.models.detector import HEADS
from locdistill.models.kinds import KINDS, HeadName, Loss, Model, NumbersName
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.objective.term import Need
from locdistill.recipe.load import build_recipe
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.training import train

LISTED = re.sub(r", (\w+)$", r" or \1", ", ".join(KINDS))


def test_the_names_are_those_of_the_table() -> None:
    assert get_args(Model) == tuple(KINDS)
    assert get_args(HeadName) == tuple(HEADS)
    assert set(get_args(NumbersName)) == {kind.numbers for kind in KINDS.values()}
    assert {kind.loss for kind in KINDS.values()} == set(get_args(Loss))
    assert {kind.assigner for kind in KINDS.values()} == set(ASSIGNERS)
    assert {kind.head for kind in KINDS.values()} == set(HEADS)


def test_help_and_docstrings_name_every_kind() -> None:
    (option,) = get_type_hints(options.RunOptions, include_extras=True)["model"].__metadata__
    assert option.help == f"{LISTED}."
    for function in (train.train, supervised):
        words = re.findall(r"``(\w+)``", (function.__doc__ or "").partition(" model: ")[2])
        assert words[: len(KINDS)] == list(KINDS), function


@pytest.mark.parametrize("model", KINDS)
def test_what_follows_from_a_kind(model: Any) -> None:
    kind, settings = KINDS[model], DetectorSettings(model=model)
    assert settings.rotated == kind.rotated == model.startswith("rotated")
    assert len(meaning_of(settings)[0].names) == (5 if kind.rotated else 4)
    assert {name: getattr(settings, name) for name in kind.defaults} == kind.defaults
    assert DetectorSettings(model=model, anchor_scale=6.0).anchor_scale == 6.0
    terms = supervised(model)
    assert any(Need.QUALITY in term.needs for term in terms.values()) == (kind.quality == "centerness")
    recipe = build_recipe({"name": "x", "detector": {"model": model}})
    assert list(recipe.assigner) == [kind.assigner]
    assert {name: term.build() for name, term in recipe.terms.items()} == terms
