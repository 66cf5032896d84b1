"""``locdistill landscape``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def landscape(
    first: Annotated[str, typer.Argument(metavar="MODEL_1", help="A run's folder, runs/NAME/best, or a file.")],
    second: Annotated[str, typer.Argument(metavar="MODEL_2", help="The other detector, likewise.")],
    data: options.Data = None,
    grid: Annotated[
        int,
        typer.Option("--grid", min=2, help="Number of weights of each detector, from 0 to 1, if not given."),
    ] = 5,
    gamma1: Annotated[
        str | None,
        typer.Option("--gamma1", metavar="A:B:STEP", help="Weights of the first one's features; also 0,0.5,1."),
    ] = None,
    gamma2: Annotated[
        str | None, typer.Option("--gamma2", metavar="A:B:STEP", help="Weights of the second one's features.")
    ] = None,
    head: Annotated[int, typer.Option("--head", min=1, max=2, help="Detector whose head is evaluated.")] = 1,
    images: Annotated[
        int | None,
        typer.Option("--images", min=1, help="Images, spread evenly over the split. Default: all."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="val, train, or any split of the data set.")] = "val",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size, if all images have the same size.")] = 8,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder; an interrupted landscape is continued.")
    ] = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Evaluate the head of one detector on mixtures of two detectors' features.

    The maps of both feature pyramids are mixed level by level, F = gamma1 F1 +
    gamma2 F2, and one head is evaluated at each point of the grid: a table
    (CSV) and a contour picture. Each image goes through each backbone once.
    Both detectors need the same pyramid levels and width.

    [bold]Examples[/bold]

    locdistill landscape runs/teacher runs/student --data bccd
    locdistill landscape runs/student runs/teacher --head 2 --images 200
    locdistill landscape a b --gamma1 0:1.2:0.2 --gamma2 0:1.2:0.2 -o runs/map
    """
    from locdistill.cli.report import console, print_json, progress  # noqa: PLC0415 - heavy
    from locdistill.study.landscape import PICTURE  # noqa: PLC0415 - heavy
    from locdistill.study.landscape import landscape as run  # noqa: PLC0415 - heavy

    result = run(
        first,
        second,
        data,
        grid=grid,
        gamma1=gamma1,
        gamma2=gamma2,
        head=head,
        images=images,
        split=split,
        out=out,
        batch=batch,
        device=device,
        progress=progress("evaluating"),
    )
    if as_json:
        print_json(result.as_dict())
        return
    screen = console()
    screen.print(result.table().rich())
    screen.print(f"{result.in_words}\n\nThe picture: {result.out / PICTURE}")
