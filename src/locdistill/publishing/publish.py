"""Publication of a run: the student's weights under a name with a checksum, a model card and the recipe.

The files reveal nothing about the training machine: data set and teacher appear by name and digest, paths are cut to
their last part. The metadata of the weights file record the training, under ``extra``::

    {"recipe": {...}, "which": "best", "metrics": {"epoch": 12, "AP": 0.4, ...}, "finished": true,
     "started": "2026-01-31T09:00:00+0000", "versions": {...}, "data": {"val": {"name": ..., "images": ..., ...}, ...},
     "start": {"weights": ..., "sha256": ...}}

The record depends on the run alone, so publishing a run twice gives the same file. An evaluation made while publishing
appears in the card only.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from locdistill.distillation.settings import EMA
from locdistill.errors import RunError, WeightsError
from locdistill.files import file_digest, make_folder, write_text
from locdistill.inference.evaluate import evaluate
from locdistill.models import weights as files
from locdistill.models.checksum import split_checksum
from locdistill.models.detector import Detector
from locdistill.models.foreign import is_foreign
from locdistill.models.hub import is_address
from locdistill.models.settings import DetectorSettings
from locdistill.publishing.card import Card
from locdistill.recipe.load import build_recipe, dump_recipe, load_recipe
from locdistill.recipe.recipe import OF_TEACHER, Recipe
from locdistill.recipe.run_folder import METRICS, RECIPE, read_facts
from locdistill.types import Progress

BEST, LAST = "best", "last"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
# Two or more parts, so that "and/or" and "1333/800" stay; no match after a word, a scheme (https://) or a host.
_PATH_IN_TEXT = re.compile(r"(?<![\w.:])(?<!:/)(?:file:/{1,3}|~|[A-Za-z]:)?(?:[/\\][^\s/\\,;:'\")]+){2,}")
_WHOLE_PATH = re.compile(r"(~?[/\\]|[A-Za-z]:[/\\]).*", re.DOTALL)
PUBLISHED = "published"
"""Subfolder of a run folder for its published files."""


@dataclass(frozen=True)
class PublishedModel:
    """Files of a published model.

    Attributes:
        weights: ``NAME-<first 8 digits of its SHA-256>.safetensors``, readable by :meth:`locdistill.Detector.load`.
        card: Model card, in Markdown.
        recipe: Resolved recipe without paths; None if no recipe is recorded.
        sha256: SHA-256 of the weights file.
        notes: Warnings about missing or unusual parts.
    """

    weights: Path
    card: Path
    recipe: Path | None
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A weights file and its run folder, if any."""

    file: Path
    run: Path | None


def publish(
    run: str | Path,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    which: str = BEST,
    license: str | None = None,
    evaluate_on: bool | str | Path = False,
    progress: Progress | None = None,
) -> PublishedModel:
    """Write the weights of a run's student to a file for publication, with a model card and the recipe beside it.

    The file holds the detector alone, as it was evaluated: the running average if the run kept one
    (``engine.ema``). It holds no teacher, no optimiser state and no paths.

    Args:
        run: Run folder, or a weights file, for which the card has fewer facts.
        out: Folder for the files. Default: ``published`` in the run folder, or the folder of the weights file.
        name: Name of the model. Default: the name of the recipe for a run, of the file for a weights file.
        which: Weights of a run folder to publish, ``best`` or ``last``.
        license: The hub's identifier of the license, such as ``apache-2.0``. Default: the card states no license.
        evaluate_on: Data for an evaluation that adds tables by class to the card: True for the run's own data, or the
            folder of a data set. Default: no evaluation.
        progress: Progress display of the evaluation.

    Raises:
        WeightsError: The weights are missing or damaged.
        RunError: The name is not valid, or ``out`` cannot be written to.
        LocdistillError: The weights cannot be evaluated; a subclass for each cause.
    """
    source = _find(Path(run), which)
    detector = Detector.load(source.file)
    record, recipe, notes = _record(source)
    title = _title(name, source, recipe, detector.settings)
    folder = Path(out) if out is not None else source.run / PUBLISHED if source.run else source.file.parent
    evaluation = (
        None
        if evaluate_on is False
        else evaluate(source.file, None if evaluate_on is True else evaluate_on, progress=progress)
    )
    settings = without_paths(detector.settings.model_dump(mode="json"))
    settings["pretrained"] = _name_alone(detector.settings.pretrained)
    make_folder(folder)
    path, sha256 = _write(folder, title, detector, settings, record)
    card = Card(
        file=path.name,
        sha256=sha256,
        settings=DetectorSettings.model_validate(settings),
        parameters=sum(parameter.numel() for parameter in detector.parameters()),
        record=record,
        license=license,
        evaluation=evaluation,
        notes=notes,
    )
    recipe_file = None
    if recipe is not None:
        recipe_file = path.with_suffix(".yaml")
        write_text(recipe_file, dump_recipe(recipe))
    write_text(path.with_suffix(".md"), card.text())
    return PublishedModel(path, path.with_suffix(".md"), recipe_file, sha256, notes)


