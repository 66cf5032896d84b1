"""Values of a wrong type anywhere in a recipe: one error that names the path, what was expected and what came."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from locdistill.errors import LocdistillError, RecipeError
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import build_recipe, dump_recipe, laid_over, load_recipe, recipe_data
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.terms import NAMES, Slot, TermSettings, build_component, plain_component
from locdistill.recipe.yaml_io import write_yaml
from locdistill.training.resume import resumed_recipe
from tests.conftest import Answer

Keys = tuple[str, ...]
WRONG: dict[str, tuple[Any, ...]] = {
    "null": (None,),
    "flag": (True,),
    "number": (7, float("inf"), 10**400),
    "word": ("zebra",),
    "list": ([], [1], [["a", {}]]),
    "group": ({}, {"zebra": [1]}),
}
EVERY = [value for values in WRONG.values() for value in values]
SHORT_FOR = {  # what else may stand there, being short for something
    ("engine", "speed"): "word",
    ("teacher", "cache"): "word",
    ("teacher", "weights"): "list",
    ("engine", "precision"): "number",
    ("terms",): "null",
    ("terms", "ld"): "null",
    ("assigner",): "null",
}
BASE: dict[str, Any] = {
    "detector": {"model": "gfl", "backbone": "resnet18"},
    "teacher": {"weights": "a", "more": [{"weights": "b"}], "cache": {"path": "c"}, "onnx": {}, "input": {}},
    "data": {"sizes": [[64, 48]]},
    "engine": {"epochs": 2, "milestones": [1]},
    "terms": {"ld": {"of": "edge_kl", "on": "positives", "weight": 1}},
    "published": {"ap": 40.0},
}


def kinds(annotation: Any) -> set[str]:
    """The kinds of plain values that a field may have."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Annotated, typing.Union, types.UnionType, Literal):
        inside = arguments[:1] if origin is Annotated else map(type, arguments) if origin is Literal else arguments
        return {kind for argument in inside for kind in kinds(argument)}
    if annotation is Any:
        return set(WRONG)
    if origin in (tuple, dict):
        return {"list" if origin is tuple else "group"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"group"}
    return {str: {"word"}, bool: {"flag"}, int: {"number"}, float: {"number"}, type(None): {"null"}}[annotation]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The groups of settings that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def fields_of(model: type[BaseModel], above: Keys = ()) -> Iterator[tuple[Keys, set[str]]]:
    """Every path of the schema, and the kinds of values that may stand there; a new field is found by itself."""
    for name, field in model.model_fields.items():
        path = (*above, name)
        yield path, kinds(field.annotation)
        for inner in models_in(field.annotation):
            if inner is TermSettings:
                yield (*path, "ld"), {"group"}
                yield from fields_of(inner, (*path, "ld"))
            elif typing.get_origin(field.annotation) is not tuple:  # items of lists: see SPOTS
                yield from fields_of(inner, path)


FIELDS = dict(fields_of(Recipe))
MORE = ["terms.ld={of: edge_kl, on: positives}", "engine.speed.fused=false", "assigner.atss.topk=5"]


def laid(path: Keys, value: Any) -> dict[str, Any]:
    """The base with a value at a path, whatever stands above it."""
    data = json.loads(json.dumps(BASE))
    here = data
    for key in path[:-1]:
        if not isinstance(here.get(key), dict):
            here[key] = {}
        here = here[key]
    here[path[-1]] = value
    return data


def outcome(make: Callable[[], Recipe]) -> str | None:
    """The message where a recipe is refused, None where it is not; whatever is accepted can be written."""
    try:
        dump_recipe(make())
    except RecipeError as error:
        return str(error)
    return None


@cache
def plain(name: str) -> dict[str, Any]:
    """The plain data of a recipe, read once."""
    return recipe_data(name)


def answers(path: Keys, value: Any) -> list[str | None]:
    """How a recipe answers to one value: in its own data, and as a setting over others."""
    ways: list[Callable[[], Recipe]] = [
        lambda: build_recipe({"name": "wrong", **laid(path, value)}),
        lambda: build_recipe(laid_over(plain("ld_r50_from_r101"), [(path, value)])),
        lambda: build_recipe(laid_over({"name": "plain"} | laid(path, value) | {"terms": {}}, MORE)),
    ]
    return [outcome(way) for way in ways]


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_value_of_a_wrong_type_is_an_error_that_names_its_path(path: Keys) -> None:
    right = FIELDS[path] | {SHORT_FOR.get(path, "")}
    for kind, values in WRONG.items():
        for value in values:
            in_its_data, as_a_setting, _ = answers(path, value)
            if kind not in right:
                for message in (in_its_data, as_a_setting):
                    assert message is not None, (path, value)
                    assert ".".join(path) in message, (path, value, message)


