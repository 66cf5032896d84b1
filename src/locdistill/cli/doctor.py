"""``locdistill doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from locdistill.cli import options


def doctor(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, metavar="S", help="Length of the speed measurement; 0: none.")
    ] = 4.0,
    as_json: options.Json = False,
) -> None:
    """Examine the installation and the machine, for a report of a problem.

    Versions, optional packages, devices, threads, memory, disk, and the speed
    of a convolution. Nothing is sent anywhere.

    [bold]Examples[/bold]

    locdistill doctor
    locdistill doctor --seconds 0 --json
    """
    from locdistill.cli.report import print_json, report_examination  # noqa: PLC0415 - heavy
    from locdistill.engine.doctor import examine  # noqa: PLC0415 - heavy

    found = examine(seconds=seconds)
    print_json(asdict(found)) if as_json else report_examination(found)
