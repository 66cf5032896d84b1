"""Tables on the pages of several studies."""

from __future__ import annotations

from locdistill.evaluation.tables import Table
from locdistill.viz import report


def block(table: Table) -> report.TableBlock:
    """Convert a table of results to a block of a page."""
    return report.TableBlock(table.header, table.rows, caption=table.title, emphasis=table.emphasis)
