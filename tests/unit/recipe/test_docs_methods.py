"""The page of methods speaks of all methods, and its numbers are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from locdistill.distillation.methods import METHODS
from locdistill.recipe.load import load_recipe, recipe_names

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "methods.md").read_text()
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| \[`(\w+)`\]\(#\w+\) \|.*\|$", PAGE, re.MULTILINE)}


def test_every_method_has_a_row_and_an_entry() -> None:
    assert list(ROWS) == list(METHODS)
    entries = re.findall(r"^#{2,3} (\w+)$", PAGE, re.MULTILINE)
    assert [name for name in entries if name in METHODS] == list(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_published_numbers_are_those_of_the_recipe(method: str) -> None:
    found = re.search(r"\| `(\w+)`: (?:none known|([\d.]+) \(([\d.]+)\))", ROWS[method])
    if found is None:
        assert "none of its own" in ROWS[method]
        return
    published = load_recipe(found[1]).published
    numbers = None if published is None else (f"{published.ap:g}", f"{published.baseline:g}")
    assert numbers == (None if found[2] is None else (found[2], found[3]))


def test_recipes_that_are_named_exist() -> None:
    named = set(re.findall(r"`(\w+_from_\w+)`", PAGE))
    assert named
    assert named <= set(recipe_names())
    for name, ap, alone in re.findall(r"`(\w+_from_\w+)`[^`|]{0,20}: ([\d.]+) \(([\d.]+)\)", PAGE):
        published = load_recipe(name).published
        assert published is not None
        assert (f"{published.ap:g}", f"{published.baseline:g}") == (ap, alone), name
