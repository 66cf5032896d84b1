"""``locdistill auto``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from locdistill.cli import options
from locdistill.errors import RecipeError


@options.of_a_run(
    *("teacher", "methods", "balance", "data", "model", "backbone", "size", "epochs", "minutes", "pretrained"),
    *("devices", "batch"),
)
def auto(
    request: dict[str, Any],
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder of everything; an interrupted one is continued.")
    ] = "runs/auto",
    teacher_size: Annotated[
        str | None,
        typer.Option(
            "--teacher-size", metavar="n|s|m|l", help="Size of the teacher. Default: larger than that of the student."
        ),
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone/--no-alone", help="Train the student without a teacher too, and compare.")
    ] = True,
    live: Annotated[
        bool, typer.Option("--live", help="Run the teacher at each step, and store none of its predictions.")
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", "-n", min=1, help="Trainings of each student.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Parallel trainings, which share the cores.")] = 1,
    kind: Annotated[str, typer.Option("--format", metavar="onnx|openvino|torch", help="Format of the file.")] = "onnx",
    fixed: Annotated[
        bool,
        typer.Option("--fixed", help="Export for one image of the detector's own size, not for any number and size."),
    ] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Export with 8-bit convolutions.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only check the data, and say how long everything takes.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Go from a data set to a checked file of a distilled student.

    Checks the data, trains a teacher (or takes --teacher), stores its
    predictions, trains the student alone and with its teacher, compares them,
    exports the better one to student.onnx, compares the file with it, and writes
    report.html. Says beforehand how long it takes. To continue after an
    interruption, give the same command again; what is done is not repeated.
    Settings data.* and engine.* are for teacher and student, others for the student.

    [bold]Examples[/bold]

    locdistill auto --data bccd --out runs/bccd
    locdistill auto --data bccd --minutes 60 --out runs/bccd
    locdistill auto --data bccd --teacher runs/teacher --seeds 3 --out runs/bccd
    locdistill auto --data bccd --size n --teacher-size m --int8 --dry-run
    """
    from locdistill.cli.report import console, print_json, with_seconds  # noqa: PLC0415 - heavy
    from locdistill.export.export import ExportPlan  # noqa: PLC0415 - heavy
    from locdistill.recipe.request import Request  # noqa: PLC0415 - heavy
    from locdistill.study.auto import AutoPlan  # noqa: PLC0415 - heavy
    from locdistill.study.auto import auto as run  # noqa: PLC0415 - heavy
    from locdistill.study.compare.result import difference_table, summary_table  # noqa: PLC0415 - heavy

    named = ("teacher", "data", "model", "backbone", "size", "epochs", "minutes", "pretrained")
    command = options.spelled(
        *("locdistill", "auto", *request["overrides"]),
        **{name: request.get(name) for name in named},
        out=out,
        teacher_size=teacher_size,
        method=request.get("methods", []),
        no_alone=not alone,
        live=live,
        fixed=fixed,
        int8=int8,
        seeds=None if seeds == 1 else seeds,
        jobs=None if jobs == 1 else jobs,
        format=None if kind == "onnx" else kind,
    )
    if request["recipe"] is not None:
        raise RecipeError(f"{request['recipe']}: 'auto' chooses its recipes; write settings as key.path=value")
    plan = AutoPlan(
        student=Request(**{name: value for name, value in request.items() if name != "recipe"}),  # type: ignore[typeddict-item]
        teacher_size=teacher_size,
        alone=alone,
        cache=not live,
        seeds=seeds,
        jobs=jobs,
        export=ExportPlan(kind=kind, dynamic=not fixed, int8=int8),
    )
    result = run(plan, out, command=command, only_plan=dry_run, tell=with_seconds())
    if result is None:
        return
    if as_json:
        print_json(result.as_dict())
        return
    screen = console()
    for table in (summary_table(result.comparison), *([difference_table(result.comparison)] if alone else [])):
        screen.print()
        screen.print(table.rich())
    lines = [*result.comparison.verdicts.values(), result.text(), f"The page: {result.page}"]
    screen.print("\n" + "\n\n".join(line for line in lines if line), markup=False)
