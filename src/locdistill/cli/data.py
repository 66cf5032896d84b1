"""``locdistill data``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options

PROBLEMS_FOUND = 1

app = typer.Typer(help="Look at data sets.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _data() -> None:
    """Look at data sets."""


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A COCO, VOC or YOLO data set.")],
    words: options.Settings = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """List everything that is broken in a data set; the exit code is 1 if there is anything.

    [bold]Examples[/bold]

    locdistill data check bccd
    locdistill data check folder data.format=voc data.val=test --json
    """
    from locdistill.cli.report import report_check  # noqa: PLC0415 - heavy
    from locdistill.data.check import check as run  # noqa: PLC0415 - heavy
    from locdistill.data.settings import DataSettings  # noqa: PLC0415 - heavy
    from locdistill.recipes.load import validate  # noqa: PLC0415 - heavy
    from locdistill.recipes.overrides import apply_overrides  # noqa: PLC0415 - heavy

    plain = apply_overrides({"data": {"path": path}}, [*(settings or ()), *(words or ())])
    report = run(validate(DataSettings, plain["data"], "data"))
    report_check(report, as_json=as_json)
    if report.problems:
        raise typer.Exit(PROBLEMS_FOUND)
