"""``locdistill demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder; one that was interrupted goes on.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs of each kind.")] = 3,
    fast: Annotated[
        bool, typer.Option("--fast", help="Few images and steps: shows only that everything runs.")
    ] = False,
) -> None:
    """Show what localization distillation does, in minutes on two cores.

    Draws a small data set, trains a teacher, trains the same small student
    alone and with localization distillation, and compares them at equal
    steps and at equal time. Nothing is downloaded.
    """
    import time  # noqa: PLC0415 - beside the heavy ones

    from locdistill.cli.report import console  # noqa: PLC0415 - heavy
    from locdistill.recipes.demo import FAST, DemoSettings, run_demo  # noqa: PLC0415 - heavy
    from locdistill.recipes.trial import difference_table, summary_table  # noqa: PLC0415 - heavy

    start, screen = time.monotonic(), console()

    def tell(line: str) -> None:
        screen.print(f"[dim]{time.monotonic() - start:5.0f} s[/dim]  {line}")

    settings = (FAST if fast else DemoSettings()).model_copy(update={"seeds": seeds})
    command = f"locdistill demo --seeds {seeds}" + (" --fast" if fast else "")
    result = run_demo(out, settings, command=command, tell=tell)
    for table in (summary_table(result), difference_table(result)):
        screen.print()
        screen.print(table.rich())
    screen.print(f"\n{result.verdict}\n\nThe page with pictures: {out / 'report.html'}")
