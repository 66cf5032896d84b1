"""``locdistill publish``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options


def publish(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, runs/NAME/last, or a weights file.")],
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the files. Default: RUN/published.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the model. Default: that of the recipe.")
    ] = None,
    which: Annotated[str, typer.Option("--which", metavar="best|last", help="Weights of the run.")] = "best",
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="License for the card, such as apache-2.0.")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Evaluate now on the run's data, for AP by class on the card.")
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="PATH", help="Evaluate now on this data set.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a run's detector to a file for publication.

    The file is named by its content, NAME-<8 digits of its SHA-256>, and
    holds the detector alone: no teacher, no paths of this machine. A model
    card and the recipe are written beside it.

    [bold]Examples[/bold]

    locdistill publish runs/student
    locdistill publish runs/student --name r18-coco --license apache-2.0
    locdistill publish runs/student --evaluate
    locdistill publish teacher.safetensors --data path/to/data --out shared/
    """
    from locdistill.cli.report import print_json, progress  # noqa: PLC0415 - heavy
    from locdistill.publishing.publish import publish as run_publish  # noqa: PLC0415 - heavy

    found = run_publish(
        run,
        out=out,
        name=name,
        which=which,
        license=license,
        evaluate_on=data or evaluate,
        progress=progress("evaluating"),
    )
    if as_json:
        paths = {"weights": found.weights, "card": found.card, "recipe": found.recipe}
        content = {key: None if path is None else str(path) for key, path in paths.items()}
        print_json(content | {"sha256": found.sha256, "notes": list(found.notes)})
        return
    print(found.weights)
    print(f"card: {found.card.name}; " + (f"recipe: {found.recipe.name}" if found.recipe else "no recipe"))
    for note in found.notes:
        print(f"note: {note}")
