"""Verdict on a first look: where it stopped, and the remedy to type. All of it follows from numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from locdistill.annotations.sources import DataFormat
from locdistill.engine.settings import EngineSettings
from locdistill.training.overfit.before import Before
from locdistill.training.overfit.matches import Compared
from locdistill.training.preflight.data import FEW, Regions
from locdistill.training.preflight.report import Finding

ENOUGH, PASS = 0.95, 0.8
"""AP50 at which the look ends, and from which it passes when its time is over."""
USUAL = {"sgd": 0.01, "adamw": 0.001}
"""Usual learning rates for 16 images."""
UNUSUAL, IDLE = 30.0, 1e-4
"""Ratio to the usual rate, or its inverse, from which the look's own rate differs in proportion; ratio at which nothing
can be learned."""
POINT = 3.0
"""Side in pixels of the input up to which a box is of a pixel or two."""
FELL = 0.8
"""Ratio of the last loss to the first above which it did not fall."""
MOST = 0.5
"""Share of the objects that makes a fault the reason."""
CANNOT = (
    "This look cannot find labels that are wrong but can be learnt by heart, such as shifted or shuffled ones: "
    "the picture shows them"
)
FORMATS: dict[DataFormat, str] = {
    "coco": "COCO's bbox is [x, y, width, height] in pixels of the image file, not 0 to 1",
    "voc": "VOC's bndbox is xmin, ymin, xmax, ymax in pixels of the image file",
    "yolo": "a YOLO line is class, centre x, centre y, width, height as shares of the image, 0 to 1",
    "dota": "a DOTA line is four corners x y in pixels, then the class",
    "hrsc": "HRSC2016 has mbox_cx, mbox_cy, mbox_w, mbox_h in pixels",
    "labelme": "labelme's points are x, y in pixels of the image file",
}


def relative_rate(engine: EngineSettings, batch: int) -> float:
    """Return the learning rate of a run as a multiple of the usual one, at this number of images per step."""
    rate = engine.lr if engine.scale_lr else engine.lr * 16 / max(1, batch)
    return rate / USUAL[engine.optimizer]


def own_rate(relative: float) -> float:
    """Return the factor of the look's own learning rate: 1 for rates that are not far from the usual one."""
    return 1.0 if 1 / UNUSUAL <= relative <= UNUSUAL else relative


