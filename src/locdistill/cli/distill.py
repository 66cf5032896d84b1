"""``locdistill distill``."""

from __future__ import annotations

from typing import Any

import typer

from locdistill.cli import options


@options.of_a_run(without=("overfit",))
def distill(
    request: dict[str, Any],
    *,
    out: str | None,
    resume: bool,
    preflight: bool,
    images: int | None,
    dry_run: bool,
    as_json: options.Json = False,
) -> None:
    """Train a student with a teacher's knowledge of where box edges are.

    Pyramid levels, bins and input size of the student are those of the teacher
    unless a recipe is named; everything else is the student's own. Differences of
    teacher and student in classes (matched by name), bins or locations are bridged
    and logged.
    The teacher is needed for training only, not for the student's weights.

    [bold]Examples[/bold]

    locdistill distill --teacher runs/teacher/best --backbone tf_efficientnet_lite0 --data bccd
    locdistill distill ld_r50_from_r101 --teacher runs/r101 --data coco --devices 8
    locdistill distill --teacher runs/teacher --data bccd terms.ld.weight=2 terms.ld_vlr=null
    locdistill distill --teacher runs/a --start teacher --data bccd
    locdistill distill --teacher runs/teacher --data bccd --method ld --method pkd
    locdistill distill --teacher runs/teacher --data bccd --method pkd --balance 1
    locdistill distill --teacher runs/teacher --data bccd --cache runs/cache
    locdistill distill --teacher ema --data bccd
    locdistill distill --teacher nanodet.onnx --data coco --method bckd
    locdistill distill --teacher runs/teacher --data bccd --dry-run
    locdistill distill --resume --out runs/student
    """
    from dataclasses import replace  # noqa: PLC0415 - beside the heavy ones
    from functools import partial  # noqa: PLC0415
    from math import inf  # noqa: PLC0415

    from locdistill.cli.report import print_json, progress, report_preflight, report_run  # noqa: PLC0415 - heavy
    from locdistill.training import train  # noqa: PLC0415 - heavy
    from locdistill.training.preflight.look import Preflight  # noqa: PLC0415 - heavy

    how = Preflight(progress=progress("measuring the teacher"), show=partial(report_preflight, before_json=as_json))
    if images is not None:
        how = replace(how, images=images, seconds=inf)
    if dry_run:
        report = train.preflight(how=how, **request)
        print_json(report.as_dict()) if as_json else report_preflight(report, stops=True)
        raise typer.Exit(bool(report.stops))
    report_run(train.distill(out=out, resume=resume, preflight=how if preflight else None, **request), as_json=as_json)
