"""``locdistill recipes``."""

from __future__ import annotations

from locdistill.cli import options


def recipes(as_json: options.Json = False) -> None:
    """List the recipes that come with the package, with their published AP.

    [bold]Examples[/bold]

    locdistill recipes
    locdistill recipes --json
    locdistill config ld_r50_from_r101
    """
    from locdistill.cli.report import report_recipes  # noqa: PLC0415 - heavy
    from locdistill.recipe.catalogue import recipe_summary  # noqa: PLC0415 - heavy
    from locdistill.recipe.load import load_recipe, recipe_names  # noqa: PLC0415 - heavy

    report_recipes([recipe_summary(load_recipe(name)) for name in recipe_names()], as_json=as_json)
