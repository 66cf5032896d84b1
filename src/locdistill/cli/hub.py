"""``locdistill push`` and ``locdistill pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from locdistill.cli import options

Revision = Annotated[
    str | None, typer.Option("--revision", metavar="NAME", help="Branch of the repository. Default: its main branch.")
]


def push(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A published file, or the folder of its run.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Revision = None,
    message: Annotated[str | None, typer.Option("--message", "-m", metavar="TEXT", help="Commit message.")] = None,
    as_json: options.Json = False,
) -> None:
    """Upload published weights, their card and recipe to a model hub.

    Log in with 'hf auth login', or set HF_TOKEN. HF_ENDPOINT names a hub
    other than huggingface.co.

    [bold]Examples[/bold]

    locdistill push runs/student me/r18-coco
    locdistill push shared/r18-coco-1a2b3c4d.safetensors me/r18-coco --private
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.publishing.push import push as run  # noqa: PLC0415 - heavy

    done = run(path, repo, private=private, revision=revision, message=message)
    if as_json:
        print_json(
            {"url": done.url, "commit": done.commit, "files": list(done.files), "other_weights": list(done.others)}
        )
        return
    print(f"{done.url}: {', '.join(done.files)}")
    if done.others:
        print(f"the repository has other weights too, so 'pull' needs --file: {', '.join(done.others)}")


def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository.")],
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="Weights file, if the repository has several.")
    ] = None,
    revision: Revision = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder for the file.")] = ".",
    as_json: options.Json = False,
) -> None:
    """Fetch published weights from a model hub and check them.

    Every option for weights also takes hf://OWNER/NAME, followed by @REVISION
    or /FILE if needed, and fetches them itself.

    [bold]Examples[/bold]

    locdistill pull me/r18-coco --out weights/
    locdistill predict hf://me/r18-coco image.jpg --save out/
    locdistill distill --teacher hf://me/r101-coco@v2 --data path/to/data
    """
    from locdistill.cli.report import print_json  # noqa: PLC0415 - heavy
    from locdistill.models.hub import pull as run  # noqa: PLC0415 - heavy

    found = run(repo, revision=revision, file=file, out=out)
    print_json({"weights": str(found)}) if as_json else print(found)
