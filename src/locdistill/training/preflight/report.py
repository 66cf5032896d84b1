"""Report of the preflight check: facts, numbers, and problems with their remedies."""

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
"""A teacher that computes predictions from images itself."""
Column = dict[str, str]
"""Facts of a detector, in words, by name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem, or a possible one.

    Attributes:
        what: Description of the problem.
        remedy: Remedy for the problem.
        settings: Command-line settings that apply the remedy; empty if no setting does.
    """

    what: str
    remedy: str = ""
    settings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Format as one line."""
        applied = f": {' '.join(self.settings)}" if self.settings else ""
        return f"{self.what}; {self.remedy}{applied}" if self.remedy or applied else self.what


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """Report of a preflight check.

    Attributes:
        facts: Properties of each detector, by detector (``student``, and each teacher).
        looked: Counts and measurements as text, by name.
        numbers: The same as numbers.
        notes: Notes.
        warnings: Problems that may spoil the run.
        stops: Problems that stop the run.
    """

    facts: dict[str, Column]
    looked: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[Finding, ...] = ()
    stops: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON; null for undefined values."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def parts(self, *, stops: bool = True) -> list[RenderableType]:
        """Return the printed parts in order: facts, measurements, notes, warnings, and problems that stop the run."""
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
        """Format the report as plain text."""
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
    """Format a list item, with the remedy on a line of its own."""
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
    """Return the network of a single teacher, without the adapter of its predictions."""
    inner = teacher.teacher if isinstance(teacher, AdaptedTeacher) else teacher
    assert isinstance(inner, TeacherNetwork), "several teachers are described one by one"
    return inner


def facts_of_settings(settings: DetectorSettings) -> Column:
    """Describe a detector of this package."""
    own = settings.input
    return {
        "head": f"{settings.model} on {settings.backbone}",
        **_facts(Facts.of(settings)),
        "normalisation": in_words(NormalisationSettings(mean=settings.mean, std=settings.std, bgr=settings.bgr)),
        "input": f"{own.long} x {own.short} at most",
    }


def facts_of_network(teacher: TeacherNetwork) -> Column:
    """Describe a teacher."""
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
        # the ranges of the bins by predicted number; bins of a number without a range lie on a circle
        names = facts.coding.names
        alike: dict[tuple[float, float], list[str]] = {}
        for name, ends in zip(names, rows.ranges, strict=False):
            alike.setdefault(ends, []).append(name)
        ranges = [f"{', '.join(of)} {first:g} to {last:g}" for (first, last), of in alike.items()]
        ranges += [f"{name} on a circle" for name in names[len(rows.ranges) :]]
        bins = f"{rows.count}: {'; '.join(ranges)}"
    elif facts.bins is not None:
        bins = f"{facts.bins.count}, 0 to {facts.bins.reg_max} strides"
    per_cell = facts.octaves * len(facts.ratios)
    return {
        "classes": f"{len(facts.classes)}: {some}" if facts.classes else "those of the data",
        "strides": ", ".join(map(str, facts.strides)),
        "bins of an edge": bins,
        "locations": f"{per_cell} in a cell, at {'its corner' if facts.offset == 0 else f'{facts.offset:g} of it'}",
        "channels": "no feature maps" if facts.channels is None else str(facts.channels),
    }


def in_words(how: NormalisationSettings) -> str:
    """Describe a normalisation."""
    if how.mean is None or how.std is None:
        return f"{'BGR' if how.bgr else 'RGB'}, as the backbone was pretrained"
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (how.mean, how.std))
    return f"{'BGR' if how.bgr else 'RGB'}, mean {mean}, std {std}"


def refused(error: MismatchError) -> PreflightReport:
    """Return the report on a teacher that does not match the student, without measurements."""
    teacher = error.teacher
    its = (
        facts_of_settings(teacher) if isinstance(teacher, DetectorSettings) else {"head": "ONNX file"} | _facts(teacher)
    )
    facts = {"student": facts_of_settings(error.student), "teacher": its}
    return PreflightReport(facts=facts, stops=(Finding(what=str(error)),))
