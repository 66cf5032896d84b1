"""Output of the verbs."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from locdistill.dist import process_rank, quiet
from locdistill.errors import RecipeError
from locdistill.evaluation.tables import percent
from locdistill.recipe.catalogue import published_aps
from locdistill.settings import finite

if TYPE_CHECKING:
    from locdistill.engine.doctor import Examination
    from locdistill.export.export import ExportResult
    from locdistill.inference.evaluate import EvaluationResult
    from locdistill.inference.prediction import Prediction
    from locdistill.inference.tiles import TilingResult
    from locdistill.training.fit import RunResult
    from locdistill.training.preflight.report import PreflightReport

_METRICS = ("AP", "AP50", "AP75", "AP90")
_WIDTH = 160


def console() -> Console:
    """Return the standard output; wide enough for tables if it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)


class _Rate(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        """Return the present rate, or that of the finished task."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} a second", style="progress.data.speed")


def progress(label: str) -> Callable[[Iterable[Any], int | None], Iterable[Any]]:
    """Return a function that shows a progress bar while items are consumed, if stderr is a terminal."""

    def wrap(items: Iterable[Any], total: int | None) -> Iterable[Any]:
        if quiet() or not sys.stderr.isatty():
            yield from items
            return
        columns = (TextColumn(label), BarColumn(bar_width=30), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total)  # `track` would take an unknown total for 0
            for item in items:
                yield item
                bar.advance(task)

    return wrap


def with_seconds() -> Callable[[str], None]:
    """Return a function that prints a line of progress on stderr, preceded by the seconds since this call."""
    start, screen = time.monotonic(), Console(stderr=True, highlight=False, quiet=quiet())
    return lambda line: screen.print(f"[dim]{time.monotonic() - start:5.0f} s[/dim]  {escape(line)}")


def print_json(content: Any) -> None:
    """Print plain data as JSON; NaN becomes null."""
    print(json.dumps(finite(content), indent=2))


def report_preflight(report: PreflightReport, *, stops: bool = False, before_json: bool = False) -> None:
    """Print the report of the preflight check; with ``stops``, also the problems that stop the run.

    With ``before_json`` it goes to stderr, for the result is JSON.
    """
    out = Console(stderr=True, highlight=False) if before_json else console()
    for part in report.parts(stops=stops):
        out.print(part)
    out.print()


def report_run(result: RunResult, *, as_json: bool) -> None:
    """Print the best and last metrics of a run, and its folder."""
    if process_rank() > 0:
        return
    if as_json:
        files = {"out": result.out, "best": result.best, "last": result.last}
        print_json({name: path and str(path) for name, path in files.items()} | {"metrics": result.metrics})
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", "epoch", *_METRICS):
        table.add_column(name, justify="left" if not name else "right")
    for which in ("best", "last"):
        numbers = result.metrics.get(which)
        if numbers is not None:
            table.add_row(which, f"{numbers['epoch']:.3g}", *(percent(numbers.get(name)) for name in _METRICS))
    out = console()
    out.print()
    out.print(table)
    out.print(f"\n{result.metrics['seconds']:.0f} s; weights, pictures and the resolved recipe are in {result.out}")


def report_evaluation(
    result: EvaluationResult,
    *,
    as_json: bool,
    eleven_point: bool | None = None,
    published_sum: bool = False,
    saved: str | None = None,
) -> None:
    """Print the files written, and metrics if there are any.

    Args:
        result: Result of the evaluation.
        as_json: Print JSON instead of tables.
        eleven_point: Averaging of AP. Default: that of the evaluation.
        published_sum: Also print the published running sum.
        saved: Folder of pictures and files, if written.

    Raises:
        RecipeError: One of these is requested, but AP was not computed.
    """
    if process_rank() > 0:
        return
    if eleven_point is not None or published_sum:
        if not result.metrics:
            raise RecipeError("no AP is computed here; leave out --eleven-point, --area and --published-sum")
        result = result.judged(eleven_point=eleven_point, published=published_sum)
    count = sum(len(found.scores) for found in result.detections.values())
    files = [str(file) for file in (result.results, result.task1) if file is not None]
    if as_json:
        written = {"results": str(result.results), "detections": count} if result.results else {}
        written |= {"task1": str(result.task1)} if result.task1 else {}
        written |= {"saved": saved} if saved else {}
        print_json(written | (_numbers(result) if result.metrics else {}))
        return
    if files:
        images = f"{len(result.dataset)} images of {result.dataset.name}"
        print(f"{count} detections on {images} are in {' and '.join(files)}")
    if result.metrics:
        out = console()
        out.print(f"{result.dataset.name}: {len(result.dataset)} images")
        for table in result.tables:
            out.print(table.rich())
    if saved:
        out = console()
        out.print(f"pictures, detections.json, per_class.csv and thresholds.json go to {saved}")


def _numbers(result: EvaluationResult) -> dict[str, Any]:
    """Return the metrics as plain data."""
    data = {"name": result.dataset.name, "images": len(result.dataset)}
    sums = {"published_sum": result.published_sum} if result.published_sum else {}
    return {"data": data, "metrics": result.metrics, "per_class": result.per_class} | sums


def report_tiling(result: TilingResult, *, as_json: bool) -> None:
    """Print a line for each split."""
    content = result.as_dict()
    if as_json:
        print_json(content)
        return
    for name, counts in content["splits"].items():
        print(f"{name}: {counts['tiles']} tiles of {counts['images']} images in {counts['folder']}")
        if counts["left_out"]:
            print(f"  {counts['left_out']} objects were dropped: every tile holds less than tiling.part of them")


def report_predictions(found: Sequence[Prediction], save: str | None, *, seconds: float, as_json: bool) -> None:
    """Print a line for each picture and video."""
    if as_json:
        print_json([prediction.as_dict() for prediction in found])
        return
    for source, group in groupby(found, key=lambda prediction: prediction.source):
        here = list(group)
        names = Counter(each.classes[label] for each in here for label in each.detections.labels.tolist())
        counts = ", ".join(f"{number} {name}" for name, number in names.items()) or "nothing"
        frames = "" if here[0].number is None else f"{len(here)} frames, "
        target = f" -> {here[0].picture}" if here[0].picture else ""
        print(f"{source}: {frames}{counts}{target}")
    if len(found) > 1:
        print(f"{len(found)} pictures, {len(found) / seconds:.3g} a second", file=sys.stderr)
    if save is not None:
        print(f"boxes and scores are in {save}/predictions.json")


def report_scores(scores: dict[str, float]) -> None:
    """Print the minimum scores that weights have for their classes, on stderr; nothing if they have none."""
    if not scores:
        return
    few = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
    many = f"{min(scores.values()):.2f} to {max(scores.values()):.2f} in {len(scores)} classes"
    print(
        f"lowest score shown, by the best F1 on the validation images: {few if len(scores) <= 8 else many} "
        "(--threshold sets another)",
        file=sys.stderr,
    )


def report_export(result: ExportResult, *, as_json: bool) -> None:
    """Print the comparison of an exported file with its detector."""
    from locdistill.export.parity import COMPARED  # noqa: PLC0415 - heavy

    if as_json:
        print_json(result.as_dict())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COMPARED:
        table.add_column(name, justify="left" if name == COMPARED[0] else "right")
    for check in result.checks:
        table.add_row(*check.cells())
    out = console()
    out.print(table)
    if result.metrics:
        names = [name for name in _METRICS if name in result.metrics["file"]]
        for which, metrics in result.metrics.items():
            print(f"{which:9}" + ", ".join(f"{name} {percent(metrics[name])}" for name in names))
        for name, value in result.per_class["file"].items():
            print(f"  {name}: AP {percent(result.per_class['detector'][name])} -> {percent(value)}")
    facts = result.facts
    size = f"{facts.size[1]}x{facts.size[0]} (width x height)" if facts.size else "any size"
    count = {None: "any number of images", 1: "one image"}.get(facts.batch, f"{facts.batch} images")
    print(f"{result.file}: {result.megabytes:.1f} MB, {facts.outputs}, {size}, {count}", end="")
    print(", 8-bit convolutions" if facts.quantised else "")


def report_examination(found: Examination) -> None:
    """Print the result of an examination in lines that can be pasted into a report."""
    parts: dict[str, dict[str, Any]] = {
        "versions": found.versions,
        "optional": found.optional,
        "devices": {str(index): name for index, name in enumerate(found.devices)},
        "cpu": found.cpu,
        "environment": found.environment,
        "GB": found.gigabytes,
        "GFLOP/s": found.gflops,
    }
    for title, values in parts.items():
        if values:
            print(title)
            for name, value in values.items():
                print(f"  {name:24}{value}")
    for note in found.notes:
        print(f"note: {note}")


_NEEDS = {
    "features": "feature maps",
    "teachers_head": "the teacher's head",
    "learned_parts": "adapters, if widths differ",
    "distributions": "edge distributions",
}


def report_methods(summaries: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print a row for each distillation method."""
    if as_json:
        print_json(list(summaries))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "what", "needs", "terms (weight)"):
        table.add_column(name, no_wrap=name == "name")
    for summary in summaries:
        needs = ", ".join(words for need, words in _NEEDS.items() if summary["needs"][need])
        terms = "  ".join(f"{name} {term['weight']:g}" for name, term in summary["terms"].items())
        table.add_row(summary["name"], summary["what"], needs, terms)
    out = console()
    out.print(table)
    out.print("\nTerms are those for GFL. '--method' can be given several times; '--json' prints everything.")


def report_recipes(summaries: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print a row for each recipe."""
    if as_json:
        print_json(list(summaries))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("name", "detector", "teacher", "terms (weight)", "epochs"):
        table.add_column(name, no_wrap=name == "name")
    table.add_column("AP", justify="right")
    table.add_column("alone", justify="right")
    for summary in summaries:
        terms = "  ".join(f"{name} {term['weight']:g}" for name, term in summary["terms"].items())
        schedule = summary["schedule"]
        passes = f"{schedule['epochs']}" + (f" x {n}" if (n := schedule["passes_per_epoch"]) > 1 else "")
        table.add_row(
            summary["name"],
            f"{summary['detector']['model']} {summary['detector']['backbone']}",
            (summary["teacher"] or {}).get("name", ""),
            terms,
            passes,
            *published_aps(summary["published"]),
        )
    out = console()
    out.print(table)
    out.print(
        "\nAP: published, in percent; in parentheses, corrected for a known error of the evaluation. alone: the same "
        "detector without a teacher. 'locdistill config NAME' prints a recipe, '--json' all facts with sources."
    )
