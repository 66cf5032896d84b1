"""Detection in image files with trained weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locdistill.annotations.files import images_below
from locdistill.engine.devices import default_device, existing_device
from locdistill.errors import ImageError, RunError
from locdistill.evaluation.curves import DEFAULT_SCORE, minimum_scores
from locdistill.evaluation.results import rounded
from locdistill.files import make_folder, write_text
from locdistill.images import ImageSource, read_image
from locdistill.inference.evaluate import adjusted
from locdistill.models.detector import Detector
from locdistill.models.hub import find
from locdistill.models.weights import read_thresholds
from locdistill.recipe.load import Override
from locdistill.types import Detections, Doubles, Progress
from locdistill.viz.draw import draw_detections


@dataclass(frozen=True)
class Prediction:
    """The detections in one image.

    Attributes:
        path: The image file.
        height: Height in pixels.
        width: Width in pixels.
        detections: Detections with a score of at least the threshold.
        classes: Class names by label.
        picture: The drawn picture, if saved.
    """

    path: Path
    height: int
    width: int
    detections: Detections
    classes: tuple[str, ...] = field(repr=False)
    picture: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        detections = [
            {"class": self.classes[label], "label": label, "score": round(score, 5), "box": rounded(box)}
            for box, score, label in zip(*(value.tolist() for value in self.detections), strict=True)
        ]
        return {
            "image": str(self.path),
            "width": self.width,
            "height": self.height,
            "detections": detections,
        }


class PartialImageError(ImageError):
    """Error for unreadable images after detection in the others.

    Attributes:
        found: The predictions for the readable images.
    """

    def __init__(self, message: str, found: list[Prediction]) -> None:
        super().__init__(message)
        self.found = found


def predict(
    weights: str | Path | Detector,
    images: str | Path | Iterable[str | Path],
    *,
    save: str | Path | None = None,
    threshold: float | None = None,
    batch: int = 8,
    device: str | None = None,
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
) -> list[Prediction]:
    """Detect objects in image files.

    Args:
        weights: A weights file, a run folder, ``run/best``, or a detector in memory.
        images: Files, or folders to search for images.
        save: Folder for the drawn pictures and ``predictions.json``.
        threshold: Minimum score to report and draw; if it is below the detector's own
            ``detections.score_threshold``, it replaces it. Default: for each class the score with the best F1 on the
            validation images, where the weights file has it, else 0.3.
        batch: Images per batch.
        device: Device such as ``cuda:0``; by default a GPU if available. A detector in memory keeps its device.
        overrides: Settings of ``input`` and ``detections``, as in `evaluate`; a detector in memory keeps its own.
        progress: Progress display.

    Raises:
        WeightsError: The weights cannot be read.
        RecipeError: An override is wrong.
        ImageError: A named file or folder does not exist; raised before any detection.
        PartialImageError: Some images could not be decoded; the others are done, and saved with ``save``.
        RunError: There is no such device, a drawn picture would replace one of the images, or ``save`` cannot be
            written to.
    """
    files = list_images(images)
    if isinstance(weights, Detector):
        detector = weights
    else:
        detector = Detector.load(find(weights), existing_device(device or default_device()))
    own = detector.settings
    settings, _ = adjusted(own, overrides)
    minimum = default_scores(weights) if threshold is None else {}
    scores = minimum_scores(own.classes, minimum, DEFAULT_SCORE if threshold is None else threshold)
    shown_from = float(scores.min(initial=1.0))
    lowest = min(shown_from, settings.detections.score_threshold)
    detections = settings.detections.model_copy(update={"score_threshold": lowest})
    targets = _targets(files, Path(save)) if save is not None else {}
    if save is not None:
        make_folder(Path(save))
    chunks: Iterable[list[Path]] = [[f for f, _ in files[i : i + batch]] for i in range(0, len(files), batch)]
    if progress is not None:
        chunks = progress(chunks, -(-len(files) // batch))
    unreadable: list[ImageError] = []
    detector.settings = settings.model_copy(update={"detections": detections})
    try:
        found = [p for chunk in chunks for p in _predict_some(detector, chunk, scores, targets, unreadable)]
    finally:
        detector.settings = own
    if save is not None:
        content: dict[str, Any] = {
            "weights": None if isinstance(weights, Detector) else str(weights),
            "threshold": shown_from,
            **({"thresholds": minimum} if minimum else {}),
            "classes": list(detector.settings.classes),
            "images": [prediction.as_dict() for prediction in found],
        }
        write_text(Path(save) / "predictions.json", json.dumps(content, indent=1) + "\n")
    if unreadable:
        raise PartialImageError(
            _listed(f"{len(found)} of {len(files)} images are done, the others cannot be read", unreadable), found
        )
    return found


def default_scores(weights: str | Path | Detector) -> dict[str, float]:
    """Return the minimum score of each class that a weights file has; empty for a detector in memory."""
    return {} if isinstance(weights, Detector) else read_thresholds(find(weights))


def _predict_some(
    detector: Detector, files: list[Path], scores: Doubles, targets: dict[Path, Path], unreadable: list[ImageError]
) -> Iterator[Prediction]:
    """Yield predictions of the readable images with the classes' minimum scores; add errors to ``unreadable``."""
    pictures: dict[Path, Tensor] = {}
    for file in files:
        try:
            pictures[file] = read_image(file, bits=detector.settings.input.bits)
        except ImageError as error:
            unreadable.append(error)
    sources: list[ImageSource] = list(pictures.values())
    classes = detector.settings.classes
    for (file, picture), all_found in zip(pictures.items(), detector.detect(sources, batch=len(files)), strict=True):
        found = Detections(*(value.cpu() for value in all_found))
        kept = found.scores >= torch.from_numpy(scores).float()[found.labels]
        found = Detections(*(value[kept] for value in found))
        target = targets.get(file)
        if target is not None:
            make_folder(target.parent)
            draw_detections(picture, found, classes=classes, threshold=0.0).save(target)
        yield Prediction(file, picture.shape[-2], picture.shape[-1], found, classes, target)


