"""Summaries of the available recipes and methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from locdistill.distillation.methods import METHODS
from locdistill.distillation.needs import Needs
from locdistill.objective.objective import OWNED
from locdistill.recipe.own import own_fields
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import Component, Slot, TermSettings, class_of, split_component


def method_summaries(model: str = "gfl") -> list[dict[str, Any]]:
    """Return all methods as plain data: description, terms for a kind of detector, and requirements."""
    found = []
    for name, method in METHODS.items():
        terms = method(model)
        needs = Needs.of(tuple(terms.values()))
        summary = {
            "name": name,
            "what": method.what,
            "paper": method.paper,
            "notes": method.notes,
            "needs": {
                "features": needs.features,
                "teachers_head": needs.cross,
                "learned_parts": any(term.needs & OWNED for term in terms.values()),
                "distributions": needs.distributions,
            },
            "terms": {key: TermSettings.of_term(term).model_dump(mode="json") for key, term in terms.items()},
        }
        found.append(summary)
    return found


def recipe_summary(recipe: Recipe) -> dict[str, Any]:
    """Return name, detector, teacher, terms, schedule and published AP of a recipe, as plain data."""
    engine, data = recipe.engine, recipe.data
    return {
        "name": recipe.name,
        "description": recipe.description,
        "detector": {"model": recipe.detector.model, "backbone": recipe.detector.backbone},
        "teacher": None if recipe.teacher is None else {"name": recipe.teacher.name, "where": recipe.teacher.where},
        "terms": {name: _term(term) for name, term in recipe.terms.items()},
        "schedule": {
            "epochs": engine.epochs,
            "passes_per_epoch": data.repeat,
            "schedule": engine.schedule,
            "milestones": list(engine.milestones),
            "lr_for_16_images": engine.lr,
            "batch_per_device": data.batch_per_device,
            "sizes": [list(size) for size in data.sizes],
            "size_mode": data.size_mode,
        },
        "published_ap": recipe.published.ap if recipe.published else None,
        "published": recipe.published.model_dump(mode="json") if recipe.published else None,
    }


def published_aps(published: Mapping[str, Any] | None) -> tuple[str, str]:
    """Format the published AP and its baseline without a teacher; empty if nothing is published.

    A corrected value follows in parentheses. AP50 is used if only that is published.
    """
    known = {key: f"{value:.1f}" for key, value in (published or {}).items() if isinstance(value, float)}
    written = []
    for name, corrected, at_50 in (("ap", "corrected", "ap50"), ("baseline", "corrected_baseline", "baseline50")):
        second = f" ({known[corrected]})" if corrected in known else ""
        written.append(known[name] + second if name in known else f"AP50 {known[at_50]}" if at_50 in known else "")
    return written[0], written[1]


def _term(term: TermSettings) -> dict[str, Any]:
    """Return the parts of a term, with schedule and balance if it has them."""
    found: dict[str, Any] = {
        "divergence": _brief("of", term.of),
        "region": _brief("on", term.on),
        "normaliser": _brief("norm", term.norm),
        "weight": term.weight,
    }
    if term.schedule is not None:
        found["schedule"] = _brief("schedule", term.schedule)
    if term.balance is not None:
        found["balance"] = term.balance
    return found


def spelled(component: Any) -> str:
    """Format a component as its name and given options, such as ``edge_kl (temperature 1.0)``."""
    name, options = split_component(component)
    listed = ", ".join(f"{key} {value}" for key, value in options.items() if value is not None)
    return f"{name} ({listed})" if listed else name


def spelled_term(term: Mapping[str, Any]) -> str:
    """Format a term of a resolved recipe, without options at their defaults."""
    of, on, norm = (spelled(_brief(part, term[part])) for part in ("of", "on", "norm"))
    strength = f"weight {term['weight']:g}" if term.get("balance") is None else f"balance {term['balance']}"
    schedule = f", {spelled(_brief('schedule', term['schedule']))}" if term.get("schedule") else ""
    return f"{of} on {on} over {norm}, {strength}{schedule}"


def _brief(kind: Slot, component: Component) -> Component:
    """Shorten a component to its name and the options that differ from their defaults."""
    name, options = split_component(component)
    usual = {field.name: field.default for field in own_fields(class_of(kind, name))}
    own = {key: value for key, value in options.items() if value != usual[key]}
    return {name: own} if own else name
