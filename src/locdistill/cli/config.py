"""``locdistill config``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from locdistill.cli import options

if TYPE_CHECKING:
    from locdistill.recipe.request import Request


@options.of_a_run()
def config(
    request: dict[str, Any],
    *,
    out: str | None,
    resume: bool,
    defaults: Annotated[bool, typer.Option("--defaults", help="Print every setting with its default value.")] = False,
    as_json: options.Json = False,
) -> None:
    """Print the resolved recipe that 'train' or 'distill' would run with these options.

    Takes all of their options, and runs nothing: options of the preflight check have no effect, and
    --out only gives the run to --resume.

    [bold]Examples[/bold]

    locdistill config ld_r50_from_r101 terms.ld.weight=0.5
    locdistill config --data bccd --backbone resnet34 > my.yaml
    locdistill config --teacher runs/teacher --data bccd --cache runs/cache
    locdistill config --resume --out runs/student
    locdistill config --defaults
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.recipe.defaults import resolve  # noqa: PLC0415 - heavy
    from locdistill.recipe.load import build_recipe, dump_recipe, named_recipe  # noqa: PLC0415 - heavy
    from locdistill.recipe.overrides import apply_overrides  # noqa: PLC0415 - heavy
    from locdistill.recipe.own import imports_of  # noqa: PLC0415 - heavy
    from locdistill.training.resume import goes_on, resumed_recipe  # noqa: PLC0415 - heavy

    if defaults:
        plain = build_recipe({"name": "defaults"}).model_dump(mode="json")
        recipe = named_recipe(apply_overrides(plain, request["overrides"]), "the settings")
    else:
        if request.get("minutes") is not None and not as_json:
            print("# --minutes: the number of steps, and what follows from it, is chosen when the run starts")
        asked = cast("Request", request)
        recipe = resumed_recipe(asked, out) if goes_on(out, resume=resume) else resolve(asked)
    if as_json:
        print_json(recipe.model_dump(mode="json"))
        return
    for line in imports_of(recipe.model_dump(mode="json")):
        print(f"# {line}")
    print(dump_recipe(recipe), end="")
