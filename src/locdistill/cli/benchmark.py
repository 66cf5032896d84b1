"""``locdistill benchmark``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def benchmark(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A weights file, a run's folder, runs/NAME/best, or a recipe's name."),
    ],
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="WIDTHxHEIGHT", help="Image size, such as 1333x800. Default: the model's own."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size for the throughput.")] = 8,
    device: options.Device = None,
    precision: Annotated[str, typer.Option("--precision", metavar="32|bf16|fp16", help="Precision of PyTorch.")] = "32",
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Number of timed calls. Default: 20 on a CPU, 200 on a GPU."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="eager, compiled or onnxruntime; can be given several times. Default: all available ones.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", metavar="DIR", help="Folder of images. Default: noise."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", metavar="FILE", help="Also write JSON here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Measure how fast a detector is and what it costs.

    Measures images per second at batch size 1, with post-processing and
    without the first calls, as the reference does; percentiles of the latency,
    throughput, parameters, multiply-adds and peak memory. Does so with PyTorch,
    torch.compile and ONNX Runtime, and checks that all detect the same. A
    recipe's detector has random weights: only its post-processing differs in
    speed from that of a trained one.

    [bold]Examples[/bold]

    locdistill benchmark runs/student/best --input 1333x800
    locdistill benchmark gfl_r18_1x --engine eager --batch 1 --json
    locdistill benchmark runs/student --data path/to/images --precision bf16 --out speed.json
    """
    import sys  # noqa: PLC0415 - beside the heavy ones

    from rich.markup import escape  # noqa: PLC0415 - heavy

    from locdistill.cli.report import console, print_json  # noqa: PLC0415 - heavy
    from locdistill.inference.benchmark.benchmark import benchmark as run  # noqa: PLC0415 - heavy

    result = run(
        model,
        input=input,
        batch=batch,
        device=device,
        precision=precision,
        steps=steps,
        engines=engine,
        data=data,
        out=out,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if as_json:
        print_json(result.as_dict())
        return
    screen = console()
    for table in result.tables():
        screen.print(table.rich())
    for name, reason in result.missing.items():
        screen.print(f"{name} could not be measured: {escape(reason)}", soft_wrap=True)
    for note in result.notes:
        screen.print(escape(note), soft_wrap=True)