def list_images(images: str | Path | Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """List image files, each once, with the name to save it under: its path relative to the given folder.

    Raises:
        ImageError: Paths do not exist, or folders contain no image; the message lists all.
    """
    problems: list[str] = []
    given = [images] if isinstance(images, str | Path) else list(images)
    files: dict[Path, Path] = {}
    for item in map(Path, given):
        if item.is_dir():
            below = images_below(item)
            if not below:
                problems.append(f"{item}: no image in this folder")
            files |= {file: file.relative_to(item) for file in below if file not in files}
        elif item.is_file():
            files.setdefault(item, Path(item.name))
        else:
            problems.append(f"{item}: no such file or folder")
    if problems:
        raise ImageError(_listed("nothing was done", problems) if len(problems) > 1 else problems[0])
    if not files:
        raise ImageError("no images given; name files or folders")
    return list(files.items())


def _listed(heading: str, problems: Sequence[object]) -> str:
    return "\n  ".join([f"{heading}:", *map(str, problems)])


def _targets(files: list[tuple[Path, Path]], save: Path) -> dict[Path, Path]:
    """Choose the file of each drawn picture: JPEG for JPEG, PNG for the rest, numbered if names coincide."""
    inputs = {file.resolve() for file, _ in files}
    taken: set[Path] = set()
    targets = {}
    for file, name in files:
        suffix = file.suffix if file.suffix.lower() in (".jpg", ".jpeg", ".png") else ".png"
        target, number = (save / name).with_suffix(suffix), 1
        while target in taken:
            number += 1
            target = (save / name).with_name(f"{name.stem}-{number}{suffix}")
        if target.resolve() in inputs:
            raise RunError(f"{target} is one of the images and would be replaced by its drawing; choose another folder")
        taken.add(target)
        targets[file] = target
    return targets
