"""``locdistill compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def compare(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|RUN... [KEY=VALUE]...",
            help="Recipes by name or file, or folders of finished runs; the first is the baseline; settings for all.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", "-n", min=1, help="Runs of each recipe. Default: 3, or the seeds of the finished runs."
        ),
    ] = None,
    data: options.Data = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "-t", metavar="RUN|FILE", help="For recipes that distil without a teacher."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the comparison; an interrupted one is continued."),
    ] = None,
    equal_time: Annotated[
        bool,
        typer.Option("--equal-time", help="Train the first recipe also for as long as each of the others took."),
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="Run each teacher once per image for all seeds; at equal time the runs share this cost."
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Parallel trainings, which share the cores; for small detectors on a CPU."
        ),
    ] = 1,
    resamples: Annotated[
        int, typer.Option("--resamples", min=2, help="Resamples of the images for the intervals.")
    ] = 2000,
    device: options.Device = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Compare recipes, or finished runs, each with the first.

    Trains each recipe at several seeds, or uses folders of finished runs (those
    of one recipe with different seeds are grouped), and compares: mean and
    spread over seeds, intervals for other seeds and other images, by size and by
    class, and the cost in time. To continue an interrupted comparison, give the
    same command again; finished runs are not repeated.

    [bold]Examples[/bold]

    locdistill compare alone.yaml ld.yaml --data bccd --seeds 3 --equal-time --cache
    locdistill compare gfl_r18_1x ld_r18_from_r101 --teacher runs/r101 --data coco
    locdistill compare runs/alone-0 runs/alone-1 runs/ld-0 runs/ld-1 --out runs/compared
    """
    from locdistill.cli.report import console, print_json, with_seconds  # noqa: PLC0415 - heavy
    from locdistill.study.compare.compare import compare as run  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import as_json as plain  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import class_table, difference_table, summary_table  # noqa: PLC0415 - heavy

    command = options.spelled(
        *("locdistill", "compare", *words),
        seeds=seeds,
        data=data,
        teacher=teacher,
        out=out,
        equal_time=equal_time,
        cache=cache,
        jobs=None if jobs == 1 else jobs,
        resamples=None if resamples == 2000 else resamples,
        set=settings or [],
    )
    result = run(
        *(word for word in words if "=" not in word),
        seeds=seeds,
        data=data,
        teacher=teacher,
        out=out,
        equal_time=equal_time,
        cache=cache,
        jobs=jobs,
        resamples=resamples,
        overrides=[*(settings or ()), *(word for word in words if "=" in word)],
        device=device,
        command=command,
        tell=with_seconds(),
    )
    if as_json:
        print_json(plain(result))
        return
    screen = console()
    for table in (summary_table(result), class_table(result), difference_table(result)):
        screen.print()
        screen.print(table.rich())
    for sentence in (*result.verdicts.values(), *(f"Note: {note}" for note in result.notes)):
        screen.print(f"\n{sentence}", markup=False)
    screen.print(f"\nThe page: {result.out / 'report.html'}; the tables: {result.out / 'compare.md'}", markup=False)
