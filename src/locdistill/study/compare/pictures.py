"""Pictures of a comparison: detections on the same images, and the regions where distillation acts."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from locdistill.data.records import Dataset
from locdistill.errors import LocdistillError
from locdistill.inference.evaluation_files import truth_layer
from locdistill.models.detector import Detector
from locdistill.study.compare.measure import evaluation_images
from locdistill.study.compare.result import Comparison
from locdistill.study.diagnose.page import Views, look, regions_of_image
from locdistill.study.diagnose.reopen import reopen
from locdistill.study.diagnose.result import ALONE, STUDENT
from locdistill.training.pictures import THRESHOLD, miss, objects_by_doubt, spread
from locdistill.viz import report
from locdistill.viz.distributions import plot_edges
from locdistill.viz.draw import draw_detections, draw_layers
from locdistill.viz.mosaic import mosaic

_IMAGES = 6
_MOST_COLUMNS = 5
_CELL = 300
_REGIONS = (
    "Locations of each pyramid level on one image. Main region: locations assigned to an object, weighted by the "
    "student's confidence. Valuable region: locations whose anchor nearly reaches an object. Dashed: objects."
)


def pictures(result: Comparison, data: str | Path | None = None) -> list[report.Section]:
    """Make the sections of the page that need the detectors, for each arm's run of the first common seed.

    Args:
        result: Result of the comparison.
        data: Present path of the data, if it differs from the recipes'.
    """
    seeds = set.intersection(*({m.run.seed for m in result.runs[arm.name]} for arm in result.arms))
    if not seeds:
        return []
    seed = min(seeds)
    runs = {arm.name: next(m.run for m in result.runs[arm.name] if m.run.seed == seed) for arm in result.arms}
    dataset = evaluation_images(result.first.recipe(seed), data)
    shown = {arm.label: runs[arm.name].weights for arm in result.arms[:_MOST_COLUMNS]}
    if result.teacher is not None:
        shown = {"teacher": result.teacher.run.weights} | shown
    caption = (
        f"Images spread evenly over the validation split. Solid: detections with a score of at least {THRESHOLD}; "
        f"dashed: truth. Runs of seed {seed}."
    )
    picture = report.Picture(_side_by_side(shown, dataset), caption, photo=True)
    sections = [report.Section("The same images", [picture])]
    taught = next((arm for arm in (*result.others, result.first) if arm.recipe(seed).distils), None)
    if taught is None:
        return sections
    alone = None if result.first.recipe(seed).distils else runs[result.first.name].weights
    try:
        found = reopen(runs[taught.name].weights, against=alone, data=data, device=torch.device("cpu"))
        views = look(found, dataset, _IMAGES)
    except LocdistillError as error:
        note = report.Text(f"Not shown: {error}", note=True)
        return [*sections, report.Section("Where distillation acts", [note])]
    image = int(views.valuable.sum(-1).argmax())  # the image with the largest number of valuable locations
    regions = report.Picture(regions_of_image(views, image), _REGIONS, photo=True)
    sections.append(report.Section("The edges of one object", _edges(views)))
    sections.append(report.Section("Where distillation acts", [regions]))
    return sections


def _side_by_side(weights: dict[str, Path], dataset: Dataset) -> Image.Image:
    """Draw a row for each image: ground truth, and the detections of each detector."""
    records = spread(dataset.records, _IMAGES)
    detectors = {label: Detector.load(path) for label, path in weights.items()}
    found = {label: detector.detect([r.path for r in records]) for label, detector in detectors.items()}
    cells, captions = [], []
    for i, record in enumerate(records):
        image, truth = dataset.picture(record), truth_layer(record)
        cells.append(draw_layers(image, [truth], classes=dataset.classes, min_side=_CELL))
        captions.append(f"truth, {record.path.name}")
        for label, detector in detectors.items():
            classes = detector.settings.classes
            cells.append(
                draw_detections(
                    image, found[label][i], classes=classes, threshold=THRESHOLD, truth=truth, min_side=_CELL
                )
            )
            captions.append(label)
    return mosaic(cells, captions, columns=1 + len(detectors), cell=_CELL)


def _edges(views: Views) -> list[report.Block]:
    """Plot the edge distributions of one object by each student, with those of the teacher."""
    blocks: list[report.Block] = [
        report.Text(
            "The object on the images above whose edges are the most uncertain for the teacher, at its assigned "
            "location with the teacher's highest score. The wider a distribution, the more uncertain the edge; "
            "localization distillation transfers this to the student."
        )
    ]
    for image, location in objects_by_doubt(views.scenes[STUDENT], 1):
        for name, label in ((ALONE, "student alone"), (STUDENT, "student with its teacher")):
            if name not in views.scenes:
                continue
            scene = views.scenes[name]
            assert scene.teacher is not None, "there is a teacher to compare with"
            picture = plot_edges(
                scene.student.edge_logits[image, location],
                scene.teacher.edge_logits[image, location],
                truth=scene.target_values[image, location],
                bins=scene.bins,
                coding=scene.coding,
                title=label,
            )
            caption = f"{label} (bars) and teacher (line). {miss(scene, image, location)}."
            blocks.append(report.Picture(picture, caption, density=2))
    return blocks
