"""Upload of published weights to a model hub, through ``huggingface_hub``."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from locdistill.errors import HubError, WeightsError
from locdistill.models.checksum import check_checksum, split_checksum
from locdistill.models.hub import asking, hub_api
from locdistill.models.weights import SUFFIX, read_metadata
from locdistill.publishing.publish import PUBLISHED
from locdistill.recipe.run_folder import RECIPE

CARD = "README.md"
"""File name of a model card on a hub."""


@dataclass(frozen=True)
class PushResult:
    """Result of an upload.

    Attributes:
        repo_id: Repository, ``OWNER/NAME``.
        url: Address of the repository.
        commit: The hub's identifier of the commit.
        files: Names of the uploaded files in the repository.
        others: Other weights files in the repository, from earlier uploads.
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

    The repository is created if it does not exist. Weights from earlier uploads stay under their own names; card and
    recipe are replaced.

    Args:
        path: A weights file written by :func:`locdistill.publish`, its folder, or the run folder.
        repo_id: Repository, ``OWNER/NAME``.
        private: Create a private repository; an existing one must then be private.
        revision: Branch of the repository. Default: the main branch.
        message: Message of the commit. Default: ``locdistill: NAME``.
        token: Access token of the hub. Default: the token of the logged-in user.

    Raises:
        WeightsError: There are no published weights, or they were changed after publication.
        HubError: The hub cannot be reached, or write access is denied.
    """
    weights = _published_file(Path(path))
    check_checksum(weights)
    read_metadata(weights)
    sources = {weights.name: weights, CARD: weights.with_suffix(".md"), RECIPE: weights.with_suffix(".yaml")}
    if not sources[CARD].is_file():
        raise WeightsError(f"{weights}: its model card {sources[CARD].name} is missing; publish the weights again")
    sources = {name: source for name, source in sources.items() if source.is_file()}
    with asking(repo_id, revision):
        from huggingface_hub import CommitOperationAdd  # noqa: PLC0415 - heavy, and only here

        api = hub_api(token)
        url = api.create_repo(repo_id, exist_ok=True, private=private or None)
        before = api.model_info(repo_id, revision=revision)
        if private and not before.private:
            raise HubError(
                f"{repo_id} exists already and is public, so nothing was uploaded; make it private on the hub"
            )
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=source) for name, source in sources.items()],
            commit_message=message or f"locdistill: {weights.stem}",
            revision=revision,
        )
    names = (file.rfilename for file in before.siblings or ())
    others = sorted(name for name in names if name.endswith(SUFFIX) and name != weights.name)
    return PushResult(repo_id, str(url), str(commit.oid), tuple(sources), tuple(others))


def _published_file(path: Path) -> Path:
    """Find the published weights file of a path.

    Raises:
        WeightsError: There is none, or a folder has several.
    """
    if not path.is_dir():
        if not path.is_file():
            raise WeightsError(f"{path}: no such file or folder; expected published weights")
        if path.suffix != SUFFIX or split_checksum(path.stem)[1] is None:
            raise WeightsError(
                f"{path}: expected published weights, NAME-<8 digits>{SUFFIX}; 'locdistill publish "
                f"{shlex.quote(str(path))}' makes them"
            )
        return path
    for folder in (path, path / PUBLISHED):
        found = sorted(p for p in folder.glob(f"*{SUFFIX}") if split_checksum(p.stem)[1] is not None)
        if len(found) > 1:
            raise WeightsError(
                f"{folder} has several published weights; pass one of them: {', '.join(map(str, found))}"
            )
        if found:
            return found[0]
    raise WeightsError(f"{path} has no published weights; 'locdistill publish {shlex.quote(str(path))}' makes them")
