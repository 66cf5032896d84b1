"""Pictures of a run, for the eye: what goes in, what comes out, how it went."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from locdistill.data.records import Dataset, Record
from locdistill.images import read_image
from locdistill.models.detector import Detector
from locdistill.types import Batch
from locdistill.viz.curves import plot_run
from locdistill.viz.draw import Layer, draw_detections
from locdistill.viz.mosaic import batch_mosaic, mosaic

SHOWN = 9
THRESHOLD = 0.3
_CELL = 360


def training_batch(path: Path, batch: Batch, classes: Sequence[str]) -> None:
    """Write the images of a batch as the detector sees them, with the boxes it learns from."""
    batch_mosaic(batch, classes).save(path)


def curves(metrics: Path, path: Path) -> None:
    """Write losses and AP over the run."""
    plot_run(metrics, path)


def predictions(path: Path, detector: Detector, dataset: Dataset) -> None:
    """Write detections (solid) over the truth (dashed) on images spread over a data set."""
    chosen = spread(dataset.records, SHOWN)
    found = detector.detect([record.path for record in chosen])
    sheets = [
        draw_detections(
            read_image(record.path),
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
    """Records at equal distances; those with objects if there are enough of them."""
    with_objects = [record for record in records if len(record.boxes)]
    pool = with_objects if len(with_objects) >= min(count, len(records)) else list(records)
    count = min(count, len(pool))
    return [pool[i * len(pool) // count] for i in range(count)]


def truth_layer(record: Record) -> Layer:
    """The objects of a record as a layer to draw."""
    keep = ~record.ignored
    return Layer(torch.from_numpy(record.boxes[keep]), torch.from_numpy(record.labels[keep]), style="truth")
