"""Every command of README and docs is one that the program takes, and every setting that is named exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from locdistill.data.settings import DataSettings
from locdistill.distillation.settings import TeacherSettings
from locdistill.engine.settings import EngineSettings
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import load_recipe, recipe_names
from tests.unit.cli.test_printed_commands import parsed

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
GROUPS = {"data": DataSettings, "engine": EngineSettings, "detector": DetectorSettings, "teacher": TeacherSettings}
FILES = {"yaml", "json", "md", "py", "npz"}


def _commands(page: Path) -> Iterator[str]:
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ )?(locdistill|python -m locdistill) (?!\.\.\.|\[)", line):
                yield line[found.start(1) :].removeprefix("python -m ")


COMMANDS = [pytest.param(command, id=f"{page.stem}: {command[:80]}") for page in PAGES for command in _commands(page)]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_taken(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "--help":
        return
    _, options = parsed(words)
    given = [word for word in (*(options.get("words") or ()), *(options.get("settings") or ())) if "=" in word]
    given = [word for word in given if re.match(r"(data|engine|detector|teacher)\.", word)]
    if given:
        load_recipe("ld_r50_from_r101", given)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(?:--set )?(data|engine|detector|teacher)\.(\w+)", text)
    missing = {f"{group}.{field}" for group, field in named if field not in GROUPS[group].model_fields}
    assert {name for name in missing if name.partition(".")[2] not in FILES} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`(\w+_(?:from_\w+|[12]x|voc))`", page.read_text(encoding="utf-8"))
    assert set(named) <= set(recipe_names())


def test_the_readme_counts_the_recipes() -> None:
    (count,) = re.findall(r"(\d+) in all", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(count) == len(recipe_names())
