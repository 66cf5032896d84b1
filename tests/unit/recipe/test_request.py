"""The words of a request: described once, shown by each Python function and each verb that takes them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import locdistill
from locdistill.recipe.request import Request, fields_of, override_of

FUNCTIONS = {
    "train": {"data"},
    "distill": {"data", "teacher", "methods"},
    "preflight": {"data", "teacher", "methods"},
    "build_cache": {"data", "teacher", "methods"},
    "tune": {"data", "teacher", "methods"},
}
SHARED = {"model", "backbone", "size", "epochs", "minutes", "pretrained", "start", "recipe", "overrides"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_shows_and_describes_the_words_that_it_takes(name: str) -> None:
    function = getattr(locdistill, name)
    parameters = inspect.signature(function).parameters
    assert {word for word in parameters if word in Request.__annotations__} == SHARED | FUNCTIONS[name]
    assert parameters["backbone"].annotation == str | None
    assert parameters["overrides"].default == ()
    for word in SHARED | FUNCTIONS[name]:
        assert f"\n        {word}: " in function.__doc__, word
    assert "words:" not in function.__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_other_words_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="backbones"):
        getattr(locdistill, name)(backbones="resnet18")


def test_train_takes_no_methods() -> None:
    with pytest.raises(TypeError, match="methods"):
        locdistill.train("data", methods=("ld",))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, []),
        ({"data": None, "start": None, "epochs": 3, "recipe": "ld_r50_from_r101"}, []),
        ({"data": "/d", "backbone": "b"}, [(("data", "path"), "/d"), (("detector", "backbone"), "b")]),
        ({"teacher": "/t", "start": "/s"}, [(("teacher", "weights"), "/t"), (("start",), "/s")]),
    ],
)
def test_words_that_stand_for_a_field(request_: Any, expected: list[Any]) -> None:
    assert fields_of(request_) == expected


def test_the_last_override_counts() -> None:
    request = Request(overrides=["engine.lr=1", (("engine", "lr"), 2.0), "engine.steps=3"])
    assert override_of(request, "engine.lr") == 2.0
    assert override_of(request, "engine.seed") is None
