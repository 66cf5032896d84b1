"""``locdistill data``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options

PROBLEMS_FOUND = 1

app = typer.Typer(
    help="Check data sets, and cut large images into tiles.", no_args_is_help=True, rich_markup_mode="rich"
)


@app.command("check")
def check(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A COCO, VOC, YOLO, DOTA, HRSC2016 or labelme data set.")],
    words: options.KeyValues = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """List all problems of a data set; the exit code is 1 if there are any.

    [bold]Examples[/bold]

    locdistill data check bccd
    locdistill data check folder data.format=voc data.val=test --json
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.data.check import check as run  # noqa: PLC0415 - heavy
    from locdistill.data.settings import DataSettings  # noqa: PLC0415 - heavy
    from locdistill.recipe.load import validate  # noqa: PLC0415 - heavy
    from locdistill.recipe.overrides import apply_overrides  # noqa: PLC0415 - heavy

    plain = apply_overrides({"data": {"path": path}}, [*(settings or ()), *(words or ())])
    report = run(validate(DataSettings, plain["data"], "data"))
    print_json(report.as_dict()) if as_json else print(report)
    if report.problems:
        raise typer.Exit(PROBLEMS_FOUND)


@app.command("tile")
def tile(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set of any format.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the tiles: a data set in DOTA's layout.")],
    words: options.KeyValues = None,
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split; can be given several times. Default: all of train, val and test."),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=1, help="Height and width of a tile, in pixels.")] = 1024,
    overlap: Annotated[int, typer.Option("--overlap", min=0, help="Overlap of neighbouring tiles, in pixels.")] = 200,
    scale: Annotated[
        list[float] | None,
        typer.Option("--scale", help="Scale at which images are cut; can be given several times. Default: 1."),
    ] = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Cut large images into overlapping square tiles, to train and detect on.

    An object belongs to every tile that holds 0.7 of its area or more
    (tiling.part); if a part lies outside the tile, it is marked as difficult (tiling.mark_cut).
    To train on difficult objects like on others, set data.crowd=objects.
    Run the same command again after an interruption.

    [bold]Examples[/bold]

    locdistill data tile DOTA tiles
    locdistill data tile DOTA tiles --overlap 500 --scale 0.5 --scale 1 --scale 1.5
    locdistill data tile folder tiles --split val --size 512 tiling.part=0.5
    """
    from locdistill.cli.report import progress, report_tiling  # noqa: PLC0415 - heavy
    from locdistill.inference.tiles import tile as run  # noqa: PLC0415 - heavy

    result = run(
        data,
        out,
        splits=split or (),
        size=size,
        overlap=overlap,
        scales=scale or (1.0,),
        overrides=[*(settings or ()), *(words or ())],
        progress=progress("cutting"),
    )
    report_tiling(result, as_json=as_json)


@app.command("merge")
def merge(
    results: Annotated[
        str,
        typer.Argument(
            metavar="RESULTS",
            help="Detections on the tiles: the file of 'evaluate --format-only', or predictions.json of 'predict "
            "--threshold 0'.",
        ),
    ],
    tiles: Annotated[str, typer.Argument(metavar="TILES", help="The folder of 'locdistill data tile'.")],
    words: options.KeyValues = None,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="DIR", help="Folder for the detections of whole images.")
    ] = "merged",
    split: Annotated[str, typer.Option("--split", help="The split that was detected on.")] = "val",
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="PATH", help="The original data set, to evaluate on it.")
    ] = None,
    iou: Annotated[
        float | None,
        typer.Option(
            "--iou",
            min=0,
            max=1,
            help="IoU above which the worse of two detections of a class is removed. Default: 0.1 for rotated boxes, "
            "else 0.3.",
        ),
    ] = None,
    eleven_point: options.ElevenPoint = None,
    published_sum: options.PublishedSum = False,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Merge detections on tiles to detections on whole images.

    Writes results.json and, for rotated boxes, Task1_*.txt and Task1.zip for
    DOTA's server. With --data they are evaluated.

    [bold]Examples[/bold]

    locdistill evaluate runs/student --data tiles --format-only found.json
    locdistill data merge found.json tiles --out merged --data DOTA
    locdistill data merge out/predictions.json tiles --split test --out merged
    """
    from locdistill.cli.report import report_evaluation  # noqa: PLC0415 - heavy
    from locdistill.inference.tiles import merge as run  # noqa: PLC0415 - heavy

    result = run(results, tiles, out, split=split, data=data, iou=iou, overrides=[*(settings or ()), *(words or ())])
    report_evaluation(result, as_json=as_json, eleven_point=eleven_point, published_sum=published_sum)
