"""Distillation methods by name: their terms in a recipe, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from locdistill.distillation.methods import METHODS
from locdistill.errors import RecipeError
from locdistill.objective.term import Term
from locdistill.recipes.compatible import Needs
from locdistill.recipes.terms import TermSettings
from locdistill.settings import suggestion


def method_terms(methods: Iterable[str], model: str) -> dict[str, TermSettings]:
    """The terms of one or several methods together; a name that several have is preceded by the method's.

    Args:
        methods: Their names; the same twice is once.
        model: Kind of the student.

    Raises:
        RecipeError: There is no such method.
    """
    chosen = list(dict.fromkeys(methods))
    if unknown := [name for name in chosen if name not in METHODS]:
        raise RecipeError(
            f"no method is called {', '.join(map(repr, unknown))}; {suggestion(unknown[0], METHODS)} "
            "('locdistill methods' lists them)"
        )
    found = {method: METHODS[method](model) for method in chosen}
    names = [name for terms in found.values() for name in terms]
    return {
        f"{method}_{name}" if names.count(name) > 1 else name: TermSettings.of_term(term)
        for method, terms in found.items()
        for name, term in terms.items()
    }


def method_summaries(model: str = "gfl") -> list[dict[str, Any]]:
    """All methods as plain data: what each is, its terms for a kind of detector, and what it asks for."""
    return [_summary(name, model) for name in METHODS]


def _summary(name: str, model: str) -> dict[str, Any]:
    terms = METHODS[name](model)
    words = (METHODS[name].__doc__ or "").strip().split("\n\n")
    return {
        "name": name,
        "what": " ".join(words[0].split()),
        "notes": " ".join(" ".join(words[1:]).split()),
        "needs": _needs(tuple(terms.values())),
        "terms": {key: TermSettings.of_term(term).model_dump(mode="json") for key, term in terms.items()},
    }


def _needs(terms: tuple[Term, ...]) -> dict[str, bool]:
    needs = Needs.of(terms)
    return {
        "features": needs.features,
        "teachers_head": needs.cross,
        "learned_parts": any(term.learns or term.needs_cross for term in terms),
        "distributions": needs.distributions,
    }
