"""Published weights on a model hub, through ``huggingface_hub``: upload, download, and addresses in place of paths.

A hub is never required: every path that begins with ``hf://`` can be a file instead. Downloaded files are found again
without a network. Address, token and cache are the library's: ``HF_ENDPOINT``, ``HF_TOKEN`` or ``hf auth login``,
``HF_HOME``, ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from locdistill.errors import HubError, LocdistillError, RunError
from locdistill.files import make_folder, replacing
from locdistill.models import download
from locdistill.models.checksum import check_checksum, split_checksum
from locdistill.models.foreign import detector_settings
from locdistill.models.weights import SUFFIX, locate

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_ADDRESS = re.compile(r"hf:/{1,2}(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?")


@dataclass(frozen=True)
class _Address:
    """Address on the hub: a repository, and optionally a revision and a file of it."""

    repo_id: str
    revision: str | None = None
    file: str | None = None


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    file: str | None = None,
    out: str | Path | None = None,
    token: str | None = None,
) -> Path:
    """Download weights from a hub or a web address, and check them against the checksum in their name.

    Args:
        repo_id: ``OWNER/NAME``, ``hf://OWNER/NAME[@REVISION][/FILE]`` or ``https://...``.
        revision: A branch, tag or commit; the main branch unless given.
        file: File of the repository; the only weights in it unless given.
        out: Folder to put the file in; it stays in the cache of the hub, or of this package, unless given.
        token: Token of the hub, for a private repository; that of the login unless given.

    Returns:
        The file, for :meth:`locdistill.Detector.load` and other functions that take weights.

    Raises:
        HubError: The hub cannot be reached, or has no such repository, revision or file, or the file is ambiguous.
        WeightsError: The file is damaged, or not a detector of this package.
        RunError: ``out`` cannot be written to, or another file of this name is in the way.
    """
    if download.is_url(repo_id):
        found = download.fetch(repo_id)
    else:
        named = _address(repo_id) or _Address(repo_id)
        found = _fetch(_Address(named.repo_id, revision or named.revision, file or named.file), token)
    if out is None:
        return found
    make_folder(Path(out))
    target = Path(out) / found.name
    if target.exists():
        if target.read_bytes() == found.read_bytes():
            return target
        raise RunError(f"{target} exists already, with other content; give another folder with --out DIR")
    try:
        with replacing(target) as part:
            shutil.copyfile(found, part)
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror or error}); give another folder") from error
    return target


def find(weights: str | Path) -> Path:
    """Return the path of the weights that a user names.

    Args:
        weights: A file, a path without its suffix, a run folder (its best), ``https://...`` or
            ``hf://OWNER/NAME[@REVISION][/FILE]``; the last two are downloaded if needed.

    Raises:
        HubError: The hub cannot be reached, or has no such repository, revision or file.
        WeightsError: There is no such file, or the download fails, is damaged or not a detector of this package.
    """
    if download.is_url(str(weights)):
        return download.fetch(str(weights))
    address = _address(str(weights))
    return locate(weights) if address is None else _fetch(address, token=None)


def is_address(text: str) -> bool:
    """Return whether a text is an address, of the hub or of the web, not a path."""
    return text.startswith("hf:/") or download.is_url(text)


def _address(text: str) -> _Address | None:
    """Parse a hub address; return None if the text is a path.

    Raises:
        HubError: It begins like an address, but is not valid.
    """
    if not text.startswith("hf:/"):
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise HubError(f"{text}: expected hf://OWNER/NAME, optionally followed by @REVISION and /FILE")
    return _Address(found["repo_id"], found["revision"], found["file"])


def _fetch(address: _Address, token: str | None) -> Path:
    """Download a file, or find it in the cache, and check it."""
    with asking(address.repo_id, address.revision):
        api = hub_api(token)
        file = address.file
        if file is None:
            # The default weights: the only published ones, or the only ones.
            files = _files(api, address)
            there = [name for name in files if name.endswith(SUFFIX)]
            published = [name for name in there if split_checksum(PurePosixPath(name).stem)[1] is not None]
            if not there:
                listed = ", ".join(files[:10]) or "nothing"
                raise HubError(f"{address.repo_id} has no weights ({SUFFIX}); it has {listed}")
            if len(published) != 1 and len(there) != 1:
                listed = "\n  ".join(sorted(published or there))
                raise HubError(
                    f"{address.repo_id} has several weights; choose one with --file, or as hf://{address.repo_id}/FILE:"
                    f"\n  {listed}"
                )
            file = published[0] if len(published) == 1 else there[0]
        found = Path(api.hf_hub_download(address.repo_id, file, revision=address.revision))
    check_checksum(found)
    if found.suffix == SUFFIX:
        detector_settings(found)
    return found


def _files(api: HfApi, address: _Address) -> list[str]:
    """Return names of the files of a repository; if the hub cannot be reached, of those downloaded before."""
    from huggingface_hub import errors  # noqa: PLC0415 - heavy

    try:
        info = api.model_info(address.repo_id, revision=address.revision)  # fails sooner than a listing
        return [file.rfilename for file in info.siblings or ()]
    except _failed_connection() as error:
        if isinstance(error, errors.HfHubHTTPError):  # the hub answered
            raise
        try:
            folder = api.snapshot_download(
                address.repo_id, revision=address.revision, local_files_only=True, allow_patterns=f"*{SUFFIX}"
            )
        except errors.LocalEntryNotFoundError:
            raise error from None
        return [path.relative_to(str(folder)).as_posix() for path in Path(str(folder)).rglob(f"*{SUFFIX}")]


def hub_api(token: str | None) -> HfApi:
    """Return the hub's client."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - heavy

    return HfApi(token=token, library_name="locdistill")


def _failed_connection() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failed connection; the hub's library has changed its HTTP client more than once."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415 - heavy

    return (OSError, *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)))


@contextmanager
def asking(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub into a `HubError` with a remedy.

    Raises:
        HubError: The block raised an error of the hub's library.
    """
    from huggingface_hub import errors  # noqa: PLC0415 - heavy

    failures: tuple[type[Exception], ...] = (ValueError, RuntimeError, *_failed_connection())
    try:
        yield
    except LocdistillError:
        raise
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repo_id}: no revision {revision!r}; expected a branch, a tag or a commit") from error
    except errors.HFValidationError as error:
        raise HubError(f"{repo_id!r}: expected a model as OWNER/NAME ({error})") from error
    except failures as error:
        raise HubError(f"{repo_id}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """Return an explanation of an error of the hub's library for the user."""
    from huggingface_hub import constants, errors  # noqa: PLC0415 - heavy

    reason = (getattr(error, "server_message", None) or str(error).strip() or type(error).__name__).splitlines()[0]
    log_in = "log in with 'hf auth login' or set HF_TOKEN"
    answer = getattr(error, "response", None)
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such model at {constants.ENDPOINT}, or it is private: check the name, or {log_in}"
    if answer is not None and answer.status_code == 404:
        return f"no such file: {answer.url}"
    if answer is not None and answer.status_code in (401, 403):
        return f"access denied by the hub ({reason}): {log_in}, with a token that has access"
    if answer is not None or not isinstance(error, _failed_connection()):
        return f"error of the hub or its library: {reason}"
    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    return (
        f"no answer from the model hub at {constants.ENDPOINT} ({reason}). A network is needed for the first download "
        "only; HF_ENDPOINT sets another hub. Without a network, copy the file here and give its path"
    )
