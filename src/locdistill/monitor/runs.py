"""State of runs, read from their folders while they may be written, cut off or removed.

A file that is missing, half written or damaged gives less to see, never an error. Symbolic links are not followed.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from locdistill.errors import LocdistillError
from locdistill.recipe.yaml_io import read_yaml

RECIPE, FACTS, LOG, METRICS, CURVES = "recipe.yaml", "run.json", "log.txt", "metrics.json", "metrics.csv"
REPORT = "report.html"
PICTURES = (".png", ".jpg")
MOST_RUNS, DEEPEST = 500, 6
"""Runs that are shown, and folders below the root in which they are looked for."""
POINTS = 600
"""Points of a curve that are sent; longer ones are thinned."""
TAIL = 16_000
"""Bytes of the end of the log that are sent."""
LARGEST = 4_000_000
"""Bytes of a text file above which it is not read."""
_SILENT, _INTERVALS = 120.0, 6
"""Seconds without a sign after which a run counts as silent, or this many times the usual interval of its signs."""
_LEFT_OUT = {"logs", "detections", "published", "__pycache__"}
_PROGRESS = re.compile(r"step (\d+)/(\d+)")
_SCORES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run.

    Attributes:
        name: Path below the root, with slashes; ``.`` for the root itself.
        state: ``running``, ``finished``, ``silent`` (no sign for a while: killed, or waiting), or ``starting``.
        why: Reason of the end, if it ended.
        step: Optimiser steps done.
        steps: Optimiser steps of the whole run, if known.
        seconds_left: Estimate from the steps so far.
        age: Seconds since the last sign.
        best: AP, AP50 and AP75 of the best evaluation, in percent.
        last: Those of the last evaluation.
        detector: Kind and backbone.
        teacher: Name of the teacher; empty without one.
        terms: Names of the terms of the loss.
    """

    name: str
    state: str
    why: str
    step: int
    steps: int | None
    seconds_left: float | None
    age: float
    best: dict[str, float]
    last: dict[str, float]
    detector: str
    teacher: str
    terms: tuple[str, ...]


def find_runs(root: Path) -> dict[str, Path]:
    """Return the run folders below a root by name, the latest first."""
    found: list[tuple[float, str, Path]] = []
    for folder, below, files in _walk(root):
        if RECIPE in files and (FACTS in files or CURVES in files):
            below.clear()  # what is in a run is not another run
            name = folder.relative_to(root).as_posix()
            found.append((_newest(folder), name, folder))
            if len(found) == MOST_RUNS:
                break
    return {name: folder for _, name, folder in sorted(found, key=lambda run: (-run[0], run[1]))}


def find_reports(root: Path) -> dict[str, Path]:
    """Return the finished pages below a root (comparisons, diagnoses) by name."""
    return {
        (folder / REPORT).relative_to(root).as_posix(): folder / REPORT
        for folder, _, files in _walk(root)
        if REPORT in files
    }


def _walk(root: Path) -> Iterator[tuple[Path, list[str], set[str]]]:
    """Yield folders with their subfolders, which the caller may clear, and the names of their own plain files."""
    for place, below, files in os.walk(root, followlinks=False):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        links = {name for name in (*below, *files) if (folder / name).is_symlink()}
        unwanted = _LEFT_OUT | links
        below[:] = [name for name in sorted(below) if depth < DEEPEST and name not in unwanted and name[0] != "."]
        yield folder, below, set(files) - links


