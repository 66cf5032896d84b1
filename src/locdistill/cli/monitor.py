"""``locdistill monitor``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from locdistill.cli import options


def monitor(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="Folder with runs, at any depth.")] = "runs",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 for any free one.")] = 8765,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Show runs while they train, in a page of this machine.

    State, losses by term, AP, agreement with the teacher, pictures, log and
    settings of every run below the folder; two side by side. It only reads, can
    be started and stopped at any time, and answers this machine alone: from
    elsewhere, forward the port ('ssh -L 8765:127.0.0.1:8765 HOST'). With --json
    the list of runs is printed once.

    [bold]Examples[/bold]

    locdistill monitor
    locdistill monitor runs/bccd --port 0 --open
    locdistill monitor runs --json
    """
    import webbrowser  # noqa: PLC0415 - rarely needed

    from locdistill.monitor.server import open_monitor, serve  # noqa: PLC0415

    if as_json:
        import json  # noqa: PLC0415

        print(json.dumps(open_monitor(runs).overview(), indent=2))
        return

    def started(address: str) -> None:
        print(f"{address} shows the runs below {runs}; Ctrl-C ends it", file=sys.stderr, flush=True)
        if show:
            webbrowser.open(address)

    try:
        serve(runs, port, started=started)
    except KeyboardInterrupt:
        print(file=sys.stderr)
