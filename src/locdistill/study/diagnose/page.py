"""The page of a diagnosis: summary, tables, and pictures on a few images of the validation split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from lightning_fabric.utilities.apply_func import move_data_to_device
from PIL import Image
from torch import Tensor

from locdistill.data.loader import evaluation_loader
from locdistill.data.records import Dataset
from locdistill.objective.regions import Positives
from locdistill.objective.scene import Scene
from locdistill.recipe.load import dump_recipe
from locdistill.study.charts import block
from locdistill.study.diagnose import result as words
from locdistill.study.diagnose.reopen import Reopened
from locdistill.study.diagnose.result import ALONE, START, STUDENT, Diagnosis
from locdistill.training.pictures import miss, objects_by_doubt, spread
from locdistill.types import Batch
from locdistill.viz import report
from locdistill.viz.calibration import plot_reliability, plot_shares
from locdistill.viz.curves import plot_run, read_metrics
from locdistill.viz.distributions import plot_edges
from locdistill.viz.draw import Layer, draw_layers
from locdistill.viz.regions import draw_regions
from locdistill.viz.style import save_picture

_IMAGES = 3  # number of images shown with their regions
_OBJECTS = 3  # number of objects shown with their edges
_CELL = 480
# Class labels whose colours match those of teacher, student and truth elsewhere (see viz.style).
_BOXES = {"student": 1, "truth": 3, "teacher": 6}


@dataclass(frozen=True)
class Views:
    """Data for the pictures.

    Attributes:
        dataset: Images shown.
        batch: The same images as a batch for the detectors.
        scenes: Predictions of each student, with those of the teacher; on the device of the detectors.
        valuable: Weights of the valuable region.
        first_level: Number of the finest pyramid level.
        recipe: Recipe of the run, as YAML.
    """

    dataset: Dataset
    batch: Batch
    scenes: dict[str, Scene]
    valuable: Float[Tensor, "b l"]
    first_level: int
    recipe: str


@torch.no_grad()
def look(found: Reopened, dataset: Dataset, images: int = _IMAGES) -> Views:
    """Run all detectors on some images, on images with objects if there are enough of them."""
    shown = dataclasses.replace(dataset, records=tuple(spread(dataset.records, images)))
    limits = found.student.settings.input
    loader = evaluation_loader(shown, limits, batch=len(shown), workers=0)
    batch = move_data_to_device(next(iter(loader)), found.device)
    taught = found.teacher(batch)
    scenes = {who: found.scene(who, batch, taught) for who in found.students}
    return Views(
        dataset=shown,
        batch=batch,
        scenes=scenes,
        valuable=found.valuable(scenes[STUDENT]),
        first_level=found.student.settings.levels[0],
        recipe=dump_recipe(found.recipe),
    )


def write_page(found: Diagnosis, views: Views) -> Path:
    """Write ``report.html``, a self-contained file, and its pictures beside it; return its path."""
    about = f"{found.images} images with {found.objects} objects of the validation split"
    against = f"; student alone: {found.against}" if found.against else ""
    batches = f"{found.batches} training batches for the gradients{against}."
    notes = " ".join(found.notes)
    conditions: list[report.Block] = [report.Text(f"{about}; {batches} {notes}".strip(), note=True)]
    note = (
        "Main region: locations assigned to an object. Valuable region: locations whose anchor nearly reaches one, "
        "main region excluded. Other: the rest of the image, where the edges of neither detector are trained and may "
        "differ. Edge KL: divergence of the student's distribution from the teacher's at "
        "temperature 1. Distances are counted in bins. Score difference: the largest over the classes."
    )
    tables = (words.region_table(found), words.edge_table(found))
    agreement: list[report.Block] = [report.Text(note, note=True), *map(block, tables)]
    sections = [
        report.Section("Summary", [report.Text("\n\n".join(words.in_words(found))), *conditions]),
        report.Section("Agreement with the teacher", agreement),
        report.Section("Are the edges calibrated?", _calibration(found)),
        report.Section("Gradient of each term", _gradients(found)),
        report.Section("Where distillation acts", _regions(found, views)),
        report.Section("Edges of the same objects", _edges(found, views)),
        report.Section("Recipe", [report.Preformatted(views.recipe)]),
    ]
    subtitle = f"{found.run}, taught by {found.teacher}"
    return report.write_page(found.page, "Diagnosis of a distillation run", sections, subtitle=subtitle)


def _calibration(found: Diagnosis) -> list[report.Block]:
    curves = {who: [(b.deviation, b.error) for b in r.bins] for who, r in found.reliability.items()}
    picture = save_picture(plot_reliability(curves), found.out / "calibration.png")
    caption = (
        "Edges of the main region in groups of equal size, by their predicted standard deviation. On the dashed line "
        "the error equals the predicted deviation; above it a detector is overconfident, below it underconfident. Both "
        "axes are in bins: one stride for horizontal boxes, a width of its own for each edge and the angle of rotated "
        "ones. Between two bins a distribution has a deviation of up to half a bin however certain it is, so that "
        "every detector with smaller errors looks underconfident. The slope is the information that localization "
        "distillation transfers: a level line has none."
    )
    tables = (words.reliability_table(found), words.bins_table(found))
    return [report.Picture(picture, caption, density=2), *map(block, tables)]


def _gradients(found: Diagnosis) -> list[report.Block]:
    bars = {
        f"{target}, {'before' if moment == START else 'after'}": found.shares(moment, target)
        for target in next(iter(found.gradients.values()), {})
        for moment in found.gradients
    }
    picture = save_picture(plot_shares(bars), found.out / "gradients.png")
    caption = (
        "Norm of each term's gradient as a share of the sum of norms, weights included, before the first step of the "
        "run and with the weights that are diagnosed. Terms with opposite gradients both count in full; the "
        "cosine is that with the gradient of the terms on labels."
    )
    return [report.Picture(picture, caption, density=2), block(words.gradient_table(found)), *_over_the_run(found)]


def _over_the_run(found: Diagnosis) -> list[report.Block]:
    """Show the run's own curves, where gradients were weighted by the angle between them."""
    metrics = found.run.parent / "metrics.csv"
    if not metrics.is_file() or not any(name.startswith("balance/") for name in read_metrics(metrics)):
        return []
    caption = (
        "Right: over the run, the cosine between the gradients of labels and teacher (-1: they contradict each other) "
        "and the share of the labels that follows from it, by group of terms."
    )
    return [report.Picture(plot_run(metrics, found.out / "curves.png"), caption, density=2)]


