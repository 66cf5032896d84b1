"""State of runs, read from their folders while they may be written, cut off or removed.

A file that is missing, half written or damaged gives less to see, never an error. Symbolic links are not followed.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from locdistill.errors import LocdistillError
from locdistill.monitor.curves import CURVES, last_rows
from locdistill.monitor.reading import read_part, shown, stamp
from locdistill.recipe.yaml_io import read_yaml

RECIPE, FACTS, LOG, METRICS = "recipe.yaml", "run.json", "log.txt", "metrics.json"
REPORT, CACHE = "report.html", "data.mdb"
PICTURES = (".png", ".jpg")
MOST_RUNS, DEEPEST, MOST_FOLDERS = 500, 6, 50_000
"""Runs that are shown, and folders below the root in which they are looked for: how deep, and how many."""
TAIL = 16_000
"""Bytes of the end of the log that are sent."""
LARGEST = 4_000_000
"""Bytes of a recipe or a ``metrics.json`` above which it is not read."""
_SILENT, _INTERVALS = 120.0, 6
"""Seconds without a sign after which a run counts as silent, or this many times the usual interval of its signs."""
_VALUES, _NESTED = 20_000, 40
"""Values in a recipe (those behind an alias counted each time) and their nesting, above which it is not shown."""
_LEFT_OUT = {"logs", "detections", "published", "__pycache__"}
_PROGRESS = re.compile(r"(?:INFO step \d{1,15}/|INFO training |INFO resuming after step \d{1,15} of )(\d{1,15})\b")
_STOPPED = re.compile(r"^\S+ \S+ ERROR stopped: (.*)", re.MULTILINE)
_MESSAGE = re.compile(r"^\d{4}-\d\d-\d\d \S+ [A-Z]+ ", re.MULTILINE)
_SCORES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class RunSummary:
    """What is known of a run.

    Attributes:
        name: Path below the root, with slashes; ``.`` for the root itself.
        state: ``starting``, ``running``, ``finished``, ``stopped`` (by a signal or an error), or ``silent`` (no sign
            for a while: killed, or waiting).
        why: Reason of the end, if it ended.
        step: Optimiser steps done.
        steps: Optimiser steps of the whole run, if known.
        seconds_left: Estimate from the last steps.
        age: Seconds since the last sign.
        best: AP, AP50 and AP75 of the best evaluation, in percent.
        last: Those of the last evaluation.
        recipe: Name of the recipe or the method.
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
    recipe: str
    detector: str
    teacher: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What is below a root, each by its name: its path with slashes.

    Attributes:
        runs: Folders of runs, the latest first.
        reports: Finished pages (of comparisons, diagnoses).
        caches: Databases of teachers' predictions.
        complete: Whether everything was looked at.
    """

    runs: dict[str, Path]
    reports: dict[str, Path]
    caches: dict[str, Path]
    complete: bool


def find(root: Path) -> Listing:
    """Find runs, pages and caches below a root."""
    latest: list[tuple[float, str, Path]] = []
    reports: dict[str, Path] = {}
    caches: dict[str, Path] = {}
    run, seen = None, 0
    for folder, files in islice(_walk(root), MOST_FOLDERS):
        seen += 1
        inside = run is not None and run in folder.parents  # what is in a run is not another run
        if not inside and RECIPE in files and (FACTS in files or CURVES in files):
            run = folder
            latest.append((_newest(folder), shown(folder, root), folder))
        if REPORT in files:
            reports[shown(folder / REPORT, root)] = folder / REPORT
        if CACHE in files:
            caches[shown(folder, root)] = folder / CACHE
    latest.sort(key=lambda run: (-run[0], run[1]))
    complete = seen < MOST_FOLDERS and len(latest) <= MOST_RUNS
    return Listing({name: folder for _, name, folder in latest[:MOST_RUNS]}, reports, caches, complete)


def _walk(folder: Path, depth: int = 0) -> Iterator[tuple[Path, set[str]]]:
    """Yield folders, each with the names of its plain files; hidden ones and links are left out."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        files = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return
    yield folder, files
    for name in below if depth < DEEPEST else ():
        if name not in _LEFT_OUT and name[0] != ".":
            yield from _walk(folder / name, depth + 1)


def _newest(folder: Path) -> float:
    """Return the time of the last sign of a run; 0 if there is none."""
    times = [0.0]
    for name in (CURVES, LOG, METRICS, FACTS, "last.ckpt"):
        try:
            times.append((folder / name).lstat().st_mtime)
        except OSError:
            continue
    return max(times)


