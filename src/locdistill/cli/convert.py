"""``locdistill convert``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from locdistill.cli import options
from locdistill.errors import WeightsError

if TYPE_CHECKING:
    from locdistill.models.foreign import ImportReport

SHOWN_NAMES = 40
LISTS = (".txt", ".names")  # suffixes of files of names


class Formats(StrEnum):
    """Formats that can be written; typer takes choices as an enumeration."""

    locdistill = "locdistill"
    mmdet = "mmdet"


class Averages(StrEnum):
    """Weights that can be read."""

    ema = "ema"
    raw = "raw"


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint (.pth), a weights file or a run's folder.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="NAME.safetensors, or NAME.pth for MMDetection.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the detector that are not in the file, such as style=caffe.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[Formats | None, typer.Option("--to", help="Format to write. Default: by the suffix of OUT.")] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="A,B,...|FILE", help="Class names, or a file with one per line."),
    ] = None,
    weights: Annotated[
        Averages, typer.Option("--weights", help="The moving average if there is one, or the raw weights.")
    ] = Averages.ema,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept missing weights and weights that do not fit; they stay random.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: options.Json = False,
) -> None:
    """Read a checkpoint of MMDetection, LD, Rotated-LD or GFocal v2, or write one.

    Architecture, classes and edge distributions are recognised from the file; tensors that are
    left out are listed. No code of the file is run.

    [bold]Examples[/bold]

    locdistill convert gfl_r101_fpn_mstrain_2x_coco.pth gfl_r101.safetensors
    locdistill convert fcos_r101_2x.pth teacher.safetensors mean=[102.98,115.95,122.77]
    locdistill convert runs/student/best student.pth
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.models.mmdet import convert as run  # noqa: PLC0415 - heavy
    from locdistill.recipe.overrides import apply_overrides  # noqa: PLC0415 - heavy

    path, report = run(
        source,
        out,
        to=None if to is None else to.value,
        classes=None if classes is None else _names(classes),
        weights=weights.value,
        strict=not partial,
        settings=apply_overrides({}, list(words or ())),
        force=force,
    )
    if as_json:
        print_json(report.as_dict() | {"out": str(path)})
    else:
        _print(report, path)


def _names(given: str) -> list[str]:
    """Parse a file with one name per line, or names separated by commas.

    Raises:
        WeightsError: The file does not exist, or is not text.
    """
    file = Path(given)
    meant = os.path.isfile(given) or ("," not in given and (file.suffix in LISTS or len(file.parts) > 1))
    try:
        parts = file.read_text(encoding="utf-8").splitlines() if meant else given.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(
            f"--classes {given}: cannot be read as a text file ({getattr(error, 'strerror', None) or error}); expected "
            "a file with one name per line, or names separated by commas (a single name: followed by a comma)"
        ) from error
    return [part.strip() for part in parts if part.strip()]


def _print(report: ImportReport, path: Path) -> None:
    from rich.markup import escape  # noqa: PLC0415 - heavy
    from rich.table import Table  # noqa: PLC0415 - heavy

    from locdistill.cli.report import console  # noqa: PLC0415 - heavy

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, text in report.facts().items():
        table.add_row(name, escape(text))
    out = console()
    out.print(table)
    for note in report.notes:
        out.print(f"assumed: {note}", markup=False)
    for group in report.skipped[:SHOWN_NAMES]:
        out.print(f"left out: {group}", markup=False)
    if (more := len(report.skipped) - SHOWN_NAMES) > 0:
        out.print(f"left out: {more} more; --json lists them", markup=False)
    if report.missing:
        names = ", ".join(report.missing)
        out.print(f"missing, at random initial values ({len(report.missing)}): {names}", markup=False)
    out.print(f"\n{report.source} -> {path}", markup=False)