def regions_of_image(views: Views, image: int) -> Image.Image:
    """Draw the main and the valuable region of an image, with its objects."""
    scene, objects = views.scenes[STUDENT], views.batch.instances
    height, width = views.batch.sizes[image].tolist()
    present = objects.present[image]
    return draw_regions(
        views.batch.images[image, :, :height, :width].cpu(),
        scene.grid,
        main=Positives(by="student_confidence")(scene)[image],
        valuable=views.valuable[image],
        truth=Layer(objects.targets[image][present].cpu(), objects.labels[image][present].cpu(), style="truth"),
        first_level=views.first_level,
    )


def _regions(found: Diagnosis, views: Views) -> list[report.Block]:
    blocks: list[report.Block] = []
    for i, record in enumerate(views.dataset.records):
        path = save_picture(regions_of_image(views, i), found.out / f"regions-{i + 1}.png")
        blocks.append(
            report.Picture(path, f"{record.path.name}; dashed: objects. A location may be in both regions.", photo=True)
        )
    return blocks


def _edges(found: Diagnosis, views: Views) -> list[report.Block]:
    """Plot the edge distributions of all detectors for a few objects, each at a positive location of the object."""
    note = (
        "The objects on the images above whose edges are the most, moderately and the least uncertain for the "
        "teacher. Bars: the student; line: the teacher."
    )
    blocks: list[report.Block] = [report.Text(note, note=True)]
    order = [who for who in (START, ALONE, STUDENT) if who in views.scenes]
    for number, (image, location) in enumerate(objects_by_doubt(views.scenes[STUDENT], _OBJECTS), 1):
        picture = save_picture(_boxes(views, image, location), found.out / f"object-{number}.png")
        caption = f"Object {number}, on {views.dataset.records[image].path.name}: boxes of student and teacher."
        blocks.append(report.Picture(picture, caption, photo=True))
        for who in order:
            scene = views.scenes[who]
            assert scene.teacher is not None, "there is a teacher to compare with"
            drawn = plot_edges(
                scene.student.edge_logits[image, location],
                scene.teacher.edge_logits[image, location],
                truth=scene.target_values[image, location],
                bins=scene.bins,
                coding=scene.coding,
                title=f"Object {number}: {who}",
            )
            path = save_picture(drawn, found.out / f"edges-{number}-{who.replace(' ', '-')}.png")
            blocks.append(report.Picture(path, miss(scene, image, location), density=2))
    return blocks


def _boxes(views: Views, image: int, location: int) -> Image.Image:
    """Draw the object's boxes: ground truth, teacher and student."""
    scene = views.scenes[STUDENT]
    stride = float(scene.grid.strides[location])
    names = [next((name for name, label in _BOXES.items() if label == i), "") for i in range(max(_BOXES.values()) + 1)]
    height, width = views.batch.sizes[image].tolist()
    assert scene.teacher is not None, "there are two detectors to compare"
    boxes = {"truth": scene.target_boxes, "teacher": scene.boxes_of(scene.teacher), "student": scene.boxes}
    layers = [
        Layer(box[image, location][None].cpu(), torch.tensor([_BOXES[name]])).scaled(stride)
        for name, box in boxes.items()
    ]
    return draw_layers(views.batch.images[image, :, :height, :width].cpu(), layers, classes=names, min_side=_CELL)
