"""Preflight checks of the data and the regions of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from locdistill.data.loader import training_loader
from locdistill.data.records import Dataset
from locdistill.data.samplers import GroupedSampler
from locdistill.distillation.regions import valuable_region
from locdistill.engine.launch import device_count
from locdistill.objective.scene import Scene
from locdistill.training.preflight.report import Finding
from locdistill.training.prepare import Parts
from locdistill.types import Batch, Dense

IMAGES, BATCH = 64, 8
"""Number of training images whose regions are measured, and their batch size."""
FEW = 0.1
"""Share of objects without a location, or of edges beyond the bins, above which there is a warning."""
REPEATED = 1.5
"""Ratio of images drawn in an epoch to existing images, from which on there is a warning."""


@dataclass(frozen=True)
class Regions:
    """Sizes of a run's regions on some of its training batches.

    Attributes:
        images: Number of images.
        locations: Mean number of locations in an image.
        main: Mean number of locations in an image assigned to an object (main region).
        valuable: Mean number of locations in an image in the valuable region but not in the main region.
        sides: Square root of each object's area, in pixels of the resized image.
        labels: Class of each object.
        answered: Whether an object has an assigned location.
        distances: Distances from each location of the main region to the edges of its object, in strides; no columns
            if locations predict other numbers.
    """

    images: int
    locations: float
    main: float
    valuable: float
    sides: Float[Tensor, " n"]
    labels: Int[Tensor, " n"]
    answered: Bool[Tensor, " n"]
    distances: Float[Tensor, "p e"]

    @property
    def missed(self) -> Float[Tensor, " k"]:
        """Sides of the objects without an assigned location."""
        return self.sides[~self.answered]

    def beyond(self, largest: float) -> float:
        """Return the share of the edges further away than the last bin, at ``largest`` strides."""
        return float((self.distances > largest).float().mean()) if self.distances.numel() else 0.0


def look_at_data(parts: Parts) -> tuple[dict[str, str], dict[str, int], list[Finding]]:
    """Count the images, and those without boxes; return the counts as text and as numbers, and the problems found."""
    train, val = parts.datasets["train"], parts.datasets["val"]
    there, without, bare = len(train) + train.empty, train.empty + _empty(train), _empty(val)
    used = "left out" if train.empty else "trained on as background"
    looked = {
        "training images": f"{there}, of which {without} ({without / there:.0%}) have no box"
        + f" and are {used}" * (without > 0),
        "validation images": f"{len(val)}, of which {bare} ({bare / max(1, len(val)):.0%}) have no box",
    }
    numbers = {"train_images": there, "train_images_without_boxes": without}
    numbers |= {"val_images": len(val), "val_images_without_boxes": bare}
    problems = []
    if bare >= len(val):
        undefined = Finding(
            what=f"no image of the validation split ({val.name}) has a box: AP will be undefined in the whole run, and "
            "no best weights can be chosen",
            remedy="use another split with data.val=NAME, or hold out some of the training images",
            settings=("data.holdout=0.1",),
        )
        problems.append(undefined)
    problems += _batch_problems(parts, train)
    unused = _empty(train)
    if unused > len(train) / 2:
        empty = Finding(
            what=f"{unused / len(train):.0%} of the images that are trained on have no box, so that no edge is learned "
            "from them",
            remedy="leave them out",
            settings=("data.filter_empty=true",),
        )
        problems.append(empty)
    return looked, numbers, problems


def _empty(data: Dataset) -> int:
    return sum(not len(record.boxes) for record in data.records)


def _batch_problems(parts: Parts, train: Dataset) -> list[Finding]:
    data, (devices, nodes) = parts.recipe.data, device_count(parts.recipe.engine)
    world = nodes * (devices if isinstance(devices, int) else len(devices))
    wide = [record.width > record.height for record in train.records]
    sampler = GroupedSampler(wide, batch=data.batch_per_device, world_size=world, repeat=data.repeat)
    step = data.batch_per_device * world
    drawn, there = len(sampler) * step, len(train) * data.repeat
    if drawn < REPEATED * there:
        return []
    return [
        Finding(
            what=f"an epoch draws {drawn} images, of {there} in the data: batches of {step} wide or {step} upright "
            "images are filled up with repeated ones",
            remedy="use a smaller batch",
            settings=(f"data.batch_per_device={max(1, min(data.batch_per_device, len(train) // (2 * world)))}",),
        )
    ]


@torch.no_grad()
def look_at_regions(parts: Parts) -> Regions:
    """Measure the regions of some training batches; they do not depend on the student's predictions."""
    settings = parts.recipe.data
    few = settings.model_copy(update={"workers": 0, "batch_per_device": min(BATCH, settings.batch_per_device)})
    loader = training_loader(parts.datasets["train"], few, seed=parts.recipe.engine.seed)
    region = valuable_region(parts.objective)
    images, inside, main, valuable = 0, 0, 0, 0
    sides, labels, answered, distances = [], [], [], []
    for batch in islice(loader, min(len(loader), max(1, IMAGES // few.batch_per_device))):
        scene = _scene(parts, batch)
        assignment, present = scene.assignment, scene.instances.present
        images += len(batch.images)
        inside += int(assignment.inside.sum())
        main += int(assignment.positive.sum())
        valuable += int(((region(scene) > 0) & ~assignment.positive).sum())
        slots = torch.arange(present.shape[1])
        side = (scene.instances.boxes[..., 2:] - scene.instances.boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
        sides.append(side[present])
        labels.append(scene.instances.labels[present])
        answered.append((assignment.gt_index[..., None] == slots).any(1)[present])
        values = scene.coding.encode(scene.grid, scene.target_boxes)
        distances.append(values[..., : scene.coding.distances][assignment.positive])
    return Regions(
        images=images,
        locations=inside / images,
        main=main / images,
        valuable=valuable / images,
        sides=torch.cat(sides),
        labels=torch.cat(labels),
        answered=torch.cat(answered),
        distances=torch.cat(distances),
    )


def _scene(parts: Parts, batch: Batch) -> Scene:
    """Build the scene of a batch with all-zero predictions of the student."""
    detector = parts.detector
    grid = detector.grid_for(batch.images.shape[-2:])
    images, locations = len(batch.images), len(grid.points)
    silent = Dense(
        torch.zeros(images, locations, len(detector.settings.classes)),
        torch.zeros(images, locations, detector.settings.edges, detector.bins.count),
    )
    return parts.objective.scene(silent, grid=grid, instances=batch.instances, checked=False)


def in_words(regions: Regions) -> dict[str, str]:
    """Describe the regions."""
    share = {name: getattr(regions, name) / max(1.0, regions.locations) for name in ("main", "valuable")}
    on = f"(of {regions.images} training images)"
    return {
        "main region": f"{regions.main:.1f} locations in an image, {share['main']:.2%} of all {on}; "
        f"{len(regions.missed)} of {len(regions.sides)} objects have none",
        "valuable region": f"{regions.valuable:.1f} locations beside it, {share['valuable']:.2%} of all",
    }


def region_problems(
    parts: Parts, regions: Regions, its_largest: float | None, *, seen: float = math.inf
) -> list[Finding]:
    """List the problems of the regions, and of the bins for objects of this size.

    Args:
        parts: The run.
        regions: Regions of some training batches.
        its_largest: Position of the teacher's last bin, in strides; None if it has no bins.
        seen: Largest image side, in pixels of the student's input, that fits the input sizes of all teachers.
    """
    if not len(regions.sides):
        return []
    problems = []
    if len(regions.missed) > FEW * len(regions.sides):
        problems.append(missed_objects(parts, regions, seen))
    named = [name for name, term in parts.objective.terms.items() if term.on == valuable_region(parts.objective)]
    if not regions.valuable and named:
        settings = parts.detector.settings
        sizes = [settings.anchor_scale * stride for stride in settings.strides]
        no_valuable = Finding(
            what=f"the valuable region is empty: {', '.join(named)} will have no effect. The objects' median side is "
            f"{float(regions.sides.median()):.0f} pixels, the anchors' sides go from {sizes[0]:g} to {sizes[-1]:g}",
            remedy="bring the size of the anchors closer to that of the objects",
            settings=(f"detector.anchor_scale={_fitting_scale(regions, settings.strides[0]):g}",),
        )
        problems.append(no_valuable)
    return problems + _short_bins(parts, regions, its_largest)


def missed_objects(parts: Parts, regions: Regions, seen: float = math.inf) -> Finding:
    """Report the objects without an assigned location; see `region_problems`."""
    share, median = len(regions.missed) / len(regions.sides), float(regions.missed.median())
    settings = parts.detector.settings
    stride = settings.strides[0]
    what = (
        f"{share:.0%} of the objects have no assigned location, so that nothing is learned from them; their "
        f"median side is {median:.0f} pixels, the finest stride {stride}"
    )
    if median < 2 * stride:
        given = parts.recipe.data.sizes
        wanted = min(4, max(2, round(2 * stride / max(median, 1))))
        factor = min(wanted, seen / max(max(size) for size in given))
        if factor <= 1:
            return Finding(what=what, remedy="enlarge the images; this needs a teacher with a larger input size")
        sizes = ",".join(f"[{int(long * factor)},{int(short * factor)}]" for long, short in given)
        limit = ", the most that the teacher's input size allows" if factor < wanted else ""
        return Finding(
            what=what, remedy=f"enlarge the images, here {factor:g} times{limit}", settings=(f"data.sizes=[{sizes}]",)
        )
    return Finding(
        what=what,
        remedy=f"bring the size of the anchors, {settings.anchor_scale * stride:g} pixels on that level, closer to "
        "that of the objects",
        settings=(f"detector.anchor_scale={_fitting_scale(regions, stride):g}",),
    )


def _fitting_scale(regions: Regions, stride: int) -> float:
    """Return the anchor scale for which the smallest anchor matches the lower quartile of the objects' sides."""
    return max(1, round(float(regions.sides.quantile(0.25)) / stride))


def _short_bins(parts: Parts, regions: Regions, its_largest: float | None) -> list[Finding]:
    """Report edges beyond the last bin of the student, or of the teacher."""
    reg_max, problems = parts.detector.settings.reg_max, []
    needed = int(regions.distances.flatten().quantile(0.99).ceil()) if regions.distances.numel() else 0
    if regions.beyond(reg_max) > FEW:
        problems.append(
            Finding(
                what=f"too few bins: {regions.beyond(reg_max):.0%} of the edges of the main region are further than "
                f"the student's last bin ({reg_max} strides), and cannot be learned",
                remedy=f"use more bins (99 % of the edges are within {needed} strides)",
                settings=(f"detector.reg_max={needed}",),
            )
        )
    if its_largest is not None and its_largest < reg_max and regions.beyond(its_largest) > FEW:
        problems.append(
            Finding(
                what=f"the teacher has too few bins: {regions.beyond(its_largest):.0%} of the edges of the main region "
                f"are further than its last bin ({its_largest:g} strides), where its predictions are too near",
                remedy="use a teacher with more bins, or distil the classes only (--method kd)",
            )
        )
    return problems
