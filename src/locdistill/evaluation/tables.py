"""Tables of results: the same rows for a terminal, a log file and a page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

UNDEFINED = "-"  # no object to find, which is not the same as 0


@dataclass(frozen=True)
class Table:
    """A titled table of finished strings; the first column is text, the others are numbers.

    Attributes:
        title: What the table shows.
        header: One heading per column.
        rows: Cells, row by row, each as long as the header.
        emphasis: Indices of rows that sum up the others, such as a mean.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: tuple[int, ...] = ()

    def rich(self) -> RichTable:
        """The table for ``rich.print``."""
        table = RichTable(title=self.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.header):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
        for i, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if i in self.emphasis else None)
        return table

    def markdown(self) -> str:
        """The table in Markdown, under its title."""
        lines = (self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows)
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}"

    def text(self, width: int = 120) -> str:
        """The table as plain text without colours, at most ``width`` characters wide where that is possible."""
        out = io.StringIO()
        Console(file=out, width=width, color_system=None, force_terminal=False, markup=False).print(self.rich())
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def percent(value: float | None) -> str:
    """A number between 0 and 1 in percent with one decimal, as the field prints AP; a dash for None."""
    return UNDEFINED if value is None else f"{100 * value:.1f}"


def metrics_table(metrics: Mapping[str, float | None], title: str = "") -> Table:
    """One row of named numbers, in percent."""
    return Table(title, tuple(metrics), (tuple(percent(value) for value in metrics.values()),))
