"""``locdistill predict``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from locdistill.cli import options


def predict(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A run's folder, runs/NAME/best, or a file.")],
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...",
            help="Pictures, videos, folders of them, patterns in quotes, https addresses, rtsp://... streams, or "
            "camera:0.",
        ),
    ],
    save: Annotated[
        str | None,
        typer.Option("--save", metavar="DIR", help="Draw pictures and videos and write predictions.json here."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="coco|yolo|csv", help="Write this format too; can be given several times."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0,
            max=1,
            help="Minimum score to report and draw. Default: the one with the best F1 of each "
            "class where the weights have it, else 0.3.",
        ),
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option("--tiles", min=32, metavar="PIXELS", help="Cut large pictures into tiles of this side."),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap", min=0, metavar="PIXELS", help="Overlap of the tiles. Default: a fifth of their side."
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, metavar="N", help="Use every Nth frame of a video.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 8,
    tta: options.Tta = False,
    device: options.Device = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Detect objects in pictures, videos and streams.

    Pictures and frames that cannot be read are listed at the end, after the
    others. Ctrl-C ends a stream; what was found is written. Settings (--set)
    may be input.* (size of the images) and detections.* (thresholds,
    suppression, augmentation). Videos and cameras need PyAV, in the extra
    "video" of the package.

    [bold]Examples[/bold]

    locdistill predict runs/student/best image.jpg folder/ --save out/
    locdistill predict runs/student clip.mp4 --save out/ --format csv
    locdistill predict runs/student aerial.tif --tiles 1024 --threshold 0.5
    locdistill predict runs/student rtsp://HOST/PATH --every 5 --save out/
    locdistill predict runs/student folder/ --tta -s detections.nms=voting_cluster_diou
    """
    from locdistill.cli.report import progress, report_predictions, report_scores  # noqa: PLC0415 - heavy
    from locdistill.inference.predict import PartialImageError, default_scores  # noqa: PLC0415 - heavy
    from locdistill.inference.predict import predict as run  # noqa: PLC0415 - heavy

    if threshold is None:
        report_scores(default_scores(weights))
    begun = time.monotonic()
    try:
        found = run(
            weights,
            images,
            save=save,
            formats=formats or (),
            threshold=threshold,
            batch=batch,
            tiles=tiles if tiles is None or overlap is None else (tiles, overlap),
            every=every,
            device=device,
            overrides=[*options.test_time_augmentation(tta), *(settings or ())],
            progress=progress("detecting"),
        )
    except PartialImageError as error:
        report_predictions(error.found, save, seconds=time.monotonic() - begun, as_json=as_json)
        raise
    report_predictions(found, save, seconds=time.monotonic() - begun, as_json=as_json)