def _text(path: Path) -> str:
    """Read a text file; empty if it cannot be read or is too large."""
    content = read_part(path, LARGEST + 1)
    return "" if len(content) > LARGEST else content.decode("utf-8", "replace")


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


def read_recipe(folder: Path) -> tuple[str, dict[str, Any]]:
    """Read a run's recipe: its text, and its plain data; empty if it cannot be read, or is of no usual size."""
    text = _text(folder / RECIPE)
    try:
        content = read_yaml(text, RECIPE)
    except (LocdistillError, ValueError):
        return text, {}
    waiting, values = [(content, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if values > _VALUES or depth > _NESTED:
            return text, {}
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(each, depth + 1) for each in inner]
    return text, content if isinstance(content, dict) else {}


def summary(name: str, folder: Path) -> RunSummary:
    """Summarise a run; what did not change since the last time is not read again."""
    age = max(time.time() - _newest(folder), 0.0)
    known, patience = _known(folder, tuple(stamp(folder / file) for file in (RECIPE, METRICS, CURVES, LOG)))
    if known.state in ("running", "starting") and age > patience:
        known = replace(known, state="silent", seconds_left=None)
    return replace(known, name=name, age=age)


@lru_cache(maxsize=MOST_RUNS)
def _known(folder: Path, _stamps: tuple[str, ...]) -> tuple[RunSummary, float]:
    """Summarise a run but for its age; return also the seconds without a sign after which it is silent."""
    metrics, (_, recipe), curves = _mapping(_text(folder / METRICS)), read_recipe(folder), last_rows(folder)
    log = log_tail(folder)
    taken, seconds = curves.get("seconds", ([], []))
    step = int(max(taken, default=0))
    totals = _PROGRESS.findall(log) or _PROGRESS.findall(read_part(folder / LOG, TAIL).decode("utf-8", "replace"))
    steps = int(totals[-1]) if totals else None
    state, why, left = "running" if step else "starting", "", math.nan
    ended = list(_STOPPED.finditer(log))
    saved = metrics.get("steps")
    if metrics.get("stopped") and not (isinstance(saved, int) and step > saved):  # it was not resumed afterwards
        state, why = "finished", str(metrics["stopped"])
    elif ended and not _MESSAGE.search(log, ended[-1].end()):
        state, why = "stopped", ended[-1][1]
    elif steps and len(taken) > 1 and taken[-1] > taken[0]:
        left = max((seconds[-1] - seconds[0]) / (taken[-1] - taken[0]) * (steps - step), 0.0)
    intervals = [b - a for a, b in pairwise(seconds) if b > a]
    patience = max(_SILENT, _INTERVALS * statistics.median(intervals)) if intervals else 5 * _SILENT
    detector, teacher, terms = (_group(recipe, key) for key in ("detector", "teacher", "terms"))
    known = RunSummary(
        name="",
        state=state,
        why=why,
        step=step,
        steps=steps,
        seconds_left=left if math.isfinite(left) else None,
        age=0.0,
        best=_scores(_group(metrics, "best")),
        last=_scores(_group(metrics, "last")),
        recipe=str(recipe.get("name") or ""),
        detector=" ".join(str(detector.get(key, "")) for key in ("model", "backbone")).strip(),
        teacher=str(teacher.get("name") or teacher.get("weights") or ""),
        terms=tuple(map(str, terms)),
    )
    return known, patience


def _scores(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the known metrics in percent."""
    values = {name: 100 * metrics[name] for name in _SCORES if isinstance(metrics.get(name), float)}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def log_tail(folder: Path) -> str:
    """Return the end of a run's log."""
    return read_part(folder / LOG, TAIL, end=True).decode("utf-8", "replace")


def pictures(folder: Path) -> dict[str, Path]:
    """Return the pictures in a run's folder by name; links are left out."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return {}
    return {shown(path, folder): path for path in files if path.suffix in PICTURES and stamp(path)}


def flat_settings(content: Any, path: str = "") -> dict[str, str]:
    """Flatten a recipe to text by dotted key, to compare two."""
    if isinstance(content, dict) and content:
        parts = (flat_settings(value, f"{path}.{key}" if path else str(key)) for key, value in content.items())
        return {key: value for part in parts for key, value in part.items()}
    return {path: "–" if content is None else str(content)}  # noqa: RUF001 - nothing is set
