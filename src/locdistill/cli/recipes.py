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
    from locdistill.recipe.catalogue import recipe_summaries  # noqa: PLC0415 - heavy

    report_recipes(recipe_summaries(), as_json=as_json)
