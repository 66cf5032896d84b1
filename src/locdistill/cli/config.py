"""``locdistill config``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from locdistill.cli import options

if TYPE_CHECKING:
    from locdistill.recipe.recipe import Recipe


def config(
    words: options.Words = None,
    teacher: options.Teacher = None,
    method: options.Method = None,
    balance: options.Balance = None,
    cache: options.Cache = None,
    data: options.Data = None,
    model: options.Model = None,
    backbone: options.Backbone = None,
    epochs: options.Epochs = None,
    pretrained: options.Pretrained = None,
    start: options.Start = None,
    recipe: options.Recipe = None,
    out: options.Out = None,
    resume: options.Resume = False,
    devices: options.Devices = None,
    batch: options.Batch = None,
    seed: options.Seed = None,
    profile: options.Profile = False,
    preflight: options.Preflight = True,  # noqa: ARG001 - one of distill's, without a field of the recipe
    images: options.PreflightImages = None,  # noqa: ARG001 - likewise
    dry_run: options.DryRun = False,  # noqa: ARG001 - likewise
    settings: options.Set = None,
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
    from locdistill.recipe.defaults import Request  # noqa: PLC0415 - heavy
    from locdistill.recipe.load import build_recipe, named_recipe  # noqa: PLC0415 - heavy
    from locdistill.recipe.overrides import apply_overrides  # noqa: PLC0415 - heavy
    from locdistill.training.resume import recipe_for  # noqa: PLC0415 - heavy

    recipe, overrides = options.request_words(words, recipe, settings)
    short_cuts = options.short_cuts(
        devices=devices, batch=batch, seed=seed, balance=balance, cache=cache, profile=profile
    )
    overrides = [*short_cuts, *overrides]
    if defaults:
        plain = build_recipe({"name": "defaults"}).model_dump(mode="json")
        _print(named_recipe(apply_overrides(plain, overrides), "the settings"))
        return
    request = Request(
        data=data,
        model=model,
        backbone=backbone,
        epochs=epochs,
        pretrained=pretrained,
        start=start,
        recipe=recipe,
        teacher=teacher,
        methods=tuple(method or ()),
        overrides=tuple(overrides),
    )
    _print(recipe_for(request, out, resume=resume))


def _print(recipe: Recipe) -> None:
    """Print a recipe; what it imports stands above it."""
    from locdistill.recipe.load import dump_recipe  # noqa: PLC0415 - heavy
    from locdistill.recipe.own import imports_of  # noqa: PLC0415 - heavy

    for line in imports_of(recipe.model_dump(mode="json")):
        print(f"# {line}")
    print(dump_recipe(recipe), end="")
