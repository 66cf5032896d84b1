"""The AP landscape: AP of one detector's head on mixtures of two detectors' feature maps.

The maps of the two feature pyramids are mixed level by level, ``F = gamma1 * F1 + gamma2 * F2``, and one head detects
on the mixture; its AP as a function of the two weights is a landscape. Between two detectors with equivalent features
for a head the landscape has a plateau, otherwise a valley; a distilled student is expected to be closer to its teacher
than a student trained alone. A head that begins with a convolution without bias followed by group normalisation, as in
GFL, ATSS and FCOS, is invariant to the scale of its features: its landscape is constant along each ray from the origin,
and only the path from one detector to the other is informative.

The reference implementation has this as scripts with the weights as constants in the code (0.7 and 0.9). It evaluates
the head of the second detector, although its README describes that of the first, and fails outside a process group.
Here the weights are a grid, the head is an argument, each image passes through each backbone once for all weights, and
an interrupted landscape can be resumed.

The folder of a landscape holds ``landscape.json`` (settings and all metrics), ``landscape.csv``, ``landscape.png``, and
``partial`` until it is finished.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice, product
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from locdistill.data.digest import data_digest
from locdistill.data.open import open_dataset
from locdistill.data.records import evenly
from locdistill.data.settings import DataSettings
from locdistill.engine.devices import default_device, existing_device
from locdistill.errors import RecipeError, RunError, WeightsError
from locdistill.evaluation.detections_file import read_detections, write_detections
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.tables import Table
from locdistill.files import file_digest, make_folder, write_text
from locdistill.inference.evaluate import data_of, validation_loader, with_classes
from locdistill.models.detector import Detector
from locdistill.models.hub import find
from locdistill.recipe.load import validate
from locdistill.settings import finite
from locdistill.types import Batch, Detections, Progress
from locdistill.viz.landscape import plot_landscape
from locdistill.viz.style import save_picture

Gammas = tuple[float, float]
"""Weights of the first and of the second detector's features."""
CSV, STAMP, PICTURE, PARTIAL = "landscape.csv", "landscape.json", "landscape.png", "partial"
_KEPT = 32  # number of images whose detections, at all points, are held in memory before writing
_DIGITS = 6  # decimal digits of a weight; weights that agree up to these count as equal


