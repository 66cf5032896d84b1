"""Evaluation of finished runs on the images of a comparison, with stored detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from locdistill.data.digest import data_digest
from locdistill.data.open import class_names, open_dataset
from locdistill.data.records import Dataset
from locdistill.errors import RunError
from locdistill.evaluation.detections_file import read_detections, write_detections
from locdistill.evaluation.evaluator import Evaluator
from locdistill.files import file_digest, make_folder
from locdistill.inference.evaluate import evaluate
from locdistill.recipe.load import Override, load_recipe
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.run_folder import RECIPE
from locdistill.study.arms import finished_run
from locdistill.study.compare.result import Measured

Measure = Callable[[str, int, Path], Measured]
"""Function that evaluates the finished run of an arm and a seed in a folder."""


def evaluation_images(recipe: Recipe, data: str | Path | None) -> Dataset:
    """Open the evaluation images of a recipe.

    Raises:
        DataError: The data cannot be read.
    """
    settings = recipe.data if data is None else recipe.data.model_copy(update={"path": str(data)})
    classes = recipe.detector.classes or settings.classes or class_names(settings, "train")
    return open_dataset(settings.model_copy(update={"classes": classes}), "val", training=False, boxes=recipe.detector)


def measured_run(
    arm: str, seed: int, folder: Path, *, kept: Path, data: str | Path | None, device: str | None
) -> Measured:
    """Evaluate a finished run on its validation images; detect only if there are no stored detections.

    Args:
        arm: Name of the run's arm.
        seed: Seed of the run.
        folder: Run folder.
        kept: Folder of stored detections.
        data: Present path of the data set, if it differs from the recipe's.
        device: Device, such as ``cuda:0``. Default: a GPU if there is one.

    Raises:
        RunError: The weights do not exist.
        DataError: The images cannot be read.
    """
    finished = finished_run(arm, seed, folder)
    dataset = evaluation_images(load_recipe(folder / RECIPE), data)
    digest = data_digest(dataset, ordered=False)
    weights, file = finished.weights, kept / f"{arm}-{seed}.npz"
    if not weights.is_file():
        raise RunError(f"{weights} is missing; a comparison needs the weights at the end of each run")
    stamp = f"{file_digest(weights)} {digest}"
    if (again := read_detections(file, stamp)) is not None:
        found = {image: one for image, (one,) in again.items()}
    else:
        overrides: list[Override] = [] if data is None else [(("data", "path"), str(data))]
        found = evaluate(weights, overrides=overrides, device=device).detections
        make_folder(kept)
        write_detections(file, stamp, {image: [one] for image, one in found.items()})
    judgement = Evaluator(dataset).judge(found)
    numbers = judgement.numbers()
    metrics, classes = (
        {name: 100 * float(value[0]) for name, value in of.items()} for of in (numbers.means, numbers.classes)
    )
    return Measured(dataclasses.replace(finished, metrics=metrics), classes, judgement, digest)
