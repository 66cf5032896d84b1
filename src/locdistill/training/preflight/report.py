"""What the look before the first step found: facts, numbers, and problems with their remedies."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from locdistill.distillation.bridges import AdaptedTeacher, Facts
from locdistill.distillation.compatible import MismatchError
from locdistill.distillation.onnx_teacher import OnnxTeacher
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.geometry.bins import CircularBins, RowBins
from locdistill.models.settings import DetectorSettings, NormalisationSettings
from locdistill.settings import finite

WIDTH = 120
SHOWN_CLASSES = 4
TeacherNetwork = LiveTeacher | OnnxTeacher
"""A teacher that looks at images itself."""
Column = dict[str, str]
"""Facts of a detector, in words, by name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        what: What was seen.
        remedy: What to do about it.
        settings: What applies the remedy, as it is typed behind the command; empty where no setting does.
    """

    what: str
    remedy: str = ""
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one line."""
        applied = f": {' '.join(self.settings)}" if self.settings else ""
        return f"{self.what}; {self.remedy}{applied}" if self.remedy or applied else self.what


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """What a look at a run before its first step found.

    Attributes:
        facts: By detector (``student``, and each teacher), what it is.
        looked: What was counted or measured, in words, by name.
        numbers: The same for machines.
        notes: What is worth knowing.
        warnings: What may go wrong.
        stops: What cannot work.
    """

    facts: dict[str, Column]
    looked: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[Finding, ...] = ()
    stops: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON; null where there was nothing to measure."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def parts(self, *, stops: bool = True) -> list[RenderableType]:
        """What to print, in order: facts, what was looked at, notes, warnings, and what stops the run."""
        found: list[RenderableType] = [Text("Before the first step"), _table(self.facts)]
        if self.looked:
            table = Table(box=None, show_header=False, pad_edge=False)
            table.add_column("", no_wrap=True)
            table.add_column("", overflow="fold")
            for name, text in self.looked.items():
                table.add_row(name, Text(text))
            lines = Padding(table, (0, 0, 0, 1))
            found.append(lines)
        notes = tuple(Finding(what=note) for note in self.notes)
        for heading, problems in (("Notes", notes), ("Warnings", self.warnings), ("Stop", self.stops)):
            if problems and (stops or heading != "Stop"):
                found += [Text(f"\n{heading}"), *map(_item, problems)]
        return found

    def text(self, width: int = WIDTH) -> str:
        """The same as plain text."""
        out = io.StringIO()
        Console(file=out, width=width, color_system=None, force_terminal=False).print(*self.parts(), sep="\n")
        return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"


def _table(facts: dict[str, Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in facts:
        table.add_column(Text(heading), overflow="fold")
    for name in dict.fromkeys(name for column in facts.values() for name in column):
        table.add_row(name, *(Text(column.get(name, "-")) for column in facts.values()))
    return table


def _item(problem: Finding) -> Table:
    """A list item, whose remedy is on a line of its own."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    table.add_row("-", Text(problem.what))
    if problem.remedy or problem.settings:
        table.add_row("", Text(" ".join(filter(None, ("->", problem.remedy)))))
    if problem.settings:
        table.add_row("", Text("   " + " ".join(problem.settings)))
    return table


def network(teacher: FrozenTeacher) -> TeacherNetwork:
    """Who looks at the images behind what is done to its predictions."""
    inner = teacher.teacher if isinstance(teacher, AdaptedTeacher) else teacher
    assert isinstance(inner, TeacherNetwork), "several teachers are looked at one by one"
    return inner


def facts_of_settings(settings: DetectorSettings) -> Column:
    """Facts of a detector of this package."""
    own = settings.input
    return {
        "head": f"{settings.model} on {settings.backbone}",
        **_facts(Facts.of(settings)),
        "normalisation": in_words(NormalisationSettings(mean=settings.mean, std=settings.std, bgr=settings.bgr)),
        "input": f"{own.long} x {own.short} at most",
    }


def facts_of_network(teacher: TeacherNetwork) -> Column:
    """Facts of a teacher."""
    if isinstance(teacher, LiveTeacher):
        return facts_of_settings(teacher.detector.settings)
    size = "any size" if teacher.size is None else f"{teacher.size[1]} x {teacher.size[0]}"
    head = {"head": "ONNX file", **_facts(teacher.facts)}
    return head | {"normalisation": in_words(teacher.normalisation), "input": size}


def _facts(facts: Facts) -> Column:
    some = ", ".join(facts.classes[:SHOWN_CLASSES]) + (", ..." if len(facts.classes) > SHOWN_CLASSES else "")
    bins = "none: boxes only"
    rows = facts.bins.lengths if isinstance(facts.bins, CircularBins) else facts.bins
    if isinstance(rows, RowBins):
        bins = f"{rows.count}: {_ranges(facts.coding.names, rows.ranges)}"
    elif facts.bins is not None:
        bins = f"{facts.bins.count}, 0 to {facts.bins.reg_max} strides"
    per_cell = facts.octaves * len(facts.ratios)
    return {
        "classes": f"{len(facts.classes)}: {some}" if facts.classes else "those of the data",
        "strides": ", ".join(map(str, facts.strides)),
        "bins of an edge": bins,
        "locations": f"{per_cell} in a cell, at {'its corner' if facts.offset == 0 else f'{facts.offset:g} of it'}",
        "channels": "none handed out" if facts.channels is None else str(facts.channels),
    }


def _ranges(names: tuple[str, ...], ranges: tuple[tuple[float, float], ...]) -> str:
    """From where to where the bins of each number go; those of a number without a range lie on a circle."""
    alike: dict[tuple[float, float], list[str]] = {}
    for name, ends in zip(names, ranges, strict=False):
        alike.setdefault(ends, []).append(name)
    ranges_of = [f"{', '.join(of)} {first:g} to {last:g}" for (first, last), of in alike.items()]
    return "; ".join([*ranges_of, *(f"{name} on a circle" for name in names[len(ranges) :])])


def in_words(how: NormalisationSettings) -> str:
    """A normalisation in words."""
    if how.mean is None or how.std is None:
        return f"{'BGR' if how.bgr else 'RGB'}, as the backbone was pretrained"
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (how.mean, how.std))
    return f"{'BGR' if how.bgr else 'RGB'}, mean {mean}, std {std}"


def refused(error: MismatchError) -> PreflightReport:
    """The report on a teacher that does not match, which is known before anything is measured."""
    teacher = error.teacher
    its = (
        facts_of_settings(teacher) if isinstance(teacher, DetectorSettings) else {"head": "ONNX file"} | _facts(teacher)
    )
    facts = {"student": facts_of_settings(error.student), "teacher": its}
    return PreflightReport(facts=facts, stops=(Finding(what=str(error)),))
