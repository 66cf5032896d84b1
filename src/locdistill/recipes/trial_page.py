"""The page of a trial: tables, curves, and what the detectors see on the same pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from locdistill.data.loader import evaluation_loader
from locdistill.data.records import Dataset
from locdistill.distillation.regions import ValuableLocations
from locdistill.evaluation.tables import Table
from locdistill.images import read_image
from locdistill.models.detector import Detector
from locdistill.objective.regions import Positives
from locdistill.objective.scene import Scene
from locdistill.recipes.opening import open_for
from locdistill.recipes.pictures import THRESHOLD, miss, objects_by_doubt, spread, truth_layer
from locdistill.recipes.run import objective_of
from locdistill.recipes.terms import TermSettings
from locdistill.recipes.trial import (
    ALONE,
    DISTILLED,
    LABELS,
    LONGER,
    METRICS,
    TEACHER,
    TrialResult,
    difference_table,
    environment,
    runs_table,
    summary_table,
    times_note,
)
from locdistill.types import Batch
from locdistill.viz import report
from locdistill.viz.distributions import plot_edges
from locdistill.viz.draw import draw_detections, draw_layers
from locdistill.viz.mosaic import mosaic
from locdistill.viz.regions import draw_regions
from locdistill.viz.style import INK, MUTED, STUDENT, hexadecimal, new_figure, tidy, to_image
from locdistill.viz.style import TEACHER as TEACHER_COLOUR

_CELL = 300


@dataclass(frozen=True)
class _Views:
    """What the pictures are made of: some validation images, and the detectors of the first seed on them."""

    dataset: Dataset
    batch: Batch
    detectors: dict[str, Detector]
    scenes: dict[str, Scene]  # of both students, beside the teacher


def write_page(result: TrialResult, out: Path) -> Path:
    """Write ``report.html``, which needs no other file, and return its path."""
    views, terms = _look(result), result.settings.terms
    sections = [
        report.Section("What was seen", [report.Text(result.verdict), *_tables(result), *_conditions(result)]),
        report.Section("Seed by seed", [report.Picture(_seed_chart(result), SEEDS, density=2)]),
        report.Section("The same images", [report.Picture(_side_by_side(views), _IMAGES, photo=True)]),
        report.Section("The edges of one object", _edges(views)),
        report.Section("Where distillation acts", [report.Picture(_regions(views, terms), _REGIONS, photo=True)]),
        report.Section("Curves", _curves(result)),
        report.Section("Every run", [block(runs_table(result))]),
    ]
    return report.write_page(out / "report.html", result.settings.name, sections, subtitle=result.settings.about)


SEEDS = (
    "A dot is a run, a line joins the runs of one seed, a bar is the mean. Lines that all rise or all fall say more "
    "than the distance between the bars."
)
_IMAGES = (
    f"Images spread evenly over the validation split. Solid: detections with a score of at least {THRESHOLD}; dashed: "
    "truth. Students of the first seed."
)
_REGIONS = (
    "Locations of each pyramid level on one image. Main region: ATSS positives, weighted by the student's confidence. "
    "Valuable region: locations whose anchor nearly reaches an object, weighted by its IoU."
)


def _tables(result: TrialResult) -> list[report.Block]:
    return [block(summary_table(result)), block(difference_table(result))]


def block(table: Table) -> report.Table:
    """A table of results as a block of a page."""
    return report.Table(table.header, table.rows, caption=table.title, emphasis=table.emphasis)


def _conditions(result: TrialResult) -> list[report.Block]:
    terms = ", ".join(f"{name} with weight {term.weight:g}" for name, term in result.settings.terms.items())
    about = "; ".join(f"{key}: {value}" for key, value in environment().items())
    note = (
        f"Distillation terms: {terms}. Weights at the end of each run are compared, not the best on these images. "
        f"{times_note(result)} The training of the teacher is in none of them. {about}."
    )
    blocks: list[report.Block] = [report.Text(note, note=True)]
    return [*blocks, report.Preformatted(result.settings.command)] if result.settings.command else blocks


@torch.no_grad()
def _look(result: TrialResult) -> _Views:
    """Show the images to the teacher and to both students of the first seed."""
    paths = {TEACHER: result.teacher_weights} | {arm: result.arm(arm)[0].weights for arm in (ALONE, DISTILLED)}
    detectors = {name: Detector.load(path) for name, path in paths.items()}
    student = detectors[DISTILLED]
    recipe = result.settings.student
    data = recipe.data.model_copy(update={"classes": student.settings.classes})
    dataset = open_for(student.settings, data, "val")
    shown = dataclasses.replace(dataset, records=tuple(spread(dataset.records, result.settings.pictures)))
    loader = evaluation_loader(shown, student.settings.input, batch=len(shown.records), workers=0)
    batch = next(iter(loader))
    dense = {name: d(d.normalise(batch.images, batch.sizes)) for name, d in detectors.items()}
    size = (batch.images.shape[-2], batch.images.shape[-1])
    objective = objective_of(recipe, student)
    scenes = {
        arm: objective.unchecked(dense[arm], dense[TEACHER], grid=student.grid_for(size), instances=batch.instances)
        for arm in (ALONE, DISTILLED)
    }
    return _Views(shown, batch, detectors, scenes)


def _side_by_side(views: _Views) -> Image.Image:
    """A row per image: truth, teacher, student alone, distilled student."""
    records, classes = views.dataset.records, views.dataset.classes
    found = {name: detector.detect([r.path for r in records]) for name, detector in views.detectors.items()}
    pictures, captions = [], []
    for i, record in enumerate(records):
        image, truth = read_image(record.path), truth_layer(record)
        pictures.append(draw_layers(image, [truth], classes=classes, min_side=_CELL))
        captions.append(f"truth, {record.path.name}")
        for name in (TEACHER, ALONE, DISTILLED):
            drawn = draw_detections(
                image, found[name][i], classes=classes, threshold=THRESHOLD, truth=truth, min_side=_CELL
            )
            pictures.append(drawn)
            captions.append(LABELS[name])
    return mosaic(pictures, captions, columns=4, cell=_CELL)


def _edges(views: _Views) -> list[report.Block]:
    """The four edge distributions of one object, by both students, each beside the teacher."""
    blocks: list[report.Block] = [
        report.Text(
            "Of the images above, the object whose edges the teacher finds hardest to place, seen from the location "
            "that answers for it with the teacher's highest score. A wide distribution says that the edge is hard to "
            "place, and localization distillation passes that on."
        )
    ]
    for image, location in objects_by_doubt(views.scenes[DISTILLED], 1):
        for arm, scene in views.scenes.items():
            assert scene.teacher is not None, "there is a teacher to compare with"
            picture = plot_edges(
                scene.student.edge_logits[image, location],
                scene.teacher.edge_logits[image, location],
                truth=scene.target_values[image, location],
                bins=scene.bins,
                coding=scene.coding,
                title=LABELS[arm],
            )
            caption = f"{LABELS[arm]} (bars) and teacher (line). {miss(scene, image, location)}."
            blocks.append(report.Picture(picture, caption, density=2))
    return blocks


def _regions(views: _Views, terms: Mapping[str, TermSettings]) -> Image.Image:
    """Both regions of the image with the most valuable locations: those of the trial's own term, if it has one."""
    region = terms["ld_vlr"].build().on if "ld_vlr" in terms else ValuableLocations()
    scene = views.scenes[DISTILLED]
    valuable, main = region(scene), Positives(by="student_confidence")(scene)
    image = int(valuable.sum(-1).argmax())
    height, width = views.batch.sizes[image].tolist()
    return draw_regions(
        views.batch.images[image, :, :height, :width],
        scene.grid,
        main=main[image],
        valuable=valuable[image],
        first_level=views.detectors[DISTILLED].settings.levels[0],
    )


