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
            help="A setting to search, several times for several; KEY,KEY=... for one value of both, terms.NAME=on|off "
            "for a term. Temperatures, weights and regions of the distillation unless given.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Beside the student alone and the recipe as it is.")
    ] = 20,
    seeds: Annotated[int, typer.Option("--seeds", "-n", min=1, help="Runs of each trial, whose mean counts.")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Passes over the data per trial; a quarter of the recipe's unless given."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Steps of a trial instead.")] = None,
    holdout: Annotated[
        float,
        typer.Option(
            "--holdout",
            min=0,
            max=0.9,
            help="Share of the training images that is held out to judge the trials; 0: judge them on the validation "
            "images, which are then no longer unseen.",
        ),
    ] = 0.2,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder; a search that was interrupted goes on.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    r"""Search temperature, weights and region of the distillation by short runs.

    AP is measured on training images that are held out, so that the validation
    images stay unseen. The student alone and the recipe as it is are trained in
    the same way. The best of many trials looks better than it is: the command
    that compares it at full length is printed, with the recipe for it. Give the
    same command again to go on, with more --trials or --seeds to add some.
    Needs optuna: pip install 'locdistill\[tune]'.

    [bold]Examples[/bold]

    locdistill tune --teacher runs/teacher --data bccd --trials 20 --seeds 3
    locdistill tune ld_r18_from_r101 -t runs/r101 -d coco --epochs 2 --search terms.ld.weight=0.25..16:log
    locdistill tune mine.yaml --search 'terms.ld_vlr=on|off' --search engine.lr=0.001..0.1:log --steps 500
    """
    import time  # noqa: PLC0415 - beside the heavy ones

    from rich.console import Console  # noqa: PLC0415 - heavy
    from rich.markup import escape  # noqa: PLC0415 - heavy

    from locdistill.cli.report import console, print_json  # noqa: PLC0415 - heavy
    from locdistill.study.tune.tune import tune as run  # noqa: PLC0415 - heavy

    start, screen = time.monotonic(), Console(stderr=True, highlight=False) if as_json else console()

    def tell(line: str) -> None:
        screen.print(f"[dim]{time.monotonic() - start:5.0f} s[/dim]  {escape(line)}")

    result = run(
        search=search or (),
        trials=trials,
        seeds=seeds,
        epochs=epochs,
        steps=steps,
        holdout=holdout,
        out=out,
        tell=tell,
        **request,
    )
    if as_json:
        print_json(result.as_dict())
        return
    use, compare = result.commands
    screen.print()
    screen.print(result.table().rich())
    screen.print(f"\n{result.verdict}", markup=False)
    screen.print(f"\nTo use the best settings: {use}", markup=False, soft_wrap=True)
    if compare:
        screen.print(f"Whether they help, on the validation images: {compare}", markup=False, soft_wrap=True)
    screen.print(f"The picture: {result.out / 'tune.png'}", markup=False)