OPTIONS = [
    (kind, name, field.name)
    for kind in typing.get_args(Slot)
    for name, component in NAMES[kind].items()
    for field in dataclasses.fields(component)
]


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids="-".join)
def test_an_option_of_a_component_likewise(kind: Slot, name: str, option: str) -> None:
    """Every option of every divergence, region, normaliser, schedule and assigner."""
    path = ("assigner",) if kind == "assigner" else ("terms", "ld", kind)
    for value in EVERY:
        for spec in ({name: {option: value}}, {name: value}, [name, value]):
            with suppress(ValueError):
                plain_component(kind, build_component(kind, spec))
    for value in ("zebra", [1], {"a": True}):
        for below in ((), (option,), (option, option)):
            over = [((*path, name, *below), value)]
            outcome(lambda over=over: build_recipe(laid_over(plain("ld_r50_from_r101"), over)))
    refused = outcome(lambda: build_recipe({"name": "a"} | laid(path, {name: {option: {"a": True}}})))
    assert refused is not None
    assert ".".join(path) in refused


SPOTS = [  # places inside lists and free groups, which the schema does not name
    ("teacher", "more"),
    ("teacher", "weights"),
    ("data", "sizes"),
    ("detector", "backbone_args", "x"),
    ("zebra",),
    ("zebra", "deep"),
    ("terms", "zebra"),
]


@pytest.mark.parametrize("spot", SPOTS, ids=".".join)
def test_inside_lists_and_where_nothing_belongs(spot: Keys) -> None:
    for value in EVERY:
        for inside in (value, [value], [[value]], {"weights": value}, [{"weights": value}], [{"onnx": value}]):
            answers(spot, inside)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([*FIELDS, *SPOTS]), st.sampled_from(EVERY)), min_size=2, max_size=4))
def test_several_wrong_values_at_once(wrong: list[tuple[Keys, Any]]) -> None:
    """What one of them breaks, the way to another goes through."""
    outcome(lambda: build_recipe(laid_over(plain("ld_r50_from_r101"), wrong)))
    outcome(lambda: build_recipe(laid_over({"name": "a"} | BASE, wrong)))


PEEKED = [  # what is looked at before there is a recipe to check: groups, and what other choices follow from
    *(path for path in FIELDS if len(path) == 1),
    *(("detector", "model"), ("detector", "backbone"), ("engine", "epochs"), ("engine", "milestones")),
    *(("data", "classes"), ("data", "sizes"), ("data", "format"), ("data", "path"), ("data", "train")),
    *(("teacher", "weights"), ("teacher", "onnx"), ("terms", "ld"), ("terms", "ld", "of")),
]


@pytest.mark.parametrize("path", PEEKED, ids=".".join)
def test_under_the_words_of_a_request(path: Keys, tiny_coco: Path, tmp_path: Path) -> None:
    """A recipe under words, no recipe at all, and a saved run that was edited."""
    words: dict[str, Any] = {"teacher": "ema", "methods": ("ld",), "epochs": 3}
    for value in ("zebra", 7, True, None, [["a"]], {"zebra": 1}):
        (tmp_path / "recipe.yaml").write_text(write_yaml({"name": "run", **laid(path, value)}))
        (tmp_path / "above.yaml").write_text("base: recipe.yaml\nterms: {ld: {of: {edge_kl: {temperature: 2}}}}\n")
        for ask in (
            lambda: resolve(Request(recipe=tmp_path / "above.yaml", **words)),
            lambda v=value: resolve(Request(data=tiny_coco, overrides=((path, v),), pretrained="none", **words)),
            lambda v=value: resumed_recipe(Request(overrides=((path, v),), epochs=3), tmp_path),
        ):
            with suppress(LocdistillError):
                ask()


@pytest.mark.parametrize("base", ["7", "true", "[a]", "{a: 1}", "''"])
def test_a_base_that_is_none(base: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {base}\n")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "setting",
    [
        "detector=gfl",
        "engine.epochs=true",
        "data=[1]",
        "terms=3",
        "terms.ld.of.edge_kl=5",
        "assigner.atss=3",
        "teacher.weights=[1, {a: 2}]",
        "engine.speed=7",
        "published={ap: high}",
        "balance=[1]",
        "detector.model=[gfl]",
        "engine.lr=!!int three",
        "engine.lr=&a [*a]",
        "detector={1: 2}",
        "terms={null: {of: edge_kl}}",
        "data={[1]: 2}",
        "engine.lr=" + "[" * 2000,
        "engine.lr=" + "9" * 5000,
    ],
)
def test_the_command_line_says_it_in_one_message(cli: Callable[..., Answer], setting: str, tiny_coco: Path) -> None:
    for words in (("ld_r50_from_r101", "--method", "ld"), ("--data", str(tiny_coco), "--teacher", "ema")):
        code, out, err = cli("config", *words, setting)
        assert (code, out) == (2, ""), words
        assert "RecipeError: " in err
        assert "Traceback" not in err
        assert setting.split("=", maxsplit=1)[0].split(".", maxsplit=1)[0] in err


def test_true_is_no_number() -> None:
    """Python counts it as 1: a typo would train for one epoch, or mirror every image."""
    for setting in ("engine.epochs=true", "data.flip=true", "terms.ld.weight=false", "data.sizes=[[true, 1]]"):
        with pytest.raises(RecipeError, match=r"expected a number, came (True|False)"):
            load_recipe("ld_r50_from_r101", [setting])
    assert load_recipe("ld_r50_from_r101", ["data.cache=true", "engine.speed.fused=true"]).data.cache is True
