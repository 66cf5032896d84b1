"""Published weights onto a model hub, through ``huggingface_hub``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from locdistill.errors import HubError, WeightsError
from locdistill.models.checksum import check_checksum, split_checksum
from locdistill.models.hub import asking, file_names, hub_api
from locdistill.models.weights import SUFFIX, read_metadata
from locdistill.publishing.publish import PUBLISHED
from locdistill.recipe.run_folder import RECIPE

CARD = "README.md"
"""The name under which a hub shows a model card."""


@dataclass(frozen=True)
class PushResult:
    """What was uploaded.

    Attributes:
        repo_id: ``OWNER/NAME``.
        url: Of the repository.
        commit: Of the upload, as the hub names it.
        files: Names in the repository.
        others: Weights that were in the repository already and are still there.
    """

    repo_id: str
    url: str
    commit: str
    files: tuple[str, ...]
    others: tuple[str, ...]


def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> PushResult:
    """Upload published weights with their card (as ``README.md``) and recipe (as ``recipe.yaml``), in one commit.

    The repository is made if it is not there. Weights that were pushed before stay beside the new ones, under their own
    names; card and recipe are replaced.

    Args:
        path: A file that :func:`locdistill.publish` wrote, the folder it is in, or the run's folder.
        repo_id: ``OWNER/NAME``.
        private: Make a private repository; one that is there must be private then.
        revision: A branch of the repository; its main one unless given.
        message: Of the commit.
        token: Of the hub; the one that is logged in unless given.

    Raises:
        WeightsError: Nothing published is there, or it was changed since.
        HubError: The hub cannot be reached, or does not let one write.
    """
    weights = _published_file(Path(path))
    check_checksum(weights)
    read_metadata(weights)
    sources = {weights.name: weights, CARD: weights.with_suffix(".md"), RECIPE: weights.with_suffix(".yaml")}
    if not sources[CARD].is_file():
        raise WeightsError(f"{weights}: its model card {sources[CARD].name} is not beside it; publish it again")
    sources = {name: source for name, source in sources.items() if source.is_file()}
    with asking(repo_id, revision):
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - heavy, and only here

        api = hub_api(token)
        url = api.create_repo(repo_id, exist_ok=True, private=private or None)
        before = api.model_info(repo_id, revision=revision)
        if private and not before.private:
            raise HubError(f"{repo_id} is there already and public; nothing was uploaded: make it private on the hub")
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in sources.items()],
            commit_message=message or f"locdistill: {weights.stem}",
            revision=revision,
        )
    others = sorted(name for name in file_names(before) if name.endswith(SUFFIX) and name != weights.name)
    return PushResult(repo_id, str(url), str(commit.oid), tuple(sources), tuple(others))


def _published_file(path: Path) -> Path:
    """The published weights that a path means."""
    if not path.is_dir():
        if not path.is_file():
            raise WeightsError(f"{path}: there is no such file or folder; expected published weights")
        if path.suffix != SUFFIX or split_checksum(path.stem)[1] is None:
            raise WeightsError(
                f"{path}: expected published weights, NAME-<8 digits>{SUFFIX}; 'locdistill publish "
                f"{shlex.quote(str(path))}' makes them"
            )
        return path
    for folder in (path, path / PUBLISHED):
        found = sorted(p for p in folder.glob(f"*{SUFFIX}") if split_checksum(p.stem)[1] is not None)
        if len(found) > 1:
            raise WeightsError(f"{folder} has several published weights, name one: {', '.join(map(str, found))}")
        if found:
            return found[0]
    raise WeightsError(f"{path} has no published weights; 'locdistill publish {shlex.quote(str(path))}' makes them")
