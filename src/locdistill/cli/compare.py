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
            help="Recipes by name or file, or folders of finished runs, the first to compare with; settings for all.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds", "-n", min=1, help="Runs of each recipe; 3 unless given (of finished runs: those there are)."
        ),
    ] = None,
    data: options.Data = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "-t", metavar="RUN|FILE", help="For those recipes that distil and name none."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the comparison; one that was interrupted goes on."),
    ] = None,
    equal_time: Annotated[
        bool,
        typer.Option("--equal-time", help="Train the first recipe also for as long as each of the others took."),
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="Let each teacher look at an image once for all seeds; at equal time its runs share that."
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Trainings at a time; for small detectors on a CPU, which share its cores."
        ),
    ] = 1,
    resamples: Annotated[
        int, typer.Option("--resamples", min=2, help="Times that the images are drawn anew, for the intervals.")
    ] = 2000,
    device: options.Device = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Compare recipes, or finished runs: did it help?

    Trains each recipe at several seeds, or takes finished run folders (those of
    one recipe with different seeds belong together), and compares each with the
    first: mean and spread over seeds, intervals for other seeds and other
    images, by size and by class, and the cost in time. What has finished is not
    trained again, and what was interrupted goes on: give the same command again.

    [bold]Examples[/bold]

    locdistill compare alone.yaml ld.yaml --data bccd --seeds 3 --equal-time --cache
    locdistill compare gfl_r18_1x ld_r18_from_r101 --teacher runs/r101 --data coco
    locdistill compare runs/alone-0 runs/alone-1 runs/ld-0 runs/ld-1 --out runs/compared
    """
    import shlex  # noqa: PLC0415 - beside the heavy ones
    import time  # noqa: PLC0415

    from rich.console import Console  # noqa: PLC0415 - heavy

    from locdistill.cli.report import console, print_json  # noqa: PLC0415 - heavy
    from locdistill.study.compare.compare import compare as run  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import as_json as plain  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import class_table, difference_table, summary_table  # noqa: PLC0415 - heavy

    start, screen = time.monotonic(), Console(stderr=True, highlight=False) if as_json else console()

    def tell(line: str) -> None:
        screen.print(f"[dim]{time.monotonic() - start:5.0f} s[/dim]  {line}")

    given = {"--seeds": seeds, "--data": data, "--teacher": teacher, "--out": out}
    command = [
        *("locdistill", "compare", *words),
        *(part for name, value in given.items() if value is not None for part in (name, str(value))),
        *(["--equal-time"] if equal_time else []),
        *(["--cache"] if cache else []),
        *(["--jobs", str(jobs)] if jobs != 1 else []),
        *(["--resamples", str(resamples)] if resamples != 2000 else []),
        *(part for setting in settings or () for part in ("--set", setting)),
    ]
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
        command=shlex.join(command),
        tell=tell,
    )
    if as_json:
        print_json(plain(result))
        return
    for table in (summary_table(result), class_table(result), difference_table(result)):
        screen.print()
        screen.print(table.rich())
    for sentence in (*result.verdicts.values(), *(f"Note: {note}" for note in result.notes)):
        screen.print(f"\n{sentence}", markup=False)
    screen.print(f"\nThe page: {result.out / 'report.html'}; the tables: {result.out / 'compare.md'}", markup=False)