@dataclass(frozen=True)
class LandscapeResult:
    """An AP landscape.

    Attributes:
        gamma1: Weights of the first detector's features, in ascending order.
        gamma2: Weights of the second detector's features, in ascending order.
        head: Detector whose head is evaluated, 1 or 2.
        metrics: Metrics between 0 and 1, by point and name.
        images: Number of images.
        out: Folder of the landscape.
    """

    gamma1: tuple[float, ...]
    gamma2: tuple[float, ...]
    head: int
    metrics: dict[Gammas, dict[str, float]]
    images: int
    out: Path

    @property
    def best(self) -> Gammas:
        """Point with the highest AP; among several, the one with the sum of weights closest to 1."""
        ap = {p: -math.inf if math.isnan(metrics["AP"]) else metrics["AP"] for p, metrics in self.metrics.items()}
        return max(ap, key=lambda point: (ap[point], -abs(sum(point) - 1)))

    def table(self, metric: str = "AP") -> Table:
        """Tabulate a metric in percent: a row per weight of the first detector, a column per weight of the second."""
        rows = [
            (f"gamma1 {g1:g}", *(f"{100 * self.metrics[g1, g2][metric]:.1f}" for g2 in self.gamma2))
            for g1 in self.gamma1
        ]
        title = f"{metric} (%) of head {self.head} on gamma1 * F1 + gamma2 * F2, {self.images} images"
        return Table(title, ("", *(f"gamma2 {g2:g}" for g2 in self.gamma2)), tuple(rows))

    @property
    def in_words(self) -> str:
        """Summary: the best point, and the lowest AP between the two detectors if the grid has points there."""
        of = {point: 100 * metrics["AP"] for point, metrics in self.metrics.items()}
        best = self.best
        where = f"best with gamma1 {best[0]:g} and gamma2 {best[1]:g}: AP {of[best]:.1f}"
        if len(set(map(str, of.values()))) == 1:
            where = f"the same everywhere: AP {of[best]:.1f}"
        text = f"Head {self.head}, the one of the {('first', 'second')[self.head - 1]} detector, is {where}."
        ends = {(1.0, 0.0), (0.0, 1.0)}
        way = [value for point, value in of.items() if abs(sum(point) - 1) < 2 * 10**-_DIGITS and point not in ends]
        if not ends <= of.keys() or not way:
            return text
        own, other = ((1.0, 0.0), (0.0, 1.0)) if self.head == 1 else ((0.0, 1.0), (1.0, 0.0))
        return (
            f"{text} On its own features it has AP {of[own]:.1f}, on the other detector's {of[other]:.1f}; "
            f"between them (gamma1 + gamma2 = 1) the lowest is {min(way):.1f}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        points = [{"gamma1": g1, "gamma2": g2, **metrics} for (g1, g2), metrics in self.metrics.items()]
        return {"head": self.head, "images": self.images, "points": points, "out": str(self.out)}


def landscape(  # noqa: PLR0913 - the words of the command line
    first: str | Path,
    second: str | Path,
    data: str | Path | None = None,
    *,
    grid: int = 5,
    gamma1: str | Sequence[float] | None = None,
    gamma2: str | Sequence[float] | None = None,
    head: int = 1,
    images: int | None = None,
    split: str = "val",
    out: str | Path | None = None,
    batch: int = 8,
    device: str | None = None,
    progress: Progress | None = None,
) -> LandscapeResult:
    """Evaluate the head of one detector on mixtures of two detectors' features.

    Existing results of the same landscape in the folder are reused, so that an interrupted one is resumed, and further
    points can be added.

    Args:
        first: Weights file, run folder, or ``run/best``.
        second: Likewise, of the second detector.
        data: Folder of the data set. Default: the data of the evaluated head's run.
        grid: Number of weights of each detector, from 0 to 1, if they are not given.
        gamma1: Weights of the first detector's features: ``start:stop:step`` (including the stop), or numbers.
        gamma2: Likewise, for the second detector's features.
        head: Detector whose head is evaluated, 1 or 2. Its input size applies to both; each detector uses its own
            normalisation of images.
        images: Number of images, spread evenly over the split. Default: all.
        split: Split of the data set, such as ``val``.
        out: Folder of the landscape. Default: ``runs/landscape-<first>-<second>-head<head>``.
        batch: Batch size, if all images have the same size.
        device: Device, such as ``cuda:0``. Default: a GPU if there is one.
        progress: Progress display.

    Raises:
        RecipeError: Weights of features are not numbers, or the head is neither 1 nor 2.
        WeightsError: A detector cannot be read, or the maps of the two differ in levels or width.
        DataError: The data cannot be read, or lack a class of the head.
        RunError: The folder holds another landscape, or there is no such device.
    """
    points = sorted(product(parse_weights(gamma1, grid, "gamma1"), parse_weights(gamma2, grid, "gamma2")))
    if head not in (1, 2):
        raise RecipeError(f"head: expected 1 or 2 (the detector whose head is evaluated), came {head}")
    files = [find(weights) for weights in (first, second)]
    where = existing_device(device or default_device())
    mixture = Mixture(*(Detector.load(file, where) for file in files), head=head)
    check_mixable(*mixture.detectors, names=[str(file) for file in files])
    settings = validate(DataSettings, data_of(files[head - 1], data), "data")
    settings = with_classes(settings, split, mixture.chosen.settings.classes)
    dataset = evenly(open_dataset(settings, split, training=False, boxes=mixture.chosen.settings), images)
    path = Path(out) if out is not None else Path("runs") / f"landscape-{_name(files[0])}-{_name(files[1])}-head{head}"
    facts = {  # what identifies the landscape
        "head": head,
        "models": [{"weights": str(file), "sha256": file_digest(file)} for file in files],
        "data": {"name": dataset.name, "split": split, "images": len(dataset), "sha256": data_digest(dataset)},
        "input": mixture.chosen.settings.input.model_dump(mode="json"),
        "detections": mixture.chosen.settings.detections.model_dump(mode="json"),
    }
    folder = _Folder.claim(path, facts)
    loader = validation_loader(dataset, mixture.chosen.settings, batch=batch, workers=settings.workers)
    missing = [point for point in points if point not in folder.metrics]
    if missing:
        shown = progress(loader, len(loader)) if progress else loader
        folder.collect(missing, partial(_detect, mixture, missing, shown, where), Evaluator(dataset))
    return _finish(folder, points, head, len(dataset), names=(_name(files[0]), _name(files[1])))


class Mixture:
    """Two detectors, and the head of one of them on a mixture of their feature maps.

    Args:
        first: First detector, in evaluation mode.
        second: Second detector, in evaluation mode.
        head: Detector whose head is evaluated, 1 or 2.

    Attributes:
        chosen: That detector.
    """

    def __init__(self, first: Detector, second: Detector, *, head: int) -> None:
        self.detectors = first, second
        self.chosen = self.detectors[head - 1]

    @torch.no_grad()
    def maps(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the feature maps of both for a batch on their device; done once for all weights."""
        first, second = (d.pyramid(d.normalise(batch.images, batch.sizes)) for d in self.detectors)
        return first, second

    @torch.no_grad()
    def candidates(self, batch: Batch, maps: tuple[list[Tensor], list[Tensor]], point: Gammas) -> list[Detections]:
        """Compute the head's candidates on ``gamma1 * F1 + gamma2 * F2``, before non-maximum suppression."""
        mixed = [point[0] * ours + point[1] * theirs for ours, theirs in zip(*maps, strict=True)]
        grid = self.chosen.grid_for(batch.images.shape[-2:])
        dense = self.chosen.head(mixed)
        return self.chosen.candidates(dense, grid, batch.sizes, batch.original_sizes, flipped=batch.flipped)


def check_mixable(first: Detector, second: Detector, *, names: Sequence[str]) -> None:
    """Check that the feature maps of both have the same levels and the same width.

    Raises:
        WeightsError: They differ; the message lists each difference.
    """
    one, other = first.settings, second.settings
    problems = [
        f"{what}: {names[0]} has {mine}, {names[1]} has {its}"
        for what, mine, its in (
            ("pyramid levels", list(one.levels), list(other.levels)),
            ("width of the pyramid (detector.channels)", one.channels, other.channels),
        )
        if mine != its
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise WeightsError(
            "the feature maps of these detectors cannot be mixed; pass two with equal detector.levels and "
            f"detector.channels:\n  {lines}"
        )


def parse_weights(given: str | Sequence[float] | None, grid: int, name: str) -> tuple[float, ...]:
    """Return the distinct weights of one detector in ascending order.

    Args:
        given: ``start:stop:step``, including the stop, numbers with commas, or numbers.
        grid: Number of weights from 0 to 1 if none are given.
        name: Name of the setting in messages.

    Raises:
        RecipeError: The text has neither form, there are no weights, or one is not finite.
    """
    if given is None:
        if grid < 2:
            raise RecipeError(f"grid: expected at least 2 weights from 0 to 1, came {grid}; or pass {name}")
        given = [i / (grid - 1) for i in range(grid)]
    try:
        if isinstance(given, str) and ":" in given:
            start, stop, step = (float(part) for part in given.split(":"))
            if step <= 0 or stop < start or not math.isfinite(start + stop):
                raise ValueError
            numbers = [start + i * step for i in range(math.floor((stop - start) / step + 1e-9) + 1)]
        else:
            numbers = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        raise RecipeError(
            f"{name}: expected start:stop:step with a positive step, such as 0:1:0.25, or numbers such as 0,0.5,1; "
            f"came {given!r}"
        ) from None
    if not numbers or not all(map(math.isfinite, numbers)):
        raise RecipeError(f"{name}: expected one or more finite numbers, came {given!r}")
    return tuple(sorted({round(value, _DIGITS) for value in numbers}))


def _name(file: Path) -> str:
    """Return the short name of a weights file: the name of its run folder, or the file name without suffix."""
    return file.parent.name if file.stem in ("best", "last") else file.stem


def _detect(
    mixture: Mixture, points: Sequence[Gammas], batches: Iterable[Batch], device: torch.device, done: Set[int]
) -> Iterator[tuple[int, list[Detections]]]:
    """Yield identifier and detections at each point for the images that are not done.

    Consecutive views of the same images are merged, as in a plain evaluation.
    """
    for ids, views in groupby(batches, key=lambda batch: tuple(batch.image_ids.tolist())):
        if done >= set(ids):
            continue
        found: list[list[list[Detections]]] = [[] for _ in points]
        for view in views:
            batch = move_data_to_device(view, device)
            maps = mixture.maps(batch)
            for at, point in zip(found, points, strict=True):
                at.append(mixture.candidates(batch, maps, point))
        by_point = [mixture.chosen.suppress(at) for at in found]
        for i, image_id in enumerate(ids):
            if image_id not in done:
                yield image_id, [Detections(*(part.cpu() for part in one[i])) for one in by_point]


@dataclass
class _Folder:
    """The folder of a landscape: its identity, known metrics, and detections until it is finished.

    Attributes:
        path: Path of the folder.
        facts: Settings that identify the landscape.
        metrics: Known metrics, by point.
    """

    path: Path
    facts: dict[str, Any]
    metrics: dict[Gammas, dict[str, float]]

    @classmethod
    def claim(cls, path: Path, facts: dict[str, Any]) -> _Folder:
        """Create the folder, or reopen one of the same landscape.

        Raises:
            RunError: The folder holds something else.
        """
        stamp = path / STAMP
        facts = json.loads(json.dumps(facts))
        if not stamp.is_file():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise RunError(f"{path} exists already and holds no landscape; pass another folder with --out DIR")
            make_folder(path)
            return cls(path, facts, {})
        known = json.loads(stamp.read_text(encoding="utf-8"))
        if differ := [key for key in facts if known.get(key) != facts[key]]:
            raise RunError(
                f"{path} holds another landscape (it differs in {', '.join(differ)}; see {stamp}); pass another folder "
                "with --out DIR"
            )
        metrics = {
            (p.pop("gamma1"), p.pop("gamma2")): {k: math.nan if v is None else float(v) for k, v in p.items()}
            for p in known["points"]
        }
        return cls(path, facts, metrics)

    def collect(
        self,
        points: Sequence[Gammas],
        detect: Callable[[Set[int]], Iterable[tuple[int, list[Detections]]]],
        evaluate: Evaluator,
    ) -> None:
        """Detect at points, evaluate each, and write the metrics after each.

        Detections are stored in files of a few images each, so that memory holds those of one point only, and an
        interrupted landscape resumes after the last file.
        """
        self.write()
        stamp = json.dumps(points)
        parts = self.path / PARTIAL / hashlib.sha256(stamp.encode()).hexdigest()[:16]  # other points, another folder
        make_folder(parts)
        files = sorted(parts.glob("*.npz"))
        done = {image_id for file in files for image_id in read_detections(file, stamp) or ()}
        waiting = iter(detect(done))
        while piece := list(islice(waiting, _KEPT)):
            files.append(parts / f"{len(files):06d}.npz")
            write_detections(files[-1], stamp, dict(piece))
        for i, point in enumerate(points):
            pieces = (read_detections(file, stamp) or {} for file in files)
            self.metrics[point] = evaluate({image_id: at[i] for piece in pieces for image_id, at in piece.items()})
            self.write()
        shutil.rmtree(self.path / PARTIAL)

    def write(self) -> None:
        """Write all known metrics."""
        points = [{"gamma1": g1, "gamma2": g2, **m} for (g1, g2), m in sorted(self.metrics.items())]
        write_text(self.path / STAMP, json.dumps({**self.facts, "points": finite(points)}, indent=1) + "\n")


def _finish(
    folder: _Folder, points: Sequence[Gammas], head: int, images: int, *, names: tuple[str, str]
) -> LandscapeResult:
    """Write table and picture; return the result."""
    gammas = [tuple(sorted({point[axis] for point in points})) for axis in (0, 1)]
    result = LandscapeResult(
        gamma1=gammas[0],
        gamma2=gammas[1],
        head=head,
        metrics={point: folder.metrics[point] for point in points},
        images=images,
        out=folder.path,
    )
    columns = list(dict.fromkeys(name for metrics in folder.metrics.values() for name in metrics))
    with (folder.path / CSV).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["gamma1", "gamma2", "head", *columns])
        for (g1, g2), metrics in sorted(folder.metrics.items()):
            cells = [metrics.get(name, math.nan) for name in columns]
            lines.writerow([f"{g1:g}", f"{g2:g}", head, *(f"{v:.6g}" if math.isfinite(v) else "" for v in cells)])
    # AP without any features is meaningless: the colour scale covers the other points.
    values = [[100 * result.metrics[g1, g2]["AP"] if g1 or g2 else math.nan for g2 in gammas[1]] for g1 in gammas[0]]
    title = f"AP of the head of {names[head - 1]} on mixed features"
    save_picture(plot_landscape(gammas[0], gammas[1], values, title=title, names=names), folder.path / PICTURE)
    return result
