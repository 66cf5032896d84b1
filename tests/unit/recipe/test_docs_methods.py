"""The page of methods speaks of all methods, and its numbers are those of the recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from locdistill.distillation.methods import METHODS
from locdistill.objective.term import MAPS, Need
from locdistill.recipe.catalogue import method_summaries
from locdistill.recipe.load import load_recipe, recipe_names

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "methods.md").read_text()
ROWS = {row[1]: row[0] for row in re.finditer(r"^\| \[`(\w+)`\]\(#\w+\) \|.*\|$", PAGE, re.MULTILINE)}


def test_every_method_has_a_row_and_an_entry() -> None:
    assert list(ROWS) == list(METHODS)
    entries = re.findall(r"^#{2,3} (\w+)$", PAGE, re.MULTILINE)
    assert [name for name in entries if name in METHODS] == list(METHODS)


def cell(recipe: str | None) -> str:
    """The last column: a recipe with its published AP, and that of the student alone."""
    if recipe is None:
        return "none of its own"
    published = load_recipe(recipe).published
    known = "none known" if published is None else f"{published.ap:g} ({published.baseline:g})"
    return f"`{recipe}`: {known}"


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_the_record(name: str) -> None:
    method = METHODS[name]
    cells = (f"[`{name}`](#{name})", method.compares, method.where, method.asks, cell(method.recipe))
    assert ROWS[name] == f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", METHODS)
def test_what_is_asked_for_is_what_the_terms_need(name: str) -> None:
    asks, needs = METHODS[name].asks, {need for term in METHODS[name]("gfl").values() for need in term.needs}
    assert ("maps" in asks) == bool(needs & MAPS)
    assert ("its head" in asks) == (Need.CROSS in needs)
    assert ("distributions" in asks) == (Need.DISTRIBUTIONS in needs)


def test_the_list_of_methods_shows_the_record() -> None:
    for summary in method_summaries():
        method = METHODS[summary["name"]]
        assert (summary["what"], summary["paper"], summary["notes"]) == (method.what, method.paper, method.notes)
        assert method.paper in summary["what"]


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]), ids=lambda path: path.name
)
def test_where_methods_are_counted_the_count_is_right(page: Path) -> None:
    words = {"thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18}
    for number in re.findall(r"\b(\w+) (?:named |distillation )*methods\b", page.read_text().lower()):
        if number in words or number.isdigit():
            assert (words[number] if number in words else int(number)) == len(METHODS)


def test_recipes_that_are_named_exist() -> None:
    named = set(re.findall(r"`(\w+_from_\w+)`", PAGE))
    assert named
    assert named <= set(recipe_names())
    for name, ap, alone in re.findall(r"`(\w+_from_\w+)`[^`|]{0,20}: ([\d.]+) \(([\d.]+)\)", PAGE):
        published = load_recipe(name).published
        assert published is not None
        assert (f"{published.ap:g}", f"{published.baseline:g}") == (ap, alone), name