def _newest(folder: Path) -> float:
    """Return the time of the last sign of a run; 0 if there is none."""
    times = [0.0]
    for name in (CURVES, LOG, METRICS, FACTS, "last.ckpt"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _text(path: Path) -> str:
    """Read a text file; empty if it cannot be read, is a link, or is too large."""
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _mapping(text: str) -> dict[str, Any]:
    """Parse JSON; an empty mapping for anything else."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _group(content: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a mapping in a mapping; empty if there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the plain data of a run's recipe; empty if it cannot be read."""
    try:
        content = read_yaml(_text(folder / RECIPE), RECIPE)
    except LocdistillError:
        return {}
    return content if isinstance(content, dict) else {}


def summary(name: str, folder: Path) -> RunSummary:
    """Summarise a run."""
    metrics, recipe = _mapping(_text(folder / METRICS)), read_recipe(folder)
    curves = read_curves(folder)
    steps_done = curves.get("seconds", ([], []))[0]
    step = int(max(steps_done, default=0))
    told = _PROGRESS.findall(log_tail(folder))
    steps = int(told[-1][1]) if told else None
    stopped = metrics.get("stopped")
    age = max(time.time() - _newest(folder), 0.0)
    seconds = curves.get("seconds", ([], []))[1]
    intervals = [b - a for a, b in pairwise(seconds) if b > a]
    patience = max(_SILENT, _INTERVALS * statistics.median(intervals)) if intervals else 5 * _SILENT
    state = "finished" if stopped else "silent" if age > patience else "running" if step else "starting"
    left = None
    if state == "running" and steps and len(seconds) > 1 and steps_done[-1] > steps_done[0]:
        left = (seconds[-1] - seconds[0]) / (steps_done[-1] - steps_done[0]) * (steps - step)
    detector, teacher, terms = (_group(recipe, key) for key in ("detector", "teacher", "terms"))
    return RunSummary(
        name=name,
        state=state,
        why=str(stopped or ""),
        step=step,
        steps=steps,
        seconds_left=left,
        age=age,
        best=_scores(_group(metrics, "best")),
        last=_scores(_group(metrics, "last")),
        detector=" ".join(str(detector.get(key, "")) for key in ("model", "backbone")).strip(),
        teacher=str(teacher.get("name") or teacher.get("weights") or "") if teacher else "",
        terms=tuple(map(str, terms)),
    )


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the known metrics in percent."""
    values = {name: metrics.get(name) for name in _SCORES}
    return {name: 100 * value for name, value in values.items() if isinstance(value, float) and math.isfinite(value)}


def read_curves(folder: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Read a run's log of metrics: steps and values by column.

    Lines that are cut off, and cells that are not finite numbers, are left out.
    """
    curves: dict[str, tuple[list[float], list[float]]] = {}
    try:
        rows = list(csv.DictReader(_text(folder / CURVES).replace("\0", "").splitlines()))
    except csv.Error:
        return {}
    for row in rows:
        step = _number(row.get("step"))
        for name, cell in row.items():
            value = _number(cell)
            if isinstance(name, str) and name != "step" and math.isfinite(step + value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return curves


def _number(cell: object) -> float:
    """Return the number in a cell; NaN for anything else."""
    try:
        return float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return math.nan


def thinned(curve: tuple[list[float], list[float]]) -> tuple[list[float], list[float]]:
    """Return at most :data:`POINTS` points of a curve, spread evenly, the last one included."""
    steps, values = curve
    every = math.ceil(len(steps) / POINTS) or 1
    first = (len(steps) - 1) % every
    return steps[first::every], values[first::every]


def log_tail(folder: Path) -> str:
    """Return the end of a run's log."""
    path = folder / LOG
    try:
        if path.is_symlink():
            return ""
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            return file.read(TAIL).decode("utf-8", "replace")
    except OSError:
        return ""


def pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures in a run's folder by name; links are left out."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return {}
    return {path.name: path for path in files if path.suffix in PICTURES and path.is_file() and not path.is_symlink()}


def flat_settings(content: Any, path: str = "") -> dict[str, str]:
    """Flatten a recipe to text by dotted key, to compare two."""
    if isinstance(content, dict) and content:
        parts = (flat_settings(value, f"{path}.{key}" if path else str(key)) for key, value in content.items())
        return {key: value for part in parts for key, value in part.items()}
    return {path: "–" if content is None else str(content)}  # noqa: RUF001 - nothing is set