def _curves(result: TrialResult) -> list[report.Block]:
    runs = [run for run in (result.teacher, result.arm(ALONE)[0], result.arm(DISTILLED)[0]) if run is not None]
    shown = [(run, run.folder / "curves.png") for run in runs]
    return [
        report.Picture(path, f"{LABELS[run.arm]}, seed {run.seed}", density=2) for run, path in shown if path.is_file()
    ]


def _seed_chart(result: TrialResult) -> Image.Image:
    """AP, AP50, AP75 and AP90 of every run, by arm."""
    short = {ALONE: "alone", DISTILLED: "+ LD", LONGER: "alone,\nequal time"}
    columns = [
        SeedColumn(short[arm], {run.seed: run.metrics for run in result.arm(arm)}, taught=arm == DISTILLED)
        for arm in result.arms
    ]
    return seed_chart(columns)


@dataclass(frozen=True)
class SeedColumn:
    """The runs of one arm in a chart.

    Attributes:
        label: Below the column; may have several lines.
        metrics: By seed.
        taught: Whether a teacher took part, which decides the colour.
    """

    label: str
    metrics: Mapping[int, Mapping[str, float]]
    taught: bool


def seed_chart(columns: Sequence[SeedColumn]) -> Image.Image:
    """A dot for each run, a bar for the mean of each column, a line between runs of the same seed; one panel a metric.

    Up to four columns, the panels stand in a row; more need the room of two rows, and many have their names upright.
    """
    rows, upright = 1 if len(columns) <= 4 else 2, len(columns) > 8
    figure = new_figure(1000, (400 if upright else 320) * rows)
    panels = figure.subplots(rows, 4 // rows).flatten()
    seeds = sorted({seed for column in columns for seed in column.metrics})
    for panel, metric in zip(panels, METRICS, strict=True):
        axes = tidy(panel, f"{metric} (%)")
        for seed in seeds:
            points = [(x, column.metrics[seed][metric]) for x, column in enumerate(columns) if seed in column.metrics]
            axes.plot(*zip(*points, strict=True), color=hexadecimal(MUTED), linewidth=0.8, alpha=0.6, zorder=1)
        for x, column in enumerate(columns):
            values = [numbers[metric] for numbers in column.metrics.values()]
            colour = hexadecimal(TEACHER_COLOUR if column.taught else STUDENT)
            axes.scatter([x] * len(values), values, color=colour, s=22, zorder=3)
            axes.hlines(sum(values) / len(values), x - 0.25, x + 0.25, color=hexadecimal(INK), linewidth=1.6, zorder=2)
        axes.set_xticks(range(len(columns)), [column.label for column in columns], rotation=90 if upright else 0)
        axes.set_xlim(-0.5, len(columns) - 0.5)
    return to_image(figure)
