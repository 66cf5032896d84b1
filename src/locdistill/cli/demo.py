"""``locdistill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from locdistill.cli import options


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder; an interrupted demo is continued.")] = Path("runs/demo"),
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Runs of each kind. Default: 3, or fewer to meet --minutes.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", min=0, help="Time limit, met by fewer steps, then fewer seeds. Default: 4."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Few images and steps: tests only that everything runs.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what localization distillation does, in minutes on two cores.

    Draws a small data set, trains a teacher, trains the same small student
    alone and with localization distillation, and compares them at equal
    steps and at equal time. Times its first steps and prints an estimate of the
    duration. Nothing is downloaded.

    [bold]Examples[/bold]

    locdistill demo
    locdistill demo --seeds 6 --minutes 15 --out runs/demo-6
    """
    from locdistill.cli.report import console, print_json, with_seconds  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import as_json as plain  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import difference_table, summary_table  # noqa: PLC0415 - heavy
    from locdistill.study.demo import FAST, MINUTES, DemoSettings, run_demo  # noqa: PLC0415 - heavy

    settings = FAST if fast else DemoSettings()
    if seeds is not None:
        settings = settings.model_copy(update={"seeds": seeds})
    words = [f"--seeds {seeds}"] if seeds is not None else []
    words += [f"--minutes {minutes:g}"] if minutes is not None else []
    words += ["--fast"] if fast else []
    result = run_demo(
        out,
        settings,
        minutes=None if fast else MINUTES if minutes is None else minutes,
        fixed_seeds=seeds is not None,
        command=" ".join(["locdistill demo", *words]),
        tell=with_seconds(),
    )
    if as_json:
        print_json(plain(result))
        return
    screen = console()
    for table in (summary_table(result), difference_table(result)):
        screen.print()
        screen.print(table.rich())
    screen.print(f"\n{result.verdict}\n\nThe page with pictures: {out / 'report.html'}\n", markup=False)
    screen.print("On your own data (COCO, VOC, YOLO or DOTA), the same three steps:", soft_wrap=True)
    for line in NEXT:
        screen.print(f"  {line}", soft_wrap=True, markup=False)


NEXT = (
    "locdistill data check path/to/data",
    "locdistill train --data path/to/data --size m --out runs/teacher",
    "locdistill distill --teacher runs/teacher/best --data path/to/data --out runs/student --cache runs/cache",
)
