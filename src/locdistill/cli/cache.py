"""``locdistill cache``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from locdistill.cli import options
from locdistill.errors import RecipeError

if TYPE_CHECKING:
    from locdistill.training.build_cache import CacheReport, Forecast

app = typer.Typer(
    help="Store a teacher's predictions, so that it runs once per image.", no_args_is_help=True, rich_markup_mode="rich"
)
Folder = Annotated[str, typer.Argument(metavar="DIR", help="The cache's folder.")]


@app.command("build")
@options.of_a_run(without=("out", "resume", "devices", "profile", "overfit", "preflight", "images", "dry_run"))
def build(
    request: dict[str, Any],
    *,
    device: options.Device = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="K/N", help="Build only the K-th of N shares; other processes build the rest."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Store a teacher's predictions on all training images, as far as the methods need them.

    Takes the options of 'locdistill distill' except --out, --resume and --devices. Training with the
    same --cache DIR then runs without the teacher. Disk space and time are estimated before. A stopped
    build continues where it ended; several processes may build one cache (--part, or torchrun). With
    several sizes, each image is stored at all of them; if sizes are drawn from a range, data.views=8
    sets the number of versions of each image.

    [bold]Examples[/bold]

    locdistill cache build --teacher runs/teacher --data bccd --cache runs/cache
    locdistill distill --teacher runs/teacher --data bccd --cache runs/cache
    locdistill cache build --teacher runs/teacher --data coco --cache cache teacher.cache.numbers=8bit data.views=8
    """
    from locdistill.cli.report import print_json, progress  # noqa: PLC0415 - heavy
    from locdistill.training.build_cache import build_cache  # noqa: PLC0415 - heavy

    report = build_cache(
        device=device,
        part=None if part is None else _share(part),
        tell=None if as_json else _tell,
        progress=progress,
        **request,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)


@app.command("info")
def info(path: Folder, as_json: options.Json = False) -> None:
    """Describe a cache: its teacher, number of views, and precision.

    [bold]Example[/bold]

    locdistill cache info runs/cache
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.training.build_cache import cache_info  # noqa: PLC0415 - heavy

    report = cache_info(path)
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)


def _share(words: str) -> tuple[int, int]:
    """Parse ``K/N``.

    Raises:
        RecipeError: The text has another form.
    """
    first, _, second = words.partition("/")
    if first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise RecipeError(f"--part {words}: expected K/N with K from 1 to N, such as 1/4")


def _tell(forecast: Forecast) -> None:
    from locdistill.cli.report import console  # noqa: PLC0415 - heavy

    minutes, rest = divmod(int(forecast.seconds + 0.5), 60)
    duration = (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
    console().print(
        f"{forecast.missing} of {forecast.views} views to predict: about {_size(forecast.bytes)} of disk "
        f"({_size(forecast.bytes_per_view)} each), {duration}"
    )


def _print(report: CacheReport) -> None:
    from rich.table import Table  # noqa: PLC0415 - heavy

    from locdistill.cli.report import console  # noqa: PLC0415 - heavy

    contract = report.contract
    facts = {
        "views": f"{report.views}" + (f", {report.built} of them new" if report.built else ""),
        "disk": _size(report.bytes),
        "teacher": ", ".join(f"{str(each['sha256'])[:12]}..." for each in contract["teachers"]),
        "student": f"{contract['student']['model']}, {len(contract['student']['classes'])} classes",
        "predictions": "; ".join(contract["regions"]),
        "maps": ", ".join(contract["maps"]) or "none",
        "numbers": contract["numbers"]
        + "".join(f", {name} within {error:.2g}" for name, error in (report.errors or {}).items()),
        "computed in": contract["precision"],
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in facts.items():
        table.add_row(name, text)
    out = console()
    out.print(table)
    if report.complete is False:
        out.print("not complete: other shares are missing; training adds the views that it needs")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
