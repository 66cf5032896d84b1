"""``locdistill methods``."""

from __future__ import annotations

from locdistill.cli import options


def methods(as_json: options.Json = False) -> None:
    """List the distillation methods, with what each compares and needs.

    [bold]Examples[/bold]

    locdistill methods
    locdistill methods --json
    locdistill distill --method ld --method pkd --teacher runs/teacher --data bccd
    """
    from locdistill.cli.report import report_methods  # noqa: PLC0415 - heavy
    from locdistill.recipe.catalogue import method_summaries  # noqa: PLC0415 - heavy

    report_methods(method_summaries(), as_json=as_json)
