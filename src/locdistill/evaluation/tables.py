"""Tables of results for terminals, log files and web pages."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

UNDEFINED = "-"  # no object to find, unlike 0


@dataclass(frozen=True)
class Table:
    """A titled table of formatted strings; the first column is text, the others are numbers.

    Attributes:
        title: Title of the table.
        header: One heading per column.
        rows: Cells, row by row, each as long as the header.
        emphasis: Indices of rows that summarise the others, such as a mean.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    emphasis: tuple[int, ...] = ()

    def rich(self) -> RichTable:
        """Return the table for ``rich.print``."""
        table = RichTable(title=self.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for i, heading in enumerate(self.header):
            table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=i > 0, overflow="fold")
        for i, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if i in self.emphasis else None)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown, with its title above."""
        lines = (self.header, ("---", *("---:" for _ in self.header[1:])), *self.rows)
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"**{self.title}**\n\n{body}"

    def text(self, width: int = 120) -> str:
        """Return the table as plain text without colours, at most ``width`` characters wide if possible."""
        out = io.StringIO()
        Console(file=out, width=width, color_system=None, force_terminal=False, markup=False).print(self.rich())
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def percent(value: float | None) -> str:
    """Format a number between 0 and 1 in percent with one decimal, as is usual for AP; a dash for None."""
    return UNDEFINED if value is None else f"{100 * value:.1f}"
