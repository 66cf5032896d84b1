"""Compatibility of a teacher, or of initial weights, with a student."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from locdistill.distillation.bridges import Facts, MapClasses, Rebin, Soften, Step
from locdistill.distillation.needs import PREDICTIONS, Needs
from locdistill.distillation.settings import SoftTarget
from locdistill.errors import TeacherError, WeightsError
from locdistill.geometry.bins import Bins
from locdistill.interop.recognise import numbered
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings
from locdistill.models.weights import SUFFIX

_FREE = {
    *("classes", "backbone", "pretrained", "frozen_stages", "norm_eval", "norm_frozen"),
    *("anchor_scale", "input", "detections"),
}
"""Settings that do not change the meaning of weights, or (classes, backbone) are compared separately."""
_BOXES = {4: "axis-aligned", 5: "rotated"}


class MismatchError(TeacherError):
    """A teacher does not match its student, and this cannot be bridged.

    Attributes:
        student: Settings of the student.
        teacher: Settings or facts of the teacher.
        where: Name of the teacher in messages.
    """

    def __init__(self, message: str, student: DetectorSettings, teacher: DetectorSettings | Facts, where: str) -> None:
        super().__init__(message)
        self.student, self.teacher, self.where = student, teacher, where


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """Conversion of a teacher's predictions to its student's bins, locations and classes.

    Attributes:
        strides: Strides of the teacher's levels that match the student's cells; of all its levels where only maps are
            compared.
        steps: Conversions of its predictions, in order.
        notes: Descriptions of the conversions; empty where both match.
        comparable: Whether its predictions can be converted. If not, no term needs them.
    """

    strides: tuple[int, ...]
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    comparable: bool = True


def check_teacher(
    student: DetectorSettings,
    teacher: DetectorSettings | Facts,
    where: str,
    *,
    needs: Needs = PREDICTIONS,
    scale: int = 1,
    soft: SoftTarget | None = None,
    soft_width: float = 0.5,
) -> Bridge:
    """Bridge the differences between a teacher and a student where possible; otherwise raise an error.

    Bridged are classes (by name; classes unknown to the teacher are not distilled), edge bins (see `bridges.rebin`),
    the position of a location within its cell (the corner for GFL, GFL v2 and ATSS, the centre for FCOS: a shift of the
    bins), and levels that only the teacher has. The number of locations per cell, nine for RetinaNet, is not bridged.
    Sizes of anchors do not matter: only the student's locations are assigned to objects. Where the terms compare only
    maps, none of this matters, and the terms bridge widths, strides and numbers of levels.

    Args:
        student: Settings of the student.
        teacher: Settings or facts of the teacher.
        where: Name of the teacher in messages.
        needs: Requirements of the recipe's terms.
        scale: Factor by which the teacher's input is enlarged.
        soft: Distributions to compute from the boxes of a teacher that has none; with None, terms that need
            distributions raise an error.
        soft_width: Standard deviation of Gaussian distributions, in strides.

    Raises:
        MismatchError: A difference cannot be bridged; the message lists every difference with its remedy.
    """
    its = Facts.of(teacher) if isinstance(teacher, DetectorSettings) else teacher
    mine, kind = Facts.of(student), teacher.model if isinstance(teacher, DetectorSettings) else None
    unnamed = _unnamed(student, teacher, where) if isinstance(teacher, DetectorSettings) else ""
    wanted = tuple(stride * scale for stride in mine.strides)
    unlike = [
        *_prediction_problems(student, teacher, mine, its, unnamed),
        *_grid_problems(student, mine, its, kind, wanted),
    ]
    problems = [*(unlike if needs.predictions else ()), *_need_problems(its, needs, soft)]
    if problems:
        raise MismatchError("\n  ".join([f"{where} cannot teach this student:", *problems]), student, teacher, where)
    maps = _map_notes(mine, its, needs, wanted)
    if unlike:
        only = (
            "predictions: the teacher's are not comparable with the student's, and only its feature maps are compared"
        )
        return Bridge(strides=its.strides, notes=(*maps, only), comparable=False)
    assert mine.bins is not None
    steps: list[Step] = []
    if mine.classes != its.classes:
        steps.append(MapClasses(sources=_sources(mine, its)))
    shift = mine.offset - its.offset
    if its.bins is None:
        steps.append(Soften(shift=shift, bins=mine.bins, kind=soft or "two_hot", width=soft_width))
    elif shift or its.bins != mine.bins:
        steps.append(Rebin(own=its.bins, bins=mine.bins, shift=shift))
    notes = [*_prediction_notes(mine, its), *maps]
    if len(its.strides) > len(wanted):
        notes.append(f"levels: of the teacher's strides {list(its.strides)}, {list(wanted)} are used")
    if scale > 1:
        notes.append(f"input: the teacher's images are {scale} times as large as the student's")
    return Bridge(strides=wanted, steps=tuple(steps), notes=tuple(notes))


def _sources(mine: Facts, its: Facts) -> tuple[int | None, ...]:
    """Match the student's classes to indices of the teacher's, by name; case, ``_`` and ``-`` do not matter."""
    ours, theirs = (
        [" ".join(re.sub("[_-]", " ", name.casefold()).split()) for name in facts.classes] for facts in (mine, its)
    )
    exact, loose = ({name: i for i, name in enumerate(names)} for names in (its.classes, theirs))
    return tuple(exact.get(name, loose.get(alike)) for name, alike in zip(mine.classes, ours, strict=True))


def _prediction_problems(
    student: DetectorSettings, teacher: DetectorSettings | Facts, mine: Facts, its: Facts, unnamed: str
) -> list[str]:
    """Return problems unless some classes are common, and the numbers of a box mean the same.

    Angle bins on a line can only be compared by their mean, which bins on a circle do not keep.
    """
    problems = []
    if all(source is None for source in _sources(mine, its)):
        problems.append(
            unnamed
            or f"classes: the teacher knows none of the student's; it has {_some(its.classes)}, the student "
            f"{_some(mine.classes)}; take a teacher that was trained on some of these classes, or rename the classes "
            "of the data where they mean the same"
        )
    if mine.coding.kind.numbers != its.coding.kind.numbers:
        ours, theirs = (_BOXES[facts.coding.kind.numbers] for facts in (mine, its))
        problems.append(
            f"boxes: the teacher has {theirs} ones, the student {ours} ones; take a teacher with {ours} boxes"
        )
    elif mine.coding != its.coding or (its.bins is not None and type(mine.bins) is not type(its.bins)):
        assert isinstance(teacher, DetectorSettings), "no other files have rotated boxes"
        both = ((name, getattr(teacher, name)) for name in ("model", "angles", "angle_bins", "angle_unit"))
        same = ", ".join(f"detector.{name}={value}" for name, value in both if value != getattr(student, name))
        problems.append(f"boxes: the numbers of the teacher's rotated boxes have another meaning; set {same}")
    return problems


def _grid_problems(
    student: DetectorSettings, mine: Facts, its: Facts, kind: str | None, wanted: tuple[int, ...]
) -> list[str]:
    """Return problems unless each of the student's locations is one of the teacher's."""
    problems = []
    if (mine.octaves, mine.ratios) != (its.octaves, its.ratios):
        kinds = [name for name in KINDS if KINDS[name].rotated == student.rotated]
        alike = [name for name in kinds if (KINDS[name].octaves, KINDS[name].ratios) == (mine.octaves, mine.ratios)]
        other = [name for name in kinds if (KINDS[name].octaves, KINDS[name].ratios) == (its.octaves, its.ratios)]
        whose = "" if kind is None else f", of kind {kind},"
        ours, theirs = (facts.octaves * len(facts.ratios) for facts in (mine, its))
        problems.append(
            f"locations: the teacher{whose} has {theirs} in each cell, the student, of kind {student.model}, {ours}; "
            f"take a teacher of kind {', '.join(alike)}, or set detector.model={kind or other[0]}"
        )
    if not set(wanted) <= set(its.strides):
        factor = wanted[0] // student.strides[0]
        levels = [stride.bit_length() - factor.bit_length() for stride in its.strides]
        remedy = f"set detector.levels={levels}"
        for scale in (1, 2, 4):
            if {stride * scale for stride in student.strides} <= set(its.strides):
                remedy += f", or teacher.scale={scale}, with which the grids agree"
        problems.append(
            f"pyramid levels: a teacher for this student must have the strides {list(wanted)}, it has "
            f"{list(its.strides)}; {remedy}"
        )
    return problems


def _need_problems(its: Facts, needs: Needs, soft: SoftTarget | None) -> list[str]:
    problems = []
    if (needs.features or needs.cross) and its.channels is None:
        problems.append(
            "feature maps: this teacher provides none; leave out the terms that compare features or use its head "
            "(--method ld and --method bckd need only predictions)"
        )
    if needs.distributions and its.bins is None and soft is None:
        problems.append(
            "edge distributions: this teacher has boxes only; use --method bckd, which compares boxes, or set "
            "teacher.soft_target=two_hot (or gaussian) to compute distributions from its boxes"
        )
    return problems


def _map_notes(mine: Facts, its: Facts, needs: Needs, wanted: tuple[int, ...]) -> list[str]:
    notes = []
    if (needs.features or needs.cross) and its.channels != mine.channels:
        notes.append(
            f"feature maps: the teacher's have {its.channels} channels, the student's {mine.channels}; 1x1 "
            "convolutions between them are trained with the student, and are in no weights file"
        )
    if needs.features and not set(wanted) <= set(its.strides):
        notes.append(
            f"feature maps: the teacher has strides {list(its.strides)}, expected are {list(wanted)}; instead of a "
            "missing one, the nearest is resized"
        )
    return notes


def _prediction_notes(mine: Facts, its: Facts) -> list[str]:
    """Describe the conversions of classes and edges."""
    notes = []
    if mine.classes != its.classes:
        sources = _sources(mine, its)
        common = sum(source is not None for source in sources)
        notes.append(
            f"classes: matched by name, {common} of the student's {len(sources)} and the teacher's {len(its.classes)}"
        )
        if unknown := [name for name, source in zip(mine.classes, sources, strict=True) if source is None]:
            notes.append(f"classes: the teacher does not know {_some(unknown)}; these are not distilled")
    assert mine.bins is not None
    if its.bins is None:
        notes.append("edges: the teacher has boxes only; distributions are computed from them")
    elif its.bins != mine.bins:
        positions = its.bins.positions(torch.zeros(())).movedim(-1, 0)
        theirs, ours = (f", up to {b.reg_max}" if type(b) is Bins else "" for b in (its.bins, mine.bins))
        notes.append(
            f"bins: the teacher's {its.bins.count}{theirs and theirs + ' strides,'} are put into the student's "
            f"{mine.bins.count}{ours}; means are kept"
            + (
                ""
                if torch.equal(mine.bins.clamp(positions, margin=0), positions)
                else ", but beyond the student's range"
            )
            + f" (detector.reg_max={its.bins.reg_max} gives both the same)"
        )
    if its.offset != mine.offset:
        notes.append(
            f"locations: the teacher's are {its.offset - mine.offset:+g} strides from the student's, and its edges are "
            "moved accordingly"
        )
    return notes


def _some(names: Sequence[str]) -> str:
    return str(list(names[:10])) + (" and others" if len(names) > 10 else "")


def check_start(student: DetectorSettings, weights: DetectorSettings, where: str) -> None:
    """Raise an error unless initial weights come from a detector that computes the same from them as the student.

    Names and shapes are compared when the weights are loaded. This function compares the rest: the order of classes,
    the normalisation of images, the position of the stride in a bottleneck, and the like.

    Raises:
        WeightsError: The detectors differ; the message lists every difference with its remedy.
    """
    problems = []
    if student.classes != weights.classes:
        problems.append(
            _unnamed(student, weights, where)
            or f"classes: the weights have {list(weights.classes)}, the student {list(student.classes)}; set "
            "data.classes to those of the weights if the data have them all, or begin with a pretrained backbone "
            "(leave start out)"
        )
    pairs = {key: (getattr(student, key), getattr(weights, key)) for key in DetectorSettings.model_fields}
    differ = {key: pair for key, pair in pairs.items() if key not in _FREE and pair[0] != pair[1]}
    if student.backbone.split(".")[0] != weights.backbone.split(".")[0]:  # a tag names weights, not an architecture
        differ["backbone"] = pairs["backbone"]
    for key, pair in differ.items():
        mine, its = (list(value) if isinstance(value, tuple) else value for value in pair)  # as in a recipe
        problems.append(f"{key}: the weights have {its}, the student {mine}; set detector.{key}={its}")
    if problems:
        raise WeightsError("\n  ".join([f"this student cannot begin with {where}:", *problems]))


def _unnamed(student: DetectorSettings, other: DetectorSettings, where: str) -> str:
    """Return the remedy if a checkpoint names no classes but has the right number of them, else an empty text."""
    names, count = student.classes, len(other.classes)
    spare = other.model == "gflv2" and not other.background_channel  # one of them may be for background
    if other.classes != numbered(count) or len(names) not in (count, count - spare):
        return ""
    file = "CHECKPOINT.pth" if where.endswith(SUFFIX) else shlex.quote(where)  # what it was converted from
    return (
        f"classes: {where} does not name its {count} classes, the student has {list(names)}; if it was trained on "
        f"these, in this order, name them: locdistill convert {file} NAMED.safetensors --classes "
        f"{shlex.quote(','.join(names))}, and take NAMED.safetensors"
    )