def rate_problems(engine: EngineSettings, relative: float) -> list[Finding]:
    """Report a learning rate that is far from the usual one."""
    if own_rate(relative) == 1:
        return []
    usual, far = USUAL[engine.optimizer], "below" if relative < 1 else "above"
    times = 1 / relative if relative < 1 else relative
    return [
        Finding(
            what=f"engine.lr is {engine.lr:g}, {times:.3g} times {far} the usual one",
            remedy=f"set it for 16 images ({engine.optimizer})",
            settings=(f"engine.lr={usual:g}",),
        )
    ]


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Facts about the images of a look.

    Attributes:
        images: Number of images.
        kind: Format of the data set.
        classes: Names of the classes.
        blank: Names of the images of a single colour.
        regions: Objects, and which of them have a location.
        strides: Stride of each level, in pixels.
        anchors: Side of the anchor of each level, in pixels; that of the smallest if there are several.
    """

    images: int
    kind: DataFormat
    classes: tuple[str, ...]
    blank: tuple[str, ...]
    regions: Regions
    strides: tuple[int, ...]
    anchors: tuple[float, ...]


def data_problems(facts: ImageFacts, missed: Finding | None) -> list[Finding]:
    """List what no training can help: no objects, blank images, boxes of a pixel, no location for any object.

    Args:
        facts: Facts about the images.
        missed: The report on objects without a location, with its remedy.
    """
    sides = facts.regions.sides
    if not len(sides):
        return [
            Finding(
                what=f"none of the {facts.images} images has an object",
                remedy="look at the labels with 'locdistill data check FOLDER'; names of label files and images, or of "
                "classes (data.classes, data.ignore_classes), may not match",
            )
        ]
    problems = []
    if len(facts.blank) >= max(1, MOST * facts.images):
        problems.append(
            Finding(
                what=f"{len(facts.blank)} of {facts.images} images are of a single colour: {_some(facts.blank)}",
                remedy="open these files in a viewer and write them again; 'locdistill data check FOLDER' lists broken "
                "files",
            )
        )
    if float((sides <= POINT).float().mean()) > MOST:
        problems.append(
            Finding(
                what=f"{int((sides <= POINT).sum())} of {len(sides)} boxes are of a pixel or two: their sides are "
                f"{float(sides.min()):.2g} to {float(sides.max()):.2g} pixels of the network's input",
                remedy=f"check the units of the boxes: {FORMATS[facts.kind]}",
            )
        )
    elif missed is not None and not facts.regions.answered.any():
        problems.append(without_location(facts, missed))
    return problems


def without_location(facts: ImageFacts, missed: Finding) -> Finding:
    """Report objects without a location, by class, with their sides against strides and anchors."""
    regions = facts.regions
    lost = ~regions.answered
    names = []
    for label in sorted(set(regions.labels[lost].tolist())):
        sides = regions.sides[lost & (regions.labels == label)]
        low, high = float(sides.min()), float(sides.max())
        sizes = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
        names.append(f"{facts.classes[label]} ({len(sides)}, side {sizes})")
    what = (
        f"no location is assigned to {int(lost.sum())} of {len(regions.sides)} objects: {_some(names)} pixels; strides "
        f"are {_numbers(facts.strides)}, anchors {_numbers(facts.anchors)} pixels"
    )
    return Finding(what=what, remedy=missed.remedy, settings=missed.settings)


def start_problems(before: Before) -> list[Finding]:
    """List what is wrong at the initial weights: a loss that is not finite, frozen weights, no gradient."""
    if broken := [name for name, value in before.losses.items() if not math.isfinite(value)]:
        return [not_finite(broken, "before the first step")]
    if not before.learning:
        return [
            Finding(
                what="nothing is trained: all parameters of the detector are frozen",
                remedy="train the whole detector; in Python, requires_grad must be true for its parameters",
                settings=("detector.frozen_stages=-1",),
            )
        ]
    if not math.isfinite(before.gradient):
        return [
            Finding(
                what="the losses are finite and their gradient is not",
                remedy="leave out terms one by one with terms.NAME=null to find the one",
            )
        ]
    if before.gradient == 0:
        return [
            Finding(
                what=f"no weight has a gradient: the terms {_some([*before.losses])} do not depend on them",
                remedy="give terms a weight above 0 (terms.NAME.weight), or leave them out to have the published ones",
            )
        ]
    return []


def not_finite(terms: Sequence[str], when: str) -> Finding:
    """Report terms that are not finite."""
    return Finding(
        what=f"the loss is not finite: {' and '.join(terms)} became NaN or infinite {when}",
        remedy="look for broken boxes with 'locdistill data check FOLDER'; if the term is your own, test it on boxes "
        "without area and on probabilities of 0; compute in float32",
        settings=("engine.precision=32",),
    )


@dataclass(frozen=True, kw_only=True)
class After:
    """Result of the training.

    Attributes:
        ap50: AP50 on the images.
        rising: Whether the last evaluation was better than the one before.
        first: Loss at the initial weights.
        last: Loss at the end.
        matches: Detections against objects.
        frozen: Share of the parameters that are not trained.
        random: Whether the backbone has random weights.
    """

    ap50: float
    rising: bool
    first: float
    last: float
    matches: Compared
    frozen: float = 0.0
    random: bool = False

    @property
    def passed(self) -> bool:
        """Whether the images were learnt by heart."""
        return self.ap50 >= PASS


def reasons(after: After, facts: ImageFacts, missed: Finding | None, rate: Sequence[Finding]) -> list[Finding]:
    """List why the images were not learnt by heart, the likeliest reason first; after a pass, what is odd all the same.

    Args:
        after: Result of the training.
        facts: Facts about the images.
        missed: The report on objects without a location; None if there are none.
        rate: The report on the learning rate.
    """
    odd = [] if missed is None else [without_location(facts, missed)]
    if after.passed:
        return odd
    share = 1 - float(facts.regions.answered.float().mean())
    problems = training_problems(after, facts)
    return [*rate, *odd, *problems] if share > FEW else [*rate, *problems, *odd]


def training_problems(after: After, facts: ImageFacts) -> list[Finding]:
    """List where the training stopped, the likeliest reason first; nothing if it passed."""
    if after.passed:
        return []
    matches = after.matches
    if not after.last <= FELL * after.first:
        return [_flat(after)]
    if matches.named < matches.placed * MOST and matches.placed > MOST * matches.objects:
        (truth, other), count = max(matches.mistaken.items(), key=lambda item: item[1])
        found = Finding(
            what=f"boxes are found and classes are not: {matches.placed} of {matches.objects} objects have a detection "
            f"in their place, {matches.named} one of their class; {count} x {facts.classes[truth]} are taken for "
            f"{facts.classes[other]}",
            remedy="look for objects that are labelled twice with different classes, or for classes that look the "
            "same; 'locdistill data check FOLDER' counts them",
        )
    elif matches.beside > MOST * matches.objects:
        (dx, dy), growth = matches.shift, matches.growth
        found = Finding(
            what=f"detections lie beside the objects: {matches.beside} of {matches.objects} have one with too little "
            f"overlap only, shifted by {dx:+.0f}, {dy:+.0f} pixels (median), of {growth:.2f} times the side",
            remedy="look at the picture: boxes that do not follow what is seen cannot be learnt; more bins may be "
            "needed for large objects (detector.reg_max)",
        )
    elif not matches.placed:
        found = Finding(
            what=f"the loss fell ({after.first:.3g} to {after.last:.3g}) and none of the {matches.objects} objects is "
            f"found ({matches.detections} detections)",
            remedy="look at truth and detections in the picture; a lower score may be needed",
            settings=("detector.detections.score_threshold=0.01",),
        )
    else:
        found = Finding(
            what=f"{matches.named} of {matches.objects} objects are found when the time is over, "
            + ("and AP was still rising" if after.rising else "and AP was no longer rising"),
            remedy="take fewer images (--overfit 1), or more time",
            settings=("engine.time_limit_seconds=300",),
        )
    return [found]


def _flat(after: After) -> Finding:
    what = f"the loss did not fall: {after.first:.3g} before the first step, {after.last:.3g} at the end"
    if after.frozen > MOST:
        how = "random " if after.random else ""
        return Finding(
            what=f"{what}; {after.frozen:.0%} of the parameters are frozen, with {how}weights",
            remedy="train the backbone too",
            settings=("detector.frozen_stages=-1", "engine.backbone_lr_factor=1"),
        )
    return Finding(
        what=what,
        remedy="leave out terms of your own (terms.NAME=null), start from the defaults (without --recipe), and see "
        "which setting brings the fault back",
    )


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
