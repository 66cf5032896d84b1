"""Pictures of a run: predictions, and the judgement of its best weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from locdistill.data.records import Dataset, Record
from locdistill.files import write_text
from locdistill.inference.evaluation_files import Findings, class_table, pictures_of, truth_layer
from locdistill.models.detector import Detector
from locdistill.objective.scene import Scene
from locdistill.viz.draw import draw_detections
from locdistill.viz.mosaic import mosaic

SHOWN = 9
THRESHOLD = 0.3
_CELL = 360
log = logging.getLogger("locdistill")


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn any error of the block into a warning: a picture or table that fails never ends a run."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be written (%s: %s); the run is not affected", path, type(error).__name__, error)


def judgement(out: Path, findings: Findings) -> None:
    """Write pictures of curves, confusion, errors, worst and best images, and a table by class; each is `guarded`."""
    for name, draw in pictures_of(findings).items():
        with guarded(out / name):
            draw().save(out / name)
    with guarded(out / "per_class.csv"):
        write_text(out / "per_class.csv", class_table(findings))


def predictions(path: Path, detector: Detector, dataset: Dataset) -> None:
    """Draw detections (solid) and ground truth (dashed) on images spread over a data set."""
    chosen = spread(dataset.records, SHOWN)
    found = detector.detect([record.path for record in chosen])
    sheets = [
        draw_detections(
            dataset.picture(record),
            detections._replace(
                boxes=detections.boxes.cpu(), scores=detections.scores.cpu(), labels=detections.labels.cpu()
            ),
            classes=dataset.classes,
            threshold=THRESHOLD,
            truth=truth_layer(record),
            min_side=_CELL,
        )
        for record, detections in zip(chosen, found, strict=True)
    ]
    title = f"solid: detections with a score of at least {THRESHOLD}; dashed: truth"
    mosaic(sheets, [record.path.name for record in chosen], cell=_CELL, title=title).save(path)


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """Pick records at equal distances; only records with objects if there are enough of them."""
    with_objects = [record for record in records if len(record.boxes)]
    pool = with_objects if len(with_objects) >= min(count, len(records)) else list(records)
    count = min(count, len(pool))
    return [pool[i * len(pool) // count] for i in range(count)]


def objects_by_doubt(scene: Scene, count: int) -> list[tuple[int, int]]:
    """Return image and location of some objects, in descending order of the teacher's edge uncertainty.

    An object is represented by its positive location with the teacher's highest class score. Its uncertainty is the
    mean entropy of the teacher's edge distributions there.
    """
    assert scene.teacher is not None, "there is a teacher to compare with"
    entropy = torch.special.entr(scene.teacher.edge_logits.softmax(-1)).sum(-1).mean(-1)
    score = scene.teacher.score_logits.amax(-1)
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for image, location in scene.assignment.positive.nonzero().tolist():
        key = (image, int(scene.assignment.gt_index[image, location]))
        best[key] = max(best.get(key, (-float("inf"), -1)), (float(score[image, location]), location))
    places = sorted(
        ((image, location) for (image, _), (_, location) in best.items()), key=lambda place: -float(entropy[place])
    )
    if len(places) <= count:
        return places
    return [places[round(i * (len(places) - 1) / max(1, count - 1))] for i in range(count)]


def miss(scene: Scene, image: int, location: int) -> str:
    """Describe the errors of the student's edges, and of its angle, at a positive location."""
    values = scene.bins.expect(scene.student.edge_logits)
    error = scene.bins.difference(values, scene.target_values)[image, location].tolist()
    errors: dict[str, list[str]] = {}
    for name, unit, value in zip(scene.coding.names, scene.coding.units, error, strict=True):
        errors.setdefault(unit, []).append(f"{name} {value:+.2f}")
    return "Error in " + "; in ".join(f"{unit}: {', '.join(values)}" for unit, values in errors.items())
