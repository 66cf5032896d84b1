"""What a recipe is, in short."""

from __future__ import annotations

from typing import Any

from locdistill.recipes.load import load_recipe, recipe_names
from locdistill.recipes.recipe import Recipe


def recipe_summaries() -> list[dict[str, Any]]:
    """All recipes that come with the package, as plain data."""
    return [recipe_summary(load_recipe(name)) for name in recipe_names()]


def recipe_summary(recipe: Recipe) -> dict[str, Any]:
    """Name, detector, teacher, terms, schedule and published AP of a recipe, as plain data."""
    engine, data = recipe.engine, recipe.data
    return {
        "name": recipe.name,
        "description": recipe.description,
        "detector": {"model": recipe.detector.model, "backbone": recipe.detector.backbone},
        "teacher": None if recipe.teacher is None else {"name": recipe.teacher.name, "where": recipe.teacher.where},
        "terms": {
            name: {"divergence": term.of, "region": term.on, "normaliser": term.norm, "weight": term.weight}
            for name, term in recipe.terms.items()
        },
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
