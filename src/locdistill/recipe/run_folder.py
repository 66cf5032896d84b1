"""The folder of a run: never overwritten, and complete enough to document and repeat the run."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from locdistill.data.digest import data_digest
from locdistill.data.records import Dataset
from locdistill.dist import process_rank
from locdistill.engine.devices import device_name
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError
from locdistill.files import make_folder, write_text, writing
from locdistill.recipe.load import dump_recipe, load_recipe
from locdistill.recipe.recipe import Recipe

RECIPE, FACTS, LOG, METRICS = "recipe.yaml", "run.json", "log.txt", "metrics.json"
PARENT = Path("runs")
_ENV = "LOCDISTILL_OUT"
log = logging.getLogger("locdistill")


def new_folder(out: str | Path | None, name: str) -> Path:
    """Choose the folder of a new run: ``out``, which must be empty or absent, or ``runs/<name>``, ``<name>-2``, ...

    Processes other than the first of a run use the first one's choice.

    Raises:
        RunError: The folder is in use or cannot be made, or several processes were started without ``out``.
    """
    known = out or os.environ.get(_ENV)
    started_together = int(os.environ.get("WORLD_SIZE", "1")) > 1  # by torchrun: none of them is the first to choose
    if known is None and (process_rank() > 0 or started_together):
        raise RunError("no run folder given for several processes; pass one with --out DIR")
    if process_rank() > 0:
        return Path(str(known))
    with writing(Path(out) if out is not None else PARENT / name):
        path = Path(out) if out is not None else PARENT / name
        number = 1
        while out is None and path.exists():
            number += 1
            path = PARENT / f"{name}-{number}"
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            hint = f"'--resume --out {path}' continues it; " if (path / RECIPE).is_file() else ""
            raise RunError(f"{path} exists already and is not overwritten; {hint}pass another folder with --out DIR")
        # check that the folder could be made, without making it: a run that fails early leaves nothing behind
        above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not above.is_dir():
            raise RunError(f"{path} cannot be created: {above} is a file; pass another folder")
        if not os.access(above, os.W_OK | os.X_OK):
            raise RunError(f"{path} cannot be written to: {above} is not writable; pass another folder")
    return path


def announce(path: Path) -> None:
    """Pass the run folder to the processes that this one starts."""
    os.environ[_ENV] = str(path.resolve())


def saved_recipe(path: str | Path | None) -> Recipe:
    """Load the recipe of a run to resume.

    Raises:
        RunError: No folder is given, or it contains no run.
    """
    if path is None:
        raise RunError("no run to resume given; pass its folder: --resume --out DIR")
    if not (Path(path) / RECIPE).is_file():
        raise RunError(f"{path} holds no run to resume: it has no {RECIPE}; leave out --resume to start a new run")
    return load_recipe(Path(path) / RECIPE)


def write_start(path: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write the resolved recipe and the facts of the run.

    Raises:
        RunError: The folder cannot be made or written to.
    """
    make_folder(path)
    with writing(path):
        write_text(path / RECIPE, dump_recipe(recipe))
        write_text(path / FACTS, json.dumps(facts, indent=2) + "\n")


def read_facts(path: Path) -> dict[str, Any]:
    """Read the facts written at the start of the run; empty if they cannot be read."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def facts_of(datasets: dict[str, Dataset], engine: EngineSettings | None = None) -> dict[str, Any]:
    """Collect the facts of a run besides the recipe: versions, device, and the data that a resumed run must match.

    Args:
        datasets: Data sets by split.
        engine: Engine settings, which determine the device; by default it is chosen automatically.
    """
    versions = dict.fromkeys(("locdistill", "torch", "torchvision", "timm", "lightning-fabric"), "unknown")
    for package in versions:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"job": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}),
        "versions": {"python": platform.python_version(), **versions},
        "device": device_name(engine or EngineSettings()),
        "data": {
            split: {"name": data.name, "images": len(data), "sha256": data_digest(data)}
            for split, data in datasets.items()
        },
    }


def runs_of_job(prefix: str) -> list[Path]:
    """Return folders of runs that this SLURM job started under automatic names, the first one first.

    Args:
        prefix: Prefix of their names.
    """
    found = [path.parent for path in PARENT.glob(f"{prefix}*/{FACTS}")]
    job = os.environ.get("SLURM_JOB_ID")
    return sorted(
        (path for path in found if read_facts(path).get("job") == job), key=lambda path: (len(path.name), path.name)
    )


def check_unchanged(path: Path, now: dict[str, Any]) -> None:
    """Check that the data are the same as at the start of a run.

    Raises:
        RunError: A split has changed since the start of the run.
    """
    before = read_facts(path).get("data", {})
    for split, facts in now["data"].items():
        known = before.get(split, {}).get("sha256")
        if known is not None and known != facts["sha256"]:
            raise RunError(
                f"{path}: the {split} data have changed since the run began ({before[split].get('images')} images "
                f"then, {facts['images']} now, or other boxes); restore them, or start a new run"
            )


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Copy the package's log messages to ``log.txt`` while the run lasts; only in the first process."""
    if process_rank() > 0:
        yield
        return
    handler = logging.FileHandler(path / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    level = log.level
    log.addHandler(handler)
    if log.getEffectiveLevel() > logging.INFO:
        log.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        log.error("stopped: %s: %s", type(error).__name__, error)
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()


_STARTED = frozenset(
    {RECIPE, FACTS, LOG, "preflight.txt", "preflight.json", "metrics.csv", "train_batch.png", "labels.png"}
)
"""Files that a run writes before its first checkpoint, besides the events of TensorBoard in ``logs``."""


def clear_start(path: Path) -> None:
    """Remove the files of a run that stopped before its first checkpoint, and nothing else.

    Raises:
        RunError: The folder has other content.
    """
    if not path.exists():
        return
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    foreign = [entry for entry in found if not _of_start(entry, path)]
    if foreign:
        raise RunError(
            f"{path} is in use: {foreign[0]} does not belong to a run that can be restarted; move it, or pass another "
            "folder with --out"
        )
    for entry in reversed(found):
        entry.rmdir() if entry.is_dir() else entry.unlink()


def _of_start(entry: Path, path: Path) -> bool:
    """Return whether a run writes this file or folder, or its partial file, before its first checkpoint."""
    name, place = entry.name, entry.relative_to(path).parts[:-1]
    if entry.is_symlink() or (entry.is_dir() and (name, place) != ("logs", ())):
        return False
    if place == ("logs",):
        return name.startswith("events.out.tfevents.")
    return place == () and (
        name in _STARTED | {"logs"} or (name[:1] == "." and any(known in name for known in _STARTED))
    )
