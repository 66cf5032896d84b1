"""``locdistill evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from locdistill.cli import options


def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS|RESULTS.json",
            help="A run's folder, runs/NAME/best, or a file; or COCO results of any program, with --data.",
        ),
    ],
    words: options.KeyValues = None,
    data: options.Data = None,
    split: Annotated[str, typer.Option("--split", help="val, train, or any split of the data set.")] = "val",
    format_only: Annotated[
        str | None,
        typer.Option(
            "--format-only", metavar="FILE", help="Write a COCO results file for a test server; compute no metrics."
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="DIR",
            help="Write pictures (curves, confusion, errors, truth and detections of each image), detections.json and "
            "per_class.csv here.",
        ),
    ] = None,
    save_images: Annotated[
        int | None,
        typer.Option(
            "--save-images", min=0, metavar="N", help="With --save: draw N images, evenly spaced; all unless given."
        ),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size, if all images have the same size.")] = 8,
    eleven_point: options.ElevenPoint = None,
    published_sum: options.PublishedSum = False,
    tta: options.Tta = False,
    device: options.Device = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Evaluate weights or stored results with the metrics of COCO, of VOC on a VOC data set, or of rotated boxes.

    The data set is that of the run unless --data is given. Settings may be
    data.*, input.* (size of the images) and detections.* (thresholds,
    suppression, augmentation).
    In several processes: torchrun --nproc-per-node 4 -m locdistill evaluate ...

    [bold]Examples[/bold]

    locdistill evaluate runs/student/best --data bccd
    locdistill evaluate runs/student --split test --format-only results.json
    locdistill evaluate runs/student --save judged --save-images 200
    locdistill evaluate results.json --data bccd --split test
    locdistill evaluate runs/student detections.nms_iou=0.5 --json
    locdistill evaluate runs/student --tta detections.nms=voting_cluster_diou
    locdistill evaluate runs/rotated --data DOTA-tiles --published-sum
    """
    from locdistill.cli.report import progress, report_evaluation  # noqa: PLC0415 - heavy
    from locdistill.dist import process_rank  # noqa: PLC0415 - heavy
    from locdistill.errors import RecipeError  # noqa: PLC0415 - heavy
    from locdistill.files import make_folder  # noqa: PLC0415 - heavy
    from locdistill.inference.evaluate import evaluate as run  # noqa: PLC0415 - heavy

    if save is not None and format_only is not None:
        raise RecipeError("--format-only judges nothing, so --save has nothing to draw; leave one of them out")
    if save is not None and process_rank() == 0:
        make_folder(Path(save))  # before the images are detected on
    result = run(
        weights,
        data,
        split=split,
        format_only=format_only,
        batch=batch,
        device=device,
        overrides=[*options.test_time_augmentation(tta), *(settings or ()), *(words or ())],
        progress=progress("evaluating"),
    )
    report_evaluation(result, as_json=as_json, eleven_point=eleven_point, published_sum=published_sum, saved=save)
    if save is not None and process_rank() == 0:
        result.save(save, images=save_images, eleven_point=eleven_point, progress=progress("drawing"))
