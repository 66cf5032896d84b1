"""The command line: one file per verb, which parses, calls and prints.

Nothing heavy is imported before a verb runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from locdistill.cli import (
    auto,
    benchmark,
    cache,
    compare,
    config,
    convert,
    data,
    demo,
    diagnose,
    distill,
    doctor,
    evaluate,
    export,
    hub,
    landscape,
    methods,
    monitor,
    predict,
    publish,
    recipes,
    train,
    tune,
)
from locdistill.cli.threads import share_politely
from locdistill.errors import LocdistillError

ERROR, INTERRUPTED = 2, 130
QUIET = "LOCDISTILL_QUIET"  # as in `dist`, which imports PyTorch

app = typer.Typer(
    name="locdistill",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Train and detect": {
        "auto": auto.auto,
        "train": train.train,
        "distill": distill.distill,
        "evaluate": evaluate.evaluate,
        "predict": predict.predict,
        "benchmark": benchmark.benchmark,
    },
    "Did it help?": {
        "compare": compare.compare,
        "monitor": monitor.monitor,
        "diagnose": diagnose.diagnose,
        "landscape": landscape.landscape,
        "tune": tune.tune,
        "demo": demo.demo,
    },
    "What there is": {
        "recipes": recipes.recipes,
        "methods": methods.methods,
        "config": config.config,
        "doctor": doctor.doctor,
    },
    "Weights": {
        "export": export.export,
        "publish": publish.publish,
        "push": hub.push,
        "pull": hub.pull,
        "convert": convert.convert,
    },
}
for _panel, _verbs in _PANELS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, rich_help_panel=_panel)(_verb)
app.add_typer(data.app, name="data", rich_help_panel="What there is")
app.add_typer(cache.app, name="cache", rich_help_panel="Train and detect")


@app.callback()
def _top(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the result, warnings and errors alone; works behind the verb too.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Localization distillation for dense object detectors: teach a small detector where box edges are."""
    # `main` reads all three


def show_log() -> None:
    """Print the package's messages on stderr: warnings, and in the first process those on the choices made for a run.

    The training loop prints its own, which this leaves to it and to ``log.txt``.
    """

    def shows(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING or record.name != "locdistill" or os.environ.get(QUIET):
            return record.levelno >= logging.WARNING
        from locdistill.dist import process_rank  # noqa: PLC0415 - heavy; loaded where anything is logged

        return process_rank() == 0

    handler, package = logging.StreamHandler(), logging.getLogger("locdistill")
    handler.addFilter(shows)
    package.handlers = [handler]
    package.setLevel(logging.INFO)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error of this package is printed to stderr, with exit code 2."""
    share_politely()
    gc.set_threshold(10_000)  # by default 700 new objects start a search for garbage, which imports do not make
    words = list(sys.argv[1:] if arguments is None else arguments)
    before_verb = words[: next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))]
    if "--version" in before_verb:
        from importlib.metadata import version  # noqa: PLC0415 - slow, and rarely asked for

        print(f"locdistill {version('locdistill')}")
        return
    debug = "--debug" in words or bool(os.environ.get("LOCDISTILL_DEBUG"))
    loud = os.environ.get(QUIET)
    if "--quiet" in words:
        os.environ[QUIET] = "1"
    show_log()
    try:
        app([word for word in words if word not in ("--debug", "--quiet")])
    except LocdistillError as error:
        if debug:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", ERROR))
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        if loud is None:
            os.environ.pop(QUIET, None)
