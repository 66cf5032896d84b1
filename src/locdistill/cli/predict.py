"""``locdistill predict``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def predict(
    weights: Annotated[str, typer.Argument(metavar="WEIGHTS", help="A run's folder, runs/NAME/best, or a file.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Image files, or folders of them.")],
    save: Annotated[
        str | None, typer.Option("--save", metavar="DIR", help="Draw pictures and write predictions.json here.")
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
    batch: Annotated[int, typer.Option("--batch", min=1, help="Batch size.")] = 8,
    tta: options.Tta = False,
    device: options.Device = None,
    settings: options.Set = None,
    as_json: options.Json = False,
) -> None:
    """Detect objects in image files.

    Files that cannot be read are listed at the end, after the others.
    Settings (--set) may be input.* (size of the images) and detections.*
    (thresholds, suppression, augmentation).

    [bold]Examples[/bold]

    locdistill predict runs/student/best image.jpg folder/ --save out/
    locdistill predict runs/student image.jpg --threshold 0.5 --json
    locdistill predict runs/student folder/ --tta -s detections.nms=voting_cluster_diou
    """
    from locdistill.cli.report import progress, report_predictions, report_scores  # noqa: PLC0415 - heavy
    from locdistill.inference.predict import PartialImageError, default_scores  # noqa: PLC0415 - heavy
    from locdistill.inference.predict import predict as run  # noqa: PLC0415 - heavy

    if threshold is None:
        report_scores(default_scores(weights))
    try:
        found = run(
            weights,
            images,
            save=save,
            threshold=threshold,
            batch=batch,
            device=device,
            overrides=[*options.test_time_augmentation(tta), *(settings or ())],
            progress=progress("detecting"),
        )
    except PartialImageError as error:
        report_predictions(error.found, save, as_json=as_json)
        raise
    report_predictions(found, save, as_json=as_json)
