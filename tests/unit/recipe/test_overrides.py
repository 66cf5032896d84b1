"""Settings laid over a recipe."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from locdistill.errors import RecipeError
from locdistill.recipe.overrides import apply_overrides, merge, parse_override

BASE: dict[str, Any] = {
    "engine": {"lr": 0.01, "milestones": [8, 11]},
    "teacher": None,
    "terms": {
        "ld": {"of": {"edge_kl": {"temperature": 10}}, "on": "positives", "weight": 0.25},
        "kd": {"of": "class_kl", "on": "positives", "weight": 10},
    },
}


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("detector.backbone=resnet34", ("detector", "backbone"), "resnet34"),
        ("engine.lr=2e-2", ("engine", "lr"), 0.02),
        ("engine.milestones=[3, 5]", ("engine", "milestones"), [3, 5]),
        ("terms.kd=null", ("terms", "kd"), None),
        ("a.b=x=y", ("a", "b"), "x=y"),
        ("a = 1", ("a",), 1),
    ],
)
def test_parsing(text: str, path: tuple[str, ...], value: object) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["engine.lr", "=3", "a..b=3", ".a=1"])
def test_no_setting(text: str) -> None:
    with pytest.raises(RecipeError, match=r"expected key\.path=value"):
        parse_override(text)


def test_values_are_replaced_and_groups_merged() -> None:
    before = copy.deepcopy(BASE)
    changed = apply_overrides(BASE, ["engine.lr=1", "engine.milestones=[3]", "teacher.weights=a.pth", "new.deep.key=x"])
    assert changed["engine"] == {"lr": 1, "milestones": [3]}
    assert changed["teacher"] == {"weights": "a.pth"}
    assert changed["new"] == {"deep": {"key": "x"}}
    assert before == BASE


def test_later_settings_win() -> None:
    assert apply_overrides(BASE, ["engine.lr=1", "engine.lr=2"])["engine"]["lr"] == 2


def test_null_takes_a_term_out_and_only_that() -> None:
    changed = apply_overrides(BASE, ["terms.kd=null"])
    assert set(changed["terms"]) == {"ld"}


def test_an_option_of_a_component_keeps_the_others() -> None:
    base = {"terms": {"v": {"on": {"valuable_locations": {"gamma": 0.25, "metric": "diou"}}}}}
    changed = apply_overrides(base, ["terms.v.on.valuable_locations.gamma=0.5"])
    assert changed["terms"]["v"]["on"] == {"valuable_locations": {"gamma": 0.5, "metric": "diou"}}


def test_an_option_of_a_bare_name() -> None:
    changed = apply_overrides(BASE, ["terms.kd.of.class_kl.temperature=4"])
    assert changed["terms"]["kd"]["of"] == {"class_kl": {"temperature": 4}}


def test_another_component_replaces_the_first() -> None:
    changed = apply_overrides(BASE, ["terms.ld.of.class_kl.temperature=4"])
    assert changed["terms"]["ld"]["of"] == {"class_kl": {"temperature": 4}}


def test_a_whole_new_term() -> None:
    changed = apply_overrides(BASE, ["terms.more={of: edge_kl, on: positives}"])
    assert changed["terms"]["more"] == {"of": "edge_kl", "on": "positives"}


def test_all_problems_at_once_with_the_nearest_term() -> None:
    with pytest.raises(RecipeError) as caught:
        apply_overrides(BASE, ["terms.ldd.weight=2", "engine.lr.x=1", "oops"])
    message = str(caught.value)
    assert "terms.ldd" in message
    assert "did you mean 'ld'" in message
    assert "engine.lr is the value 0.01" in message
    assert "'oops' is not a setting" in message


def test_merge_of_recipes_replaces_lists() -> None:
    assert merge({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": {"d": 2}}) == {"a": [3], "b": {"c": 1, "d": 2}}