def _find(path: Path, which: str) -> _Source:
    """Find the weights file of a path, and its run.

    Raises:
        WeightsError: There are no such weights.
        RunError: ``which`` is neither ``best`` nor ``last``.
    """
    if which not in (BEST, LAST):
        raise RunError(f"--which: expected {BEST} or {LAST}, came {which!r}")
    if not path.is_dir():
        file = files.locate(path)
        is_run = (file.parent / RECIPE).is_file() and file.stem in (BEST, LAST)
        return _Source(file, file.parent if is_run else None)
    file, is_run = path / f"{which}{files.SUFFIX}", (path / RECIPE).is_file()
    if file.is_file():
        return _Source(file, path if is_run else None)
    if not is_run:
        raise WeightsError(
            f"{path} is not a run folder: it has no {RECIPE} and no {file.name}; pass a run folder or a file"
        )
    other = LAST if which == BEST else BEST
    if (path / f"{other}{files.SUFFIX}").is_file():
        raise WeightsError(f"{path}: the run has no {which} weights; publish its {other} weights with --which {other}")
    raise WeightsError(f"{path}: the run has saved no weights yet; publish it after its first evaluation")


def _record(source: _Source) -> tuple[dict[str, Any], Recipe | None, tuple[str, ...]]:
    """Return the record of the training without paths, the recipe, and notes about missing parts."""
    if source.run is None:
        extra = {} if is_foreign(source.file) else files.read_metadata(source.file).get("extra") or {}
        if "recipe" not in extra:
            unknown = "These weights come without their run: their training is not recorded."
            return without_paths(extra), None, (unknown,)
        recipe = shareable(build_recipe(extra["recipe"], str(source.file)))
        return without_paths(extra | {"recipe": recipe.model_dump(mode="json")}), recipe, ()
    recipe = shareable(load_recipe(source.run / RECIPE))
    facts, metrics = read_facts(source.run), _metrics(source.run)
    which = source.file.stem
    numbers, start = metrics.get(which), facts.get("start")
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "which": which,
        "metrics": numbers,
        "finished": bool(metrics.get("stopped")),
        "started": facts.get("started"),
        "versions": facts.get("versions", {}),
        "data": facts.get("data", {}),
        "start": start | {"weights": _name_alone(start["weights"])} if start else None,
    }
    if scores := files.read_thresholds(source.file):
        record[files.THRESHOLDS] = scores
    notes = []
    if not record["finished"]:
        notes.append("The run had not ended when this was published; its numbers are those of its last checkpoint.")
    if not numbers:
        notes.append("The run has no evaluation of these weights.")
    return without_paths(record), recipe, tuple(notes)


def _metrics(run: Path) -> dict[str, Any]:
    """Read ``metrics.json``; return an empty dictionary if the file does not exist yet.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        content = json.loads((run / METRICS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{run / METRICS}: cannot be read ({error}); is this a run folder?") from error
    return dict(content)


def shareable(recipe: Recipe) -> Recipe:
    """Return a recipe without paths.

    Data, teacher and cache are then given on the command line, as for the package's own recipes.
    The address of a teacher on a hub is public and stays. For initial weights of the student or its backbone, the file
    name stays, so that the recipe differs from one without initial weights.
    """
    plain = without_paths(recipe.model_dump(mode="json"))
    plain["data"]["path"] = ""
    plain["detector"]["pretrained"] = _name_alone(recipe.detector.pretrained)
    if recipe.teacher is not None:
        plain["teacher"]["cache"] = None
        for other in (plain["teacher"], *plain["teacher"]["more"]):
            there = other["weights"] is None or other["weights"] == EMA or is_address(other["weights"])
            other["weights"] = other["weights"] if there else None
    if recipe.start not in (None, OF_TEACHER):
        name = _name_alone(recipe.start)
        plain["start"] = name if is_address(name) else f"./{name}"  # such as ./teacher, which is a folder
    return build_recipe(plain, "the recipe without paths")


def _name_alone(file: Any) -> Any:
    """Cut a path to its file name; return a hub address, or anything but a string, unchanged."""
    return PureWindowsPath(file).name if isinstance(file, str) and not is_address(file) else file


def without_paths(value: Any) -> Any:
    """Cut every absolute path in plain data to its last part; class names stay unchanged."""
    if isinstance(value, dict):
        return {key: item if key == "classes" else without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if _WHOLE_PATH.fullmatch(value):
        return PureWindowsPath(value).name
    return _PATH_IN_TEXT.sub(lambda found: PureWindowsPath(found[0]).name, value)


def _title(name: str | None, source: _Source, recipe: Recipe | None, settings: DetectorSettings) -> str:
    """Return the name of the model, without checksum.

    Raises:
        RunError: The given name is not valid as a file name.
    """
    if name is not None:
        if not _NAME.fullmatch(name):
            raise RunError(f"{name!r} is not a valid name; expected letters, digits and . _ + -, such as r18-coco")
        return name
    own = split_checksum(source.file.stem)[0]
    if source.run is None and own not in (BEST, LAST):
        return re.sub(r"[^A-Za-z0-9._+-]+", "_", own).lstrip("._+-") or settings.model
    if recipe is not None:
        return recipe.name
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", f"{settings.model}_{settings.backbone}")


def _write(
    folder: Path, name: str, detector: Detector, settings: dict[str, Any], record: dict[str, Any]
) -> tuple[Path, str]:
    """Write the weights to a file named by its checksum; return the path and the SHA-256.

    Raises:
        RunError: The folder cannot be written to.
    """
    try:
        with TemporaryDirectory(prefix=f".{name}.", dir=folder) as beside:
            part = files.write(
                Path(beside) / f"{name}{files.SUFFIX}", detector.state_dict(), settings=settings, extra=record
            )
            sha256 = file_digest(part)
            path = folder / f"{name}-{sha256[:8]}{files.SUFFIX}"
            os.replace(part, path)
    except (OSError, WeightsError) as error:
        cause = error.__cause__ or error  # the message of `write` names a temporary file
        reason = getattr(cause, "strerror", None) or cause
        raise RunError(f"{folder} cannot be written to ({reason}); pass another folder") from error
    return path, sha256
