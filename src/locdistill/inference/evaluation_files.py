"""Pictures and files of an evaluation: curves, confusion, errors, the worst and best images, tables, detections."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from locdistill.data.records import Dataset, Record, evenly
from locdistill.evaluation.arrays import outlines
from locdistill.evaluation.confusion import confusion_matrix, image_scores
from locdistill.evaluation.curves import ClassCurve, class_curves, minimum_scores, thresholds
from locdistill.evaluation.error_types import error_costs
from locdistill.evaluation.evaluator import Evaluator, per_class
from locdistill.evaluation.matching import Matches, match
from locdistill.evaluation.results import write_results
from locdistill.files import make_folder, write_text, writing
from locdistill.types import Detections, Progress
from locdistill.viz.draw import Layer, draw_layers
from locdistill.viz.mosaic import below, beside, mosaic
from locdistill.viz.style import save_picture

EXTREMES = 6
"""Number of worst and of best images that are shown."""
_CELL, _LARGEST = 340, 1000
_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Findings:
    """Detections of a data set, judged class by class and image by image.

    Attributes:
        dataset: Images, ground truth and class names.
        detections: By image identifier, in pixels of the original image.
        eleven_point: As for :class:`Evaluator`.
    """

    dataset: Dataset
    detections: Mapping[int, Detections]
    eleven_point: bool | None = None

    @cached_property
    def matches(self) -> Matches:
        """Detections matched to objects at IoU 0.5."""
        return match(self.dataset, self.detections, eleven_point=self.eleven_point)

    @cached_property
    def curves(self) -> tuple[ClassCurve, ...]:
        """Precision and recall of each class."""
        return class_curves(self.matches)

    @property
    def thresholds(self) -> dict[str, float]:
        """Score with the best F1 by class name, for classes with a true detection."""
        return thresholds(self.curves)

    @cached_property
    def minimum(self) -> NDArray[np.float64]:
        """Minimum score of each class from which its detections are drawn and counted."""
        return minimum_scores(self.dataset.classes, self.thresholds)

    def shown(self, image_id: int) -> Detections:
        """Return the detections of an image with at least the minimum scores."""
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        boxes, scores, labels = (part.cpu() for part in self.detections.get(image_id, nothing))
        kept = scores >= torch.from_numpy(self.minimum)[labels]
        return Detections(boxes[kept], scores[kept], labels[kept])


def pictures_of(findings: Findings) -> dict[str, Callable[[], Image.Image]]:
    """Return the pictures of an evaluation by file name, as functions that draw them."""
    names = ("pr_curves.png", "confusion.png", "errors.png")
    plots: dict[str, Callable[[], Image.Image]] = {name: partial(_plotted, findings, name) for name in names}
    return plots | {"val_best_worst.png": partial(best_and_worst, findings)}


def _plotted(findings: Findings, name: str) -> Image.Image:
    from locdistill.viz import judged  # noqa: PLC0415 - imports matplotlib

    if name == "pr_curves.png":
        curves = {
            c.name: judged.ScoreCurve(c.scores, c.precision, c.recall, c.ap, c.threshold) for c in findings.curves
        }
        return judged.plot_class_curves(curves)
    if name == "confusion.png":
        return judged.plot_confusion(confusion_matrix(findings.matches, findings.minimum), findings.dataset.classes)
    errors = error_costs(findings.matches)
    return judged.plot_errors(errors.costs, errors.counts, errors.ap)


def labels_picture(dataset: Dataset) -> Image.Image:
    """Draw the objects of a data set: counts by class, sizes and places. Ignored objects do not count."""
    from locdistill.viz.labels import plot_labels  # noqa: PLC0415 - imports matplotlib

    records = dataset.records
    regular = ~np.concatenate([record.ignored for record in records])
    extents = np.repeat([(r.width, r.height) for r in records], [len(r.boxes) for r in records], axis=0)[regular]
    together = np.concatenate([record.boxes for record in records])[regular].astype(np.float64)
    labels = np.concatenate([record.labels for record in records])[regular]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    centres = (together[:, :2] + together[:, 2:]) / 2 / np.maximum(extents, 1)
    by_name = dict(zip(dataset.classes, counts.tolist(), strict=True))
    return plot_labels(by_name, together[:, 2:] - together[:, :2], centres, len(dataset))


def best_and_worst(findings: Findings) -> Image.Image:
    """Draw the images with the lowest and the highest F1, the truth at the left and the detections at the right.

    Only detections with at least the minimum score of their class are drawn and counted. Images with neither objects
    nor detections are left out.
    """
    ranked = [one for one in image_scores(findings.matches, findings.minimum) if one.found + one.missed + one.false]
    worst = ranked[: min(EXTREMES, -(-len(ranked) // 2))]
    best = ranked[len(worst) :][::-1][:EXTREMES]
    records = {record.image_id: record for record in findings.dataset.records}
    words = "truth at the left, detections at the right, from the score with the best F1 of each class"
    sheets = []
    for title, chosen in ((f"Worst images by F1; {words}", worst), ("Best images by F1", best)):
        pairs = [pair(findings, records[one.image_id], _CELL) for one in chosen]
        captions = [
            f"F1 {one.f1:.2f}: {one.found} of {one.found + one.missed} found, {one.false} false  "
            f"({records[one.image_id].path.name})"
            for one in chosen
        ]
        sheets.append(mosaic(pairs, captions, columns=2, cell=2 * _CELL + 20, title=title))
    return below(sheets)


def pair(findings: Findings, record: Record, limit: int) -> Image.Image:
    """Draw an image twice, with its truth and with the detections, its longer side at most ``limit`` pixels."""
    picture = Image.fromarray(np.ascontiguousarray(findings.dataset.picture(record).permute(1, 2, 0).numpy()))
    scale = min(1.0, limit / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    found = findings.shown(record.image_id)
    sides = []
    truth = [truth_layer(record, ignored=True), truth_layer(record)]
    for layers in (truth, [Layer(found.boxes, found.labels, found.scores)]):
        scaled = [layer.scaled(scale) for layer in layers]
        sides.append(draw_layers(picture, scaled, classes=findings.dataset.classes, min_side=min(limit // 2, 200)))
    return beside(sides)


def truth_layer(record: Record, *, ignored: bool = False) -> Layer:
    """Return the objects of a record to find, or those that are ignored, as a layer to draw."""
    kept = record.ignored == ignored
    boxes, labels = torch.from_numpy(outlines(record)[kept]), torch.from_numpy(record.labels[kept])
    return Layer(boxes, labels, style="ignored" if ignored else "truth")


def class_table(findings: Findings) -> str:
    """Return a table of the classes as CSV: AP at all overlaps that the evaluator reports, and the best threshold."""
    judged = per_class(Evaluator(findings.dataset, findings.eleven_point).result(findings.detections))
    rows: list[dict[str, Any]] = []
    for curve in findings.curves:
        numbers = dict(judged[curve.name])
        objects = int(numbers.pop("objects") or 0)
        rows.append({"class": curve.name, "objects": objects, **numbers, **curve.at_best()})
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]) if rows else ["class"], lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: "" if v is None else round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def save_findings(
    findings: Findings, folder: Path, *, images: int | None = None, progress: Progress | None = None
) -> None:
    """Write all pictures and files of an evaluation into a folder.

    Args:
        findings: Judged detections.
        folder: Folder to create; files of the same names are replaced.
        images: Number of images to draw, evenly spaced; None for all, 0 for none.
        progress: Progress display.

    Raises:
        RunError: The folder cannot be created or written to.
    """
    make_folder(folder)
    with writing(folder):
        write_results(folder / "detections.json", findings.dataset, findings.detections)
        write_text(folder / "per_class.csv", class_table(findings))
        write_text(folder / "thresholds.json", json.dumps(findings.thresholds, indent=1) + "\n")
        save_picture(labels_picture(findings.dataset), folder / "labels.png")
        for name, draw in pictures_of(findings).items():
            save_picture(draw(), folder / name)
        chosen = findings.dataset.records if images is None else evenly(findings.dataset, images).records
        drawn: Iterable[tuple[Record, str]] = list(zip(chosen, _names(chosen), strict=True))
        if progress is not None:
            drawn = progress(drawn, len(chosen))
        for record, name in drawn:
            make_folder(folder / "images")
            pair(findings, record, _LARGEST).save(folder / "images" / name, quality=_QUALITY)


def _names(records: Sequence[Record]) -> list[str]:
    """Return a file name for the drawing of each image; images of the same name get their identifiers."""
    stems = [record.path.stem for record in records]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    return [
        f"{record.path.stem}-{record.image_id}.jpg" if record.path.stem in twice else f"{record.path.stem}.jpg"
        for record in records
    ]
