"""``locdistill config``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from locdistill.cli import options

if TYPE_CHECKING:
    from locdistill.recipe.recipe import Recipe
    from locdistill.recipe.request import Request


@options.of_a_run()
def config(
    request: dict[str, Any],
    *,
    out: str | None,
    resume: bool,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print every setting with its default value.")] = False,
) -> None:
    """Print the resolved recipe that 'train' or 'distill' would run with these options.

    It takes all of their options, so that the verb alone is to be replaced, and runs nothing: those
    on the look before the first step change nothing here, and --out only names the run to --resume.

    [bold]Examples[/bold]

    locdistill config ld_r50_from_r101 terms.ld.weight=0.5
    locdistill config --data bccd --backbone resnet34 > my.yaml
    locdistill config --teacher runs/teacher --data bccd --cache runs/cache
    locdistill config --resume --out runs/student
    locdistill config --defaults
    """
    from locdistill.recipe.load import build_recipe, named_recipe  # noqa: PLC0415 - heavy
    from locdistill.recipe.overrides import apply_overrides  # noqa: PLC0415 - heavy
    from locdistill.training.resume import recipe_for  # noqa: PLC0415 - heavy

    if defaults:
        plain = build_recipe({"name": "defaults"}).model_dump(mode="json")
        _print(named_recipe(apply_overrides(plain, request["overrides"]), "the settings"))
        return
    _print(recipe_for(cast("Request", request), out, resume=resume))


def _print(recipe: Recipe) -> None:
    """Print a recipe; what it imports stands above it."""
    from locdistill.recipe.load import dump_recipe  # noqa: PLC0415 - heavy
    from locdistill.recipe.own import imports_of  # noqa: PLC0415 - heavy

    for line in imports_of(recipe.model_dump(mode="json")):
        print(f"# {line}")
    print(dump_recipe(recipe), end="")
