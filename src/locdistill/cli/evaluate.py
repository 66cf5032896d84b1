"""``locdistill evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def evaluate(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A run's folder, runs/NAME/best, or a file.")],
    words: options.KeyValues = None,
    data: options.Data = None,
    split: Annotated[str, typer.Option("--split", help="val, train, or any split of the data set.")] = "val",
    format_only: Annotated[
        str | None,
        typer.Option(
            "--format-only", metavar="FILE", help="Write a COCO results file for a test server; compute no metrics."
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
    """Evaluate trained weights with the metrics of COCO, of VOC on a VOC data set, or of rotated boxes.

    The data set is that of the run unless --data is given. Settings may be
    data.*, input.* (size of the images) and detections.* (thresholds,
    suppression, augmentation).
    In several processes: torchrun --nproc-per-node 4 -m locdistill evaluate ...

    [bold]Examples[/bold]

    locdistill evaluate runs/student/best --data bccd
    locdistill evaluate runs/student --split test --format-only results.json
    locdistill evaluate runs/student detections.nms_iou=0.5 --json
    locdistill evaluate runs/student --tta detections.nms=voting_cluster_diou
    locdistill evaluate runs/rotated --data DOTA-tiles --published-sum
    """
    from locdistill.cli.report import progress, report_evaluation  # noqa: PLC0415 - heavy
    from locdistill.inference.evaluate import evaluate as run  # noqa: PLC0415 - heavy

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
    report_evaluation(result, as_json=as_json, eleven_point=eleven_point, published_sum=published_sum)
