"""Finished runs on the images they are compared on: what they detect there, kept, and judged."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from locdistill.data.open import class_names, open_dataset
from locdistill.data.records import Dataset
from locdistill.errors import RunError
from locdistill.evaluation.evaluator import Evaluator
from locdistill.recipes.comparison import Measured
from locdistill.recipes.folder import RECIPE, file_digest, make_folder
from locdistill.recipes.load import Override, load_recipe
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.trial import finished_run
from locdistill.recipes.use import evaluate
from locdistill.types import Detections

Measure = Callable[[str, int, Path], Measured]
"""Measures the finished run of an arm and a seed in a folder."""


def evaluation_images(recipe: Recipe, data: str | Path | None) -> Dataset:
    """What a run of a recipe is evaluated on.

    Raises:
        DataError: It cannot be read.
    """
    settings = recipe.data if data is None else recipe.data.model_copy(update={"path": str(data)})
    classes = recipe.detector.classes or settings.classes or class_names(settings, "train")
    return open_dataset(settings.model_copy(update={"classes": classes}), "val", training=False)


def digest_of(dataset: Dataset) -> str:
    """Digest of images and objects, in whatever order classes and images come."""
    lines = []
    for record in dataset.records:
        objects = sorted(
            f"{dataset.classes[label]} {box} {ignored}"
            for box, label, ignored in zip(
                record.boxes.tolist(), record.labels.tolist(), record.ignored.tolist(), strict=True
            )
        )
        lines.append(f"{record.image_id} {record.path.name} {record.width} {record.height} {objects}")
    return hashlib.sha256("\n".join([*sorted(dataset.classes), *sorted(lines)]).encode()).hexdigest()


class Measuring:
    """Lets finished runs detect on their validation images; what was detected is kept in the comparison's folder."""

    def __init__(self, out: Path, data: str | Path | None, device: str | None) -> None:
        self.folder, self.data, self.device = out / "detections", data, device

    def __call__(self, arm: str, seed: int, folder: Path) -> Measured:
        """Measure a run; it detects only if that was not kept.

        Raises:
            RunError: Its weights are not there.
            DataError: Its images cannot be read.
        """
        finished = finished_run(arm, seed, folder)
        dataset = evaluation_images(load_recipe(folder / RECIPE), self.data)
        digest = digest_of(dataset)
        found = self._detections(finished.weights, self.folder / f"{arm}-{seed}.npz", digest)
        evaluator = Evaluator(dataset)
        judgement = evaluator.judge(found)
        numbers = judgement.numbers()
        metrics = finished.metrics | {
            name: 100 * value for name, value in evaluator(found).items() if name.startswith("AP")
        }
        classes = {name: 100 * float(value[0]) for name, value in numbers.classes.items()}
        return Measured(dataclasses.replace(finished, metrics=metrics), classes, judgement, digest)

    def _detections(self, weights: Path, kept: Path, images: str) -> dict[int, Detections]:
        if not weights.is_file():
            raise RunError(f"{weights} is not there; a finished run has it, and its weights at the end are compared")
        stamp = f"{file_digest(weights)} {images}"
        if (found := read_detections(kept, stamp)) is not None:
            return found
        overrides: list[Override] = [] if self.data is None else [(("data", "path"), str(self.data))]
        found = evaluate(weights, overrides=overrides, device=self.device).detections
        make_folder(kept.parent)
        write_detections(kept, stamp, found)
        return found


def write_detections(path: Path, stamp: str, found: Mapping[int, Detections]) -> None:
    """Keep detections, with a stamp of what they were made with and on; the file appears whole or not at all."""
    counts = [len(here.scores) for here in found.values()]
    parts = [torch.cat([here[i] for here in found.values()]).numpy() for i in range(3)]
    content: dict[str, Any] = dict(zip(("boxes", "scores", "labels"), parts, strict=True))
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, stamp=np.array(stamp), images=list(found), counts=counts, **content)
    unfinished.replace(path)


def read_detections(path: Path, stamp: str) -> dict[int, Detections] | None:
    """What was detected with these weights on these images; None where that is not there."""
    if not path.is_file():
        return None
    with np.load(path) as kept:
        if str(kept["stamp"]) != stamp:
            return None
        counts = kept["counts"].tolist()
        parts = [torch.split(torch.from_numpy(kept[name]), counts) for name in ("boxes", "scores", "labels")]
        return {image: Detections(*here) for image, *here in zip(kept["images"].tolist(), *parts, strict=True)}
