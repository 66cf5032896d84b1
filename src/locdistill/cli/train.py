"""``locdistill train``."""

from __future__ import annotations

from locdistill.cli import options


def train(
    words: options.Words = None,
    data: options.Data = None,
    model: options.Model = None,
    backbone: options.Backbone = None,
    epochs: options.Epochs = None,
    pretrained: options.Pretrained = None,
    start: options.Start = None,
    recipe: options.Recipe = None,
    out: options.Out = None,
    resume: options.Resume = False,
    devices: options.Devices = None,
    batch: options.Batch = None,
    seed: options.Seed = None,
    profile: options.Profile = False,
    settings: options.Set = None,
) -> None:
    """Train a detector, on its own.

    Without a recipe, input size, classes and schedule are chosen for the data;
    'locdistill config' with the same options shows them. The run's folder
    holds the resolved recipe, which gives the same run again.

    [bold]Examples[/bold]

    locdistill train --data bccd --backbone resnet18 --epochs 12
    locdistill train gfl_r50_1x --data coco --devices 8 --out runs/teacher
    locdistill train --data bccd --out runs/a data.flip=0 engine.schedule=cosine
    locdistill train --data bccd --start runs/a --epochs 4 --out runs/b
    locdistill train --data bccd --epochs 1 --profile
    locdistill train --resume --out runs/a
    """
    from locdistill.cli.report import report_run  # noqa: PLC0415 - heavy
    from locdistill.training.train import train as run  # noqa: PLC0415 - heavy

    recipe, overrides = options.request_words(words, recipe, settings)
    result = run(
        data,
        model=model,
        backbone=backbone,
        epochs=epochs,
        pretrained=pretrained,
        start=start,
        recipe=recipe,
        out=out,
        resume=resume,
        overrides=[*options.short_cuts(devices=devices, batch=batch, seed=seed, profile=profile), *overrides],
    )
    report_run(result)
