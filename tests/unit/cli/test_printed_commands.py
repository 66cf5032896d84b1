"""Every command that the program prints, as a remedy or a next step, is one that the program takes."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import locdistill
from locdistill.cli import app, options
from locdistill.data.settings import DataSettings
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import dump_recipe, load_recipe
from locdistill.recipe.request import Request
from locdistill.recipe.yaml_io import read_yaml, typed
from locdistill.study.arms import without_teacher
from locdistill.training.preflight.judge import Suspect, _training_on, baseline
from locdistill.training.prepare import Parts
from locdistill.training.train import recipe_for

PACKAGE = Path(locdistill.__file__).parent
QUOTED = re.compile(r"'(locdistill [^']+)'")
FREE = re.compile(r"(?<!')locdistill (?:train|distill|compare|convert|evaluate|predict|pull)\b[^;\n)`]*")


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb of a command and what its own parser makes of the words behind it.

    Raises:
        click.UsageError: The program does not take it.
    """
    command, verb = typer.main.get_command(app), ""
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        verb, *words = words
        assert verb in command.commands, verb
        command = command.commands[verb]
    return verb, command.make_context(verb, words).params


def _recipe_and_settings(words: dict[str, Any]) -> tuple[str | None, list[str]]:
    """What a verb makes of its trailing words."""
    return options.request_words(list(words["words"] or ()), words["recipe"], list(words["settings"] or ()))


def _texts(path: Path) -> Iterator[str]:
    """What the strings of a file say, with X for what is filled in; docstrings are text for others."""
    tree = ast.parse(path.read_text())
    nodes = [node for node in ast.walk(tree) if hasattr(node, "body") and isinstance(node.body, list) and node.body]
    docs = {id(node.body[0].value) for node in nodes if isinstance(node.body[0], ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
            yield node.value


def _printed() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for text in _texts(path):
            for quoted in QUOTED.findall(text):
                yield f"{path.relative_to(PACKAGE)}: {quoted}", quoted
            for free in FREE.findall(text):
                yield f"{path.relative_to(PACKAGE)}: {free}", re.split(r", |\. | makes ", free)[0]


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in _printed()])
def test_commands_in_messages_are_taken(command: str) -> None:
    words = shlex.split(command.replace("...", "X").replace("locdistill X", "locdistill distill"))[1:]
    group = words[0] in ("data", "cache")
    named = len(words) == 1 + group  # a verb alone is its name; what is typed has its arguments
    if named:
        root = typer.main.get_command(app)
        assert words[0] in root.commands
        assert not group or words[1] in root.commands[words[0]].commands
    else:
        parsed(words)


# ------------------------------------------------------------------------------------------------ of the look before


def _made(kind: type, **fields: Any) -> Any:
    """One of a kind, of which these fields alone are there."""
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


RUNS: dict[str, list[str]] = {
    "ld": [],
    "balance": ["balance=1"],
    "balance of a term": ["terms.ld.balance=1"],
    "start": ["start=teacher", "balance=1"],
    "another start": ["start=/run"],
    "cache": ["teacher.cache=/cache", "data.views=4", "data.size_mode=range", "data.sizes=[[1333, 640], [1333, 800]]"],
    "teachers": ["teacher.weights=[/a, /b]"],
    "average": ["teacher.weights=ema", "teacher.decay=0.9", "balance=2"],
    "soft": ["teacher.soft_target=two_hot", "teacher.scale=2"],
    "fewer terms": ["terms.kd=null"],
    "own term": ["terms.mine={of: edge_kl, on: positives, weight: 1}"],
}
METHODS = (), ("ld", "kd"), ("pkd",)


@pytest.mark.parametrize("methods", METHODS, ids="+".join)
@pytest.mark.parametrize("kind", RUNS)
def test_the_student_alone_can_be_trained_as_is_said(kind: str, methods: tuple[str, ...], tmp_path: Path) -> None:
    words = [word for word in RUNS[kind] if not (methods and word.startswith("terms."))]
    run = Request(
        recipe="ld_r50_from_r101", data="/d", teacher="/t", methods=methods, overrides=("detector.classes=[a]", *words)
    )
    recipe = resolve(run)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    text = baseline(_made(Parts, recipe=recipe))
    first, second = re.findall(r"^locdistill .+$", text, re.MULTILINE)
    verb, options_ = parsed(shlex.split(first.replace("RUN/", f"{tmp_path}/"))[1:])
    named, overrides = _recipe_and_settings(options_)
    alone = recipe_for(Request(recipe=named, overrides=tuple(overrides)), verb)
    assert alone.teacher is None
    assert set(alone.terms) == {"cls", "bbox", "dfl"}
    assert parsed(shlex.split(second)[1:])[0] == "compare"
    if recipe.start != "teacher":  # a search lets the student begin with the file itself
        assert without_teacher(recipe) == alone.model_copy(update={"name": f"{recipe.name}-alone"})


@pytest.mark.parametrize(
    "value",
    [
        ("a", "b"),
        ("yes", "no", "null", "1", "1.5", "true"),
        ("a, b", "c: d", "[x]", "{y}", "#z", "it's", 'say "x"', " blank ", ""),
        (103.53, 1, 0.5),
        "rgb",
        True,
        None,
        2,
    ],
)
def test_settings_that_are_printed_come_back_as_they_are(value: Any) -> None:
    assert read_yaml(typed(value), "x") == (list(value) if isinstance(value, tuple) else value)
    if isinstance(value, tuple) and isinstance(value[0], str):
        (setting,) = _made(Suspect, position=0, network=None).settings(classes=value)
        (word,) = shlex.split(setting)
        assert load_recipe("ld_r50_from_r101", [word]).teacher.onnx.classes == value  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        DataSettings(path="/my data/it's"),
        DataSettings(path="d", format="voc", train="train", val=("a", "b"), ignore_classes=("no", "x, y")),
        DataSettings(path="d", holdout=0.2),
    ],
)
def test_a_teacher_can_be_trained_on_the_same_data(data: DataSettings) -> None:
    verb, words = parsed(shlex.split(_training_on(data) + " --backbone resnet50")[1:])
    assert verb == "train"
    named, overrides = _recipe_and_settings(words)
    other = load_recipe("gfl_r18_1x", overrides).data
    given = ("format", "train", "val", "holdout", "holdout_by", "ignore_classes")
    assert (named, words["data"]) == (None, data.path)
    assert other.model_dump(include=set(given)) == data.model_dump(include=set(given))


def test_the_parser_of_this_test_refuses_what_the_program_refuses() -> None:
    for wrong in ("train --methods ld", "evaluate", "distil", "convert --partial"):
        with pytest.raises(Exception, match=r"--methods|Missing|distil|--partial"):
            parsed(shlex.split(wrong))
