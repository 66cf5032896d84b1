"""``locdistill train``."""

from __future__ import annotations

from typing import Any

import typer

from locdistill.cli import options


@options.of_a_run(without=("teacher", "methods", "balance", "cache", "preflight", "images", "dry_run"))
def train(
    request: dict[str, Any], *, out: str | None, resume: bool, overfit: int | None, as_json: options.Json = False
) -> None:
    """Train a detector without a teacher.

    Without a recipe, input size, classes and schedule are chosen for the data;
    'locdistill config' with the same options prints them. The run folder holds
    the resolved recipe, which reproduces the run.

    [bold]Examples[/bold]

    locdistill train --data bccd --backbone resnet18 --epochs 12
    locdistill train gfl_r50_1x --data coco --devices 8 --out runs/teacher
    locdistill train --data bccd --out runs/a data.flip=0 engine.schedule=cosine
    locdistill train --data bccd --start runs/a --epochs 4 --out runs/b
    locdistill train --data bccd --epochs 1 --profile
    locdistill train --data bccd --overfit 4
    locdistill train --resume --out runs/a
    """
    from locdistill.cli.report import print_json, report_run  # noqa: PLC0415 - heavy

    if overfit is not None:
        from locdistill.training.overfit.overfit import overfit as learn  # noqa: PLC0415 - heavy

        result = learn(images=overfit, out=out, **request)
        print_json(result.as_dict()) if as_json else print(f"\n{result.text()}")
        raise typer.Exit(not result.passed)
    from locdistill.training.train import train as run  # noqa: PLC0415 - heavy

    report_run(run(out=out, resume=resume, **request), as_json=as_json)
