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
from locdistill.types import Detections

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


class Measuring:
    """Evaluator of finished runs on their validation images; detections are stored in the comparison's folder."""

    def __init__(self, out: Path, data: str | Path | None, device: str | None) -> None:
        self.folder, self.data, self.device = out / "detections", data, device

    def __call__(self, arm: str, seed: int, folder: Path) -> Measured:
        """Evaluate a run; detect only if there are no stored detections.

        Raises:
            RunError: The weights do not exist.
            DataError: The images cannot be read.
        """
        finished = finished_run(arm, seed, folder)
        dataset = evaluation_images(load_recipe(folder / RECIPE), self.data)
        digest = data_digest(dataset, ordered=False)
        found = self._detections(finished.weights, self.folder / f"{arm}-{seed}.npz", digest)
        judgement = Evaluator(dataset).judge(found)
        numbers = judgement.numbers()
        metrics, classes = (
            {name: 100 * float(value[0]) for name, value in of.items()} for of in (numbers.means, numbers.classes)
        )
        return Measured(dataclasses.replace(finished, metrics=metrics), classes, judgement, digest)

    def _detections(self, weights: Path, kept: Path, images: str) -> dict[int, Detections]:
        if not weights.is_file():
            raise RunError(f"{weights} is missing; a comparison needs the weights at the end of each run")
        stamp = f"{file_digest(weights)} {images}"
        if (again := read_detections(kept, stamp)) is not None:
            return {image: one for image, (one,) in again.items()}
        overrides: list[Override] = [] if self.data is None else [(("data", "path"), str(self.data))]
        found = evaluate(weights, overrides=overrides, device=self.device).detections
        make_folder(kept.parent)
        write_detections(kept, stamp, {image: [one] for image, one in found.items()})
        return found
