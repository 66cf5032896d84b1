"""Tensors by key in a memory-mapped file, shared by the processes that read and write it.

The file is an LMDB database; each record is a set of named tensors in safetensors format. Writes are atomic, also when
the process is killed. Many processes may read while one writes, and writers wait for each other. LMDB needs a local
file system: on a network file system the file may be read, and written by one machine only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
from safetensors.torch import load, save
from torch import Tensor

from locdistill.errors import CacheError

# Reserved addresses, not disk space: the file grows with its contents.
ADDRESSES = 2**40
READERS = 1024
FILE = "data.mdb"
ABOUT, RECORDS, NOTES = b"about", b"records", b"notes"
CacheRecord = dict[str, Tensor]


@dataclass(frozen=True)
class Store:
    """Database of records, small notes, and metadata of the whole.

    It may be passed to other processes: each opens the file itself, on first use.

    Attributes:
        path: Folder of the database; made by the first write.
    """

    path: Path

    @property
    def exists(self) -> bool:
        """Whether the store has been written to."""
        file = self.path / FILE
        return file.is_file() and file.stat().st_size > 0

    @property
    def bytes_on_disk(self) -> int:
        """Size of the file."""
        return (self.path / FILE).stat().st_size if self.exists else 0

    def __len__(self) -> int:
        """Return the number of records."""
        with self._transaction() as (transaction, tables):
            return 0 if transaction is None else int(transaction.stat(tables[RECORDS])["entries"])

    def get(self, keys: Sequence[bytes]) -> list[CacheRecord | None]:
        """Return the records of these keys; None where there is none."""
        with self._transaction() as (transaction, tables):
            if transaction is None:
                return [None] * len(keys)
            found = [transaction.get(key, db=tables[RECORDS]) for key in keys]
            return [None if data is None else load(bytes(data)) for data in found]

    def has(self, keys: Iterable[bytes]) -> list[bool]:
        """Return for each key whether it has a record."""
        with self._transaction() as (transaction, tables):
            if transaction is None:
                return [False for _ in keys]
            return [transaction.get(key, db=tables[RECORDS]) is not None for key in keys]

    def put(self, records: Mapping[bytes, CacheRecord]) -> None:
        """Add records, all of them or none; existing records are left unchanged.

        Raises:
            CacheError: The folder cannot be written to, or the disk is full.
        """
        content = {
            key: save({name: value.cpu().contiguous() for name, value in r.items()}) for key, r in records.items()
        }
        with self._transaction(write=True) as (transaction, tables):
            for key, data in content.items():
                transaction.put(key, data, db=tables[RECORDS], overwrite=False)

    def notes(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the notes of these keys; None where there is none."""
        with self._transaction() as (transaction, tables):
            if transaction is None:
                return [None] * len(keys)
            found = [transaction.get(key, db=tables[NOTES]) for key in keys]
            return [None if data is None else bytes(data) for data in found]

    def note(self, notes: Mapping[bytes, bytes]) -> None:
        """Write notes, replacing existing ones.

        Raises:
            CacheError: The folder cannot be written to, or the disk is full.
        """
        with self._transaction(write=True) as (transaction, tables):
            for key, data in notes.items():
                transaction.put(key, data, db=tables[NOTES])

    def about(self, name: str) -> Any:
        """Return the metadata with this name; None if there is none."""
        with self._transaction() as (transaction, tables):
            data = None if transaction is None else transaction.get(name.encode(), db=tables[ABOUT])
            return None if data is None else json.loads(bytes(data))

    def claim(self, name: str, value: Any) -> Any:
        """Write plain data as metadata with this name unless it exists, and return the stored value.

        Raises:
            CacheError: The folder cannot be written to, or the disk is full.
        """
        with self._transaction(write=True) as (transaction, tables):
            transaction.put(name.encode(), json.dumps(value).encode(), db=tables[ABOUT], overwrite=False)
        return self.about(name)

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[tuple[Any, dict[bytes, Any]]]:
        """Yield a transaction and the tables; to read what is not there, None and no tables."""
        if not write and not self.exists:
            yield None, {}
            return
        try:
            if write:
                self.path.mkdir(parents=True, exist_ok=True)
            try:
                environment, tables = _opened(self.path, writable=write)
            except (lmdb.NotFoundError, lmdb.ReadonlyError):
                if write:
                    raise
                yield None, {}  # another process is creating it
                return
            with environment.begin(write=write, buffers=not write) as transaction:
                yield transaction, tables
        except (lmdb.Error, OSError) as error:
            raise CacheError(
                f"{self.path}: this cache of a teacher's predictions cannot be {'written to' if write else 'read'} "
                f"({error}); check the folder's rights and the disk's free space, or name another folder. If the file "
                "is damaged, remove the folder: the cache is built again"
            ) from error


class _Open(NamedTuple):
    process: int
    file: int | None
    writable: bool
    environment: Any
    tables: dict[bytes, Any]


_OPEN: dict[Path, _Open] = {}
"""Open databases. A process may open one only once, and must not use one opened by its parent."""


def _opened(path: Path, *, writable: bool) -> tuple[Any, dict[bytes, Any]]:
    path = path.resolve()
    known = _OPEN.pop(path, None)
    if known is not None and ((known.process, known.file) != (os.getpid(), _file(path)) or known.writable < writable):
        known.environment.close()
        known = None
    if known is None:
        environment = lmdb.open(
            str(path),
            map_size=ADDRESSES,
            max_dbs=3,
            max_readers=READERS,
            readonly=not writable,
            lock=writable or os.access(path, os.W_OK),  # readers need a lock file, which a read-only folder cannot hold
            metasync=False,
            readahead=False,
        )
        try:
            tables = {name: environment.open_db(name, create=writable) for name in (ABOUT, RECORDS, NOTES)}
        except BaseException:
            environment.close()
            raise
        known = _Open(os.getpid(), _file(path), writable, environment, tables)
    _OPEN[path] = known
    return known.environment, known.tables


def _file(path: Path) -> int | None:
    """Return the inode of the file, to detect its replacement by another one."""
    return (path / FILE).stat().st_ino if (path / FILE).is_file() else None
