"""``locdistill export``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from locdistill.cli import options


def export(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A run's folder, runs/NAME/best, or a file.")],
    settings: options.KeyValues = None,
    kind: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torch", help="Format of the file.")] = "onnx",
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="The file. Default: beside the weights.")
    ] = None,
    outputs: Annotated[
        str | None,
        typer.Option(
            "--outputs",
            metavar="raw|boxes|both",
            help="Predictions at all locations, suppressed boxes, or both. Default: both; raw for rotated boxes and "
            "for --format torch.",
            show_default=False,
        ),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Leave height, width and number of images open.")] = False,
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH", help="Width and height of the input. Default: that of the detector, in landscape."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Number of images, unless it is open.")] = 1,
    int8: Annotated[
        bool, typer.Option("--int8", help="Compute convolutions with 8-bit integers, calibrated on --data.")
    ] = False,
    data: options.Data = None,
    images: Annotated[
        list[str] | None,
        typer.Option("--images", metavar="PATH", help="Pictures to compare on. Default: those of --data."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Export a detector to a file for other programs, and check it.

    The file takes 8-bit RGB images, normalises them itself, and is compared
    with the detector before it is left behind; with --data, AP of both is
    printed. 'predict', 'evaluate' and 'distill --teacher' take the file.
    Settings are input.* and detections.* (thresholds), and data.*.

    [bold]Examples[/bold]

    locdistill export runs/student/best --out student.onnx
    locdistill export runs/student --dynamic --data path/to/data
    locdistill export runs/student --int8 --data path/to/data --out small.onnx
    locdistill export runs/student --outputs raw --size 320x320 --batch 4
    locdistill export runs/student --format openvino
    """
    from locdistill.cli.report import progress, report_export  # noqa: PLC0415 - heavy
    from locdistill.export.export import ExportPlan  # noqa: PLC0415 - heavy
    from locdistill.export.export import export as run  # noqa: PLC0415 - heavy
    from locdistill.inference.benchmark.benchmark import parse_size  # noqa: PLC0415 - heavy

    plan = ExportPlan(
        kind=kind,
        outputs=outputs,
        size=None if size is None else parse_size(size, "--size"),
        dynamic=dynamic,
        batch=batch,
        int8=int8,
    )
    result = run(
        weights,
        out,
        plan,
        data=data,
        images=images or (),
        overrides=settings or (),
        progress=progress("evaluating"),
        tell=lambda line: print(line, file=sys.stderr),
    )
    report_export(result, as_json=as_json)
