"""Detection in pictures, videos and streams with trained weights."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from locdistill.engine.devices import default_device, existing_device
from locdistill.engine.signals import StopSignals
from locdistill.errors import ImageError, RecipeError, RunInterrupted
from locdistill.evaluation.curves import DEFAULT_SCORE, minimum_scores
from locdistill.files import make_folder
from locdistill.inference.evaluate import adjusted
from locdistill.inference.inputs import Frame, Input, VideoInput, frames, inputs, listed
from locdistill.inference.prediction import Prediction
from locdistill.inference.saving import WRITERS, Drawings, targets, write_predictions
from locdistill.inference.tiles import detect_in_tiles
from locdistill.models.detector import Detector
from locdistill.models.exported import open_detector, stored_scores
from locdistill.models.hub import find
from locdistill.recipe.load import Override
from locdistill.types import Detections, Doubles, Progress

log = logging.getLogger("locdistill")


class PartialImageError(ImageError):
    """Error for unreadable pictures after detection in the others.

    Attributes:
        found: The predictions for the readable pictures.
    """

    def __init__(self, message: str, found: list[Prediction]) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class _FrameDetector:
    """A detector with the minimum scores of its classes; see `predict` for the rest."""

    detector: Detector
    scores: Doubles
    batch: int
    tiles: tuple[int, int] | None

    @classmethod
    def of(
        cls,
        weights: str | Path | Detector,
        threshold: float | None,
        device: str | None,
        overrides: Sequence[Override],
        *,
        batch: int,
        tiles: int | tuple[int, int] | None,
    ) -> _FrameDetector:
        """Load the detector, with its settings adjusted; a detector in memory is not changed."""
        if isinstance(weights, Detector):
            detector = copy.copy(weights)  # the same modules and weights
        else:
            detector = open_detector(find(weights), existing_device(device or default_device()))
        own = detector.settings
        settings, _ = adjusted(own, overrides)
        minimum = default_scores(weights) if threshold is None else {}
        scores = minimum_scores(own.classes, minimum, DEFAULT_SCORE if threshold is None else threshold)
        lowest = min(float(scores.min(initial=1.0)), settings.detections.score_threshold)
        shown = settings.detections.model_copy(update={"score_threshold": lowest})
        detector.settings = settings.model_copy(update={"detections": shown})
        cut = (tiles, tiles // 5) if isinstance(tiles, int) else tiles
        if cut is not None and not 0 <= cut[1] < cut[0]:
            raise RecipeError(f"tiles of {cut[0]} pixels cannot overlap by {cut[1]}; expected 0 to {cut[0] - 1}")
        return cls(detector, scores, batch, cut)

    def predictions(
        self, items: Iterable[Frame | ImageError], unreadable: Callable[[ImageError], None]
    ) -> Iterator[tuple[Frame, Prediction]]:
        """Yield each readable picture with its prediction; pass the errors of the others on."""
        waiting: list[Frame] = []
        for item in items:
            if isinstance(item, ImageError):
                unreadable(item)
                continue
            waiting.append(item)
            if len(waiting) == self.batch or item.live:
                yield from self._detected(waiting)
                waiting = []
        if waiting:
            yield from self._detected(waiting)

    def _detected(self, waiting: list[Frame]) -> Iterator[tuple[Frame, Prediction]]:
        pixels = [frame.pixels for frame in waiting]
        if self.tiles is None:
            found = self.detector.detect(pixels, batch=self.batch)
        else:
            found = [detect_in_tiles(self.detector, image, *self.tiles, batch=self.batch) for image in pixels]
        scores = torch.from_numpy(self.scores).float()
        for frame, everything in zip(waiting, found, strict=True):
            here = Detections(*(value.cpu() for value in everything))
            kept = here.scores >= scores[here.labels]
            here = Detections(*(value[kept] for value in here))
            height, width = frame.pixels.shape[-2:]
            classes, bits = self.detector.settings.classes, self.detector.settings.input.bits
            yield (
                frame,
                Prediction(
                    frame.source,
                    height,
                    width,
                    here,
                    classes,
                    number=frame.number,
                    seconds=frame.seconds,
                    bits=bits,
                ),
            )


def stream(
    weights: str | Path | Detector,
    images: str | Path | Iterable[str | Path],
    *,
    threshold: float | None = None,
    batch: int = 8,
    tiles: int | tuple[int, int] | None = None,
    every: int = 1,
    device: str | None = None,
    overrides: Sequence[Override] = (),
) -> Iterator[Prediction]:
    """Detect objects in pictures, videos or streams of any length, one prediction after the other; none is kept.

    Pictures and frames that cannot be read are left out, with a warning in the log. The arguments and errors are those
    of `predict`; files that do not exist are reported at once, before the first prediction is asked for.
    """
    found = inputs(images, every=every)
    predictor = _FrameDetector.of(weights, threshold, device, overrides, batch=batch, tiles=tiles)
    items = frames(found, bits=predictor.detector.settings.input.bits)

    def warn(error: ImageError) -> None:
        log.warning("%s", error)

    pairs = predictor.predictions(items, warn)
    return (replace(prediction, pixels=frame.pixels) for frame, prediction in pairs)


def predict(  # noqa: PLR0913 - one parameter per option
    weights: str | Path | Detector,
    images: str | Path | Iterable[str | Path],
    *,
    save: str | Path | None = None,
    formats: Sequence[str] = (),
    threshold: float | None = None,
    batch: int = 8,
    tiles: int | tuple[int, int] | None = None,
    every: int = 1,
    device: str | None = None,
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
) -> list[Prediction]:
    """Detect objects in pictures and videos.

    Reading, drawing and encoding run in threads beside the network. SIGINT and SIGTERM end the detection after the
    present batch; what was found until then is written, and videos can be played.

    Args:
        weights: A weights file, a run folder, ``run/best``, or a detector in memory.
        images: Files, folders to search, patterns, web addresses, streams or cameras; see
            :func:`locdistill.inference.inputs.inputs`.
        save: Folder for the drawn pictures and videos and for ``predictions.json``.
        formats: Further files of the detections in ``save``: ``coco``, ``yolo``, ``csv``.
        threshold: Minimum score to report and draw; if it is below the detector's own
            ``detections.score_threshold``, it replaces it. Default: for each class the score with the best F1 on the
            validation images, where the weights file has it, else 0.3.
        batch: Pictures per batch; of a live stream each frame is its own.
        tiles: Side of the tiles that large pictures are cut into, and their overlap (default: a fifth), in pixels; see
            :func:`locdistill.inference.tiles.detect_in_tiles`. None: pictures are not cut.
        every: Interval of the frames of a video that are used.
        device: Device such as ``cuda:0``; by default a GPU if available. A detector in memory keeps its device.
        overrides: Settings of ``input`` and ``detections``, as in `evaluate`; a detector in memory keeps its own.
        progress: Progress display.

    Raises:
        WeightsError: The weights cannot be read.
        RecipeError: An override, a format or the overlap is wrong.
        ImageError: A named file or folder does not exist; raised before any detection.
        PartialImageError: Some pictures or frames could not be decoded; the others are done, and saved with ``save``.
        RunError: There is no such device, a drawing would replace one of the pictures, ``save`` cannot be written to,
            or a video needs PyAV, which is not installed.
        RunInterrupted: It was stopped by a signal, after everything was written.
    """
    for name in formats:
        if name not in WRITERS:
            raise RecipeError(f"format '{name}': expected {', '.join(WRITERS)}")
        if save is None:
            raise RecipeError(f"format '{name}' needs a folder to write to; pass --save DIR")
    given = inputs(images, every=every)
    predictor = _FrameDetector.of(weights, threshold, device, overrides, batch=batch, tiles=tiles)
    files = {} if save is None else targets(given, Path(save))
    if save is not None:
        make_folder(Path(save))
    unreadable: list[ImageError] = []
    signals, found = StopSignals(), list[Prediction]()
    items: Iterable[Frame | ImageError] = frames(
        given, bits=predictor.detector.settings.input.bits, stopped=lambda: signals.received is not None
    )
    if progress is not None:
        items = progress(items, _total(given))
    signals.listen()
    try:
        with Drawings(files, predictor.detector.settings.classes) if files else nullcontext() as drawings:
            for frame, prediction in predictor.predictions(items, unreadable.append):
                picture = drawings.add(frame, prediction.detections) if drawings else None
                found.append(replace(prediction, picture=picture))
    finally:
        signals.restore()
        if save is not None:
            _write(Path(save), found, given, files, formats, _about(weights, predictor, threshold))
    if signals.received is not None:
        raise RunInterrupted(f"stopped after {len(found)} pictures; they are done", signals.received)
    if unreadable:
        heading = f"{len(found)} of {len(found) + len(unreadable)} images are done, the others cannot be read"
        raise PartialImageError(listed(heading, unreadable), found)
    return found


def default_scores(weights: str | Path | Detector) -> dict[str, float]:
    """Return the minimum score of each class that a weights file has; empty for a detector in memory."""
    return {} if isinstance(weights, Detector) else stored_scores(find(weights))


def _total(given: Sequence[Input]) -> int | None:
    """Return the number of pictures and frames, None if a stream has no end or does not tell."""
    counts = [each.count for each in given]
    return None if None in counts else sum(count or 0 for count in counts)


def _about(weights: str | Path | Detector, predictor: _FrameDetector, threshold: float | None) -> dict[str, Any]:
    """Return what ``predictions.json`` says about the detector."""
    minimum = default_scores(weights) if threshold is None else {}
    return {
        "weights": None if isinstance(weights, Detector) else str(weights),
        "threshold": float(predictor.scores.min(initial=1.0)),
        **({"thresholds": minimum} if minimum else {}),
        "classes": list(predictor.detector.settings.classes),
    }


def _write(
    save: Path,
    found: list[Prediction],
    given: Sequence[Input],
    files: dict[str, Path],
    formats: Sequence[str],
    about: dict[str, Any],
) -> None:
    """Write ``predictions.json`` and the other formats, in which a picture has its name relative to ``save``."""
    write_predictions(save, found, about)
    endings = {each.source: each.name.suffix for each in given if not isinstance(each, VideoInput)}
    names = []
    for each in found:
        name = files[each.source].relative_to(save)
        names.append(
            name.with_suffix(endings[each.source]).as_posix()
            if each.number is None
            else name.with_name(f"{name.stem}_{each.number:06d}.jpg").as_posix()
        )
    for kind in dict.fromkeys(formats):
        WRITERS[kind](save, found, names)
