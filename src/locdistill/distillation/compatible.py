"""Compatibility of a teacher, or of initial weights, with a student."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        *_class_problems(mine, its, unnamed),
        *_meaning_problems(student, mine, its, teacher),
        *_cell_problems(student, mine, its, kind),
        *_level_problems(student, its, wanted),
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
    classes = None if mine.classes == its.classes else MapClasses(sources=_sources(mine, its))
    edges = _rebin(mine, its) if its.bins is not None else _soften(mine, its, (soft or "two_hot", soft_width))
    notes = [*_class_notes(mine, its), *_edge_notes(mine, its), *maps]
    if len(its.strides) > len(wanted):
        notes.append(f"levels: of the teacher's strides {list(its.strides)}, {list(wanted)} are used")
    if scale > 1:
        notes.append(f"input: the teacher looks at images {scale} times as large as the student's")
    return Bridge(strides=wanted, steps=tuple(s for s in (classes, edges) if s is not None), notes=tuple(notes))


def _sources(mine: Facts, its: Facts) -> tuple[int | None, ...]:
    """Match the student's classes to indices of the teacher's, by name; case, ``_`` and ``-`` do not matter."""
    exact = {name: i for i, name in enumerate(its.classes)}
    loose = {_loose(name): i for i, name in enumerate(its.classes)}
    return tuple(exact.get(name, loose.get(_loose(name))) for name in mine.classes)


def _loose(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _class_problems(mine: Facts, its: Facts, unnamed: str) -> list[str]:
    if any(source is not None for source in _sources(mine, its)):
        return []
    return [
        unnamed
        or f"classes: the teacher knows none of the student's; it has {_some(its.classes)}, the student "
        f"{_some(mine.classes)}; take a teacher that was trained on some of these classes, or rename the classes of "
        "the data where they mean the same"
    ]


def _class_notes(mine: Facts, its: Facts) -> list[str]:
    if mine.classes == its.classes:
        return []
    sources = _sources(mine, its)
    common = sum(source is not None for source in sources)
    notes = [f"classes: matched by name, {common} of the student's {len(sources)} and the teacher's {len(its.classes)}"]
    unknown = [name for name, source in zip(mine.classes, sources, strict=True) if source is None]
    if unknown:
        notes.append(f"classes: the teacher does not know {_some(unknown)}; its predictions teach nothing about these")
    return notes


def _meaning_problems(
    student: DetectorSettings, mine: Facts, its: Facts, teacher: DetectorSettings | Facts
) -> list[str]:
    """Return problems unless numbers mean the same; angle bins on a line rest on their mean, which no circle keeps."""
    if mine.coding == its.coding and (its.bins is None or type(mine.bins) is type(its.bins)):
        return []
    if mine.coding.kind.numbers != its.coding.kind.numbers:
        ours, theirs = (_BOXES[facts.coding.kind.numbers] for facts in (mine, its))
        return [f"boxes: the teacher has {theirs} ones, the student {ours} ones; take a teacher with {ours} boxes"]
    assert isinstance(teacher, DetectorSettings), "no other files have rotated boxes"
    both = ((name, getattr(teacher, name)) for name in ("model", "angles", "angle_bins", "angle_unit"))
    same = ", ".join(f"detector.{name}={value}" for name, value in both if value != getattr(student, name))
    return [f"boxes: the numbers that make the teacher's rotated boxes mean something else; set {same}"]


def _cell_problems(student: DetectorSettings, mine: Facts, its: Facts, kind: str | None) -> list[str]:
    if (mine.octaves, mine.ratios) == (its.octaves, its.ratios):
        return []
    kinds = [name for name in KINDS if KINDS[name].rotated == student.rotated]
    alike = [name for name in kinds if (KINDS[name].octaves, KINDS[name].ratios) == (mine.octaves, mine.ratios)]
    other = [name for name in kinds if (KINDS[name].octaves, KINDS[name].ratios) == (its.octaves, its.ratios)]
    whose = "" if kind is None else f", of kind {kind},"
    return [
        f"locations: the teacher{whose} has {_where(its)}, the student, of kind {student.model}, {_where(mine)}; "
        f"take a teacher of kind {', '.join(alike)}, or set detector.model={kind or other[0]}"
    ]


def _where(facts: Facts) -> str:
    per_cell = facts.octaves * len(facts.ratios)
    return f"{'one location' if per_cell == 1 else f'{per_cell} locations'} in each cell"


def _level_problems(student: DetectorSettings, its: Facts, wanted: tuple[int, ...]) -> list[str]:
    if set(wanted) <= set(its.strides):
        return []
    scale = wanted[0] // student.strides[0]
    levels = [stride.bit_length() - scale.bit_length() for stride in its.strides]
    remedy = f"set detector.levels={levels}"
    for scale in (1, 2, 4):
        if {stride * scale for stride in student.strides} <= set(its.strides):
            remedy += f", or teacher.scale={scale}, with which the grids agree"
    return [
        f"pyramid levels: a teacher for this student must have the strides {list(wanted)}, it has "
        f"{list(its.strides)}; {remedy}"
    ]


def _need_problems(its: Facts, needs: Needs, soft: SoftTarget | None) -> list[str]:
    problems = []
    if (needs.features or needs.cross) and its.channels is None:
        problems.append(
            "feature maps: this teacher hands out none; leave out the terms that compare features or use its head "
            "(--method ld or --method bckd look at predictions only)"
        )
    if needs.distributions and its.bins is None and soft is None:
        problems.append(
            "edge distributions: this teacher has boxes only; use --method bckd, which compares boxes, or set "
            "teacher.soft_target=two_hot (or gaussian) to make distributions of its boxes"
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
            f"feature maps: the teacher has strides {list(its.strides)}, asked for are {list(wanted)}; where one is "
            "missing, the nearest is resized"
        )
    return notes


def _rebin(mine: Facts, its: Facts) -> Rebin | None:
    assert mine.bins is not None
    assert its.bins is not None
    if (its.bins, its.offset) == (mine.bins, mine.offset):
        return None
    return Rebin(own=its.bins, bins=mine.bins, shift=mine.offset - its.offset)


def _soften(mine: Facts, its: Facts, how: tuple[SoftTarget, float]) -> Soften:
    assert mine.bins is not None
    kind, width = how
    return Soften(shift=mine.offset - its.offset, bins=mine.bins, kind=kind, width=width)


def _edge_notes(mine: Facts, its: Facts) -> list[str]:
    notes = []
    assert mine.bins is not None
    if its.bins is None:
        notes.append("edges: the teacher has boxes only; what stands for its distributions is made of them")
    elif its.bins != mine.bins:
        positions = its.bins.positions(torch.zeros(())).movedim(-1, 0)
        notes.append(
            f"bins: the teacher's {its.bins.count}{_reach(its.bins, ' strides,')} are put into the student's "
            f"{mine.bins.count}{_reach(mine.bins)}; means are kept"
            + ("" if torch.equal(mine.bins.limit(positions), positions) else ", but beyond the student's range")
            + f" (detector.reg_max={its.bins.reg_max} gives both the same)"
        )
    if its.offset != mine.offset:
        notes.append(
            f"locations: the teacher's are {its.offset - mine.offset:+g} strides from the student's, and its edges are "
            "moved accordingly"
        )
    return notes


def _reach(bins: Bins, unit: str = "") -> str:
    return f", up to {bins.reg_max}{unit}" if type(bins) is Bins else ""


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
        mine, its = map(_plain, pair)
        problems.append(f"{key}: the weights have {its}, the student {mine}; set detector.{key}={its}")
    if problems:
        raise WeightsError("\n  ".join([f"this student cannot begin with {where}:", *problems]))


def _plain(value: Any) -> Any:
    """Return a value as it is written in a recipe."""
    return list(value) if isinstance(value, tuple) else value


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
