"""``locdistill diagnose``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def diagnose(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a finished distillation run, or RUN/last.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Number of validation images, spread evenly.")] = 200,
    against: Annotated[
        str | None, typer.Option("--against", metavar="RUN", help="The same student, trained without a teacher.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "-t", metavar="RUN|FILE", help="Present path of a teacher that was moved."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="PATH", help="Present path of data that were moved.")
    ] = None,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Number of training batches for the gradients.")] = 3,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder of the page. Default: RUN/diagnosis.")
    ] = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Analyse the effects of distillation in a finished run.

    Measures the agreement of student and teacher by region and by edge, how
    well the spread of the edge distributions predicts the error, and the share
    of each term in the gradient; draws regions and edges on validation images.
    Writes a page and diagnose.json.

    [bold]Examples[/bold]

    locdistill diagnose runs/student
    locdistill diagnose runs/student --against runs/alone --images 500
    locdistill diagnose runs/student/last --teacher moved/teacher --json
    """
    from locdistill.cli.report import console, print_json, progress  # noqa: PLC0415 - heavy
    from locdistill.study.diagnose.diagnose import diagnose as look  # noqa: PLC0415 - heavy
    from locdistill.study.diagnose.result import in_words, region_table  # noqa: PLC0415 - heavy

    found = look(
        run,
        images=images,
        against=against,
        teacher=teacher,
        data=data,
        batches=batches,
        out=out,
        device=device,
        progress=progress("analysing"),
    )
    if as_json:
        print_json(found.as_dict())
        return
    screen = console()
    screen.print(region_table(found).rich())
    for sentence in (*in_words(found), *found.notes):
        screen.print(f"- {sentence}")
    screen.print(f"\nThe page with pictures: {found.page}")
