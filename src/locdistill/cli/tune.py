"""``locdistill tune``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from locdistill.cli import options


@options.of_a_run("teacher", "methods", "data", "model", "backbone", "pretrained", "recipe")
def tune(
    request: dict[str, Any],
    *,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="KEY=LOW..HIGH[:log]|KEY=A|B",
            help="A setting to search; can be given several times. KEY,KEY=... for one value of both, "
            "terms.NAME=on|off for a term. Default: temperatures, weights and regions of the distillation.",
        ),
    ] = None,
    trials: Annotated[
        int,
        typer.Option("--trials", min=1, help="Trials besides the student alone and the recipe as it is."),
    ] = 20,
    seeds: Annotated[int, typer.Option("--seeds", "-n", min=1, help="Runs of each trial, which are averaged.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the data per trial. Default: a quarter of the recipe's."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of a trial, instead of epochs.")] = None,
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            min=0,
            max=0.9,
            help="Share of the training images held out to evaluate the trials; 0 evaluates them on the validation "
            "images, which are then no longer unseen.",
        ),
    ] = 0.2,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder; an interrupted search is continued.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    r"""Search temperature, weights and region of the distillation by short runs.

    AP is measured on held-out training images, so that the validation images
    stay unseen. The student alone and the recipe as it is are trained in the
    same way. The AP of the best of many trials is biased upwards: a command for
    an unbiased comparison at full length is printed. To continue, give the same
    command again; more --trials or --seeds add some.
    Needs optuna: pip install 'locdistill\[tune]'.

    [bold]Examples[/bold]

    locdistill tune --teacher runs/teacher --data bccd --trials 20 --seeds 3
    locdistill tune ld_r18_from_r101 -t runs/r101 -d coco --epochs 2 --search terms.ld.weight=0.25..16:log
    locdistill tune mine.yaml --search 'terms.ld_vlr=on|off' --search engine.lr=0.001..0.1:log --steps 500
    """
    from locdistill.cli.report import console, print_json, with_seconds  # noqa: PLC0415 - heavy
    from locdistill.study.tune.tune import tune as run  # noqa: PLC0415 - heavy

    result = run(
        search=search or (),
        trials=trials,
        seeds=seeds,
        epochs=epochs,
        steps=steps,
        holdout=holdout,
        out=out,
        tell=with_seconds(),
        **request,
    )
    if as_json:
        print_json(result.as_dict())
        return
    use, compare = result.commands
    screen = console()
    screen.print()
    screen.print(result.table().rich())
    screen.print(f"\n{result.verdict}", markup=False)
    screen.print(f"\nTo use the best settings: {use}", markup=False, soft_wrap=True)
    if compare:
        screen.print(f"To compare them on the validation images: {compare}", markup=False, soft_wrap=True)
    screen.print(f"The picture: {result.out / 'tune.png'}", markup=False)
